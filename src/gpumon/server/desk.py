"""Where questions about ranges are worked on: one snapshot, the rollups that are valid in it, and rows where
asked.

See `accounts.desk` for what the questions need of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from gpumon.server.accounts.cells import FINE, HOUR
from gpumon.server.accounts.desk import Coverage, Run
from gpumon.server.accounts.plan import without
from gpumon.server.accounts.slices import KNOWN_FOR
from gpumon.server.database import Reading, Rows
from gpumon.server.manifest import METRICS
from gpumon.server.queries import Query
from gpumon.server.readings import PLACE
from gpumon.server.relations import SealedRaw, Window, parquet, rows_in
from gpumon.server.store import Store
from gpumon.server.touched import HOT, Touched

NOTHING: Final[Mapping[str, Any]] = {}


class Desk:
    """Questions by the store."""

    def __init__(self, store: Store, touched: Touched) -> None:
        self._store = store
        self._touched = touched

    def select(self, query: Query) -> Rows:
        """Runs one query on a snapshot of its own. Raises QueryError."""
        return self._store.select(query)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Place]:
        """One snapshot for several statements. Raises QueryError."""
        with self._store.reading() as reading:
            # After the snapshot has begun: it is noted before a load's end how far that load's rows reach.
            yield Place(self._store, reading, self._touched.reach)


class Place:
    """A snapshot and what is made visible in it."""

    def __init__(self, store: Store, reading: Reading, reach: timedelta) -> None:
        self._store = store
        self._reading = reading
        self._reach = reach
        self._sealed: list[SealedRaw] | None = None

    @property
    def reach(self) -> timedelta:
        """How far a row of the snapshot may reach."""
        return self._reach

    def select(self, sql: str, parameters: Mapping[str, Any] = NOTHING) -> Rows:
        """Runs a statement; gives its rows. Raises QueryError."""
        return self._reading.select(sql, parameters)

    def answer(self, sql: str, parameters: Mapping[str, Any] = NOTHING) -> Rows:
        """As `select`. Raises QueryError also where there are more rows than [LIMITS] max_rows allows."""
        return self._reading.select(sql, parameters, most=self._store.max_rows)

    def rows_in(
        self, table: str, window: Window, columns: Sequence[str], except_days: Collection[date] = ()
    ) -> str:
        """SQL for a relation with at least the rows of `samples` or `pod_usage` in one window (naive UTC), without
        what is sealed of some days: these columns and `row_id`."""
        if self._sealed is None:
            self._sealed = self._store.sealed_in(self._reading)
        return rows_in(table, columns, [raw for raw in self._sealed if raw.day not in except_days], window)

    def places_in(self, window: Window) -> str:
        """SQL for a relation with, at least, as what GPUs were known in their samples in a window (naive UTC), by
        hour, and in how many. Of the rollup by hour, which has every row."""
        of, to = window
        inside = f"last_at >= TIMESTAMP '{of}' AND first_at <= TIMESTAMP '{to}'"
        selected = f"SELECT {', '.join(PLACE)}, utc_hour, rows FROM"
        return f"({selected} readings WHERE {inside} UNION ALL {selected} sealed_readings WHERE {inside})"

    def figures_in(self, start: datetime, end: datetime) -> tuple[list[datetime], str]:
        """Which whole hours in [start, end), naive UTC, have figures of metrics, and SQL for where they are."""
        folders = self._folders("metrics")
        found = [
            (bucket, folders[origin])
            for bucket, origin in self.select(
                "SELECT bucket, origin FROM rolled WHERE level = 'metrics' AND bucket >= $start AND until <= $end "
                "ORDER BY bucket",
                {"start": start, "end": end},
            )
            if origin in folders
        ]
        files = dict.fromkeys(Path(folder) / METRICS for _, folder in found)
        return [bucket for bucket, _ in found], parquet(files)

    def counted(self, start: datetime, end: datetime) -> None:
        """From now on `counted` says how often each GPU, as it was known at a place, had which utilization_gpu in
        [start, end), naive UTC. Of sealed days within it that is kept; the rest is counted by rows."""
        inside = [
            day
            for (day,) in self.select(
                "SELECT day FROM sealed WHERE first_at >= $start AND last_at < $end", {"start": start, "end": end}
            )
        ]
        samples = self.rows_in("samples", (start, end), (*PLACE, "sampled_at", "utilization_gpu"), inside)
        named = ", ".join(PLACE)  # which are joined at the end: to add up by them takes twice as long
        self.select(
            f"""
            CREATE OR REPLACE TEMP TABLE counted AS
            WITH kept AS MATERIALIZED (
                SELECT *, hash({named}) AS place FROM levels WHERE list_contains($inside, sealed)
            )
            SELECT {named}, value, readings
            FROM (SELECT place, level.value AS value, CAST(sum(level.readings) AS BIGINT) AS readings
                  FROM (SELECT place, unnest(levels) AS level FROM kept) GROUP BY ALL)
            JOIN (SELECT DISTINCT ON (place) place, {named} FROM kept) USING (place)
            UNION ALL
            SELECT {named}, utilization_gpu AS value, count(*) AS readings FROM {samples}
            WHERE sampled_at >= $start AND sampled_at < $end AND utilization_gpu IS NOT NULL GROUP BY ALL""",
            {"start": start, "end": end, "inside": inside},
        )

    def coverage(self, start: datetime, end: datetime, fine_from: datetime) -> Coverage:
        """Which buckets in [start, end), naive UTC, are rolled; their cells are in `hour_cells` and `fine_cells`
        from now on. Of fine ones those that may be of use: where no hour is rolled, in the hours in which a
        day begins or ends, or the range, which begins KNOWN_FOR after `start`, and from `fine_from` on."""
        days = self.select(
            "SELECT bucket, until FROM rolled WHERE level = 'day' AND bucket >= $start AND until <= $end "
            "ORDER BY bucket",
            {"start": start, "end": end},
        )
        hours = [
            bucket
            for (bucket,) in self.select(
                "SELECT bucket FROM rolled WHERE level = 'hour' AND bucket >= $start AND bucket < $end "
                "ORDER BY bucket",
                {"start": start, "end": end},
            )
        ]
        edges = {start, start + KNOWN_FOR, end} | {instant for day in days for instant in day}
        parted = {edge - (edge - datetime.min) % HOUR for edge in edges if (edge - datetime.min) % HOUR}
        whole = _runs([hour for hour in hours if hour not in parted and hour + HOUR <= fine_from], HOUR)
        folders = self._folders("cells")
        fine = [
            (bucket, origin)
            for of, to in without([(start, end)], whole)
            for bucket, origin in self.select(
                "SELECT bucket, origin FROM rolled WHERE level = 'fine' AND bucket >= $of AND bucket < $to "
                "ORDER BY bucket",
                {"of": of, "to": to},
            )
            if origin == HOT or origin in folders
        ]
        if fine:
            self._show_fine([folders[origin] for origin in sorted({origin for _, origin in fine} - {HOT})])
        return Coverage(
            hours=_runs(hours, HOUR),
            fine=_runs([bucket for bucket, _ in fine], FINE),
            days=[(of, to) for of, to in days],
        )

    def _folders(self, column: str) -> dict[str, str]:
        """By origin, where the fine cells of sealed days are, or the figures of their metrics."""
        return dict(
            self.select(f"SELECT strftime(day, '%Y%m%d'), {column} FROM sealed WHERE {column} IS NOT NULL")
        )

    def _show_fine(self, folders: Sequence[str]) -> None:
        sources = [f"SELECT * EXCLUDE (origin) FROM store.main.fine_cells WHERE origin = '{HOT}'"]
        if folders:
            files = parquet(Path(folder) / "fine.parquet" for folder in folders)
            sources.append(
                f"SELECT * FROM {files} SEMI JOIN (SELECT bucket FROM store.main.rolled "
                f"WHERE level = 'fine' AND origin <> '{HOT}') USING (bucket)"
            )
        self.select(f"CREATE OR REPLACE TEMP VIEW fine_cells AS {' UNION ALL BY NAME '.join(sources)}")


def _runs(buckets: Sequence[datetime], length: timedelta) -> list[Run]:
    runs: list[Run] = []
    for bucket in buckets:
        if runs and runs[-1][1] == bucket:
            runs[-1] = (runs[-1][0], bucket + length)
        else:
            runs.append((bucket, bucket + length))
    return runs
