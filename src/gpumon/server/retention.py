"""Housekeeping of the files: deletes days that are too old or too many for the disk, compresses past days.

The slow part, compressing, goes on beside the writer; only what deletes or renames runs between two of its writes
(`exclusively`), while nobody looks at the folder (`moving`), so that no file is moved under an append and none is
kept waiting by gzip. A reader that is just reading is safe: queries read the store and what is sealed, which goes
only when nobody reads it any more. Of a day that is sealed the rows go, its rollups stay, so that its GPU-hours
and averages are still answered."""

from __future__ import annotations

import gzip
import logging
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Final, Protocol

from gpumon.errors import StorageError
from gpumon.server.csvlog import CsvLog
from gpumon.server.days import DayFile, FileNames
from gpumon.server.disk import keep_reserve, sync_file, sync_folder, use_reserve
from gpumon.server.sources import open_csv
from gpumon.server.tables import SAMPLES, Table

log = logging.getLogger(__name__)

_PASSING: Final = ("tmp", "piece.csv", "cleaned.csv")
"""Below `.gpumon`: what is there for moments."""
_LEVEL: Final = 3
"""Of gzip: 2.5 times as fast as the usual 6, for files that are 9 % larger. A day of 200 GPUs takes 16 s of CPU
time."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What to keep. `keep_days` and `max_bytes` 0 mean no limit; `compress_after_days` None means never."""

    keep_days: int
    max_bytes: int
    compress_after_days: int | None


Exclusively = Callable[[Callable[[], None]], None]
"""Runs a function between two writes, and returns when it has run."""


class Sealed(Protocol):
    """What retention needs to know and to tell of the sealed days: see `sealedfiles`."""

    def rows_of(self, day: date) -> list[Path] | None:
        """The files with the rows of a day that is sealed together with its rollups; None of any other."""

    def awaits_accounts(self, day: date) -> bool:
        """Whether a day is being sealed, so that its rollups are still to come."""

    def is_leaving(self, day: date) -> bool:
        """Whether a deletion of a day's rows has begun, and its rollups are all that counts."""

    def drop_rows(self, day: date) -> None:
        """The rows of a day that `rows_of` knows are about to be deleted."""

    def dropped(self, day: date) -> None:
        """They are."""

    def may_compress(self, name: str, size: int) -> bool:
        """Whether all of a file's bytes are in the store in one way, hot or sealed."""

    def renamed(self, old: str, new: str, size: int, mtime_ns: int) -> None:
        """A file has been compressed."""


def tidy(
    folder: Path,
    names: FileNames,
    csvlog: CsvLog,
    policy: Policy,
    today: date,
    *,
    exclusively: Exclusively,
    moving: AbstractContextManager[object],
    sealed: Sealed,
) -> None:
    """Applies the policy once. Trouble with one file is logged, and the others go on. While `moving` is entered,
    nobody looks at the folder."""
    use_reserve(folder / ".gpumon")
    files = _day_files(folder, names)
    for day, group in groupby(files, key=lambda file: file[0].day):
        of_day, age = list(group), (today - day).days
        expired = policy.keep_days and age > policy.keep_days
        if expired and age == policy.keep_days + 1 and sealed.awaits_accounts(day):
            continue  # but no longer than a day: what can't be sealed must go, too
        if expired:
            with moving:
                exclusively(partial(_delete_day, csvlog, day, of_day, sealed, "older than data_retention_days"))
        elif policy.compress_after_days is not None and age >= policy.compress_after_days:
            for day_file, path in of_day:
                try:
                    if not day_file.compressed:
                        _compress(csvlog, day_file, path, exclusively, moving, sealed)
                except (OSError, StorageError) as error:
                    log.warning("housekeeping_failed file=%s error=%s", path.name, error)
    if policy.max_bytes:
        _fit(folder, names, csvlog, policy.max_bytes, today, exclusively, moving, sealed)
    keep_reserve(folder / ".gpumon")


def too_old(folder: Path, names: FileNames, policy: Policy, today: date) -> list[Path]:
    """The files that the next run will delete for their age."""
    if not policy.keep_days:
        return []
    return [path for day_file, path in _day_files(folder, names) if (today - day_file.day).days > policy.keep_days]


def _fit(
    folder: Path,
    names: FileNames,
    csvlog: CsvLog,
    max_bytes: int,
    today: date,
    exclusively: Exclusively,
    moving: AbstractContextManager[object],
    sealed: Sealed,
) -> None:
    """Deletes the oldest days, each with all of its files, until the folder fits; today's files always stay. Days
    whose rollups are just being made are the last to go, as these would go with them."""
    files = _day_files(folder, names)
    used = sum(_size(path) for path in [*(path for _, path in files), *_own_files(folder / ".gpumon")])
    past = [
        (sealed.awaits_accounts(day), day, list(group))
        for day, group in groupby(files, key=lambda file: file[0].day)
        if day < today
    ]
    for _, day, of_day in sorted(past, key=lambda one: one[:2]):
        if used <= max_bytes:
            return
        used -= sum(_size(path) for path in [path for _, path in of_day] + (sealed.rows_of(day) or []))
        with moving:
            exclusively(partial(_delete_day, csvlog, day, of_day, sealed, "more than max_disk_mb"))
    if used > max_bytes:
        log.warning("disk_cap_not_met used=%d allowed=%d: only today is left; raise max_disk_mb", used, max_bytes)


def _own_files(state: Path) -> Iterator[Path]:
    """What gpumon keeps below its own folder, without what is there for moments: an export, a query's overflow, a
    day that is being sealed. No day is to go for these."""
    for path in state.rglob("*"):
        places = path.relative_to(state).parts
        passing = places[0] in _PASSING or any(place.endswith(".new") for place in places)
        if not passing and path.is_file():
            yield path


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _day_files(folder: Path, names: FileNames) -> list[tuple[DayFile, Path]]:
    """The files of days, oldest first."""
    found = ((names.parse(path.name), path) for path in folder.iterdir())
    return sorted(
        (
            (day_file, path)
            for day_file, path in found
            if day_file is not None and _is_governed(path, day_file.table)
        ),
        key=lambda file: (file[0].day, file[1].name),
    )


def _is_governed(path: Path, table: Table) -> bool:
    """Whether a file is ours to delete and compress. Those of samples have a prefix of the user's choice, and
    are also the old program's; the names of the others are so common that the header has to say it: it is the
    catalogue's, or that of a version that knew fewer fields."""
    if not path.is_file():
        return False
    if table is SAMPLES:
        return True
    try:
        with open_csv(path) as file:
            header = file.readline(len(table.header)).rstrip(b"\r\n")
    except (OSError, EOFError, zlib.error):
        return False
    columns = header.decode(errors="replace").split(",")
    return table.header.startswith(header) and set(table.identity) <= set(columns)


def _delete_day(
    csvlog: CsvLog,
    day: date,
    of_day: list[tuple[DayFile, Path]],
    sealed: Sealed,
    reason: str,
) -> None:
    try:
        for _, path in of_day:
            path.replace(path)  # Windows refuses it where somebody has the file open: before anything is changed
        begun = sealed.is_leaving(day)
        keeps_rollups = begun or sealed.rows_of(day) is not None
        if keeps_rollups and not begun:
            sealed.drop_rows(day)
        for day_file, path in of_day:
            csvlog.release(day_file)
            size = path.stat().st_size
            path.unlink()
            log.info("day_file_deleted file=%s bytes=%d reason=%r", path.name, size, reason)
        if keeps_rollups:
            sealed.dropped(day)
    except (OSError, StorageError) as error:
        log.warning("housekeeping_failed day=%s error=%s", day, error)


def _compress(
    csvlog: CsvLog,
    day_file: DayFile,
    path: Path,
    exclusively: Exclusively,
    moving: AbstractContextManager[object],
    sealed: Sealed,
) -> None:
    """The compressed file is whole and synced before the plain one goes, and gets its name after: at no moment do
    both count, and a kill in between is finished at the next start (`healing.finish_compressions`). Where the
    compressed name is taken, the file stays as it is; where its day is being sealed, or rows came meanwhile, it
    waits for the next run."""
    target = path.with_name(path.name + ".gz")
    size = path.stat().st_size
    if target.exists() or not sealed.may_compress(path.name, size):
        return
    aside = target.with_name(target.name + ".new")
    try:
        with path.open("rb") as source, aside.open("wb") as raw:
            with gzip.GzipFile(path.name, "wb", compresslevel=_LEVEL, fileobj=raw, mtime=0) as packed:
                shutil.copyfileobj(source, packed, 1 << 20)
            raw.flush()
            sync_file(raw)

        def exchange() -> None:
            if path.stat().st_size != size or not sealed.may_compress(path.name, size):
                return
            csvlog.release(day_file)
            path.unlink()
            aside.replace(target)
            there = target.stat()
            sealed.renamed(path.name, target.name, there.st_size, there.st_mtime_ns)
            sync_folder(target.parent)
            log.info("day_file_compressed file=%s bytes=%d to=%d", path.name, size, target.stat().st_size)

        with moving:
            exclusively(exchange)
    finally:
        if path.exists():
            aside.unlink(missing_ok=True)
