"""Makes the store equal to the files: loads what was committed since the last time and files that were dropped
into the folder, forgets files that are gone.

Rows get in by one way only, from the bytes of the CSV, whether they came a second ago, before a crash or from the
old program; so an answer always equals one computed from the files. It runs in the background every two seconds
and before each query, so a row is in the answers as soon as its sender has been told 200.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import logging
import stat
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from zoneinfo import ZoneInfo

from gpumon.errors import StorageError
from gpumon.server.days import DayFile, FileNames
from gpumon.server.loading import copy_lines, good_lines, insert_lines, read_header
from gpumon.server.store import DatabaseError, Store
from gpumon.server.tables import SAMPLES

log = logging.getLogger(__name__)


class CatchUp:
    """Keeps one store up with one folder. `refresh` may come from any thread."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        names: FileNames,
        zone: ZoneInfo,
        committed: Callable[[str], int | None],
        take_replaced: Callable[[], set[str]],
    ) -> None:
        self._store = store
        self._folder = folder
        self._piece = folder / ".gpumon" / "piece.csv"
        self._cleaned = folder / ".gpumon" / "cleaned.csv"
        self._names = names
        self._zone = zone
        self._committed = committed
        self._take_replaced = take_replaced
        self._replaced: set[str] = set()
        self._lock = threading.Lock()
        self._loaded: dict[str, tuple[int, int]] = {}
        self._unreadable: dict[str, tuple[int, int]] = {}
        self._wanted = False
        self.complete = threading.Event()
        self.damaged_lines = 0
        self.unreadable_files = 0
        self.behind: str | None = None

    def open(self) -> None:
        """Opens the store. Raises StorageError."""
        with self._lock:
            self._open()
            self._wanted = True

    def close(self) -> None:
        """Closes the store."""
        with self._lock:
            self._wanted = False
            self._store.close()

    def moving(self) -> contextlib.AbstractContextManager[object]:
        """While it is entered, the folder is not looked at: for whoever renames files in it."""
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
                self.complete.set()
        finally:
            self._lock.release()

    def _refresh(self) -> None:
        try:
            if not self._store.is_open:
                self._open()
            self._load_changes()
            self.behind = None
        except Exception as error:  # a query answers from what the store has; the next refresh tries again
            if self.behind is None:
                known = isinstance(error, StorageError | OSError)
                log.error("store_behind error=%s", error, exc_info=None if known else error)
            self.behind = str(error)
            if isinstance(error, DatabaseError) and error.fatal:
                # DuckDB gives a database up for good when its own write fails, as on a full disk.
                self._store.close()
                with contextlib.suppress(StorageError):
                    self._open()

    def _open(self) -> None:
        self._store.open()
        for left in (self._piece, self._cleaned):
            with contextlib.suppress(OSError):
                left.unlink()  # of a server that was killed
        known = self._store.execute("SELECT name, size, mtime_ns FROM files")
        self._loaded = {name: (size, mtime) for name, size, mtime in known}
        for name, noted in list(self._loaded.items()):
            if _seen(self._folder / name) != noted:
                self._forget(name)  # written, edited or replaced since it was loaded: all of it anew

    def _load_changes(self) -> None:
        found: dict[str, tuple[DayFile, int, int]] = {}
        for path in self._folder.iterdir():
            day_file = self._names.parse(path.name)
            seen = None if day_file is None else _seen(path)
            if day_file is not None and seen is not None:
                found[path.name] = (day_file, *seen)
        self._replaced |= self._take_replaced()
        for name in (self._loaded.keys() - found.keys()) | self._replaced:
            self._forget(name)
            self._replaced.discard(name)
        for name, (day_file, size, mtime) in sorted(found.items()):
            if self._unreadable.get(name) == (size, mtime):
                continue
            try:
                self._catch_up(name, day_file, size, mtime)
            except (EOFError, zlib.error, csv.Error, gzip.BadGzipFile, PermissionError, DatabaseError) as error:
                if isinstance(error, DatabaseError) and not error.about_input:
                    raise
                self._unreadable[name] = (size, mtime)
                self.unreadable_files += 1
                log.error("csv_file_left_out file=%s error=%r", name, error)

    def _catch_up(self, name: str, day_file: DayFile, size: int, mtime: int) -> None:
        loaded, loaded_mtime = self._loaded.get(name, (0, 0))
        committed = self._committed(name)  # asked after the look at the folder: see OpenParts._begin
        if committed is None:
            if (size, mtime) != (loaded, loaded_mtime):
                self._forget(name)
                self._load(name, day_file, 0, size, mtime)
            return
        if loaded > committed:
            self._forget(name)
            loaded = 0
        if loaded < committed:
            self._load(name, day_file, loaded, committed, mtime)
        elif mtime != loaded_mtime and size == committed:
            self._note(name, size, mtime)

    def _load(self, name: str, day_file: DayFile, start: int, end: int, mtime: int) -> None:
        """Loads the bytes from `start` to `end` of a file, in one transaction with the note that it did."""
        store, path, table = self._store, self._folder / name, day_file.table
        try:
            columns = read_header(path, table)
            lines = copy_lines(path, self._piece, start, end)
            store.execute(f"CREATE OR REPLACE TEMP TABLE arriving {table.create}")
            damaged = self._insert(columns, day_file, name, lines)
            with store.transaction():
                store.execute(f"INSERT INTO {table.name} SELECT * FROM arriving")
                self._note(name, end, mtime)
        finally:
            self._piece.unlink(missing_ok=True)
        log.debug("loaded file=%s lines=%d bytes=%d-%d", name, lines, start, end)
        if damaged:
            self.damaged_lines += damaged
            log.warning("csv_lines_left_out file=%s lines=%d of=%d", name, damaged, lines)
        if table is SAMPLES:
            store.note_latest("arriving")

    def _note(self, name: str, size: int, mtime: int) -> None:
        """Notes how much of a file the store has."""
        self._store.execute("DELETE FROM files WHERE name = ?", [name])
        self._store.execute("INSERT INTO files VALUES (?, ?, ?)", [name, size, mtime])
        self._loaded[name] = (size, mtime)

    def _insert(self, columns: list[str], day_file: DayFile, name: str, lines: int) -> int:
        """Inserts the lines of the piece into `arriving`: all at once, and when some are left out, once more
        tolerantly without the lines that are no CSV, since one may swallow its neighbours. Gives the number of
        lines that are damaged."""
        identity = day_file.table.identity
        if not set(identity) <= set(columns):
            log.warning("csv_not_ours file=%s: its header has no %s", name, ", ".join(identity))
            return lines

        def insert(path: Path, *, tolerant: bool) -> int:
            return insert_lines(
                self._store.execute, "arriving", path, columns, day_file, self._zone, name, tolerant=tolerant
            )

        try:
            rows = insert(self._piece, tolerant=False)
        except DatabaseError:
            rows = -1
        if rows == lines:
            return 0
        self._store.execute("DELETE FROM arriving")
        try:
            with self._piece.open("rb") as source, self._cleaned.open("wb") as target:
                good, bad = good_lines(source, target)
            return bad + good - insert(self._cleaned, tolerant=True)
        finally:
            self._cleaned.unlink(missing_ok=True)

    def _forget(self, name: str) -> None:
        if name not in self._loaded:
            return
        day_file = self._names.parse(name)
        table = SAMPLES if day_file is None else day_file.table  # none: of another csv_filename_prefix
        with self._store.transaction():
            self._store.execute(f"DELETE FROM {table.name} WHERE file = ?", [name])
            self._store.execute("DELETE FROM files WHERE name = ?", [name])
        del self._loaded[name]
        if table is SAMPLES:
            self._store.remember_latest()


def _seen(path: Path) -> tuple[int, int] | None:
    """(size, mtime in ns) of a file; None of anything else, or when it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None
