"""[LOGGING] and debug, seen from outside."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import pytest

from tests import processes
from tests.processes import free_port
from tests.samples import sample

LOG = "GPUMON_SERVER__LOGGING__"


def logged(tmp_path: Path, **more: str) -> tuple[str, str]:
    """(the log file, the console) of a server that answered one request, with a secret in its query."""
    port, file = free_port(), tmp_path / "logs" / "server.log"
    with processes.server(tmp_path / "data", port, **{f"{LOG}LOG_FILE": str(file)} | more) as server:
        server.start()
        httpx.post(f"http://127.0.0.1:{port}/api/receive-data", json=sample(), trust_env=False).raise_for_status()
        httpx.get(f"http://127.0.0.1:{port}/health?token=secret", trust_env=False).raise_for_status()
        assert server.end(signal.SIGTERM) == 0
    return file.read_text(), "\n".join(server.log)


@pytest.mark.parametrize("on", [True, False])
def test_requests_are_logged_when_asked_for_without_their_query(tmp_path: Path, on: bool) -> None:
    file, console = logged(tmp_path, **{f"{LOG}LOG_API_REQUESTS": str(on)})
    assert ("GET '/health' 200" in file) is on
    assert "secret" not in file + console
    assert file == console + "\n", "the file says what the console says"


def test_start_and_stop_are_one_line_each_with_the_numbers(tmp_path: Path) -> None:
    file, _ = logged(tmp_path)
    lines = [line.split(" ", 3)[3] for line in file.splitlines()]
    assert any(line.startswith("server_listening host=127.0.0.1 port=") for line in lines)
    assert any(line.startswith("storage_open folder=") for line in lines)
    assert lines[-1] == "server_stopped"
    assert "Traceback" not in file


def test_debug_logs_more_than_usual(tmp_path: Path) -> None:
    debug, _ = logged(tmp_path / "a", GPUMON_SERVER__SERVER__DEBUG="true")
    usual, _ = logged(tmp_path / "b")
    assert " DEBUG " in debug
    assert " DEBUG " not in usual
    assert " INFO " in usual
