"""A real server in this process: real files, real DuckDB, real HTTP over loopback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from gpumon.server.serve import ServerProcess
from gpumon.server.settings import Auth, Cost, Limits, Logging, Performance, Server, ServerSettings, Storage

Serve = Callable[..., httpx.Client]


def settings_for(folder: Path, **sections: dict[str, Any]) -> ServerSettings:
    """Settings with data in `folder`, quiet, on a free port; keys of sections may be given."""
    base = {
        "server": {"host": "127.0.0.1", "port": 0},
        "auth": {},
        "storage": {"output_directory": str(folder), "data_retention_days": 0},
        "logging": {"log_file": "", "log_api_requests": False},
        "performance": {},
        "limits": {"accept_past_days": 40_000},
        "cost": {},
    }
    for section, keys in sections.items():
        base[section] |= keys
    classes = {
        "server": Server,
        "auth": Auth,
        "storage": Storage,
        "logging": Logging,
        "performance": Performance,
        "limits": Limits,
        "cost": Cost,
    }
    return ServerSettings(**{name: msgspec.convert(base[name], kind) for name, kind in classes.items()})


@contextmanager
def serving(settings: ServerSettings) -> Iterator[httpx.Client]:
    """A running server's client; the server has stopped when the block ends."""
    server = ServerProcess(settings)
    thread = threading.Thread(target=server.run, name="server-under-test")
    thread.start()
    try:
        assert server.listening.wait(20)
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=20, trust_env=False) as client:
            assert client.get("/").status_code == 200
            yield client
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """`serve(**sections)` starts a server on `tmp_path / "data"` and gives its client."""
    with ExitStack() as stack:

        def start(**sections: dict[str, Any]) -> httpx.Client:
            return stack.enter_context(serving(settings_for(tmp_path / "data", **sections)))

        yield start
