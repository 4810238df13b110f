"""The store: a DuckDB database of what the CSV files say and is not sealed, and of all rollups. Derived,
disposable.

    hot_samples, hot_pod_usage   rows of days that are not sealed, and late ones of sealed days, with their file
    pod_labels                   all labels
    files                        how much of which CSV file is in, hot or sealed
    sealed                       the days whose rows are in Parquet files; see `shelf`. The figures of metrics by
                                 hour are in a file beside these
    readings                     rollup of the rows that are not sealed, for the old program's questions
    sealed_readings, sealed_hours, levels   the same of sealed days; see `readings`
    fine_cells, hour_cells, day_cells   rollups of the accounts; see `rolling`
    rolled, to_roll              which buckets these are valid for, and which hours have some to make
    live.latest                  (in memory) the newest sample of each GPU

What gets in, and when, is `catchup`'s business, and `shelf`'s; here the database is opened, queried, and made anew
when it can't be opened or is of another version. Since the hot rows and the list of what is sealed change in one
transaction, and a query reads both in one snapshot, no row is seen twice or not at all while its day is sealed.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from gpumon.errors import QueryError, StorageError
from gpumon.server import readings
from gpumon.server.database import Database, DatabaseError, Parameters, Reading, Rows, UnreadableFile
from gpumon.server.disk import cannot_write, try_to_write
from gpumon.server.queries import LATEST_KEY, SAMPLE_COLUMNS, Query
from gpumon.server.relations import SealedRaw, Window, hot, parquet, views, with_rows
from gpumon.server.tables import SAMPLES, TABLES

log = logging.getLogger(__name__)

_FORM: Final = "5"
_ROOM_BYTES: Final = 256 * 2**20
"""Twice the CSV after which `catchup` has a checkpoint made."""

_OWN_TABLES: Final = {
    "files": "name VARCHAR, size BIGINT, mtime_ns BIGINT, lines BIGINT, sealed BOOLEAN",
    "sealed": "day DATE, folder VARCHAR, has_rows BOOLEAN, cells VARCHAR, metrics VARCHAR, first_at TIMESTAMP, "
    "last_at TIMESTAMP, longest DOUBLE, unstated BOOLEAN",
    "readings": f"{readings.CREATE}, file VARCHAR",
    "sealed_readings": f"{readings.CREATE}, sealed DATE",
    "sealed_hours": f"{readings.HOURS_CREATE}, sealed DATE",
    "levels": f"{readings.LEVELS_CREATE}, sealed DATE",
    "rolled": "bucket TIMESTAMP, until TIMESTAMP, level VARCHAR, origin VARCHAR",
    "to_roll": "hour TIMESTAMP",
}


class Store:
    """One DuckDB database. `select` and `reading` from any thread; all else from one at a time."""

    def __init__(
        self,
        folder: Path,
        *,
        cell_columns: str,
        zone_key: str = "UTC",
        memory_mb: int = 256,
        threads: int = 2,
        query_timeout_seconds: float = 30.0,
        max_rows: int = 100_000,
    ) -> None:
        self._tables = {hot(table): table.create.strip("()") for table in TABLES} | _OWN_TABLES
        self._tables |= dict.fromkeys(("fine_cells", "hour_cells", "day_cells"), f"{cell_columns}, origin VARCHAR")
        # Instants of rows that give only local time hold for one zone.
        self._version = " ".join([_FORM, zone_key, *(f"{name} {form}" for name, form in self._tables.items())])
        self._state = folder / ".gpumon"
        self._path = self._state / "store.duckdb"
        self._memory_mb = memory_mb
        self._threads = threads
        self._query_timeout = query_timeout_seconds
        self.max_rows = max_rows
        self._database: Database | None = None
        self._readers: set[object] = set()
        self._left = threading.Condition()
        self.suspect = threading.Event()
        """Set when a file of a sealed day could not be read."""

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
        except DatabaseError as error:
            if error.locked:
                raise StorageError(
                    "another gpumon server uses the data folder; stop it, "
                    "or set another [STORAGE] output_directory"
                ) from error
            self._database = self._remake(error)
        try:
            self.execute("ATTACH ':memory:' AS live")
            self.execute(f"CREATE TABLE live.latest AS SELECT {SAMPLE_COLUMNS} FROM hot_samples LIMIT 0")
        except DatabaseError:
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether queries can be answered."""
        return self._database is not None

    def close(self) -> None:
        """Closes the database, when the queries under way have ended. Harmless when it is not open."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def select(self, query: Query) -> Rows:
        """Runs a query on a snapshot of its own. Raises QueryError when it takes longer than allowed."""
        with self.reading(single=not query.windows, has_latest=query.has_latest) as reading:
            sql = query.sql
            if query.windows:
                sql = with_rows(sql, self.sealed_in(reading), query.windows, query.tables)
            return reading.select(sql, query.parameters)

    @contextlib.contextmanager
    def reading(
        self,
        windows: Sequence[Window] = (),
        *,
        single: bool = False,
        has_latest: bool = True,
    ) -> Iterator[Reading]:
        """A snapshot of everything, for several statements or a `single` one; of `live.latest` where it
        `has_latest`. Where windows are given (naive UTC), there are the relations `samples` and `pod_usage`, with
        the rows within the windows at least. Raises QueryError."""
        database = self._database
        if database is None:
            raise QueryError("the store is not open yet; try again in a moment", status=503)
        try:
            with (
                self._as_reader(),
                database.reading(self._query_timeout, single=single) as reading,
            ):
                if has_latest and not single:
                    # DuckDB's snapshot of each database begins with the first look at it. What `live.latest` has
                    # by now is in the rows, whose snapshot begins later.
                    reading.select("SELECT 1 FROM live.latest LIMIT 1")
                if windows:
                    for statement in views(self.sealed_in(reading), windows):
                        reading.select(statement)
                yield reading
        except UnreadableFile:
            self.suspect.set()
            raise

    @contextlib.contextmanager
    def _as_reader(self) -> Iterator[None]:
        reader = object()
        with self._left:
            self._readers.add(reader)
        try:
            yield
        finally:
            with self._left:
                self._readers.discard(reader)
                self._left.notify_all()

    def sealed_in(self, reading: Reading) -> list[SealedRaw]:
        """The days whose rows are sealed, as a reading sees them."""
        return _sealed(reading.select(_RAW))

    def wait_for_readers(self, timeout_seconds: float) -> bool:
        """Waits until the readings that are under way now have ended; whether they have. What was sealed, and is
        no longer, may be deleted then."""
        with self._left:
            there = set(self._readers)
            return self._left.wait_for(lambda: not there & self._readers, timeout_seconds)

    def execute(self, sql: str, parameters: Parameters = ()) -> Rows:
        """Runs a statement on the writing connection; gives its rows. Raises DatabaseError."""
        if self._database is None:
            raise DatabaseError.closed()
        return self._database.execute(sql, parameters)

    def checkpoint(self) -> bool:
        """Puts all that was committed into the database's file. False where the disk has little room: DuckDB gives
        a database up for good that it can't write, and this one answers all the same. Raises DatabaseError or
        OSError."""
        if self._database is None:
            raise DatabaseError.closed()
        if shutil.disk_usage(self._state).free < _ROOM_BYTES:
            return False
        self._database.checkpoint()
        return True

    def transaction(self) -> contextlib.AbstractContextManager[None]:
        """All statements inside, or none. Raises DatabaseError."""
        if self._database is None:
            raise DatabaseError.closed()
        return self._database.transaction()

    @contextlib.contextmanager
    def beside(self) -> Iterator[Database]:
        """A further connection, for work that takes long: a reading that may write. Raises DatabaseError."""
        if self._database is None:
            raise DatabaseError.closed()
        with self._as_reader(), contextlib.closing(self._database.beside()) as beside:
            yield beside

    def look(self, windows: Sequence[Window], without: Path | None = None, on: Database | None = None) -> None:
        """Makes the relations `samples` and `pod_usage` of the writing connection, or of one beside it, without
        those that are sealed in a folder. Raises DatabaseError."""
        execute = self.execute if on is None else on.execute
        for statement in views([raw for raw in _sealed(execute(_RAW)) if raw.folder != without], windows):
            execute(statement)

    def note_latest(self, arrived: str) -> None:
        """Takes the newest rows of a table into `live.latest`; of two of the same instant the later."""
        self.execute(f"""
            CREATE OR REPLACE TEMP TABLE newest AS
            SELECT {LATEST_KEY}, max(sampled_at) AS sampled_at, arg_max(rowid, (sampled_at, rowid)) AS place
            FROM {arrived} GROUP BY {LATEST_KEY}""")
        self.execute("""
            DELETE FROM live.latest USING newest
            WHERE latest.client_name = newest.client_name AND latest.gpu_id = newest.gpu_id
              AND latest.sampled_at <= newest.sampled_at""")
        self.execute(f"""
            INSERT INTO live.latest SELECT {SAMPLE_COLUMNS} FROM {arrived}
            WHERE rowid IN (SELECT place FROM newest ANTI JOIN live.latest USING ({LATEST_KEY}))""")

    def remember_latest(self) -> None:
        """Makes `live.latest` anew from all rows: the newest of each sealed day, then the hot ones, which came
        later. Of a day whose file is damaged there is none, until `sealer` has had it made anew."""
        self.execute("DELETE FROM live.latest")
        for raw in _sealed(self.execute(_RAW)):
            rows = parquet([raw.folder / "latest.parquet"])
            try:
                self.execute(f"CREATE OR REPLACE TEMP TABLE remembered AS SELECT {SAMPLE_COLUMNS} FROM {rows}")
            except DatabaseError as error:
                if error.fatal:
                    raise
                log.error("sealed_file_unreadable folder=%s error=%s", raw.folder.parent.name, error)
                self.suspect.set()
                continue
            self.note_latest("remembered")
        self.note_latest(hot(SAMPLES))

    def _connect(self) -> Database:
        database = Database.open(
            self._path, memory_mb=self._memory_mb, threads=self._threads, temp_folder=self._state / "tmp"
        )
        try:
            database.execute("CREATE TABLE IF NOT EXISTS version (text VARCHAR)")
            found = database.execute("SELECT text FROM version")
            if not found or found[0][0] != self._version:
                for (name,) in database.execute(
                    "SELECT table_name FROM duckdb_tables() WHERE database_name = current_database()"
                ):
                    database.execute(f'DROP TABLE "{name}"')
                for name, form in self._tables.items():
                    database.execute(f"CREATE TABLE {name} ({form})")
                database.execute("CREATE TABLE version AS SELECT ? AS text", [self._version])
        except DatabaseError:
            database.close()
            raise
        return database

    def _remake(self, error: DatabaseError) -> Database:
        log.warning("store_made_anew reason=%s", error)
        try:
            for old in (self._path, self._path.with_name(self._path.name + ".wal")):
                old.unlink(missing_ok=True)
            return self._connect()
        except (DatabaseError, OSError) as again:
            # Without the path, as this goes out over HTTP.
            said = str(again).replace(str(self._path), self._path.name)
            raise StorageError(f"can't make the database below .gpumon in the data folder: {said}") from again


def discard(folder: Path) -> None:
    """Deletes the database of a data folder, so that it is made anew. Raises StorageError where a server has
    it."""
    path = folder / ".gpumon" / "store.duckdb"
    if path.exists():
        try:
            Database.open(path, memory_mb=64, threads=1, temp_folder=path.with_name("tmp")).close()
        except DatabaseError as error:
            if error.locked:
                raise StorageError("a gpumon server uses the data folder; stop it first") from error
    for old in (path, path.with_name(path.name + ".wal")):
        old.unlink(missing_ok=True)


_RAW: Final = "SELECT day, folder, first_at, last_at FROM sealed WHERE has_rows ORDER BY day"


def _sealed(rows: Sequence[tuple[Any, ...]]) -> list[SealedRaw]:
    """Of a day without a row, first and last are NULL: no window touches it."""
    return [
        SealedRaw(day, Path(folder), first or datetime.max, last or datetime.min)
        for day, folder, first, last in rows
    ]
