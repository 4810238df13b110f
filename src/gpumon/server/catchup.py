"""Makes the store equal to the files: loads what was committed since the last time and files that were dropped
into the folder, forgets files that are gone.

Rows get in by one way only, from the bytes of the CSV, whether they came a second ago, before a crash or from the
old program; so an answer always equals one computed from the files. It runs in the background every two seconds
and before each query, so a row is in the answers as soon as its sender has been told 200.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from zoneinfo import ZoneInfo

from gpumon.errors import StorageError
from gpumon.server.days import DayFile, parse_file_name
from gpumon.server.loading import copy_lines, good_lines, insert_lines, read_header
from gpumon.server.queries import CREATE_SAMPLES, IDENTITY
from gpumon.server.store import DatabaseError, Store

log = logging.getLogger(__name__)


class CatchUp:
    """Keeps one store up with one folder. `refresh` may come from any thread."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        prefix: str,
        zone: ZoneInfo,
        committed: Callable[[str], int | None],
    ) -> None:
        self._store = store
        self._folder = folder
        self._piece = folder / ".gpumon" / "piece.csv"
        self._cleaned = folder / ".gpumon" / "cleaned.csv"
        self._prefix = prefix
        self._zone = zone
        self._committed = committed
        self._lock = threading.Lock()
        self._loaded: dict[str, tuple[int, int]] = {}
        self._wanted = False
        self.damaged_lines = 0
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

    def refresh(self) -> None:
        """Makes the store equal to the files. Where the disk doesn't let it, it stays as it is and `behind`
        says why."""
        with self._lock:
            if not self._wanted:
                return
            try:
                if not self._store.is_open:
                    self._open()
                self._load_changes()
                self.behind = None
            except (StorageError, OSError) as error:
                if self.behind is None:
                    log.error("store_behind error=%s", error)
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

    def _load_changes(self) -> None:
        found: dict[str, tuple[DayFile, int, int]] = {}
        for path in self._folder.iterdir():
            day_file = parse_file_name(self._prefix, path.name)
            if day_file is not None:
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile by retention
                    status = path.stat()
                    found[path.name] = (day_file, status.st_size, status.st_mtime_ns)
        for name in self._loaded.keys() - found.keys():
            self._forget(name)
        for name, (day_file, size, mtime) in sorted(found.items()):
            loaded, loaded_mtime = self._loaded.get(name, (0, 0))
            committed = self._committed(name)  # asked after the look at the folder: see CsvLog._part
            if committed is not None:
                if loaded > committed:
                    self._forget(name)
                    loaded = 0
                if loaded < committed:
                    self._load(name, day_file, loaded, committed, mtime)
            elif (size, mtime) != (loaded, loaded_mtime):
                self._forget(name)
                self._load(name, day_file, 0, size, mtime)

    def _load(self, name: str, day_file: DayFile, start: int, end: int, mtime: int) -> None:
        """Loads the bytes from `start` to `end` of a file, in one transaction with the note that it did."""
        store, path = self._store, self._folder / name
        try:
            columns = read_header(path)
            lines = copy_lines(path, self._piece, start, end)
            store.execute(f"CREATE OR REPLACE TEMP TABLE arriving {CREATE_SAMPLES}")
            rows = self._insert(columns, day_file, name, lines)
            with store.transaction():
                store.execute("INSERT INTO samples SELECT * FROM arriving")
                store.execute("DELETE FROM files WHERE name = ?", [name])
                store.execute("INSERT INTO files VALUES (?, ?, ?)", [name, end, mtime])
        finally:
            self._piece.unlink(missing_ok=True)
        self._loaded[name] = (end, mtime)
        log.debug("loaded file=%s rows=%d bytes=%d-%d", name, rows, start, end)
        if rows < lines:
            self.damaged_lines += lines - rows
            log.warning("csv_lines_left_out file=%s lines=%d of=%d", name, lines - rows, lines)
        store.note_latest("arriving")

    def _insert(self, columns: list[str], day_file: DayFile, name: str, lines: int) -> int:
        """Inserts the lines of the piece into `arriving`: all at once, and when some are left out, once more
        tolerantly without the lines that are no CSV, since one may swallow its neighbours."""
        if not set(IDENTITY) <= set(columns):
            log.warning("csv_not_samples file=%s: its header has no %s", name, ", ".join(IDENTITY))
            return 0

        def insert(path: Path, *, tolerant: bool) -> int:
            return insert_lines(
                self._store.execute, "arriving", path, columns, day_file, self._zone, name, tolerant=tolerant
            )

        try:
            rows = insert(self._piece, tolerant=False)
        except DatabaseError:
            rows = -1
        if rows == lines:
            return rows
        self._store.execute("DELETE FROM arriving")
        try:
            with self._piece.open("rb") as source, self._cleaned.open("wb") as target:
                good_lines(source, target)
            return insert(self._cleaned, tolerant=True)
        finally:
            self._cleaned.unlink(missing_ok=True)

    def _forget(self, name: str) -> None:
        if name not in self._loaded:
            return
        with self._store.transaction():
            self._store.execute("DELETE FROM samples WHERE file = ?", [name])
            self._store.execute("DELETE FROM files WHERE name = ?", [name])
        del self._loaded[name]
        self._store.remember_latest()
