"""What it costs to take samples: rows per CPU-second and per second, and latencies, against the old design.

    python -m bench.ingest [--seconds 4] [--rounds 3] [--days 30]

Both servers (`bench.old_design` is the other) get the same prepared bodies from the same closed loop of 8
connections, in turns, so that what else the machine does meets both. CPU time is the server process's own.
gpumon's goes on until the rows are in its answers, which a query at the end of each turn waits for; the old
design's ends with its answers. The old design knows thirteen fields, so ratios are those of old clients' samples;
what gpumon's own agent sends, all fields and a pod on each GPU, stands below. At the end the same as on a server
that is used: 30 days of a node's eight GPUs, a sample every 10 s, were stored before, and somebody looks, for whom
the statistics of all that is stored are asked for every second. For these the old design reads every file anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import timeit
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import duckdb

from bench.agent import cpu_seconds
from bench.load import Load, request
from bench.served import STOP_SECONDS, free_port, machine, served, wait_for
from gpumon.model.fields import FIELDS

CONNECTIONS = 8
ASKED_EVERY_SECONDS = 1.0
RECEIVE, STATISTICS = "/api/receive-data", "/api/gpu/statistics"


def old_sample(gpu: int) -> dict[str, Any]:
    """The thirteen fields that clients of the old program send."""
    return {
        "timestamp": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}", "gpu_id": gpu % 8,
        "gpu_name": "NVIDIA H100 80GB HBM3", "utilization_gpu": 87.0, "utilization_memory": 41.0,
        "memory_total": 81559, "memory_used": 61004, "memory_free": 20555, "temperature": 61,
        "power_draw": 512.4, "power_limit": 700.0, "fan_speed": None, "client_name": f"gpu-node-{gpu // 8}",
    }  # fmt: skip


def agent_sample(gpu: int) -> dict[str, Any]:
    """What gpumon's agent sends at the most: every reading, and the one pod that has the GPU."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    readings = {f.name: {"int": 18_420_000 % int(f.high or 1), "float": 64.4} for f in FIELDS if f.kind != "text"}
    told = {f.name: readings[f.name][f.kind] for f in FIELDS if f.kind in ("int", "float")}
    pod = {"namespace": "research", "pod": f"train-{gpu}", "container": "main", "owner_name": "train",
           "pod_uid": f"1d5c2c3e-7f54-4f0e-8a55-{gpu:012}", "owner_kind": "StatefulSet"}  # fmt: skip
    return told | old_sample(gpu) | pod | {
        "timestamp": at, "sampled_at": at, "node": f"gpu-node-{gpu // 8}", "state": "ok",
        "gpu_uuid": f"GPU-8f0c1d3e-5b7a-4c1e-9d2f-{gpu:012}", "pci_bus_id": "00000000:1E:00.0",
        "attribution": "process",
        "pods": [pod | {"held": True, "method": "exclusive", "gpu_share": 1.0, "utilization": 87.0,
                        "memory_used": 60416.5, "energy_mj": 2100000.5, "process_count": 8}],
    }  # fmt: skip


def store_days(folders: Sequence[Path], days: int) -> int:
    """Puts so many past days of eight GPUs into folders, as the old program wrote them; gives the rows."""
    columns = list(old_sample(0))
    values = {name: f"'{value}'" for name, value in old_sample(0).items() if isinstance(value, str)}
    values |= {"timestamp": "strftime(instant, '%Y-%m-%d %H:%M:%S')", "gpu_id": "gpu", "fan_speed": "NULL"}
    values |= {
        "utilization_gpu": "(epoch(instant) // 10 + 13 * gpu) % 101",
        "power_draw": "70.0 + hash(instant, gpu) % 630",
    }
    chosen = ", ".join(f"{values.get(name, old_sample(0)[name])} AS {name}" for name in columns)
    rows = 0
    for back in range(1, days + 1):
        day = datetime.now(UTC).date() - timedelta(days=back)
        files = [folder / f"gpu_metrics_{day:%Y%m%d}.csv" for folder in folders]
        times = f"unnest(range(TIMESTAMP '{day}', TIMESTAMP '{day}' + INTERVAL 1 DAY, INTERVAL 10 SECONDS))"
        table = f"(SELECT {times} AS instant), range(8) AS gpus(gpu)"
        copied = duckdb.execute(f"COPY (SELECT {chosen} FROM {table}) TO '{files[0]}' (HEADER)")
        rows += copied.fetchall()[0][0]
        for other in files[1:]:
            other.hardlink_to(files[0])  # whole at once, for the server that watches the folder
    return rows


class Server(Protocol):
    """A server process. gpumon's is `served`."""

    port: int

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""


@dataclass(frozen=True, slots=True)
class OldServer:
    """The old design's process."""

    port: int
    pid: int

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        return cpu_seconds(self.pid)


@contextmanager
def serving_old_design(folder: Path) -> Iterator[OldServer]:
    """The old design's server over an empty folder."""
    folder.mkdir(parents=True)
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "bench.old_design", str(folder), str(port)])
    try:
        wait_for(port, "/docs", process)
        yield OldServer(port, process.pid)
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


_numbers = itertools.count(1)


def batch(body: bytes) -> bytes:
    """A request with a batch id of its own."""
    return request(RECEIVE, body, f"Gpumon-Batch: bench/{os.getpid()}/{next(_numbers)}\r\n")


@dataclass
class Turns:
    """What one server did with one kind of body."""

    rows: int
    cpu: float = 0.0
    wall: float = 0.0
    latencies: list[float] = field(default_factory=list)

    def take(
        self, server: Server, body: bytes, seconds: float, *, until_answered: bool, asked: bool = False
    ) -> None:
        """One turn; `asked`: the statistics are asked for meanwhile."""
        load = Load(server.port, CONNECTIONS)
        cpu, begin = server.cpu_seconds(), time.perf_counter()
        with asking(server) if asked else nullcontext():
            latencies = load.closed((batch(body) for _ in itertools.count()), seconds)
            self.wall += time.perf_counter() - begin
        if until_answered:
            query(load)
        self.cpu += server.cpu_seconds() - cpu
        self.latencies += latencies
        load.close()

    @property
    def rows_per_cpu_second(self) -> float:
        """The figure that says how much hardware it takes."""
        return self.rows * len(self.latencies) / self.cpu

    def __str__(self) -> str:
        p50, p99 = (percentile(self.latencies, share) * 1000 for share in (0.5, 0.99))
        rate = self.rows * len(self.latencies) / self.wall
        return f"{self.rows_per_cpu_second:>11,.0f} {rate:>9,.0f} {p50:>8.1f} {p99:>8.1f}"


@contextmanager
def asking(server: Server) -> Iterator[None]:
    """Somebody asks for the statistics once a second, or as often as they come."""
    ended = threading.Event()

    def ask() -> None:
        load = Load(server.port, 1)
        while not ended.wait(ASKED_EVERY_SECONDS):
            query(load)
        load.close()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def query(load: Load) -> float:
    """Asks for the statistics of all that is stored; seconds."""
    return load.opened([(0.0, request(STATISTICS, b"{}"))])[0]


def percentile(values: list[float], share: float) -> float:
    """The value that so large a share of them does not pass."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def decoding() -> float:
    """How many times faster msgspec decodes and checks a batch of 80 old samples than the pydantic model."""
    import msgspec
    from pydantic import TypeAdapter

    from bench.old_design import Sample
    from gpumon.model.sample import GpuSample

    body = json.dumps([old_sample(gpu) for gpu in range(80)]).encode()
    decoders = msgspec.json.Decoder(list[GpuSample]).decode, TypeAdapter(list[Sample]).validate_json
    ours, theirs = (min(timeit.repeat(lambda: decode(body), number=200, repeat=5)) for decode in decoders)  # noqa: B023
    return theirs / ours


def measure(seconds: float, rounds: int, folder: Path, days: int) -> dict[int, float]:
    """Prints the table; gives the ratios of rows per CPU-second by rows a request, with nobody who looks."""
    ratios: dict[int, float] = {}
    print(machine())
    with ExitStack() as stack:
        gpumon = stack.enter_context(served(folder / "gpumon", LIMITS__STALE_AFTER_SECONDS="60"))
        old: Server = stack.enter_context(serving_old_design(folder / "old"))
        print(f"{'rows/request':>12} {'server, samples':<27} {'rows/CPU-s':>11} {'rows/s':>9} p50 and p99 in ms")
        for rows in (8, 80):
            plain, full = (
                json.dumps([sample(gpu) for gpu in range(rows)]).encode() for sample in (old_sample, agent_sample)
            )
            theirs, ours, agents = Turns(rows), Turns(rows), Turns(rows)
            for _ in range(rounds):
                theirs.take(old, plain, seconds, until_answered=False)
                ours.take(gpumon, plain, seconds, until_answered=True)
                agents.take(gpumon, full, seconds, until_answered=True)
            ratios[rows] = ours.rows_per_cpu_second / theirs.rows_per_cpu_second
            print(f"{rows:>12} {'old design, 13 fields':<27} {theirs}")
            print(f"{rows:>12} {'gpumon, 13 fields':<27} {ours}   {_times(ours, theirs)}")
            print(f"{rows:>12} {'gpumon, its agent with pods':<27} {agents}")
        stored = store_days([folder / "gpumon", folder / "old"], days)
        gpumon.wait_until_sealed(days)
        gpumon.wait_until_idle()
        print(f"{stored:,} rows of {days} days stored before, and the statistics of all asked for every second")
        for rows in (8, 80):
            plain = json.dumps([old_sample(gpu) for gpu in range(rows)]).encode()
            theirs, ours = Turns(rows), Turns(rows)
            for _ in range(rounds):
                theirs.take(old, plain, seconds, until_answered=False, asked=True)
                ours.take(gpumon, plain, seconds, until_answered=True, asked=True)
            print(f"{rows:>12} {'old design, 13 fields':<27} {theirs}")
            print(f"{rows:>12} {'gpumon, 13 fields':<27} {ours}   {_times(ours, theirs)}")
        for name, server in (("old design", old), ("gpumon", gpumon)):
            load = Load(server.port, 1)
            took = statistics.median(query(load) for _ in range(3))
            load.close()
            print(f"{name}: the statistics of what it has stored by now take {took * 1000:,.0f} ms")
    return ratios


def _times(ours: Turns, theirs: Turns) -> str:
    return f"{ours.rows_per_cpu_second / theirs.rows_per_cpu_second:.1f} times the rows per CPU-second"


def main() -> None:
    """Runs everything and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--days", type=int, default=30, help="stored before somebody looks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options.seconds, options.rounds, Path(folder), options.days)
    print(f"decoding a batch of 80: msgspec {decoding():.1f}x the pydantic model")


if __name__ == "__main__":
    main()
