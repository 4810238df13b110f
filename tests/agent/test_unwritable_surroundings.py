"""An agent that may write nothing where it is started, as on a read-only root file system: it goes on."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

from tests import processes
from tests.agent.doors import Receiver
from tests.lessrights import USER, as_root_without_capabilities, started

WAY = as_root_without_capabilities()


@pytest.mark.skipif(WAY is None, reason="needs root and setpriv, for an agent without capabilities")
def test_log_file_and_spool_that_cannot_be_written_cost_a_sentence_each_and_no_sample(tmp_path: Path) -> None:
    assert WAY is not None
    scenario = tmp_path / "scenario.toml"
    scenario.write_text('[[node]]\nmatch = "*"\n[[node.gpus]]\nmodel = "l4"\n')
    with tempfile.TemporaryDirectory() as closed, Receiver() as receiver:
        os.chown(closed, USER, USER)
        defaults = {"GPUMON_AGENT__LOGGING__LOG_FILE": "./logs/client.log"}
        with processes.agent(scenario, Path("./spool"), receiver.port, -1, **defaults) as agent:
            with started(WAY, cwd=Path(closed)):
                agent.start()
            for _ in range(3):
                assert receiver.arrived.acquire(timeout=20)
            assert agent.end(signal.SIGTERM) == 0
        assert list(Path(closed).iterdir()) == []

    told = [line for line in agent.log if "WARNING" in line and "Permission denied" in line]
    assert len(told) == 2, agent.log
    assert "log_file_unwritable" in told[0] and "[LOGGING] log_file" in told[0]
    assert "trouble spool_disk" in told[1] and "[SPOOL] directory" in told[1]
    assert not any("Traceback" in line for line in agent.log)
