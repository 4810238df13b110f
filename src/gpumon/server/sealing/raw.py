"""Seals the rows of one day: from its CSV files to Parquet, with a manifest that says of which bytes it was made.

samples.parquet     the samples, by client, GPU, instant and arrival
pod_usage.parquet   the same of the pods' rows
latest.parquet      the newest sample of each client and GPU
readings.parquet    the rollup of `readings`, with a histogram of utilisation
manifest.json       written last; the folder has its name only then
"""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path
from typing import Any

import msgspec

from gpumon.server.accounts.slices import LONGEST_SECONDS
from gpumon.server.database import Database
from gpumon.server.days import FileNames, zone_named
from gpumon.server.manifest import RawManifest, SealedFile, new_folder, outputs_of, publish
from gpumon.server.relations import SEALABLE
from gpumon.server.sealing.filling import WantedFile, fill
from gpumon.server.sealing.sorting import write_sorted
from gpumon.server.tables import SAMPLES


class RawJob(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", tag="raw"):
    """What to seal: of the data folder `data` these files of a day, whose samples are named by `prefix`, in
    `zone`; the stamps are for the manifest. `root` is the folder of all that is sealed. DuckDB may use
    `memory_mb`; the process, 150 MiB more."""

    day: date
    data: str
    files: list[WantedFile]
    prefix: str
    root: str
    stamp: str
    readings_stamp: str
    zone: str
    memory_mb: int = 160
    threads: int = 1


def seal_raw(job: RawJob) -> dict[str, Any]:
    """Does the job; gives the folder, the rows of each table and the number of damaged lines. When it fails,
    nothing is left. Raises StorageError, SettingsError, OSError."""
    folder = new_folder(Path(job.root), job.day, "raw")
    work = folder / "work"
    try:
        work.mkdir()
        database = Database.open(
            work / "day.duckdb",
            memory_mb=job.memory_mb,
            threads=job.threads,
            temp_folder=work / "tmp",
            disposable=True,
        )
        try:
            for table in SEALABLE:
                database.execute(f"CREATE TABLE {table.name} {table.create}")
            files, damaged = fill(
                database, Path(job.data), FileNames(job.prefix), job.files, zone_named(job.zone), work
            )
            for table in SEALABLE:
                write_sorted(database, table, folder, work, memory_mb=job.memory_mb)
            manifest = _manifest(database, job, folder, files, damaged)
        finally:
            database.close()
        shutil.rmtree(work)
        published = publish(folder, manifest)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return {"folder": str(published), "rows": manifest.rows, "damaged": damaged}


def _manifest(database: Database, job: RawJob, folder: Path, files: list[SealedFile], damaged: int) -> RawManifest:
    rows = {table.name: database.execute(f"SELECT count(*) FROM {table.name}")[0][0] for table in SEALABLE}
    ((first_at, last_at),) = database.execute(
        "SELECT min(first_at), max(last_at) FROM ({})".format(
            " UNION ALL ".join(
                f"SELECT min(sampled_at) AS first_at, max(sampled_at) AS last_at FROM {table.name}"
                for table in SEALABLE
            )
        )
    )
    ((longest, unstated),) = database.execute(
        f"SELECT max(interval_seconds), count(*) > count(interval_seconds) FROM {SAMPLES.name}"
    )
    return RawManifest(
        stamp=job.stamp,
        readings_stamp=job.readings_stamp,
        day=job.day,
        files=files,
        damaged=damaged,
        rows=rows,
        first_at=first_at,
        last_at=last_at,
        longest_interval=None if longest is None else min(longest, LONGEST_SECONDS),
        unstated=unstated,
        outputs=outputs_of(folder),
    )
