"""A fleet that goes on: posts samples of the GPUs in a folder's newest files, by a timetable.

    python -m bench.sending PORT FOLDER [--rows-per-second 4000] [--samples-per-gpu 10] [--seconds 60]

Each request is a batch of eight GPUs of a node with all fields and pods, some samples of each, as an agent sends
what it sampled since its last batch. The fleet stays as it is, and is sampled as often as the rate demands. The
timetable does not wait for answers: a latency counts from when its request was due. At the end, or at SIGTERM,
prints a line of JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from bench.load import CONNECTIONS, Load, request
from gpumon.clock import to_wire
from gpumon.model.field import Field
from gpumon.model.fields import FIELDS
from gpumon.model.pod_fields import USE_FIELDS
from gpumon.model.sample import BATCH_HEADER

SAMPLES_PER_GPU = 10
_TAIL_BYTES = 1 << 20


def newest(folder: Path) -> list[list[dict[str, Any]]]:
    """The newest sample of each GPU, with its pods, as they come over the wire; a list for each node."""
    samples = {row["gpu_uuid"]: row for row in _tail(folder, "gpu_metrics_*.csv")}
    nodes: dict[str, list[dict[str, Any]]] = {}
    pods: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in _tail(folder, "pod_usage_*.csv"):
        pods.setdefault((row["sampled_at"], row["gpu_uuid"]), []).append(cells(USE_FIELDS, row))
    for uuid, row in samples.items():
        sample = cells(FIELDS, row) | {"pods": pods.get((row["sampled_at"], uuid), [])}
        nodes.setdefault(row["client_name"], []).append(sample)
    return list(nodes.values())


def _tail(folder: Path, pattern: str) -> list[dict[str, str]]:
    """The rows at the end of the newest file."""
    with max(folder.glob(pattern)).open("rb") as file:
        header = file.readline().decode().rstrip().split(",")
        begin = max(file.tell(), file.seek(0, os.SEEK_END) - _TAIL_BYTES)
        file.seek(begin - 1)
        lines = file.read().decode().splitlines()[1:]
    return list(csv.DictReader(lines, fieldnames=header))


def cells(fields: tuple[Field, ...], row: dict[str, str]) -> dict[str, Any]:
    """A row's cells as they come over the wire; empty ones are left out."""
    read: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": "true".__eq__}
    return {field.name: read.get(field.kind, str)(row[field.name]) for field in fields if row[field.name]}


def timetable(
    nodes: list[list[dict[str, Any]]],
    rows_per_second: float,
    samples_per_gpu: int,
    seconds: float,
    stopped: threading.Event,
) -> Iterator[tuple[float, bytes]]:
    """When each request is due, and its bytes, which are made shortly before."""
    rows = samples_per_gpu * sum(map(len, nodes)) / len(nodes)
    every = rows / rows_per_second
    apart = every * len(nodes) / samples_per_gpu
    boot = f"{os.getpid()}-{time.time_ns()}"
    for number in range(int(seconds / every)):
        if stopped.is_set():
            return
        node = nodes[number % len(nodes)]
        now = datetime.now(UTC)
        batch = []
        for back in reversed(range(samples_per_gpu)):
            at = to_wire(now - timedelta(seconds=back * apart))
            when = {"timestamp": at, "sampled_at": at, "interval_seconds": round(apart, 3)}
            batch += [sample | when for sample in node]
        batch_id = f"{node[0]['client_name']}/{boot}/{number + 1}"
        body = msgspec.json.encode(batch)
        yield number * every, request("/api/receive-data", body, f"{BATCH_HEADER}: {batch_id}\r\n")


def main() -> None:
    """Sends, and prints what it sent and how long answers took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows-per-second", type=float, default=4000)
    parser.add_argument("--samples-per-gpu", type=int, default=SAMPLES_PER_GPU, help="in a request")
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    nodes = newest(options.folder)
    with closing(Load(options.port, CONNECTIONS)) as load:
        began = time.monotonic()
        taken = sorted(
            load.opened(
                timetable(nodes, options.rows_per_second, options.samples_per_gpu, options.seconds, stopped)
            )
        )
        lasted = time.monotonic() - began
    rows = len(taken) * options.samples_per_gpu * sum(map(len, nodes)) / len(nodes)
    at = {f"p{part}_ms": taken[min(len(taken) - 1, len(taken) * part // 100)] * 1000 for part in (50, 99)}
    print(json.dumps({"rows_per_second": rows / lasted, "requests": len(taken)} | at))


if __name__ == "__main__":
    main()
