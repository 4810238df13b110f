"""What a soak (`bench.soak`) is, and its two processes: the server with a fast clock, and the sender."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Queue
from typing import Any

import msgspec

from bench.ingest import RECEIVE, agent_sample, percentile
from bench.served import STOP_SECONDS, free_port, wait_for
from gpumon.clock import to_wire
from gpumon.model.sample import BATCH_HEADER

BATCH_ROWS = 80
LATE_SECONDS = 1.0
"""A batch that is answered later than so long after it was due is late."""
PATIENCE_SECONDS = 60
SEAL_AFTER_MINUTES = 60
"""Of the fast clock; the server's default."""
STALE_AFTER_SAMPLES = 24
"""A GPU is stale when so many of its samples are missing, as by default: 120 s at a sample each 5 s."""
_MOST_CONNECTIONS = 256
_JOB_HOURS = 6


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run. The clock shows `origin` when the monotonic clock shows `began`."""

    seconds: float
    rows_per_second: float
    day_seconds: float
    gpus: int
    keep_days: int
    origin: datetime
    began: float
    port: int

    @property
    def speed(self) -> float:
        """How many seconds pass in one."""
        return 86_400 / self.day_seconds

    @property
    def interval(self) -> timedelta:
        """Between two samples of a GPU, by the fast clock."""
        return timedelta(seconds=self.gpus / self.rows_per_second * self.speed)

    def now(self) -> datetime:
        """The present by the fast clock, aware UTC."""
        return self.origin + timedelta(seconds=(time.monotonic() - self.began) * self.speed)


def plan_of(**words: Any) -> Plan:
    """A plan that begins now, at a midnight to come: no file's modification time may lie ahead of the clock."""
    midnight = datetime.combine(datetime.now(UTC).date() + timedelta(days=1), datetime.min.time(), UTC)
    return Plan(**words, origin=midnight, began=time.monotonic(), port=free_port())


def serve(plan: Plan) -> None:
    """The server's process: what `gpumon server` does, with the fast clock."""
    from gpumon.server.serve import ServerProcess
    from gpumon.server.settings import ENVIRONMENT_PREFIX, ServerSettings
    from gpumon.starting import logging_as, on_signal, read_settings

    settings, notes = read_settings(ServerSettings, Path(os.devnull), Path(os.devnull), ENVIRONMENT_PREFIX)
    with logging_as(settings.logging, settings.logging.log_level, notes):
        server = ServerProcess(settings, plan.now)
        on_signal(server.stop)
        server.run()


def command(role: str, plan: Plan) -> list[str]:
    """The command line of a process: `serve` or `send`."""
    return [sys.executable, "-m", "bench.soaking", role, msgspec.json.encode(plan).decode()]


@contextmanager
def serving(plan: Plan, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that is ready, with its data and its log in a folder."""
    own = {
        "SERVER__HOST": "127.0.0.1",
        "SERVER__PORT": str(plan.port),
        "STORAGE__OUTPUT_DIRECTORY": str(folder / "data"),
        "STORAGE__DATA_RETENTION_DAYS": str(plan.keep_days),
        "PERFORMANCE__SEAL_AFTER_MINUTES": str(SEAL_AFTER_MINUTES),
        "PERFORMANCE__GC_INTERVAL": str(max(1.0, plan.day_seconds / 4)),
        "LIMITS__STALE_AFTER_SECONDS": str(STALE_AFTER_SAMPLES * plan.interval.total_seconds()),
        "LOGGING__LOG_FILE": str(folder / "server.log"),
        "LOGGING__CONSOLE_OUTPUT": "false",
        "LOGGING__LOG_API_REQUESTS": "false",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GPUMON_")}
    environment = inherited | {f"GPUMON_SERVER__{name}": value for name, value in own.items()}
    environment["MALLOC_ARENA_MAX"] = "2"  # as the image has it
    process = subprocess.Popen(command("serve", plan), env=environment)
    try:
        wait_for(plan.port, "/ready", process, STOP_SECONDS)
        yield process
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def send(plan: Plan) -> None:
    """The sender's process: posts by the timetable, and prints what came of it as JSON."""
    print(json.dumps(Sender(plan).run()))


class Sender:
    """Posts a fleet's samples."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._run = f"{os.getpid()}-{time.time_ns()}"
        self._gpus = [agent_sample(gpu) for gpu in range(plan.gpus)]
        # Enough for ten seconds without an answer; each is used so often that the server takes it for alive.
        self._connections = round(min(_MOST_CONNECTIONS, max(4, 10 * plan.rows_per_second / BATCH_ROWS)))
        self._lock = threading.Lock()
        self._latencies: list[float] = []
        self._lags: list[float] = []
        self._rows = self._failed = 0
        self._idle: Queue[http.client.HTTPConnection] = Queue()
        """All are open from the start and take turns, so that their number tells nothing about the server."""

    def run(self) -> dict[str, float]:
        """Sends everything; gives rows acknowledged, batches, and latencies in seconds."""
        for _ in range(self._connections):
            connection = http.client.HTTPConnection("127.0.0.1", self._plan.port, timeout=PATIENCE_SECONDS)
            connection.connect()
            self._idle.put(connection)
        every = BATCH_ROWS / self._plan.rows_per_second
        batches = max(1, int(self._plan.seconds / every))
        start = time.monotonic() + every
        with ThreadPoolExecutor(self._connections) as pool:
            for number in range(batches):
                body, due = self.body(number), start + number * every
                time.sleep(max(0.0, due - time.monotonic()))
                pool.submit(self._deliver, number, body, due)
        taken = self._latencies or [float("nan")]
        return {
            "rows": self._rows,
            "batches": batches,
            "lost": batches - len(self._latencies),
            "failed": self._failed,
            "late": sum(latency > LATE_SECONDS for latency in self._latencies),
            "p50": percentile(taken, 0.5),
            "p99": percentile(taken, 0.99),
            "max": max(taken),
            "lag_p99": percentile(self._lags, 0.99),
            "lag_max": max(self._lags),
        }

    def body(self, number: int) -> bytes:
        """A batch as JSON: what was sampled since the one before. A GPU gets a new pod every six hours."""
        now, apart = self._plan.now(), self._plan.interval / self._plan.gpus
        batch = []
        for place in range(BATCH_ROWS):
            turn, gpu = divmod(number * BATCH_ROWS + place, self._plan.gpus)
            sample, instant = self._gpus[gpu], now - (BATCH_ROWS - 1 - place) * apart
            at, job = to_wire(instant), int(instant.timestamp() // (3600 * _JOB_HOURS))
            (use,) = sample["pods"]
            who = {"pod": f"{use['pod']}-{job}", "pod_uid": f"{use['pod_uid'][:-6]}{job:06}"}
            busy = float((turn * 13 + gpu * 37) % 101)
            now_read = {
                "timestamp": at,
                "sampled_at": at,
                "interval_seconds": round(self._plan.interval.total_seconds(), 3),
                "utilization_gpu": busy,
                "power_draw": 100 + 5 * busy,
                "energy_mj": int(instant.timestamp() * 400_000),
                "pods": [use | who | {"utilization": busy, "labels": {"team": f"team-{gpu % 8}"}}],
            }
            batch.append(sample | who | now_read)
        return msgspec.json.encode(batch)

    def _deliver(self, number: int, body: bytes, due: float) -> None:
        connection = self._idle.get()
        self._lags.append(time.monotonic() - due)
        headers = {"Content-Type": "application/json", BATCH_HEADER: f"soak/{self._run}/{number + 1}"}
        while time.monotonic() < due + PATIENCE_SECONDS:
            answer = post(connection, RECEIVE, body, headers)
            if answer is not None:
                with self._lock:
                    self._latencies.append(time.monotonic() - due)
                    self._rows += answer["received_count"]
                break
            with self._lock:
                self._failed += 1
            time.sleep(1)
        self._idle.put(connection)


def post(connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]) -> Any:
    """The JSON of an answer 200; None of any other, or of none."""
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
        return json.loads(text) if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        connection.close()  # it is opened anew for the next request
        return None


if __name__ == "__main__":
    {"serve": serve, "send": send}[sys.argv[1]](msgspec.json.decode(sys.argv[2], type=Plan))
