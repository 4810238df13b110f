"""The accounts on a bare DuckDB: samples put straight into tables, cells made of them, questions asked."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import duckdb

from gpumon.server.accounts import hourly, rolling
from gpumon.server.accounts.answers import Answers
from gpumon.server.accounts.cells import CREATE_CELLS, FINE, HOUR
from gpumon.server.accounts.desk import Coverage, Run
from gpumon.server.accounts.prices import Price
from gpumon.server.queries import Query
from gpumon.server.tables import POD_KEY, POD_LABELS, POD_USAGE, SAMPLES, Table

STALE = timedelta(seconds=120)
_SAMPLE = ("timestamp", "gpu_id", "gpu_name", "client_name", "sampled_at", "interval_seconds", "node", "gpu_uuid")


class Bench:
    """A store in memory, which tells of cells what `hours` and `fine` say."""

    def __init__(self, posted: Iterable[dict[str, Any]], reach: timedelta) -> None:
        self.reach = reach
        self.days: list[Run] = []
        self.hours: list[Run] = []
        self.fine: list[Run] = []
        self.looked_at: list[Run] = []
        """From when to when raw rows were asked for."""
        self._database = duckdb.connect(config={"threads": "2"})
        self.execute("ATTACH ':memory:' AS live")
        for table in (SAMPLES, POD_USAGE, POD_LABELS):
            name = table.name if table is POD_LABELS else f"hot_{table.name}"
            self.execute(f"CREATE TABLE {name} {table.create}")
        for name in ("fine_cells", "hour_cells", "day_cells"):
            self.execute(f"CREATE TABLE {name} {CREATE_CELLS}")
        rows: dict[str, list[list[Any]]] = {}
        for sample in posted:
            for table, row in _rows(sample):
                name = table.name if table is POD_LABELS else f"hot_{table.name}"
                rows.setdefault(name, []).append([*(row.get(column) for column in table.columns), "file"])
        for name, told in rows.items():
            for chunk in (told[n : n + 200] for n in range(0, len(told), 200)):
                marks = ", ".join(f"({', '.join('?' * len(row))})" for row in chunk)
                self._database.execute(f"INSERT INTO {name} VALUES {marks}", [*itertools.chain(*chunk)])
        self.execute(
            "CREATE TABLE live.latest AS SELECT * EXCLUDE (file) FROM hot_samples QUALIFY row_number() OVER "
            "(PARTITION BY client_name, gpu_id ORDER BY sampled_at DESC, rowid DESC) = 1"
        )

    def execute(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        return self._database.execute(sql, parameters).fetchall()

    def close(self) -> None:
        self._database.close()

    def roll(self, begin: datetime, end: datetime) -> None:
        """Makes the cells of these whole hours, as if they were a day."""
        with self.reading() as reading:
            hour = begin
            while hour < end:
                buckets = [(hour + n * FINE, hour + (n + 1) * FINE) for n in range(HOUR // FINE)]
                rolling.roll(reading.select, buckets, self.reach, STALE, "fine_cells", rows_in=reading.rows_in)
                hour += HOUR
            hourly.hours_of(reading.select, [(begin, end)], "fine_cells", "hour_cells")
            hourly.whole_of(reading.select, (begin, end), "hour_cells", "day_cells")

    def answers(self, now: datetime, prices: Sequence[Price] = (), labels: str | None = None) -> Answers:
        return Answers(
            self,
            lambda: None,
            ZoneInfo("UTC"),
            lambda: now,
            max_range_days=100,
            stale_after=STALE,
            prices=tuple(prices),
            currency="EUR",
        )

    def select(self, query: Query) -> list[tuple[Any, ...]]:
        return self._database.execute(query.sql, query.parameters).fetchall()

    @contextmanager
    def reading(self) -> Iterator[BenchReading]:
        with self._database.cursor() as cursor:
            yield BenchReading(self, cursor)


class BenchReading:
    """Gives rows of the windows that were asked for, and no others, so that one which is missing shows."""

    def __init__(self, bench: Bench, cursor: duckdb.DuckDBPyConnection) -> None:
        self._bench = bench
        self._cursor = cursor

    @property
    def reach(self) -> timedelta:
        return self._bench.reach

    def select(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        return self._cursor.execute(sql, dict(parameters or {})).fetchall()

    answer = select

    def coverage(self, start: datetime, end: datetime, fine_from: datetime) -> Coverage:
        return Coverage(self._bench.hours, self._bench.fine, self._bench.days)

    def rows_in(self, table: str, window: Run, columns: Sequence[str]) -> str:
        self._bench.looked_at.append(window)
        of, to = window
        told = f"{', '.join(columns)}, rowid + {2**61} AS row_id"
        return f"(SELECT {told} FROM hot_{table} WHERE sampled_at BETWEEN '{of}' AND '{to}')"


def some_runs(chance: random.Random, begin: datetime, end: datetime, bucket: timedelta) -> list[Run]:
    """Any of the buckets in a stretch of time."""
    often = chance.random()
    runs, at = [], begin
    while at < end:
        if chance.random() < often:
            runs.append((at, at + bucket))
        at += bucket
    return runs


def _rows(sample: dict[str, Any]) -> Iterator[tuple[Table, dict[str, Any]]]:
    """What a sample that was sent is stored as. What it says of a user twice is stored once."""
    at = datetime.fromisoformat(sample["sampled_at"]).astimezone(UTC).replace(tzinfo=None)
    whole = sample | {"sampled_at": at, "timestamp": at}
    yield SAMPLES, whole
    about = {name: whole.get(name) for name in _SAMPLE}
    said: set[tuple[Any, ...]] = set()
    for user in sample.get("pods") or ():
        key = tuple(user.get(name) for name in POD_KEY)
        if key not in said:
            said.add(key)
            yield POD_USAGE, about | user
            for label, value in (user.get("labels") or {}).items():
                yield POD_LABELS, about | user | {"label": label, "value": value}
