"""A fleet's past, as gpumon's own daily CSV files: deterministic, fast, in SQL.

    python -m bench.fleet FOLDER [--gpus 200] [--days 30] [--step 10]

What a server with default settings (zone UTC) would have written for so many H100: nodes of eight, each sampled at
a moment of its own; of 20 GPUs 16 run Jobs that come and go every few hours (some on two or four GPUs), two are
shared by three pods, one is held and never used, one is free; now and then a node is silent for an hour. Every
field that an agent fills on an H100 is filled, in the agent's precision. The last day may end at any moment.
`tests/bench/test_bench_fleet.py` posts such samples to a real server and finds the same bytes in its files.

The same arguments and DuckDB version give the same bytes; days are written in order, since the counters go on.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime, timedelta
from io import BufferedWriter
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from bench.fleet_sql import CARRY_ON, CHUNK, JOBS, LABELS, SETUP, USERS
from gpumon.server.days import DayFile, FileNames
from gpumon.server.tables import POD_LABELS, POD_USAGE, SAMPLES, TABLES, Table

GPUS, DAYS, STEP_SECONDS = 200, 30, 10
"""51.8 M samples."""
_ROWS_AT_ONCE = 400_000
_NAMES = FileNames("gpu_metrics")


class Fleet:
    """Writes one day after the other; see `open_fleet`."""

    def __init__(self, database: duckdb.DuckDBPyConnection, gpus: int, step: int) -> None:
        self._database = database
        self._step = step
        self._ticks_at_once = max(1, _ROWS_AT_ONCE // gpus)

    def write_day(self, folder: Path, day: date, until: datetime | None = None) -> int:
        """Writes the day's three files, which must not be there; gives the number of samples. `until` (aware) ends
        the day early. Days must come in order."""
        begin = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
        end = begin + 86_400 if until is None else min(begin + 86_400, int(until.timestamp()) - self._step)
        last = end // self._step
        self._database.execute("DELETE FROM labelled")
        with ExitStack() as stack:
            files = {}
            for table in TABLES:
                files[table] = stack.enter_context((folder / _NAMES.of(DayFile(table, day))).open("xb"))
                files[table].write(table.header)
            beside = stack.enter_context(ThreadPoolExecutor(1))
            samples = 0
            for first in range(begin // self._step, last, self._ticks_at_once):
                ticks = {"first": first, "last": min(last, first + self._ticks_at_once)}
                for sql in (JOBS, CHUNK):
                    self._database.execute(sql, ticks)
                written = beside.submit(self._append, SAMPLES, "chunk", files[SAMPLES])
                self._database.execute(USERS)
                self._append(POD_USAGE, "users", files[POD_USAGE])
                self._database.execute(LABELS)
                self._append(POD_LABELS, "labels", files[POD_LABELS])
                samples += written.result()
                self._database.execute(CARRY_ON)
        return samples

    def counters(self) -> list[tuple[int, ...]]:
        """Where the GPUs' counters are after the last day: all that a fleet needs to go on later."""
        return self._database.execute("FROM counters ORDER BY gpu").fetchall()

    def go_on(self, counters: list[tuple[int, ...]]) -> None:
        """Goes on after the day that `counters` was asked at."""
        self._database.execute("DELETE FROM counters")
        self._database.executemany(f"INSERT INTO counters VALUES ({', '.join('?' * len(counters[0]))})", counters)

    def _append(self, table: Table, relation: str, file: BufferedWriter) -> int:
        with self._database.cursor() as cursor, TemporaryDirectory(dir=Path(file.name).parent) as aside:
            there = {name for name, *_ in cursor.execute(f"DESCRIBE {relation}").fetchall()}
            cells = ", ".join(name if name in there else f"NULL AS {name}" for name in table.columns)
            piece = Path(aside, "piece")
            cursor.execute(f"COPY (SELECT {cells} FROM {relation}) TO '{piece}' (FORMAT csv, HEADER false)")
            rows = int(cursor.fetchall()[0][0])
            with piece.open("rb") as lines:
                shutil.copyfileobj(lines, file, 1 << 20)
        return rows


@contextmanager
def open_fleet(gpus: int = GPUS, step: int = STEP_SECONDS, seed: int = 1) -> Iterator[Fleet]:
    """A fleet of so many GPUs, sampled every `step` seconds."""
    with duckdb.connect(config={"memory_limit": "2GB", "preserve_insertion_order": True}) as database:
        for name, value in (("gpus", gpus), ("step", step), ("seed", seed)):
            database.execute(f"SET VARIABLE {name} = CAST(? AS BIGINT)", [value])
        database.execute(SETUP)
        yield Fleet(database, gpus, step)


def main() -> None:
    """Writes the days up to yesterday, and today up to now."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gpus", type=int, default=GPUS)
    parser.add_argument("--days", type=int, default=DAYS, help="whole days before today")
    parser.add_argument("--step", type=int, default=STEP_SECONDS)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    with open_fleet(options.gpus, options.step, options.seed) as fleet:
        for back in range(options.days, -1, -1):
            began, day = time.monotonic(), now.date() - timedelta(days=back)
            samples = fleet.write_day(options.folder, day, until=now)
            print(f"{day} {samples:>10,} samples in {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
