"""Seals the accounts of a day: its fine cells, hour by hour, the hours made of them, and the day made of these;
and the figures of its metrics.

Beside the day's sealed rows there are, in the folder that it writes to, `other_samples.parquet` and
`other_pod_usage.parquet`: the rows around the day, and those in it that are not sealed in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from gpumon.server.accounts import metrics
from gpumon.server.accounts.cells import CREATE_CELLS, FINE, HOUR
from gpumon.server.accounts.desk import Run
from gpumon.server.accounts.hourly import hours_of, whole_of
from gpumon.server.accounts.pieces import Part, parts_of
from gpumon.server.accounts.rolling import roll
from gpumon.server.database import Database, DatabaseError, Rows
from gpumon.server.manifest import MANIFEST, METRICS, CellsManifest, outputs_of
from gpumon.server.relations import SEALABLE, quoted, sealed_rows
from gpumon.server.sealing.sorting import ROW_GROUP

_FORM: Final = "FORMAT parquet, COMPRESSION zstd"
_MOST_PARTS: Final = 4096
"""Into so many the GPUs of a bucket are divided at most; then what there is not room for is one GPU's."""
_METRICS_ROW_GROUP: Final = 12_288
"""Each question is about one metric, which has so many rows in a day of 512 GPUs."""


class CellsJob(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", tag="cells"):
    """A day from `begin` to `end` (naive UTC) whose rows are in the folder `rows`; `folder` is written to.
    `reach` and `stale_after` are seconds."""

    day: date
    rows: str
    folder: str
    stamp: str
    begin: datetime
    end: datetime
    reach: float
    stale_after: float
    memory_mb: int


def seal_cells(job: CellsJob) -> dict[str, Any]:
    """Does the job; gives the folder, which is not published yet. Raises StorageError or OSError."""
    folder = Path(job.folder)
    work = folder / "work.duckdb"
    database = Database.open(work, memory_mb=job.memory_mb, threads=1, temp_folder=folder / "tmp", disposable=True)
    try:
        _make(database, job, folder)
    finally:
        database.close()
    for left in (work, *folder.glob("other_*.parquet")):
        left.unlink(missing_ok=True)
    buckets, hours = runs_within(job.begin, job.end)
    cells = CellsManifest(
        stamp=job.stamp,
        stale_after=job.stale_after,
        day=job.day,
        raw=Path(job.rows).name,
        fine=[(buckets[0][0], buckets[-1][1])] if buckets else [],
        hours=[(hours[0][0], hours[-1][1])] if hours else [],
        figures=metrics.hours_of_day(job.begin, job.end),
        outputs=outputs_of(folder),
    )
    (folder / MANIFEST).write_bytes(msgspec.json.encode(cells))
    return {"folder": job.folder}


def runs_within(begin: datetime, end: datetime) -> tuple[list[Run], list[Run]]:
    """The fine buckets and the hours that lie within a stretch of time."""
    return _within(begin, end, FINE), _within(begin, end, HOUR)


def _within(begin: datetime, end: datetime, length: timedelta) -> list[Run]:
    first = begin + (datetime.min - begin) % length
    return [(first + number * length, first + (number + 1) * length) for number in range((end - first) // length)]


def _make(database: Database, job: CellsJob, folder: Path) -> None:
    def execute(sql: str, parameters: Mapping[str, Any] | None = None) -> Rows:
        return database.execute(sql, parameters or ())

    for table in SEALABLE:
        files = {0: Path(job.rows) / f"{table.name}.parquet", 1: folder / f"other_{table.name}.parquet"}
        execute(f"CREATE VIEW {table.name} AS {sealed_rows(table.columns, files)}")
    for name in ("fine", "hours", "days"):
        execute(f"CREATE TABLE {name} {CREATE_CELLS}")
    execute(f"CREATE TABLE metrics {metrics.CREATE}")
    buckets, hours = runs_within(job.begin, job.end)
    reach, stale_after = timedelta(seconds=job.reach), timedelta(seconds=job.stale_after)
    for part in parts_of(execute, buckets):
        _halving(lambda some: roll(execute, some.buckets, reach, stale_after, "fine", of=some.of), part)
        _halving(lambda some: metrics.add_figures(execute, some, reach, stale_after, "metrics", job.begin), part)
    hours_of(execute, hours, "fine", "hours")
    if hours:
        whole_of(execute, (hours[0][0], hours[-1][1]), "hours", "days")
    for name in ("fine", "hours", "days"):  # as they were made: in the order of time, nearly
        execute(f"COPY {name} TO {quoted(str(folder / f'{name}.parquet'))} ({_FORM}, ROW_GROUP_SIZE {ROW_GROUP})")
    execute(
        f"COPY ({metrics.figures('metrics', job.begin)}) TO {quoted(str(folder / METRICS))} "
        f"({_FORM}, ROW_GROUP_SIZE {_METRICS_ROW_GROUP})"
    )


def _halving(step: Callable[[Part], None], part: Part) -> None:
    """How much memory a step takes depends on who shares what: where it is not enough, half of it at a time."""
    try:
        step(part)
    except DatabaseError as error:
        if not error.out_of_memory or part.among > _MOST_PARTS:
            raise
        for half in part.halved():
            _halving(step, half)
