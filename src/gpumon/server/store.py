"""The store: a DuckDB database of what the CSV files say. Derived, disposable, the only importer of duckdb.

The `tables` hold every row with the name of its file, `live.latest` (in memory) the newest sample of each GPU.
What gets in, and when, is `catchup`'s business; here the database is opened, queried, and made anew when it
can't be opened or is of another version.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

from gpumon.errors import QueryError, StorageError
from gpumon.server.disk import cannot_write, try_to_write
from gpumon.server.queries import LATEST_KEY, SAMPLE_COLUMNS, Query, newest_of
from gpumon.server.tables import TABLES

log = logging.getLogger(__name__)


class DatabaseError(StorageError):
    """DuckDB refused a statement. `fatal` when it gave the whole database up, `about_input` when what it was to
    read is at fault, not the disk."""

    def __init__(self, error: duckdb.Error) -> None:
        super().__init__(str(error))
        self.fatal = isinstance(error, duckdb.FatalException)
        self.about_input = isinstance(
            error,
            duckdb.BinderException
            | duckdb.ConversionException
            | duckdb.InvalidInputException
            | duckdb.ParserException,
        )


class Store:
    """One DuckDB database. `select` from any thread; all else from one at a time."""

    def __init__(
        self,
        folder: Path,
        *,
        zone_key: str = "UTC",
        memory_mb: int = 256,
        threads: int = 2,
        query_timeout_seconds: float = 30.0,
    ) -> None:
        # Instants of rows that give only local time hold for one zone.
        self._version = " ".join(["1", zone_key, *(f"{table.name} {table.create}" for table in TABLES)])
        self._state = folder / ".gpumon"
        self._path = self._state / "store.duckdb"
        self._memory_mb = memory_mb
        self._threads = threads
        self._query_timeout = query_timeout_seconds
        self._database: duckdb.DuckDBPyConnection | None = None

    def open(self) -> None:
        """Opens the database, or makes it anew; its lock keeps a second server away from the folder. Raises
        StorageError."""
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            try_to_write(self._state)  # DuckDB's words on it would have neither the cause nor the cure
        except OSError as error:
            raise StorageError(cannot_write(error, self._state.parent)) from error
        try:
            self._database = self._connect()
        except duckdb.IOException as error:
            if "lock" in str(error).lower():
                raise StorageError(
                    "another gpumon server uses the data folder; stop it, "
                    "or set another [STORAGE] output_directory"
                ) from error
            self._database = self._remake(error)
        except duckdb.Error as error:
            self._database = self._remake(error)
        try:
            self.execute("ATTACH ':memory:' AS live")
            self.remember_latest()
        except DatabaseError:
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether queries can be answered."""
        return self._database is not None

    def close(self) -> None:
        """Closes the database. Queries under way fail. Harmless when it is not open."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def select(self, query: Query) -> list[tuple[Any, ...]]:
        """Runs a query on a cursor of its own. Raises QueryError when it takes longer than allowed."""
        database = self._database
        if database is None:
            raise QueryError("the store is not open yet; try again in a moment", status=503)
        with database.cursor() as cursor:
            alarm = threading.Timer(self._query_timeout, cursor.interrupt)
            alarm.daemon = True
            alarm.start()
            try:
                return cursor.execute(query.sql, query.parameters).fetchall()
            except duckdb.InterruptException as error:
                raise QueryError(
                    f"the query took longer than {self._query_timeout:g} s ([PERFORMANCE] query_timeout_seconds); "
                    "ask for a shorter range",
                    status=503,
                ) from error
            except duckdb.OutOfMemoryException as error:
                raise QueryError(
                    "the query needs more memory than [PERFORMANCE] query_memory_mb; ask for a shorter range, or "
                    "raise it",
                    status=503,
                ) from error
            except duckdb.Error as error:
                log.warning("query_failed error=%s", error)
                raise QueryError("the query could not be answered now; try again", status=503) from error
            finally:
                alarm.cancel()

    def execute(self, sql: str, parameters: list[Any] | None = None) -> list[tuple[Any, ...]]:
        """Runs a statement on the writing connection; gives its rows. Raises DatabaseError."""
        if self._database is None:
            raise DatabaseError(duckdb.ConnectionException("the database is closed"))
        try:
            return self._database.execute(sql, parameters or []).fetchall()
        except duckdb.Error as error:
            raise DatabaseError(error) from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All statements inside, or none."""
        self.execute("BEGIN")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(DatabaseError):
                self.execute("ROLLBACK")
            raise

    def note_latest(self, arrived: str) -> None:
        """Takes the newest rows of a table into `live.latest`; of two of the same instant the later."""
        self.execute(f"CREATE OR REPLACE TEMP TABLE newest AS {newest_of(arrived)}")
        self.execute("""
            DELETE FROM live.latest USING newest
            WHERE latest.client_name = newest.client_name AND latest.gpu_id = newest.gpu_id
              AND latest.sampled_at <= newest.sampled_at""")
        self.execute(f"""
            INSERT INTO live.latest SELECT {SAMPLE_COLUMNS} FROM newest
            ANTI JOIN live.latest USING ({LATEST_KEY})""")

    def remember_latest(self) -> None:
        """Makes `live.latest` anew from all rows."""
        self.execute(f"CREATE OR REPLACE TABLE live.latest AS {newest_of('samples')}")

    def _connect(self) -> duckdb.DuckDBPyConnection:
        database = duckdb.connect(
            str(self._path),
            config={
                "memory_limit": f"{self._memory_mb}MB",
                "threads": str(self._threads),
                "temp_directory": str(self._state / "tmp"),
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            },
        )
        try:
            database.execute("CREATE TABLE IF NOT EXISTS version (text VARCHAR)")
            found = database.execute("SELECT text FROM version").fetchone()
            if found is None or found[0] != self._version:
                for table in TABLES:
                    database.execute(f"CREATE OR REPLACE TABLE {table.name} {table.create}")
                database.execute("CREATE OR REPLACE TABLE files (name VARCHAR, size BIGINT, mtime_ns BIGINT)")
                database.execute("CREATE OR REPLACE TABLE version AS SELECT ? AS text", [self._version])
        except duckdb.Error:
            database.close()
            raise
        return database

    def _remake(self, error: duckdb.Error) -> duckdb.DuckDBPyConnection:
        log.warning("store_made_anew reason=%s", error)
        try:
            for old in (self._path, self._path.with_name(self._path.name + ".wal")):
                old.unlink(missing_ok=True)
            return self._connect()
        except (duckdb.Error, OSError) as again:
            # Without the path, as this goes out over HTTP.
            said = str(again).replace(str(self._path), self._path.name)
            raise StorageError(f"can't make the database below .gpumon in the data folder: {said}") from again
