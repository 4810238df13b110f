"""A server process of its own over a folder of CSV files, for a benchmark to ask and to watch."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.agent import cpu_seconds, resident_mib

READY_SECONDS = 3600
STOP_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    method: str
    path: str
    body: str | None = None


@dataclass(frozen=True, slots=True)
class Latencies:
    """How long answers took, in milliseconds. `first` is the very first, with nothing warm; `status` of the last
    answer, which ends the measurement when it is not 200."""

    status: int
    first: float
    sorted_ms: list[float]

    def percentile(self, part: float) -> float:
        """The latency that this part of all requests stayed below."""
        return self.sorted_ms[min(len(self.sorted_ms) - 1, int(part * len(self.sorted_ms)))]


def measure(port: int, ask: Callable[[int], Asked], requests: int, budget_seconds: float) -> Latencies:
    """Asks once and then so many times over one kept-alive connection, in turn; less often when the budget is
    spent. `ask` is given the request's number."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=budget_seconds + 600)) as connection:
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        taken: list[float] = []
        end = time.monotonic() + budget_seconds
        status = 200
        while len(taken) <= requests and status == 200 and (len(taken) < 2 or time.monotonic() < end):
            asked = ask(len(taken))
            headers = {"Content-Type": "application/json"} if asked.body else {}
            began = time.perf_counter()
            connection.request(asked.method, asked.path, asked.body, headers)
            answer = connection.getresponse()
            answer.read()
            taken.append((time.perf_counter() - began) * 1000)
            status = answer.status
    return Latencies(status, taken[0], sorted(taken[1:] or taken))


def fetch(port: int, asked: Asked) -> Any:
    """One answer's JSON. Raises SystemExit when it is not 200."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=600)) as connection:
        headers = {"Content-Type": "application/json"} if asked.body else {}
        connection.request(asked.method, asked.path, asked.body, headers)
        answer = connection.getresponse()
        text = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{asked.path}: {answer.status} {text[:300]!r}")
    return json.loads(text)


def free_port() -> int:
    """A port that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, path: str, process: subprocess.Popen[bytes], seconds: float = READY_SECONDS) -> float:
    """Waits until a path is answered 200; gives the seconds. Raises SystemExit when the process ends or the time
    is over."""
    began = time.monotonic()
    while time.monotonic() < began + seconds and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        with contextlib.suppress(OSError, http.client.HTTPException), closing(connection):
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return time.monotonic() - began
        time.sleep(0.05)
    raise SystemExit(f"{process.args!r} is not ready after {time.monotonic() - began:.0f} s")


class Served:
    """gpumon's server over a folder."""

    def __init__(self, folder: Path, port: int, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.port = port
        self._process = process
        self.ready_seconds = 0.0
        self.children_mib = 0.0
        """Highest resident memory that `look` has seen of a process that the server started, MiB."""

    def wait(self) -> None:
        """Waits until all of the folder is in the answers."""
        self.ready_seconds = wait_for(self.port, "/ready", self._process)

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        return cpu_seconds(self._process.pid)

    def resident_mib(self) -> tuple[float, float]:
        """Resident memory now and at its highest, MiB."""
        return resident_mib(self._process.pid, "VmRSS"), resident_mib(self._process.pid, "VmHWM")

    def look(self) -> None:
        """Takes note of the memory of the processes that the server has started and that still run."""
        with contextlib.suppress(OSError, StopIteration):  # it ends while it is looked at
            for thread in Path(f"/proc/{self._process.pid}/task").iterdir():
                for child in (thread / "children").read_text().split():
                    self.children_mib = max(self.children_mib, resident_mib(int(child), "VmHWM"))

    def sealed_days(self) -> int:
        """Days whose rows and cells are on disk in their final form."""
        sealed = self.folder / ".gpumon" / "sealed"
        return sum(any(day.glob("cells-*/manifest.json")) for day in sealed.glob("*"))

    def wait_until_idle(self, seconds: float = READY_SECONDS) -> None:
        """Waits until it uses less than 5 % of a core for three seconds: all is rolled up. Raises SystemExit when
        the time is over."""
        began = time.monotonic()
        while True:
            used = self.cpu_seconds()
            time.sleep(3)
            if self.cpu_seconds() - used < 0.15:
                return
            if time.monotonic() > began + seconds:
                raise SystemExit(f"the server is busy after {seconds:.0f} s")

    def wait_until_sealed(self, days: int, seconds: float = READY_SECONDS) -> float:
        """Waits until so many days are sealed; gives the seconds. Raises SystemExit when the time is over."""
        began = time.monotonic()
        while self.sealed_days() < days:
            if time.monotonic() > began + seconds:
                raise SystemExit(f"{self.sealed_days()} of {days} days are sealed after {seconds:.0f} s")
            self.look()
            time.sleep(0.2)
        return time.monotonic() - began


@contextmanager
def served(folder: Path, **settings: str) -> Iterator[Served]:
    """A running server; `settings` are SECTION__KEY="value". No day is deleted, days are sealed soon, and no GPU
    counts as gone within a day of its last sample, because a benchmark's data ends before it runs."""
    port = free_port()
    own = {
        "SERVER__HOST": "127.0.0.1",
        "SERVER__PORT": str(port),
        "STORAGE__OUTPUT_DIRECTORY": str(folder),
        "STORAGE__DATA_RETENTION_DAYS": "0",
        "PERFORMANCE__SEAL_AFTER_MINUTES": "0.05",
        "LIMITS__STALE_AFTER_SECONDS": "86400",
        "LOGGING__LOG_FILE": "",
        "LOGGING__LOG_LEVEL": "ERROR",
        "LOGGING__LOG_API_REQUESTS": "false",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GPUMON_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "gpumon", "server", "--config", os.devnull],
        env=inherited | {f"GPUMON_SERVER__{name}": value for name, value in (own | settings).items()},
    )
    try:
        server = Served(folder, port, process)
        server.wait()
        yield server
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def machine() -> str:
    """What this runs on, in a line."""
    with contextlib.suppress(OSError, StopIteration):
        model = next(
            line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
        )
        return f"{os.cpu_count()} cores of {model.partition(':')[2].strip()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


def size_of(folder: Path, pattern: str) -> int:
    """Bytes of the files below a folder that match."""
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())
