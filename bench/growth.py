"""How gpumon grows: the same questions with 10, 52 and 171 M samples of 30 days; time, memory and bytes to seal.

    python -m bench.growth [--gpus 40 200 660] [--days 30] [--step 10] [--folder FOLDER]

A server runs over an empty folder. Day by day, the day's files are put into it (generated aside, which is not in
the times), and the server takes them in, seals them, and compresses them by its own housekeeping, so that the disk
need not hold all the CSV at once. At the end it is asked what `bench.queries` asks, idle.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from bench.fleet import DAYS, STEP_SECONDS, open_fleet
from bench.queries import BUDGET_SECONDS, Scene, questions
from bench.served import Asked, Latencies, Served, fetch, machine, measure, served, size_of

GPUS = (40, 200, 660)
REQUESTS = 100
_PATIENCE_SECONDS = 1800
_KINDS = {
    "samples": "raw-*/samples.parquet",
    "pod rows": "raw-*/pod_usage.parquet",
    "readings": "raw-*/readings.parquet",
    "cells": "cells-*/*.parquet",
}
"""What a sealed day is made of."""


@dataclass(slots=True)
class Size:
    """What was found with so many GPUs. Latencies are in ms."""

    gpus: int
    samples: int = 0
    pod_rows: int = 0
    sealing_seconds: list[float] = field(default_factory=list)
    server_mib: float = 0.0
    sealer_mib: float = 0.0
    disk: dict[str, int] = field(default_factory=dict)
    csv_bytes: int = 0
    latencies: dict[str, Latencies] = field(default_factory=dict)


def grow(folder: Path, gpus: int, days: int, step: int, requests: int, *, sealed: bool) -> Size:
    """Fills a folder and asks."""
    size = Size(gpus)
    today = datetime.now(UTC).date()
    settings = {
        "STORAGE__ENABLE_FILE_COMPRESSION": "true",
        "STORAGE__COMPRESS_AFTER_DAYS": "1",
        "PERFORMANCE__GC_INTERVAL": "5",
    }
    with ExitStack() as stack:
        aside = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder.parent)))
        fleet = stack.enter_context(open_fleet(gpus, step))
        server = stack.enter_context(served(folder, **settings))
        for number in range(days):
            day = today - timedelta(days=days - number)
            written = fleet.write_day(aside, day)
            size.csv_bytes += size_of(aside, "*.csv")
            with (aside / f"pod_usage_{day:%Y%m%d}.csv").open("rb") as file:
                size.pod_rows += sum(1 for _ in file) - 1
            began = time.monotonic()
            for path in sorted(aside.glob("*.csv"), reverse=True):
                path.rename(folder / path.name)
            _wait_until_in(server, day, written)
            if sealed:
                server.wait_until_sealed(number + 1)
            size.sealing_seconds.append(time.monotonic() - began)
            size.samples += written
        sealed_folder = folder / ".gpumon" / "sealed"
        size.disk = {name: size_of(sealed_folder, f"*/{pattern}") for name, pattern in _KINDS.items()}
        scene = Scene(today - timedelta(days=1), days, fetch(server.port, Asked("GET", "/api/gpus"))["data"])
        for question in questions(scene):
            size.latencies[question.name] = measure(server.port, question.ask, requests, BUDGET_SECONDS)
        size.server_mib, size.sealer_mib = server.resident_mib()[1], server.children_mib
    return size


def _wait_until_in(server: Served, day: date, samples: int) -> None:
    """Waits until all samples of a day are in the answers."""
    body = json.dumps({"start_date": str(day), "end_date": str(day)})
    end = time.monotonic() + _PATIENCE_SECONDS
    while fetch(server.port, Asked("POST", "/api/gpu/statistics", body))["data"]["samples"] != samples:
        if time.monotonic() > end:
            raise SystemExit(f"{day} is not complete in the answers after {_PATIENCE_SECONDS} s")
        server.look()
        time.sleep(0.2)


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
        line("s to load and seal a day, mean", [f"{_mean(size.sealing_seconds):.1f}" for size in sizes]),
        line(
            "the same per 1 M samples", [f"{sum(size.sealing_seconds) / size.samples * 1e6:.2f}" for size in sizes]
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


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    """Runs everything and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS)
    parser.add_argument("--days", type=int, default=DAYS)
    parser.add_argument("--step", type=int, default=STEP_SECONDS)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--folder", type=Path, help="where there is room; a temporary one by default")
    parser.add_argument("--unsealed", action="store_true", help="do not wait until days are sealed")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started here is stopped
    sizes = []
    for gpus in options.gpus:
        with tempfile.TemporaryDirectory(dir=options.folder) as aside:
            folder = Path(aside, "data")
            folder.mkdir()
            began = time.monotonic()
            sizes.append(
                grow(folder, gpus, options.days, options.step, options.requests, sealed=not options.unsealed)
            )
            print(
                f"{gpus} GPUs: {sizes[-1].samples:,} samples, {time.monotonic() - began:.0f} s in all", flush=True
            )
    print(f"\n{machine()}\n{table(sizes)}")


if __name__ == "__main__":
    main()
