"""gpumon as its users run it: processes of their own, with real signals."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families

T = TypeVar("T")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Program:
    """One `gpumon` process that can be ended and started again."""

    def __init__(self, name: str, environment: dict[str, str], ready: bytes) -> None:
        self._name = name
        self._environment = os.environ | environment
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self.log: list[str] = []

    def start(self) -> None:
        """Returns when the log says that it is ready."""
        is_ready = threading.Event()
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "gpumon", self._name, "--config", os.devnull],
            env=self._environment,
            stderr=subprocess.PIPE,
        )

        def read() -> None:
            assert process.stderr is not None
            with process.stderr as lines:
                for line in lines:
                    self.log.append(line.decode(errors="replace").rstrip())
                    if self._ready in line:
                        is_ready.set()

        self._reader = threading.Thread(target=read)
        self._reader.start()
        assert is_ready.wait(30), self.log

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    def end(self, how: signal.Signals) -> int:
        """Sends a signal, waits for the end, gives the exit code."""
        assert self._process is not None and self._reader is not None
        self._process.send_signal(how)
        code = self._process.wait(30)
        self._reader.join(10)
        self._process = None
        return code

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.end(signal.SIGKILL)


def server(folder: Path, port: int, **more: str) -> Program:
    """A server with its data in `folder`; further variables may be given."""
    return Program(
        "server",
        {
            "GPUMON_SERVER__SERVER__HOST": "127.0.0.1",
            "GPUMON_SERVER__SERVER__PORT": str(port),
            "GPUMON_SERVER__STORAGE__OUTPUT_DIRECTORY": str(folder),
            "GPUMON_SERVER__LOGGING__LOG_FILE": "",
            "GPUMON_SERVER__LOGGING__LOG_API_REQUESTS": "false",
        }
        | more,
        b"server_listening",
    )


def agent(scenario: Path | None, spool: Path, server_port: int, status_port: int, **more: str) -> Program:
    """An agent of node gpu-node-a on simulated GPUs, on real ones without a scenario, ten samples a second."""
    return Program(
        "agent",
        {
            "NODE_NAME": "gpu-node-a",
            "GPUMON_FAKE_NVML": "" if scenario is None else str(scenario),
            "GPUMON_AGENT__SERVER__SERVER_HOST": "http://127.0.0.1",
            "GPUMON_AGENT__SERVER__SERVER_PORT": str(server_port),
            "GPUMON_AGENT__MONITORING__INTERVAL_SECONDS": "0.1",
            "GPUMON_AGENT__MONITORING__NVML_RETRY_INTERVAL": "0.2",
            "GPUMON_AGENT__NETWORK__BATCH_SIZE": "4",
            "GPUMON_AGENT__NETWORK__BATCH_INTERVAL": "0.5",
            "GPUMON_AGENT__NETWORK__RETRY_DELAY": "0.1",
            "GPUMON_AGENT__NETWORK__RETRY_BACKOFF": "1",
            "GPUMON_AGENT__SPOOL__DIRECTORY": str(spool),
            "GPUMON_AGENT__STATUS__PORT": str(status_port),
            "GPUMON_AGENT__LOGGING__LOG_FILE": "",
        }
        | more,
        b"agent_started",
    )


def metric(port: int, name: str) -> float:
    """The sum over a metric's series, from an agent's own port; 0 while it does not answer."""
    try:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5, trust_env=False).text
    except httpx.HTTPError:
        return 0.0
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if re.fullmatch(name, sample.name)
    )


def until(ask: Callable[[], T], seconds: float = 30.0) -> T:
    """Asks ten times a second until the answer is true; fails when it never is."""
    pause = threading.Event()
    for _ in range(int(seconds * 10)):
        if answer := ask():
            return answer
        pause.wait(0.1)
    raise AssertionError(f"not in {seconds:g} s: {ask}")
