"""Makes the store equal to the files: loads what was committed since the last time and files that were dropped
into the folder, forgets files that are gone. How often, `pace` says.

Rows get in by one way only, from the bytes of the CSV, whether they came a second ago, before a crash or from the
old program; so an answer always equals one computed from the files. Of a file that is part of a sealed day only
what was appended since is loaded."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Final

from gpumon.errors import StorageError
from gpumon.server.adoption import Adoption
from gpumon.server.arrivals import Arrivals, Stretch
from gpumon.server.database import DatabaseError
from gpumon.server.days import DayFile, FileNames
from gpumon.server.disk import seen
from gpumon.server.leftout import LeftOut
from gpumon.server.pace import Pace
from gpumon.server.relations import SEALABLE, hot
from gpumon.server.sealedtables import Known
from gpumon.server.shelf import Shelf
from gpumon.server.sources import UNREADABLE
from gpumon.server.store import Store
from gpumon.server.tables import SAMPLES
from gpumon.server.touched import Touched

log = logging.getLogger(__name__)

_TOGETHER_BYTES: Final = 64 * 2**20
"""Stretches that are larger in all are loaded one by one, so that what is loaded is kept when a later one
fails."""
_DEFERRED_BYTES: Final = 32 * 2**20
"""A day of more than so much, of which nothing is loaded, is sealed at once when it is over."""
_KEPT_BYTES: Final = 128 * 2**20
_KEPT_SECONDS: Final = 600.0
"""After so much CSV, or so long, the store is put on disk: what is younger, a server that is killed has to load
again."""


class CatchUp:
    """Keeps one store up with one folder. `refresh` may come from any thread."""

    def __init__(
        self,
        store: Store,
        arrivals: Arrivals,
        touched: Touched,
        shelf: Shelf,
        folder: Path,
        names: FileNames,
        committed_sizes: Callable[[], dict[str, int]],
        wrote: Callable[[str, int], bool],
        take_replaced: Callable[[], set[str]],
        may_defer: Callable[[date], bool],
    ) -> None:
        self._store = store
        self._arrivals = arrivals
        self._touched = touched
        self._shelf = shelf
        self._folder = folder
        self._names = names
        self._committed_sizes = committed_sizes
        self._wrote = wrote
        self._take_replaced = take_replaced
        self._may_defer = may_defer
        self._replaced: set[str] = set()
        self._lock = threading.RLock()
        self._wanted = False
        self._pace = Pace()
        self._unkept_bytes = 0
        self._kept_at = time.monotonic()
        self.complete = threading.Event()
        self.left_out = LeftOut(folder)
        self.behind: str | None = None

    def open(self) -> None:
        """Opens the store, whose lock keeps another server away. Raises StorageError."""
        with self._lock:
            self._store.open()

    def begin(self) -> None:
        """Compares store and files, now that it is known what is committed. Raises StorageError."""
        with self._lock:
            self._begin()
            self._wanted = True

    def close(self) -> None:
        """Closes the store."""
        with self._lock:
            self._wanted = False
            self._store.close()

    def exclusively(self) -> contextlib.AbstractContextManager[object]:
        """While it is entered, neither the folder is looked at nor the store changed by another: for whoever
        renames files, seals, or rolls."""
        return self._lock

    def refresh(self, patience_seconds: float = -1) -> None:
        """Makes the store equal to the files. Where the disk doesn't let it, it stays as it is and `behind` says
        why. Waits for another's refresh, though no longer than `patience_seconds` (-1: however long), so that a
        query does not wait for a month that is just being loaded."""
        if not self._lock.acquire(timeout=patience_seconds):
            return
        try:
            if self._wanted:
                self._refresh()
                if self.behind is None and not self._shelf.deferred:
                    self.complete.set()
        finally:
            self._lock.release()

    def refresh_for_query(self, patience_seconds: float) -> None:
        """As `refresh`, unless all is there already or much comes in and all up to half a second ago is there."""
        if not self._pace.is_recent(self._changing):
            self.refresh(patience_seconds)

    @property
    def pause_seconds(self) -> float:
        """How long to wait before the next refresh in the background."""
        return self._pace.pause_seconds

    def _changing(self) -> object:
        """What differs after anything but an edit within a sealed day's file: the folder's entries, what is
        committed, days taken out of the store, and all other files. None where it can't be told."""
        try:
            entries = self._folder.stat().st_mtime_ns
        except OSError:
            return None
        shelf = self._shelf
        unsealed = [name for name, known in shelf.files.copy().items() if not known.sealed]
        states = {name: seen(self._folder / name) for name in unsealed}
        days = shelf.removals, shelf.deferred.copy()
        return entries, self._committed_sizes(), days, states, self.left_out.states()

    def _refresh(self) -> None:
        began = time.monotonic()
        try:
            if not self._store.is_open:
                self._store.open()
                self._begin()
            changing = self._changing()
            self._load_changes()
            self._pace.refreshed(began, changing)
            self.behind = None
        except Exception as error:  # a query answers from what the store has; the next refresh tries again
            self._pace.failed()
            if self.behind is None:
                known = isinstance(error, StorageError | OSError)
                log.error("store_behind error=%s", error, exc_info=None if known else error)
            self.behind = str(error)
            with contextlib.suppress(StorageError):
                self._touched.open()  # what it noted of a transaction that failed is not so
            if isinstance(error, DatabaseError) and error.fatal:
                # DuckDB gives a database up for good when its own write fails, as on a full disk.
                self.complete.clear()  # it comes back as of its last checkpoint
                self._store.close()
                with contextlib.suppress(StorageError, OSError):
                    self._store.open()
                    self._begin()
                    self._load_changes()
                    self.behind = None

    def _begin(self) -> None:
        self._arrivals.clean()
        committed = self._committed_sizes()
        Adoption(self._store, self._shelf, self._touched, self._folder, committed).run()
        for name, known in list(self._shelf.files.items()):
            if not known.sealed and seen(self._folder / name) != (known.size, known.mtime_ns):
                self._forget(name)  # written, edited or replaced since it was loaded: all of it anew
        self._touched.open()
        self._store.remember_latest()

    def _load_changes(self) -> None:
        found: dict[str, tuple[DayFile, int, int]] = {}
        for path in self._folder.iterdir():
            day_file = self._names.parse(path.name)
            there = None if day_file is None else seen(path)
            if day_file is not None and there is not None and not self._shelf.is_leaving(path.name, day_file.day):
                found[path.name] = (day_file, *there)
        # After the look at the folder: see OpenParts._begin. All at one moment, so that of a commit to several
        # files everything is loaded or nothing.
        committed = self._committed_sizes()
        self._replaced |= self._take_replaced()
        for name, (day_file, size, _) in found.items():
            if name not in committed and self._shelf.is_back(name, day_file.day, size):
                self._shelf.remove(day_file.day, reason=f"{name} is back")
        self.left_out.keep(found)
        for name in (self._shelf.files.keys() - found.keys()) | self._replaced:
            self._forget(name)
            self._replaced.discard(name)
        while True:
            removals = self._shelf.removals
            missing = [
                stretch
                for name, (day_file, size, mtime) in sorted(found.items())
                if name not in self.left_out
                and (stretch := self._missing(name, day_file, size, mtime, committed.get(name))) is not None
            ]
            if removals == self._shelf.removals:
                break  # else files that were part of a sealed day are to be loaded, too
        wanted = self._without_deferred(missing)
        size = sum(stretch.end - stretch.start for stretch in wanted)
        self._pace.found(size)
        if size <= _TOGETHER_BYTES:
            self._load(wanted)
        else:
            for stretch in wanted:
                self._load([stretch])

    def _without_deferred(self, wanted: Iterable[Stretch]) -> list[Stretch]:
        """Leaves the files of days that are over, and of which nothing is loaded, to be sealed as they are."""
        by_day: dict[date, list[Stretch]] = {}
        now: list[Stretch] = []
        for stretch in wanted:
            day = stretch.day_file.day
            if stretch.day_file.table in SEALABLE and self._may_defer(day):
                by_day.setdefault(day, []).append(stretch)
            else:
                now.append(stretch)
        loaded = {
            day_file.day
            for name in self._shelf.files
            if (day_file := self._names.parse(name)) is not None and day_file.table in SEALABLE
        }
        for day, stretches in by_day.items():
            large = sum(stretch.end - stretch.start for stretch in stretches) > _DEFERRED_BYTES
            if day in self._shelf.deferred or (large and day not in loaded):
                self._shelf.deferred.add(day)
            else:
                now += stretches
        return sorted(now, key=lambda stretch: stretch.name)

    def _missing(
        self, name: str, day_file: DayFile, size: int, mtime: int, committed: int | None
    ) -> Stretch | None:
        """What of a file is to be loaded; None of one that is loaded."""
        known = self._shelf.files.get(name, Known(0, 0, 0, sealed=False))
        if committed is None:
            if (size, mtime) == (known.size, known.mtime_ns):
                return None
            self._forget(name)
            return Stretch(name, day_file, 0, size, mtime)
        if known.size == committed and mtime != known.mtime_ns and size <= committed:
            if size == committed and self._wrote(name, mtime):
                self._shelf.note(name, Known(size, mtime, known.lines, known.sealed))
            else:
                self._forget(name)  # somebody edited it
                known = Known(0, 0, 0, sealed=False)
        elif known.size > committed:
            self._forget(name)
            known = Known(0, 0, 0, sealed=False)
        if known.size < committed:
            return Stretch(name, day_file, known.size, committed, mtime, known.lines, known.sealed)
        return None

    def _load(self, wanted: Sequence[Stretch]) -> None:
        read: list[Stretch] = []
        for stretch in wanted:
            state = self.left_out.state(stretch.name)
            try:
                read.append(self._arrivals.read(stretch, len(read)))
            except (*UNREADABLE, DatabaseError) as error:
                if isinstance(error, DatabaseError) and not error.about_input:
                    raise
                reason = str(error) or type(error).__name__
                self.left_out.add(stretch.name, state, reason)
                log.error("csv_file_left_out file=%s error=%r", stretch.name, error)
        if not read:
            return
        with self._store.transaction():
            self._arrivals.move_in(read)
            self._shelf.spoil(self._touched.take_stale_days())
        for stretch in read:
            self._shelf.remember(stretch)
        self._arrivals.after(read)
        self._unkept_bytes += sum(stretch.end - stretch.start for stretch in read)
        if self._unkept_bytes > _KEPT_BYTES or time.monotonic() > self._kept_at + _KEPT_SECONDS:
            self._keep()

    def _keep(self) -> None:
        try:
            if not self._store.checkpoint():
                return  # little room: after the next load
        except (DatabaseError, OSError) as error:  # if DuckDB gave it up, the next statement says so
            log.warning("store_not_kept error=%s", error)
        self._unkept_bytes, self._kept_at = 0, time.monotonic()

    def _forget(self, name: str) -> None:
        """Takes a file's rows out; all of a sealed day's, if it is part of one: its other files are loaded
        anew."""
        known = self._shelf.files.get(name)
        if known is None:
            return
        day_file = self._names.parse(name)
        if known.sealed and day_file is not None and self._shelf.is_sealed(day_file.day, name):
            self._shelf.remove(day_file.day, reason=f"{name} is gone or was edited")
        table = SAMPLES if day_file is None else day_file.table  # none: of another csv_filename_prefix
        with self._store.transaction():
            if table in SEALABLE:
                self._store.execute(
                    f"CREATE OR REPLACE TEMP TABLE leaving AS SELECT sampled_at FROM {hot(table)} WHERE file = ?",
                    [name],
                )
                self._touched.by("leaving", of_samples=False)
                self._shelf.spoil(self._touched.take_stale_days())
            self._store.execute(f"DELETE FROM {hot(table)} WHERE file = ?", [name])
            self._store.execute("DELETE FROM readings WHERE file = ?", [name])
            self._store.execute("DELETE FROM files WHERE name = ?", [name])
        self._shelf.forget(name)
        if table is SAMPLES:
            self._store.remember_latest()
