"""One DuckDB database: statements, transactions, readings with a time limit. The only importer of duckdb.

A file is written by `checkpoint` and when it is closed: what was committed since is lost with a process that is
killed, all of it, and the file is as it was. DuckDB's log would save that, for a fifth of what a load costs and a
sync of the disk each; but all that is in such a file can be made anew.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import duckdb

from gpumon.errors import QueryError, StorageError
from gpumon.server.alarms import Alarms

log = logging.getLogger(__name__)

_FILE: Final = "store"
"""What a database's file is called in it."""

Rows = list[tuple[Any, ...]]
Parameters = Sequence[Any] | Mapping[str, Any]


class DatabaseError(StorageError):
    """DuckDB refused a statement. `fatal` when it gave the whole database up, `about_input` when what it was to
    read is at fault, not the disk, `locked` when somebody has the file, `out_of_memory` when what it may
    take is not enough."""

    def __init__(self, error: duckdb.Error | UnicodeDecodeError) -> None:
        super().__init__(str(error))
        self.fatal = isinstance(error, duckdb.FatalException)
        self.locked = (isinstance(error, duckdb.IOException) and "lock" in str(error).lower()) or (
            isinstance(error, duckdb.BinderException) and "already attached" in str(error)
        )
        self.out_of_memory = isinstance(error, duckdb.OutOfMemoryException)
        self.about_input = isinstance(
            error,
            duckdb.BinderException
            | duckdb.ConversionException
            | duckdb.InvalidInputException
            | duckdb.ParserException,
        )

    @classmethod
    def closed(cls) -> DatabaseError:
        """There is no database open."""
        return cls(duckdb.ConnectionException("the database is closed"))


class ArrowRows:
    """The rows of an answer, to be taken once by whoever understands Arrow's C stream interface."""

    def __init__(self, capsule: object) -> None:
        self._capsule = capsule

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The stream; another schema than its own is not offered."""
        return self._capsule


class UnreadableFile(QueryError):
    """A query failed on a file that it was to read: what is sealed may be damaged."""


class Database:
    """`execute` and `transaction` from one thread at a time; `reading` from any."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, *, is_file: bool) -> None:
        self._connection = connection
        self._is_file = is_file
        self._alarms = Alarms()

    @classmethod
    def open(
        cls, path: Path | None, *, memory_mb: int, threads: int, temp_folder: Path, disposable: bool = False
    ) -> Database:
        """Opens a file, or a database in memory (None). A `disposable` file is not put in order when it is closed,
        which takes as long as a sixth of what filled it. Raises DatabaseError."""
        try:
            connection = duckdb.connect(
                ":memory:",
                config={
                    "memory_limit": f"{memory_mb}MB",
                    "threads": str(threads),
                    "temp_directory": str(temp_folder),
                    "autoinstall_known_extensions": "false",
                    "autoload_known_extensions": "false",
                    "checkpoint_threshold": "128MB",  # of one commit, which is then put into the file at once
                },
            )
        except duckdb.Error as error:
            raise DatabaseError(error) from error
        try:
            # What a sealed file says of itself does not change, and is asked with each query. GLOBAL, since each
            # reading is a connection of its own, with nothing of what is set on this one. A file of 92 row groups
            # takes 12 ms to be named in a statement without it, one with it.
            connection.execute("SET GLOBAL parquet_metadata_cache = true")
            if path is not None:
                file = str(path).replace("'", "''")
                connection.execute(f"ATTACH '{file}' AS {_FILE} (RECOVERY_MODE no_wal_writes)")
                connection.execute(f"USE {_FILE}")
            if disposable:
                connection.execute("PRAGMA disable_checkpoint_on_shutdown")
        except duckdb.Error as error:
            connection.close()
            raise DatabaseError(error) from error
        return cls(connection, is_file=path is not None)

    def beside(self) -> Database:
        """A further connection, for work that takes long: it has its own transactions and temporary tables. Raises
        DatabaseError."""
        try:
            return Database(self._cursor(), is_file=self._is_file)
        except duckdb.Error as error:
            raise DatabaseError(error) from error

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        cursor = self._connection.cursor()
        if self._is_file:
            cursor.execute(f"USE {_FILE}")
        return cursor

    def checkpoint(self) -> None:
        """Puts all that was committed into the file. Raises DatabaseError."""
        self.execute("CHECKPOINT")

    def close(self) -> None:
        """Closes it, when the readings under way have ended or taken longer than they may."""
        try:
            self._connection.close()
        finally:
            self._alarms.close()

    def execute(self, sql: str, parameters: Parameters = ()) -> Rows:
        """Runs a statement on the writing connection; gives its rows. Raises DatabaseError."""
        try:
            return self._connection.execute(sql, parameters or None).fetchall()
        except (duckdb.Error, UnicodeDecodeError) as error:  # of a damaged file it tells what bytes it found
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

    @contextlib.contextmanager
    def reading(self, timeout_seconds: float, *, single: bool = False) -> Iterator[Reading]:
        """A connection of its own with one snapshot of everything, for `timeout_seconds` at most; of a `single`
        statement, which is its own snapshot."""
        try:
            cursor = self._cursor()
        except duckdb.Error as error:
            raise QueryError("the store is just being opened anew; try again", status=503) from error
        reading = Reading(cursor, self._alarms, timeout_seconds)
        try:
            if not single:
                reading.select("BEGIN")
            yield reading
        finally:
            reading.close()


class Reading:
    """Statements on one snapshot. Temporary tables and views that they make are its own."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, alarms: Alarms, timeout_seconds: float) -> None:
        self._cursor = cursor
        self._alarms = alarms
        self._timeout = timeout_seconds
        self._alarm: object = None
        self._deadline = time.monotonic() + timeout_seconds
        self._arm()

    def select(self, sql: str, parameters: Parameters = (), *, most: int | None = None) -> Rows:
        """Runs a statement; gives its rows. Raises QueryError when all takes longer than allowed, or when there
        are more than `most`."""
        with self._translated():
            if time.monotonic() > self._deadline:  # an interrupt between two statements is lost
                raise duckdb.InterruptException("out of time")
            ran = self._cursor.execute(sql, parameters or None)
            if most is None:
                return ran.fetchall()
            rows = ran.fetchmany(most + 1)
        if len(rows) > most:
            raise QueryError(
                f"the answer has more than {most} rows, which is all that [LIMITS] max_rows allows; ask "
                "for a shorter range or a coarser grouping"
            )
        return rows

    def batches(self, sql: str, parameters: Parameters = (), *, rows: int) -> Iterator[Rows]:
        """Runs a statement; gives its rows by and by, so that few are in memory. The time limit is for each
        step: who reads slowly does not run out of time."""
        with self._step():
            self._cursor.execute(sql, parameters or None)
        while True:
            with self._step():
                batch = self._cursor.fetchmany(rows)
            if not batch:
                return
            yield batch

    def arrow(self, sql: str, variables: Mapping[str, Any]) -> ArrowRows:
        """Runs a statement; gives all of its rows in Arrow's form. The time limit begins anew with it. Its values
        stand in it as `getvariable('name')`: with parameters DuckDB takes a hundred times as long, as each cell
        becomes a value of its own on the way."""
        with self._step():
            for name, value in variables.items():
                self._cursor.execute(f'SET VARIABLE "{name}" = $value', {"value": value})
            return ArrowRows(self._cursor.sql(sql).__arrow_c_stream__())

    def renew(self) -> None:
        """The time limit begins anew: there has been progress."""
        self._disarm()
        self._deadline = time.monotonic() + self._timeout
        self._arm()

    def interrupt(self) -> None:
        """Ends the statement under way, which then raises QueryError. From any thread."""
        self._cursor.interrupt()

    def close(self) -> None:
        """Ends the snapshot."""
        self._disarm()
        with contextlib.suppress(duckdb.Error):
            self._cursor.close()

    def _arm(self) -> None:
        self._alarm = self._alarms.set(self._deadline, self._cursor.interrupt)

    def _disarm(self) -> None:
        self._alarms.cancel(self._alarm)

    @contextlib.contextmanager
    def _step(self) -> Iterator[None]:
        """A step with a time limit of its own. Between steps none runs: an interrupt then would end the next."""
        self.renew()
        try:
            with self._translated():
                yield
        finally:
            self._disarm()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except duckdb.InterruptException as error:
            raise QueryError(
                f"the query took longer than {self._timeout:g} s ([PERFORMANCE] query_timeout_seconds); "
                "ask for a shorter range",
                status=503,
            ) from error
        except duckdb.OutOfMemoryException as error:
            raise QueryError(
                "the query needs more memory than [PERFORMANCE] query_memory_mb; ask for a shorter range, or "
                "raise it",
                status=503,
            ) from error
        except (
            duckdb.IOException,
            duckdb.InvalidInputException,
            duckdb.SerializationException,
            UnicodeDecodeError,  # it tells what bytes it found
        ) as error:
            log.warning("query_failed error=%s", error)
            raise UnreadableFile("the query could not be answered now; try again", status=503) from error
        except duckdb.Error as error:
            log.warning("query_failed error=%s", error)
            raise QueryError("the query could not be answered now; try again", status=503) from error
