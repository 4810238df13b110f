"""Rows of a table to take away: as CSV like the daily files, as Parquet, as an Arrow IPC stream.

One snapshot, in no order. Memory is bounded whatever the range: CSV by batches of lines that DuckDB makes, Arrow
by slices of time, since DuckDB hands a whole result over at once, and Parquet by a file below `.gpumon/tmp`, which
is sent from there. One export at a time: it takes a share of DuckDB's memory and threads for long.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Literal
from zoneinfo import ZoneInfo

from nanoarrow import ipc  # type: ignore[import-untyped]

from gpumon.clock import Now
from gpumon.errors import QueryError
from gpumon.model.field import Field
from gpumon.server.accounts.ranges import Span, span_of
from gpumon.server.database import Reading, UnreadableFile
from gpumon.server.store import Store
from gpumon.server.tables import Table

log = logging.getLogger(__name__)

WAIT_SECONDS = 5.0
"""Longest wait for the export under way."""
_LINES = 20_000
_ARROW_ROWS = 20_000
_SHORTEST_SLICE = timedelta(seconds=1)
_BLOCK = 1 << 18
_WATCH_SECONDS = 1.0
_RESERVE_BYTES = 500 * 10**6
"""An export ends where less than this would be left on the disk that samples are stored on."""
_ASIDE = "export-"

Format = Literal["csv", "parquet", "arrow"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to export: these columns of the rows of a table from `start` up to, not including, `end` (naive UTC),
    which have these values."""

    table: Table
    format: Format
    start: datetime
    end: datetime
    columns: tuple[str, ...]
    equal: Mapping[str, str | int]


class Export:
    """One export under way: its bytes, block by block, the first of which is there already. `close` it."""

    def __init__(self, blocks: Iterator[bytes], let_go: Callable[[], None]) -> None:
        self._made = blocks
        self._let_go = let_go
        self._first: bytes | None = None

    def begin(self) -> None:
        """Makes the first block, so that what can't be had is known before anything is sent. Raises QueryError."""
        self._first = next(self._made, b"")

    def blocks(self) -> Iterator[bytes]:
        """All blocks. Raises QueryError in the middle where the rest can't be had."""
        if self._first:
            yield self._first
        yield from self._made

    def close(self) -> None:
        """Ends the query, removes what was made aside, lets the next one begin."""
        try:
            if hasattr(self._made, "close"):
                self._made.close()
        finally:
            self._let_go()


class Exports:
    """Exports from one store."""

    def __init__(
        self,
        store: Store,
        refresh: Callable[[], None],
        folder: Path,
        zone: ZoneInfo,
        now: Now,
        *,
        max_range_days: int,
    ) -> None:
        self._store = store
        self._refresh = refresh
        self._zone = zone
        self._now = now
        self._max_range_days = max_range_days
        self._aside = folder / ".gpumon" / "tmp"
        self._turn = threading.Lock()

    def clean(self) -> None:
        """Removes what a server that was killed left."""
        for left in self._aside.glob(f"{_ASIDE}*"):
            with contextlib.suppress(OSError):
                left.unlink()

    def span(self, start: str | None, end: str | None, last: str | None) -> Span:
        """The range that these words mean. Raises QueryError."""
        return span_of(start, end, last, now=self._now(), zone=self._zone, max_days=self._max_range_days)

    def open(self, wanted: Wanted) -> Export:
        """Begins an export. Raises QueryError when it can't be, or another one is under way."""
        if not self._turn.acquire(timeout=WAIT_SECONDS):
            raise QueryError(
                "another export is under way, and there is one at a time; try again later", status=503
            )
        export = Export(self._made(wanted), self._turn.release)
        try:
            self._refresh()
            export.begin()
        except BaseException:
            export.close()
            raise
        return export

    def _made(self, wanted: Wanted) -> Iterator[bytes]:
        with self._store.reading([(wanted.start, wanted.end)]) as reading:
            match wanted.format:
                case "csv":
                    yield from _csv(reading, wanted)
                case "arrow":
                    yield from _arrow(reading, wanted)
                case "parquet":
                    with self._parquet(reading, wanted) as file:
                        while block := file.read(_BLOCK):
                            yield block

    @contextlib.contextmanager
    def _parquet(self, reading: Reading, wanted: Wanted) -> Iterator[BinaryIO]:
        """The finished file, which has no name any more where the system lets it be so."""
        try:
            self._aside.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(".parquet", _ASIDE, self._aside)
        except OSError as error:
            raise QueryError(
                f"no room for the export on the server's disk ({error.strerror})", status=503
            ) from error
        os.close(descriptor)
        path = Path(name)
        try:
            _copy(reading, wanted, path)
            with path.open("rb") as file:
                with contextlib.suppress(PermissionError):  # Windows: not while it is open
                    path.unlink()
                yield file
        finally:
            path.unlink(missing_ok=True)


def _csv(reading: Reading, wanted: Wanted) -> Iterator[bytes]:
    yield (",".join(wanted.columns) + "\n").encode()
    fields = {field.name: field for field in wanted.table.fields}
    line = ", ',', ".join(f"coalesce({_cell(fields[name])}, '')" for name in wanted.columns)
    rest, parameters = _from(wanted)
    for batch in reading.batches(f"SELECT concat({line}, chr(10)) {rest}", parameters, rows=_LINES):
        yield "".join([text for (text,) in batch]).encode()


def _cell(field: Field) -> str:
    """SQL for a value as `csvlog.render` writes it."""
    name = field.name
    match field.name, field.kind:
        case "sampled_at", _:
            exact = "strftime(sampled_at, '%Y-%m-%dT%H:%M:%S.%fZ')"
            usual = "strftime(sampled_at, '%Y-%m-%dT%H:%M:%S.%gZ')"
            return f"CASE WHEN epoch_us(sampled_at) % 1000 = 0 THEN {usual} ELSE {exact} END"
        case "timestamp", _:
            return "strftime(timestamp, '%Y-%m-%d %H:%M:%S')"
        case _, "text":
            quoted = f"""'"' || replace({name}, '"', '""') || '"'"""
            return f"""CASE WHEN regexp_matches({name}, '[",\\r\\n]') THEN {quoted} ELSE {name} END"""
        case _:
            return f"CAST({name} AS VARCHAR)"


def _arrow(reading: Reading, wanted: Wanted) -> Iterator[bytes]:
    columns = ", ".join(wanted.columns)
    buffer = io.BytesIO()
    writer = ipc.StreamWriter.from_writable(buffer)

    def slice_of(start: datetime, end: datetime) -> Any:
        rest, variables = _from(wanted, start, end, value="getvariable('{}')")
        return reading.arrow(f"SELECT {columns} {rest}", variables)

    def written() -> bytes:
        data = buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
        return data

    try:
        writer.write_stream(slice_of(wanted.start, wanted.start))  # no row: the schema
        yield written()
        for start, end in _slices(reading, wanted, wanted.start, wanted.end):
            writer.write_stream(slice_of(start, end), write_schema=False)
            yield written()
        writer.close()
        yield written()
    finally:
        writer.release()


def _slices(
    reading: Reading, wanted: Wanted, start: datetime, end: datetime
) -> Iterator[tuple[datetime, datetime]]:
    """The stretch in slices with few rows each, those without a row left out."""
    rest, parameters = _from(wanted, start, end)
    reading.renew()
    ((rows, first, last),) = reading.select(
        f"SELECT count(*), min(sampled_at), max(sampled_at) {rest}",
        parameters,
    )
    if not rows:
        return
    start, end = first, last + timedelta(microseconds=1)
    if rows <= _ARROW_ROWS or end - start <= _SHORTEST_SLICE:
        yield start, end
        return
    parts = math.ceil(1.2 * rows / _ARROW_ROWS)
    step = max((end - start) / parts, _SHORTEST_SLICE / 2)
    while start < end:
        yield from _slices(reading, wanted, start, min(start + step, end))
        start += step


def _copy(reading: Reading, wanted: Wanted, path: Path) -> None:
    """Writes a Parquet file. As long as the file grows the time limit does not strike."""
    rest, parameters = _from(wanted)
    columns = ", ".join(wanted.columns)
    done = threading.Event()
    cramped = threading.Event()

    def watch() -> None:
        size = 0
        while not done.wait(_WATCH_SECONDS):
            if shutil.disk_usage(path.parent).free < _RESERVE_BYTES:
                cramped.set()
                reading.interrupt()
            elif path.stat().st_size > size:
                size = path.stat().st_size
                reading.renew()

    watcher = threading.Thread(target=watch, name="export-watch", daemon=True)
    watcher.start()
    target = str(path).replace("'", "''")
    try:
        reading.select(
            f"COPY (SELECT {columns} {rest}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)", parameters
        )
    except QueryError as error:
        full = isinstance(error, UnreadableFile) and "Could not write" in str(error.__cause__)
        if full or cramped.is_set():
            raise QueryError(
                "there is not enough room on the server's disk for the export; ask for a shorter range, or for "
                "csv or arrow, which need none",
                status=503,
            ) from error
        raise
    finally:
        done.set()
        watcher.join()


def _from(
    wanted: Wanted, start: datetime | None = None, end: datetime | None = None, *, value: str = "${}"
) -> tuple[str, dict[str, str | int | datetime]]:
    """FROM and WHERE, and the values, which stand in it in the form of `value`."""
    values: dict[str, str | int | datetime] = {"start": start or wanted.start, "end": end or wanted.end}
    conditions = [f"sampled_at >= {value.format('start')}", f"sampled_at < {value.format('end')}"]
    conditions += [f"{name} = {value.format(name)}" for name in wanted.equal]
    return f"FROM {wanted.table.name} WHERE {' AND '.join(conditions)}", values | dict(wanted.equal)
