"""Housekeeping of the files: deletes days that are too old or too many for the disk, compresses past days.

The slow part, compressing, goes on beside the writer; only what deletes or renames runs between two of its writes,
while nobody looks at the folder (`alone`), so that no file is moved under an append and none is kept waiting by
gzip. A reader that is just reading is safe: queries read the store and what is sealed, which goes
only when nobody reads it any more. Of a day the rows go, its rollups stay, so that its GPU-hours and averages are
still answered: one that has none yet, as a file that was just put in, is sealed first."""

from __future__ import annotations

import gzip
import logging
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
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
_AGE_PATIENCE_SECONDS: Final = 86_400.0
_CAP_PATIENCE_SECONDS: Final = 600.0
"""How long a day that is to go waits for its rollups."""
_LEVEL: Final = 3
"""Of gzip: 2.5 times as fast as the usual 6, for files that are 9 % larger. A day of 200 GPUs takes 16 s of CPU
time."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What to keep. `keep_days` and `max_bytes` 0 mean no limit; `compress_after_days` None means never."""

    keep_days: int
    max_bytes: int
    compress_after_days: int | None


Alone = Callable[[Callable[[], None]], None]
"""Runs a function between two writes, while nobody looks at the folder, and returns when it has run."""


class Sealed(Protocol):
    """What retention needs to know and to tell of the sealed days: see `sealedfiles`."""

    def rows_of(self, day: date) -> list[Path] | None:
        """The files with the rows of a day that is sealed together with its rollups; None of any other."""

    def awaits_rollups(self, day: date, names: Iterable[str]) -> bool:
        """Whether what outlives the rows of a day's files is still to be made."""

    def hasten(self, day: date) -> None:
        """It is to be made now, whether or not further rows may come."""

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


class Retention:
    """Applies a policy to a data folder; from one thread. Trouble with a file is logged, and the others go on."""

    def __init__(
        self, folder: Path, names: FileNames, csvlog: CsvLog, policy: Policy, alone: Alone, sealed: Sealed
    ) -> None:
        self._folder = folder
        self._state = folder / ".gpumon"
        self._names = names
        self._csvlog = csvlog
        self._policy = policy
        self._alone = alone
        self._sealed = sealed
        self._waiting: dict[date, float] = {}

    def tidy(self, today: date) -> None:
        """Applies the policy once."""
        policy = self._policy
        use_reserve(self._state)
        for day, group in groupby(_day_files(self._folder, self._names), key=lambda file: file[0].day):
            of_day, age = list(group), (today - day).days
            if policy.keep_days and age > policy.keep_days:
                self._let_go(day, of_day, "older than data_retention_days", _AGE_PATIENCE_SECONDS)
            elif policy.compress_after_days is not None and age >= policy.compress_after_days:
                for day_file, path in of_day:
                    try:
                        if not day_file.compressed:
                            self._compress(day_file, path)
                    except (OSError, StorageError) as error:
                        log.warning("housekeeping_failed file=%s error=%s", path.name, error)
        if policy.max_bytes:
            self._fit(today)
        keep_reserve(self._state)

    def too_old(self, today: date) -> list[Path]:
        """The files that the next run will delete for their age."""
        keep_days = self._policy.keep_days
        files = _day_files(self._folder, self._names) if keep_days else []
        return [path for day_file, path in files if (today - day_file.day).days > keep_days]

    def _fit(self, today: date) -> None:
        """Deletes the oldest days, each with all of its files, until the folder fits; today's files always stay.
        Days whose rollups are still to be made are the last to go."""
        files, allowed = _day_files(self._folder, self._names), self._policy.max_bytes
        used = sum(_size(path) for path in [*(path for _, path in files), *_own_files(self._state)])
        past = [
            (self._awaits(day, of_day), day, of_day)
            for day, of_day in ((day, list(group)) for day, group in groupby(files, key=lambda file: file[0].day))
            if day < today
        ]
        for _, day, of_day in sorted(past, key=lambda one: one[:2]):
            if used <= allowed:
                return
            size = sum(_size(path) for path in [path for _, path in of_day] + (self._sealed.rows_of(day) or []))
            if self._let_go(day, of_day, "more than max_disk_mb", _CAP_PATIENCE_SECONDS):
                used -= size
        if used > allowed:
            log.warning(
                "disk_cap_not_met used=%d allowed=%d: what is left is of today, or is sealed first; where "
                "this stays, raise max_disk_mb",
                used,
                allowed,
            )

    def _awaits(self, day: date, of_day: list[tuple[DayFile, Path]]) -> bool:
        return self._sealed.awaits_rollups(day, [path.name for _, path in of_day])

    def _let_go(self, day: date, of_day: list[tuple[DayFile, Path]], reason: str, patience: float) -> bool:
        """Deletes a day once its rollups are made, or have been waited for long enough: what can't be sealed must
        go, too. False where it still waits."""
        if self._awaits(day, of_day):
            self._sealed.hasten(day)
            if day not in self._waiting:
                self._waiting[day] = time.monotonic()
                log.warning("retention will delete day=%s reason=%r once its rollups are made", day, reason)
            if time.monotonic() - self._waiting[day] < patience:
                return False
        self._waiting.pop(day, None)
        self._delete_day(day, of_day, reason)
        return True

    def _delete_day(self, day: date, of_day: list[tuple[DayFile, Path]], reason: str) -> None:
        sealed = self._sealed

        def delete() -> None:
            for _, path in of_day:
                path.replace(path)  # Windows refuses it where somebody has the file open: nothing is changed yet
            begun = sealed.is_leaving(day)
            keeps_rollups = begun or sealed.rows_of(day) is not None
            if keeps_rollups and not begun:
                sealed.drop_rows(day)
            for day_file, path in of_day:
                self._csvlog.release(day_file)
                size = path.stat().st_size
                path.unlink()
                log.info("day_file_deleted file=%s bytes=%d reason=%r", path.name, size, reason)
            if keeps_rollups:
                sealed.dropped(day)

        def try_to_delete() -> None:
            try:
                delete()
            except (OSError, StorageError) as error:
                log.warning("housekeeping_failed day=%s error=%s", day, error)

        self._alone(try_to_delete)

    def _compress(self, day_file: DayFile, path: Path) -> None:
        """The compressed file is whole and synced before the plain one goes, and gets its name after: at no moment
        do both count, and a kill in between is finished at the next start (`healing.finish_compressions`). Where
        the compressed name is taken, the file stays as it is; where its day is being sealed, or rows came
        meanwhile, it waits for the next run."""
        target = path.with_name(path.name + ".gz")
        size = path.stat().st_size
        if target.exists() or not self._sealed.may_compress(path.name, size):
            return
        aside = target.with_name(target.name + ".new")
        try:
            with path.open("rb") as source, aside.open("wb") as raw:
                with gzip.GzipFile(path.name, "wb", compresslevel=_LEVEL, fileobj=raw, mtime=0) as packed:
                    shutil.copyfileobj(source, packed, 1 << 20)
                raw.flush()
                sync_file(raw)

            def exchange() -> None:
                if path.stat().st_size != size or not self._sealed.may_compress(path.name, size):
                    return
                self._csvlog.release(day_file)
                path.unlink()
                aside.replace(target)
                there = target.stat()
                self._sealed.renamed(path.name, target.name, there.st_size, there.st_mtime_ns)
                sync_folder(target.parent)
                log.info("day_file_compressed file=%s bytes=%d to=%d", path.name, size, there.st_size)

            self._alone(exchange)
        finally:
            if path.exists():
                aside.unlink(missing_ok=True)


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
