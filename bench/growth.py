"""How gpumon grows: the same questions with 10, 52 and 171 M samples of 30 days; time, memory and bytes to seal.

    python -m bench.growth [--gpus 40 200 660] [--days 30] [--step 10] [--folder FOLDER]

A server runs over an empty folder. Day by day, the day's files are put into it, and the server takes them in,
seals them, and compresses them by its own housekeeping, so that the disk need not hold all the CSV at once (171 M
samples take 130 GB). Each day is generated while the server is at the one before, and put in as soon as the
rows of that are sealed, so that its accounts need not be made twice. Only the last three are put in together, with
nothing beside: they are timed. At the end it is asked what `bench.queries` asks, idle.

171 M samples take some three and a half hours of a machine of two cores. In a FOLDER, which is kept, a run that
was stopped goes on with the day it was at, and what is measured already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from bench.fleet import DAYS, STEP_SECONDS, Fleet, open_fleet
from bench.queries import BUDGET_SECONDS, Scene, questions
from bench.served import Asked, Latencies, Served, fetch, machine, measure, served, size_of
from gpumon.server.days import FileNames

GPUS = (40, 200, 660)
REQUESTS = 100
TIMED_DAYS = 3
_PATIENCE_SECONDS = 1800
_NAMES = FileNames("gpu_metrics")
_KINDS = {
    "samples": "raw-*/samples.parquet",
    "pod rows": "raw-*/pod_usage.parquet",
    "readings": "raw-*/readings.parquet",
    "cells": "cells-*/*.parquet",
}
"""What a sealed day is made of."""


@dataclass(slots=True)
class Size:
    """What was found with so many GPUs so far. Latencies are in ms; none until all days are in."""

    gpus: int
    first_day: date
    days: int = 0
    counters: list[tuple[int, ...]] = field(default_factory=list)
    """The fleet's, after these days."""
    samples: int = 0
    pod_rows: int = 0
    timed_seconds: float = 0.0
    """Until the days were sealed that were put in with nothing beside."""
    timed_days: int = 0
    timed_samples: int = 0
    server_mib: float = 0.0
    sealer_mib: float = 0.0
    disk: dict[str, int] = field(default_factory=dict)
    csv_bytes: int = 0
    latencies: dict[str, Latencies] = field(default_factory=dict)

    def day(self, number: int) -> date:
        """The day of that number, from 0."""
        return self.first_day + timedelta(days=number)


@dataclass(frozen=True, slots=True)
class _Day:
    """A day that was generated, and the fleet's counters after it."""

    day: date
    samples: int
    pod_rows: int
    csv_bytes: int
    counters: list[tuple[int, ...]]


_SIZE: Final = TypeAdapter(Size)


def grow(folder: Path, gpus: int, days: int, step: int, requests: int, *, sealed: bool = True) -> Size:
    """Fills a folder, or goes on where it was stopped, and asks. `sealed`: waits until each day is."""
    kept, data, aside = (folder / f"{gpus}{name}" for name in (".json", "", ".aside"))
    if kept.exists():
        size = _SIZE.validate_json(kept.read_bytes())
    else:
        size = Size(gpus, datetime.now(UTC).date() - timedelta(days=days))
    if size.latencies:
        return size
    shutil.rmtree(aside, ignore_errors=True)
    for wanted in (data, aside):
        wanted.mkdir(exist_ok=True)
    for path in data.glob("*.csv*"):
        file = _NAMES.parse(path.name)
        if file is not None and file.day >= size.day(size.days):
            path.unlink()
    settings = {
        "STORAGE__ENABLE_FILE_COMPRESSION": "true",
        "STORAGE__COMPRESS_AFTER_DAYS": "1",
        "PERFORMANCE__GC_INTERVAL": "5",
    }
    with ExitStack() as stack:
        fleet = stack.enter_context(open_fleet(gpus, step))
        if size.counters:
            fleet.go_on(size.counters)
        server = stack.enter_context(served(data, **settings))
        beside = stack.enter_context(ThreadPoolExecutor(1))

        def generate(number: int) -> Future[_Day]:
            return beside.submit(_generate, fleet, aside, size.day(number))

        def put_in(*generated: _Day) -> None:
            for made in generated:
                for path in sorted(aside.glob(f"*_{made.day:%Y%m%d}.csv"), reverse=True):
                    path.rename(data / path.name)

        next_day: Future[_Day] | None = None
        while size.days < days - TIMED_DAYS:
            made = (next_day or generate(size.days)).result()
            next_day = generate(size.days + 1) if size.days + 1 < days - TIMED_DAYS else None
            put_in(made)
            seconds = _wait_until_in(server, made)
            _add(size, made, server)
            kept.write_bytes(_SIZE.dump_json(size))
            print(f"{gpus} GPUs, day {size.days} of {days}: in {seconds:.0f} s", flush=True)
        last_days = [generate(number).result() for number in range(size.days, days)]
        server.wait_until_sealed(size.days)
        began = time.monotonic()
        put_in(*last_days)
        for made in last_days:
            _wait_until_in(server, made)
            _add(size, made, server)
        if sealed:
            server.wait_until_sealed(days)
        size.timed_seconds, size.timed_days = time.monotonic() - began, len(last_days)
        size.timed_samples = sum(made.samples for made in last_days)
        size.sealer_mib = max(size.sealer_mib, server.children_mib)
        sealed_folder = data / ".gpumon" / "sealed"
        size.disk = {name: size_of(sealed_folder, f"*/{pattern}") for name, pattern in _KINDS.items()}
        scene = Scene(size.day(days - 1), days, fetch(server.port, Asked("POST", "/api/gpu/list", "{}"))["data"])
        latencies = {
            question.name: measure(server.port, question.ask, requests, BUDGET_SECONDS)
            for question in questions(scene)
        }
        size.server_mib = max(size.server_mib, server.resident_mib()[1])
    size.latencies = latencies
    kept.write_bytes(_SIZE.dump_json(size))
    return size


def _generate(fleet: Fleet, aside: Path, day: date) -> _Day:
    samples = fleet.write_day(aside, day)
    with (aside / f"pod_usage_{day:%Y%m%d}.csv").open("rb") as file:
        pod_rows = sum(1 for _ in file) - 1
    return _Day(day, samples, pod_rows, size_of(aside, f"*_{day:%Y%m%d}.csv"), fleet.counters())


def _add(size: Size, made: _Day, server: Served) -> None:
    size.days += 1
    size.counters = made.counters
    size.samples += made.samples
    size.pod_rows += made.pod_rows
    size.csv_bytes += made.csv_bytes
    size.server_mib = max(size.server_mib, server.resident_mib()[1])
    size.sealer_mib = max(size.sealer_mib, server.children_mib)


def _wait_until_in(server: Served, made: _Day) -> float:
    """Waits until all samples of a day are in the answers; gives the seconds."""
    body = json.dumps({"start_date": str(made.day), "end_date": str(made.day)})
    began = time.monotonic()
    while fetch(server.port, Asked("POST", "/api/gpu/statistics", body))["data"]["samples"] != made.samples:
        if time.monotonic() > began + _PATIENCE_SECONDS:
            raise SystemExit(f"{made.day} is not complete in the answers after {_PATIENCE_SECONDS} s")
        server.look()
        time.sleep(0.5)
    return time.monotonic() - began


def table(sizes: Sequence[Size]) -> str:
    """What was found, a column for each size."""

    def line(name: str, cells: Sequence[str]) -> str:
        return f"{name:<40}" + "".join(f"{cell:>14}" for cell in cells)

    def of_disk(size: Size, name: str, rows: int) -> str:
        return f"{size.disk[name] / rows:.2f}"

    lines = [
        line("GPUs", [f"{size.gpus:,}" for size in sizes]),
        line("samples", [f"{size.samples:,}" for size in sizes]),
        line("pod rows", [f"{size.pod_rows:,}" for size in sizes]),
        line("s to load and seal a day", [f"{size.timed_seconds / size.timed_days:.1f}" for size in sizes]),
        line(
            "the same per 1 M samples", [f"{size.timed_seconds / size.timed_samples * 1e6:.2f}" for size in sizes]
        ),
        line("server, MiB at its highest", [f"{size.server_mib:.0f}" for size in sizes]),
        line("sealing process, MiB at its highest", [f"{size.sealer_mib:.0f}" for size in sizes]),
        line("CSV, bytes per sample", [f"{size.csv_bytes / size.samples:.0f}" for size in sizes]),
        line("sealed samples, bytes a row (aim 18)", [of_disk(size, "samples", size.samples) for size in sizes]),
        line("sealed pod rows, bytes a row", [of_disk(size, "pod rows", size.pod_rows) for size in sizes]),
        line("readings by hour, bytes per sample", [of_disk(size, "readings", size.samples) for size in sizes]),
        line("cells, bytes per sample", [of_disk(size, "cells", size.samples) for size in sizes]),
        "",
        "p95 in ms",
    ]
    for name in sizes[0].latencies:
        found = [size.latencies[name] for size in sizes]
        lines.append(
            line(name, [f"{one.percentile(0.95):.1f}" if one.status == 200 else str(one.status) for one in found])
        )
    return "\n".join(lines)


def main() -> None:
    """Runs everything and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS)
    parser.add_argument("--days", type=int, default=DAYS)
    parser.add_argument("--step", type=int, default=STEP_SECONDS)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--folder", type=Path, help="is kept; a temporary one by default")
    parser.add_argument("--unsealed", action="store_true", help="do not wait until days are sealed")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started here is stopped
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        sizes = [
            grow(folder, gpus, options.days, options.step, options.requests, sealed=not options.unsealed)
            for gpus in options.gpus
        ]
    print(f"\n{machine()}\n{table(sizes)}")


if __name__ == "__main__":
    main()
