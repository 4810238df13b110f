"""`gpumon demo`: the first thing a newcomer runs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from tests.processes import free_port, until


def test_the_demo_shows_real_agents_on_a_real_server_and_stops_cleanly_on_ctrl_c(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "gpumon", "demo", "--port", str(free_port()), "--nodes", "2"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert demo.stdout is not None
    with demo.stdout:
        said = ""
        while "Ctrl+C" not in said:
            said += demo.stdout.readline()
        docs = re.search(r"(http://127\.0\.0\.1:\d+)/docs", said)
        assert docs is not None
        with httpx.Client(base_url=docs[1], trust_env=False) as client:
            assert client.get("/docs").status_code == 200

            def clients() -> set[str]:
                return {gpu["client_name"] for gpu in client.post("/api/gpu/list").json()["data"]}

            assert until(lambda: clients() == {"gpu-node-a", "gpu-node-b"})
        demo.send_signal(signal.SIGINT)
        assert demo.wait(40) == 0
        assert demo.stdout.read().strip() == "stopped"
    assert list((tmp_path / "data").glob("gpu_metrics_*.csv"))
    assert "Traceback" not in "".join(path.read_text() for path in (tmp_path / "logs").glob("*.log"))
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(p)]
    assert left == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
