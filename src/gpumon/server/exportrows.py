"""Rows of a table as CSV like the daily files, and as an Arrow IPC stream, block by block.

Memory is bounded: CSV comes by batches of lines that DuckDB makes, Arrow by slices of time, since DuckDB hands a
whole result over at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from nanoarrow import ipc  # type: ignore[import-untyped]

from gpumon.model.field import Field
from gpumon.server.database import Reading
from gpumon.server.tables import Table

BLOCK_BYTES = 1 << 18
_LINES = 20_000
ARROW_ROWS = 20_000
_SHORTEST_SLICE = timedelta(seconds=1)

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


def csv_blocks(reading: Reading, wanted: Wanted) -> Iterator[bytes]:
    """Header and rows. Raises QueryError."""
    yield (",".join(wanted.columns) + "\n").encode()
    fields = {field.name: field for field in wanted.table.fields}
    line = ", ',', ".join(f"coalesce({_cell(fields[name])}, '')" for name in wanted.columns)
    rest, parameters = from_where(wanted)
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


def arrow_blocks(reading: Reading, wanted: Wanted) -> Iterator[bytes]:
    """Schema, record batches, end. Raises QueryError."""
    columns = ", ".join(wanted.columns)
    made = _Blocks()
    writer = ipc.StreamWriter.from_writable(made)

    def slice_of(start: datetime, end: datetime) -> Any:
        rest, variables = from_where(wanted, start, end, value="getvariable('{}')")
        return reading.arrow(f"SELECT {columns} {rest}", variables)

    try:
        writer.write_stream(slice_of(wanted.start, wanted.start))  # no row: the schema
        for start, end in _slices(reading, wanted, wanted.start, wanted.end):
            writer.write_stream(slice_of(start, end), write_schema=False)
            yield from made.take()
        writer.close()
        yield from made.take()
    finally:
        writer.release()


class _Blocks:
    """What was written, in blocks: of a slice in one piece the allocator keeps more with each."""

    def __init__(self) -> None:
        self._blocks: deque[bytes] = deque()

    def write(self, data: bytes) -> int:
        """Takes a copy of any buffer."""
        view = memoryview(data).cast("B")
        self._blocks += (bytes(view[at : at + BLOCK_BYTES]) for at in range(0, len(view), BLOCK_BYTES))
        return len(view)

    def take(self) -> Iterator[bytes]:
        """Gives the blocks away."""
        while self._blocks:
            yield self._blocks.popleft()


def _slices(
    reading: Reading, wanted: Wanted, start: datetime, end: datetime
) -> Iterator[tuple[datetime, datetime]]:
    """The stretch in slices with few rows each, those without a row left out."""
    rest, parameters = from_where(wanted, start, end)
    reading.renew()
    ((rows, first, last),) = reading.select(
        f"SELECT count(*), min(sampled_at), max(sampled_at) {rest}",
        parameters,
    )
    if not rows:
        return
    start, end = first, last + timedelta(microseconds=1)
    if rows <= ARROW_ROWS or end - start <= _SHORTEST_SLICE:
        yield start, end
        return
    parts = math.ceil(1.2 * rows / ARROW_ROWS)
    step = max((end - start) / parts, _SHORTEST_SLICE / 2)
    while start < end:
        yield from _slices(reading, wanted, start, min(start + step, end))
        start += step


def from_where(
    wanted: Wanted, start: datetime | None = None, end: datetime | None = None, *, value: str = "${}"
) -> tuple[str, dict[str, str | int | datetime]]:
    """FROM and WHERE, and the values, which stand in it in the form of `value`."""
    values: dict[str, str | int | datetime] = {"start": start or wanted.start, "end": end or wanted.end}
    conditions = [f"sampled_at >= {value.format('start')}", f"sampled_at < {value.format('end')}"]
    conditions += [f"{name} = {value.format(name)}" for name in wanted.equal]
    return f"FROM {wanted.table.name} WHERE {' AND '.join(conditions)}", values | dict(wanted.equal)
