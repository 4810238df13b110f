"""The store: everything that the CSV files say, in DuckDB. Derived, disposable, the only importer of duckdb.

`refresh` makes the store equal to the files: it loads what was committed since the last time, files that were
dropped into the folder, and forgets files that are gone. Rows get in by one way only, from the bytes of the
CSV, whether they came a second ago, before a crash or from the old program; so an answer always equals one
computed from the files. It runs in the background every two seconds and before each query, so a row is in the
answers as soon as its sender has been told 200.

When the database can't be opened or is of another version it is made anew from the CSV files.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb

from gpumon.errors import QueryError, StorageError
from gpumon.model.fields import CSV_COLUMNS
from gpumon.server.days import DayFile, parse_file_name
from gpumon.server.disk import cannot_write
from gpumon.server.loading import copy_lines, good_lines, insert_lines, read_header
from gpumon.server.queries import CREATE_SAMPLES, IDENTITY, Query

log = logging.getLogger(__name__)

_VERSION = f"1 {CREATE_SAMPLES}"
_KEY = "client_name, gpu_id"
_COLUMNS = ", ".join(CSV_COLUMNS)


class Store:
    """One DuckDB database. Queries may come from any thread; `refresh` is serialised inside."""

    def __init__(
        self,
        folder: Path,
        prefix: str,
        zone: ZoneInfo,
        committed: Callable[[str], int | None],
        *,
        memory_mb: int = 256,
        threads: int = 2,
        query_timeout_seconds: float = 30.0,
    ) -> None:
        self._folder = folder
        self._state = folder / ".gpumon"
        self._path = self._state / "store.duckdb"
        self._piece = self._state / "piece.csv"
        self._cleaned = self._state / "cleaned.csv"
        self._prefix = prefix
        self._zone = zone
        self._committed = committed
        self._memory_mb = memory_mb
        self._threads = threads
        self._query_timeout = query_timeout_seconds
        self._writing = threading.Lock()
        self._loaded: dict[str, tuple[int, int]] = {}
        self._database: duckdb.DuckDBPyConnection | None = None
        self._wanted = False
        self.damaged_lines = 0
        self.behind: str | None = None

    def open(self) -> None:
        """Opens the database, or makes it anew; its lock keeps a second server away from the folder. Raises
        StorageError. `refresh` then loads what the files have more."""
        with self._writing:
            self._open()
            self._wanted = True

    def close(self) -> None:
        """Closes the database. Queries under way fail."""
        with self._writing:
            self._wanted = False
            self._give_up()

    def refresh(self) -> None:
        """Makes the store equal to the files. Where the disk doesn't let it, it stays as it is and `behind`
        says why."""
        with self._writing:
            if not self._wanted:
                return
            try:
                if self._database is None:
                    self._open()
                self._load_changes()
                self.behind = None
            except (duckdb.Error, OSError, StorageError) as error:
                if self.behind is None:
                    log.error("store_behind error=%s", error)
                self.behind = str(error)
                if isinstance(error, duckdb.FatalException):
                    # DuckDB gives a database up for good when its own write fails, as on a full disk.
                    self._give_up()
                    with contextlib.suppress(StorageError):
                        self._open()

    def select(self, query: Query) -> list[tuple[Any, ...]]:
        """Runs a query on a cursor of its own. Raises QueryError when it takes longer than allowed."""
        with self._cursor() as cursor:
            return cursor.execute(query.sql, query.parameters).fetchall()

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        if self._database is None:
            raise QueryError("the store is not open yet; try again in a moment", status=503)
        cursor = self._database.cursor()
        alarm = threading.Timer(self._query_timeout, cursor.interrupt)
        alarm.daemon = True
        alarm.start()
        try:
            yield cursor
        except duckdb.InterruptException as error:
            raise QueryError(
                f"the query took longer than {self._query_timeout:g} s ([PERFORMANCE] query_timeout_seconds); "
                "ask for a shorter range",
                status=503,
            ) from error
        finally:
            alarm.cancel()
            cursor.close()

    def _open(self) -> None:
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            for left in (self._piece, self._cleaned):
                left.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(cannot_write(self._folder, error)) from error
        try:
            self._database = self._connect(self._path)
        except duckdb.IOException as error:
            if "lock" in str(error).lower():
                raise StorageError(
                    f"another gpumon server uses {self._folder}; stop it, "
                    "or set another [STORAGE] output_directory"
                ) from error
            self._database = self._remake(self._path, error)
        except duckdb.Error as error:
            self._database = self._remake(self._path, error)
        try:
            self._execute("ATTACH ':memory:' AS live")
            known = self._execute("SELECT * FROM files").fetchall()
            self._loaded = {name: (size, mtime) for name, size, mtime in known}
            self._remember_latest()
        except duckdb.Error as error:
            self._give_up()
            raise StorageError(f"can't use the database {self._path}: {error}") from error

    def _give_up(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _connect(self, path: Path) -> duckdb.DuckDBPyConnection:
        database = duckdb.connect(
            str(path),
            config={
                "memory_limit": f"{self._memory_mb}MB",
                "threads": str(self._threads),
                "temp_directory": str(self._state / "tmp"),
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            },
        )
        database.execute("CREATE TABLE IF NOT EXISTS version (text VARCHAR)")
        found = database.execute("SELECT text FROM version").fetchone()
        if found is None or found[0] != _VERSION:
            database.execute(f"CREATE OR REPLACE TABLE samples {CREATE_SAMPLES}")
            database.execute("CREATE OR REPLACE TABLE files (name VARCHAR, size BIGINT, mtime_ns BIGINT)")
            database.execute("CREATE OR REPLACE TABLE version AS SELECT ? AS text", [_VERSION])
        return database

    def _remake(self, path: Path, error: duckdb.Error) -> duckdb.DuckDBPyConnection:
        log.warning("store_made_anew reason=%s", error)
        try:
            for old in (path, path.with_name(path.name + ".wal")):
                old.unlink(missing_ok=True)
            return self._connect(path)
        except (duckdb.Error, OSError) as again:
            raise StorageError(f"can't make the database {path}: {again}") from again

    def _execute(self, sql: str, parameters: list[Any] | None = None) -> duckdb.DuckDBPyConnection:
        if self._database is None:
            raise duckdb.ConnectionException("closed")
        return self._database.execute(sql, parameters or [])

    def _load_changes(self) -> None:
        found: dict[str, tuple[DayFile, int, int]] = {}
        for path in self._folder.iterdir():
            day_file = parse_file_name(self._prefix, path.name)
            if day_file is not None:
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
        path = self._folder / name
        columns = read_header(path)
        self._execute(f"CREATE OR REPLACE TEMP TABLE arriving {CREATE_SAMPLES}")
        try:
            lines = copy_lines(path, self._piece, start, end)
            rows = self._insert(columns, day_file, name, lines)
            self._execute("BEGIN")
            self._execute("INSERT INTO samples SELECT * FROM arriving")
            self._execute("DELETE FROM files WHERE name = ?", [name])
            self._execute("INSERT INTO files VALUES (?, ?, ?)", [name, end, mtime])
            self._execute("COMMIT")
        except BaseException:
            self._rollback()
            raise
        finally:
            self._piece.unlink(missing_ok=True)
        self._loaded[name] = (end, mtime)
        if rows < lines:
            self.damaged_lines += lines - rows
            log.warning("csv_lines_left_out file=%s lines=%d of=%d", name, lines - rows, lines)
        self._note_latest()

    def _insert(self, columns: list[str], day_file: DayFile, name: str, lines: int) -> int:
        """Inserts the lines of the piece into `arriving`: all at once, and when some are left out, once more
        tolerantly without the lines that are no CSV, since one may swallow its neighbours."""
        if not set(IDENTITY) <= set(columns):
            log.warning("csv_not_samples file=%s: its header has no %s", name, ", ".join(IDENTITY))
            return 0

        def insert(path: Path, *, tolerant: bool) -> int:
            return insert_lines(
                self._execute, "arriving", path, columns, day_file, self._zone, name, tolerant=tolerant
            )

        try:
            rows = insert(self._piece, tolerant=False)
        except duckdb.Error:
            rows = -1
        if rows == lines:
            return rows
        self._execute("DELETE FROM arriving")
        try:
            with self._piece.open("rb") as source, self._cleaned.open("wb") as target:
                good_lines(source, target)
            return insert(self._cleaned, tolerant=True)
        finally:
            self._cleaned.unlink(missing_ok=True)

    def _forget(self, name: str) -> None:
        if name not in self._loaded:
            return
        self._execute("BEGIN")
        try:
            self._execute("DELETE FROM samples WHERE file = ?", [name])
            self._execute("DELETE FROM files WHERE name = ?", [name])
            self._execute("COMMIT")
        except BaseException:
            self._rollback()
            raise
        del self._loaded[name]
        self._remember_latest()

    def _rollback(self) -> None:
        try:
            self._execute("ROLLBACK")
        except duckdb.Error as error:
            log.debug("nothing_to_roll_back error=%s", error)

    def _note_latest(self) -> None:
        """Takes the newest rows of what arrived into `live.latest`; of two of the same instant the later."""
        self._execute(f"CREATE OR REPLACE TEMP TABLE newest AS {_newest_of('arriving')}")
        self._execute("""
            DELETE FROM live.latest USING newest
            WHERE latest.client_name = newest.client_name AND latest.gpu_id = newest.gpu_id
              AND latest.sampled_at <= newest.sampled_at""")
        self._execute(f"""
            INSERT INTO live.latest SELECT {_COLUMNS} FROM newest
            ANTI JOIN live.latest USING ({_KEY})""")

    def _remember_latest(self) -> None:
        """Makes `live.latest` anew from all rows."""
        self._execute(f"CREATE OR REPLACE TABLE live.latest AS {_newest_of('samples')}")


def _newest_of(table: str) -> str:
    """SQL for the newest row of each GPU; of two of the same instant the later. By aggregates and joins, since a
    window would sort every row with all its columns."""
    return f"""
        WITH moment AS (SELECT {_KEY}, max(sampled_at) AS sampled_at FROM {table} GROUP BY {_KEY}),
             place AS (SELECT max(rows.rowid) AS rowid FROM {table} AS rows JOIN moment USING ({_KEY}, sampled_at)
                       GROUP BY {_KEY})
        SELECT {_COLUMNS} FROM {table} WHERE rowid IN (SELECT rowid FROM place)"""
