"""The sealed days as the store knows them: takes in what was sealed, takes out what is no longer so.

The folders (see `manifest`) say what is sealed; the store's tables repeat it, so that one transaction moves a day
from the hot tables to its Parquet files. A folder that does not fit the CSV files any more is thrown away: its
rows are loaded from the CSV again. What is there at the start, `adoption` brings here."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

from gpumon.server import manifest
from gpumon.server.arrivals import Arrivals, Stretch
from gpumon.server.database import DatabaseError
from gpumon.server.days import FileNames, local_midnight
from gpumon.server.disk import seen
from gpumon.server.manifest import DAY_FORM, CellsManifest, RawManifest, Stamps
from gpumon.server.sealedtables import (
    Known,
    count_rows,
    forget_rows,
    note_file,
    put_cells_in,
    put_in,
    runs_of,
    take_cells_out,
    take_fine_out,
    take_metrics_out,
    take_out,
)
from gpumon.server.sources import is_given
from gpumon.server.store import Store
from gpumon.server.touched import Touched

log = logging.getLogger(__name__)


_NEAR: Final = timedelta(days=2)


class Shelf:
    """Used by whoever has the store for itself (see `CatchUp.exclusively`)."""

    def __init__(
        self,
        store: Store,
        arrivals: Arrivals,
        touched: Touched,
        folder: Path,
        names: FileNames,
        zone: ZoneInfo,
        stamps: Stamps,
    ) -> None:
        self._store = store
        self._arrivals = arrivals
        self._touched = touched
        self._folder = folder
        self._names = names
        self._zone = zone
        self.stamps = stamps
        self.root = folder / ".gpumon" / "sealed"
        self.files: dict[str, Known] = {}
        self.days: dict[date, RawManifest] = {}
        self.folders: dict[date, Path] = {}
        self.cells: dict[date, Path] = {}
        self.spoiled: set[date] = set()
        self.deferred: set[date] = set()
        """Days that are over whose files wait to be sealed without having been loaded."""
        self.urgent: set[date] = set()
        """Days whose rows are about to be deleted, so that they are sealed without waiting for late rows."""
        self._retired: list[Path] = []
        self.removals = 0
        """How often a day was taken out, so that its files are to be loaded."""

    def is_sealed(self, day: date, name: str) -> bool:
        """Whether a file is part of what is sealed of a day."""
        return day in self.days and any(file.name == name for file in self.days[day].files)

    def sealed_bytes(self, name: str) -> int | None:
        """Up to which byte a file is sealed; None of one that is not."""
        day = self._day_of(name)
        files = self.days[day].files if day in self.days else []
        return next((file.bytes for file in files if file.name == name), None)

    def without_cells(self) -> list[date]:
        """The sealed days with rows whose cells are missing or out of date, oldest first."""
        return sorted(
            day
            for day, raw in list(self.days.items())  # from any thread
            if raw.has_rows and (day not in self.cells or day in self.spoiled)
        )

    def bounds(self, day: date) -> tuple[datetime, datetime]:
        """When a local day begins and ends, naive UTC."""
        begin, end = (local_midnight(day + timedelta(days=n), self._zone).astimezone(UTC) for n in (0, 1))
        return begin.replace(tzinfo=None), end.replace(tzinfo=None)

    # -- what the files say ------------------------------------------------------------------------------------

    def remember(self, stretch: Stretch) -> None:
        """Notes that a stretch is in the hot tables."""
        self.files[stretch.name] = Known(stretch.end, stretch.mtime_ns, stretch.lines, stretch.sealed)

    def note(self, name: str, known: Known) -> None:
        """Notes anew how much of a file is in. Raises DatabaseError."""
        note_file(self._store, name, known)
        self.files[name] = known

    def forget(self, name: str) -> None:
        """A file is gone from the store."""
        self.files.pop(name, None)

    def is_back(self, name: str, day: date, size: int) -> bool:
        """Whether a file of a day whose rows were deleted stands there again, as somebody puts it back."""
        raw = self.days.get(day)
        return raw is not None and not raw.has_rows and not raw.deleting and _is_file_of(raw, name, size)

    def is_leaving(self, name: str, day: date) -> bool:
        """Whether a file is being deleted by retention, and its rows count no more."""
        raw = self.days.get(day)
        return raw is not None and raw.deleting and _is_file_of(raw, name)

    def misfit(self, raw: RawManifest, committed: Mapping[str, int]) -> str | None:
        """Why what was sealed does not fit the CSV files, as a sentence; None when it does."""
        for file in raw.files:
            there = seen(self._folder / file.name)
            if not raw.has_rows:
                if (
                    there is not None
                    and there[0] >= file.bytes
                    and file.name not in committed
                    and not raw.deleting
                ):
                    return f"{file.name} is back"
                continue
            if there is None:
                return f"{file.name} is gone"
            size, mtime_ns = there
            known = self.files.get(file.name)
            mtimes = {file.mtime_ns, file.mtime_ns if known is None else known.mtime_ns}
            length = committed.get(file.name)
            if (length is None and size != file.bytes) or (length is not None and length < file.bytes):
                return f"{file.name} has another length"
            if size == file.bytes and mtime_ns not in mtimes:
                return f"{file.name} was edited"
            if file.refused and is_given(self._folder / file.name):
                return f"{file.name} can be read again"
        return None

    # -- at the start, see `adoption` --------------------------------------------------------------------------

    def begin(self) -> None:
        """Reads which files the store knows; days are adopted one by one. Raises DatabaseError."""
        self.files = {
            name: Known(size, mtime_ns, lines, sealed)
            for name, size, mtime_ns, lines, sealed in self._store.execute("FROM files")
        }
        self.days, self.folders, self.cells = {}, {}, {}
        self.spoiled.clear()

    def adopt(self, day: date, folder: Path, raw: RawManifest, *, known: bool) -> None:
        """A day is sealed; `known`: the store has it. Raises DatabaseError."""
        if not known:
            with self._store.transaction():
                put_in(self._store, day, folder, raw)
            self._note(day, folder, raw)
        self.days[day], self.folders[day] = raw, folder

    def adopt_cells(self, day: date, folder: Path) -> None:
        """The store has a day's cells, those of this folder."""
        self.cells[day] = folder

    def touch(self, day: date) -> None:
        """No rollup was told of a day's rows: what is rolled around them is out of date. Raises DatabaseError."""
        with self._store.transaction():
            self._touch(self.days[day])
        self._note_taken(day)

    def mark(self, *instants: datetime | None) -> None:
        """What the last sample of a day said of the next one, and the other way round, is out of date. Raises
        DatabaseError."""
        with self._store.transaction():
            self._touched.mark([(instant, instant) for instant in instants if instant is not None])
            self.spoil(self._touched.take_stale_days())

    def take_out(self, day: date) -> None:
        """Takes a day out of the store, whose folder does not count. Raises DatabaseError."""
        names = self._sealed_names(day)
        with self._store.transaction():
            instants = take_out(self._store, day, names)
            # What was rolled before it was sealed, too, which an older store has.
            self._touched.mark(self._stretches(day, min(instants), max(instants)) if instants else [])
        for name in names:
            self.files.pop(name)
        self.days.pop(day, None)
        self.folders.pop(day, None)

    # -- moves -------------------------------------------------------------------------------------------------

    def put_in(self, day: date, folder: Path, raw: RawManifest, tails: Sequence[Stretch], *, known: bool) -> None:
        """Takes a day's rows from the hot tables to what was sealed of them, in one transaction; `tails` are what
        its files have beyond that. `known`: the rows were in the hot tables. Raises DatabaseError, or one of
        `arrivals.UNREADABLE`."""
        read = [self._arrivals.read(tail, number) for number, tail in enumerate(tails)]
        old = self.folders.get(day)
        with self._store.transaction():
            put_in(self._store, day, folder, raw)
            if not known:
                self._touch(raw)
            self._arrivals.move_in(read, known=True)
        self._note(day, folder, raw)
        for tail in read:
            self.remember(tail)
        self._arrivals.after(read)
        if old is not None and old != folder:
            self.spoil([day.strftime(DAY_FORM)])  # which were made of the other folder
        self._note_taken(day)
        if not known:
            self._store.remember_latest()
        if old is not None and old != folder:
            self.retire(old)

    def put_cells_in(self, day: date, folder: Path, cells: CellsManifest) -> None:
        """Takes a day's cells into the rollups of the accounts. Raises DatabaseError."""
        old = self.cells.get(day)
        with self._store.transaction():
            put_cells_in(self._store, day, folder, cells)
            hours = [hour for hour in self._touched.hours if any(of <= hour < to for of, to in cells.hours)]
            self._touched.done(hours)
        self.cells[day] = folder
        if cells.spoiled:
            self.spoiled.add(day)
        else:
            self.spoiled.discard(day)
        if old is not None and old != folder:
            self.retire(old)

    def remove(self, day: date, reason: str) -> None:
        """Takes a day out: its rows are loaded from the CSV again, also when the server is killed now. Raises
        DatabaseError or OSError."""
        log.warning("sealed_day_left day=%s reason=%s", day, reason)
        folder = self.folders.get(day)
        if folder is not None:
            manifest.spoil(folder)
        self.removals += 1
        self.take_out(day)
        if folder is not None:
            self.retire(folder)
        if day in self.cells:
            self.retire(self.cells.pop(day))
        self._store.remember_latest()

    def remove_cells(self, day: date) -> None:
        """Takes a day's cells out: they are made anew from its rows, where these are left. Raises
        DatabaseError."""
        with self._store.transaction():
            take_cells_out(self._store, day)
        if day in self.cells:
            self.retire(self.cells.pop(day))

    def remove_fine(self, day: date) -> None:
        """Has the cells of five minutes of a day read no more, in which something is damaged and which can't be
        made anew; those of hours are in the store. Raises DatabaseError."""
        take_fine_out(self._store, day)

    def remove_metrics(self, day: date) -> None:
        """The same of the figures of a day's metrics, which are read from their file alone. Raises
        DatabaseError."""
        take_metrics_out(self._store, day)

    def rows(self) -> dict[str, int]:
        """How many rows of each table there are, hot and sealed. Raises DatabaseError."""
        return count_rows(self._store, self.days.values())

    def spoil(self, days: Iterable[str]) -> None:
        """Some cells of these days (YYYYMMDD) are out of date, by rows that are about to be in the store: they are
        to be made anew, also when the server is killed now. The others count until then, also for a store that is
        made anew. Raises DatabaseError or OSError."""
        for name in days:
            day = datetime.strptime(name, DAY_FORM).date()
            if day in self.cells:
                manifest.spoil_cells(self.cells[day], self.folders[day].name, runs_of(self._store, day))
                self.spoiled.add(day)

    def forget_rows(self, day: date) -> None:
        """The store is to have no rows of a day any more. Raises DatabaseError."""
        names = {*self._sealed_names(day), *(file.name for file in self.days[day].files)}
        with self._store.transaction():
            for name in names:
                forget_rows(self._store, name)
            self._store.execute("UPDATE sealed SET has_rows = false WHERE day = ?", [day])
        for name in names:
            self.files.pop(name, None)

    def retire(self, *paths: Path) -> None:
        """These are no longer used, but for the queries under way."""
        self._retired += paths

    def delete_retired(self, timeout_seconds: float) -> None:
        """Deletes what is no longer used, when nobody reads it any more."""
        retired = list(self._retired)
        if not retired or not self._store.wait_for_readers(timeout_seconds):
            return
        for path in retired:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            self._retired.remove(path)

    def _touch(self, raw: RawManifest) -> None:
        """Rows were sealed that have not been in the store before: what is rolled around them is out of date;
        inside the caller's transaction. Raises DatabaseError."""
        if raw.first_at is not None and raw.last_at is not None:
            self._touched.note_sealed(raw.longest_interval, raw.unstated)
            self._touched.mark(self._stretches(raw.day, raw.first_at, raw.last_at))
            self.spoil(self._touched.take_stale_days())

    def _stretches(self, day: date, first: datetime, last: datetime) -> list[tuple[datetime, datetime]]:
        """Where the rows of a day may be. A line that is years away from its file's day does not make all years
        between out of date."""
        begin, end = self.bounds(day)
        near = max(first, begin - _NEAR), min(last, end + _NEAR)
        return [*([near] if near[0] <= near[1] else []), (first, first), (last, last)]

    def _note_taken(self, day: date) -> None:
        try:
            if self._store.checkpoint():  # else a server that is killed forgets it
                self.days[day] = manifest.taken(self.folders[day], self.days[day])
        except (OSError, DatabaseError) as error:  # then the next start touches what these rows touch once more
            log.warning("sealed_day_not_noted day=%s error=%s", day, error)

    def _note(self, day: date, folder: Path, raw: RawManifest) -> None:
        self.days[day], self.folders[day] = raw, folder
        for file in raw.files:
            if raw.has_rows:
                self.files[file.name] = Known(file.bytes, file.mtime_ns, file.lines, sealed=True)
            else:
                self.files.pop(file.name, None)
        self.deferred.discard(day)
        self._touched.note_sealed(raw.longest_interval, raw.unstated)

    def _sealed_names(self, day: date) -> list[str]:
        """The files of a day that the store has as sealed; an older one may have them by other names."""
        return [name for name, known in self.files.items() if known.sealed and self._day_of(name) == day]

    def _day_of(self, name: str) -> date | None:
        day_file = self._names.parse(name)
        return None if day_file is None else day_file.day


def _is_file_of(raw: RawManifest, name: str, size: int | None = None) -> bool:
    return any(file.name == name and (size is None or size >= file.bytes) for file in raw.files)
