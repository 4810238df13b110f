"""From bytes of a CSV file to rows of a table, by DuckDB's CSV reader.

A cell that is no number is NULL and its row stays. Rows of the old program's thirteen columns and gpumon's may
mix in one file. A line that is no CSV, or whose time, GPU
or client can't be read, is damaged: it is counted and left out, and the others are served.
"""

from __future__ import annotations

import csv
import gzip
import logging
from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any, BinaryIO, cast
from zoneinfo import ZoneInfo

from gpumon.model.field import Field
from gpumon.server.days import DayFile, utc_offsets
from gpumon.server.tables import Table

log = logging.getLogger(__name__)

Execute = Callable[[str, list[Any]], list[tuple[Any, ...]]]
"""Runs SQL with parameters and gives its rows; raises DatabaseError."""


def read_header(path: Path, table: Table) -> list[str]:
    """The names of a file's columns. The beginning of the catalogue stands for all of it, because newer rows may
    follow an older header. An empty name, or one that comes twice, gets a name that means nothing."""
    with open_csv(path) as file:
        line = file.readline().decode("utf-8-sig", errors="replace")
    names = next(csv.reader([line.rstrip("\r\n")]), [])
    if tuple(names) == table.columns[: len(names)]:
        return list(table.columns)
    seen: set[str] = set()
    for place, name in enumerate(names):
        if not name or name.lower() in seen:
            names[place] = f"unnamed {place}"
        seen.add(names[place].lower())
    return names


def open_csv(path: Path) -> BinaryIO:
    """A file's bytes, decompressed where it is compressed."""
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def insert_lines(
    execute: Execute,
    target: str,
    path: Path,
    columns: list[str],
    day_file: DayFile,
    zone: ZoneInfo,
    source: str,
    *,
    tolerant: bool,
) -> int:
    """Inserts the lines of a file without a header into `target`, a table of the shape of the file's own,
    marked as `source`'s. Gives the number of rows.

    Strictly, a line with a cell that is not of its column's type is left out, which is twice as fast; tolerantly,
    such a cell is NULL. Raises DatabaseError where DuckDB can't read the file at all."""
    table = day_file.table
    kinds = {field.name: "VARCHAR" if tolerant else field.sql_type for field in table.fields}
    types = "{" + ", ".join(f"{_quoted(name)}: '{kinds.get(name, 'VARCHAR')}'" for name in columns) + "}"
    local = 'TRY_CAST("timestamp" AS TIMESTAMP)' if tolerant else '"timestamp"'
    to_utc, parameters = _local_to_utc(local, day_file, zone)
    selected = ", ".join(_cell(field, columns, local, to_utc, tolerant=tolerant) for field in table.fields)
    identity = " AND ".join(f"{name} IS NOT NULL" for name in table.identity)
    counted = execute(
        f"""
        INSERT INTO {target}
        SELECT * FROM (
            SELECT {selected}, ? AS file
            FROM read_csv(?, columns = {types}, auto_detect = false, header = false, delim = ',', quote = '"',
                          escape = '"', null_padding = true, ignore_errors = true, strict_mode = false)
        ) WHERE {identity}
        """,
        [*parameters, source, str(path)],
    )
    return int(counted[0][0])


def good_lines(source: BinaryIO, target: BinaryIO) -> tuple[int, int]:
    """Copies the lines that are CSV by themselves. Gives how many are, and how many are not; empty ones are
    neither."""
    good = bad = 0
    for line in source:
        try:
            text = line.decode().rstrip("\r\n")
            if not text:
                continue
            whole = "\x00" not in text and bool(next(csv.reader([text], strict=True)))
        except (UnicodeDecodeError, csv.Error):
            whole = False
        if whole:
            target.write(line.rstrip(b"\r\n") + b"\n")
            good += 1
        else:
            bad += 1
    return good, bad


def copy_lines(path: Path, target: Path, start: int, end: int) -> int:
    """Copies the lines of a byte range without the header; gives their number."""
    lines = 0
    with open_csv(path) as source, target.open("wb") as piece:
        if start == 0:
            start = len(source.readline())
        source.seek(start)
        left = end - start if path.suffix != ".gz" else None
        last = b"\n"
        while block := source.read(1 << 20 if left is None else min(1 << 20, left)):
            lines += block.count(b"\n")
            last = block
            piece.write(block)
            if left is not None:
                left -= len(block)
        if not last.endswith(b"\n"):
            lines += 1
    return lines


def _cell(field: Field, columns: list[str], local: str, to_utc: str, *, tolerant: bool) -> str:
    if field.name not in columns:
        return f"{to_utc} AS {field.name}" if field.name == "sampled_at" else f"NULL AS {field.name}"
    text = _quoted(field.name)
    cast = f"TRY_CAST({text} AS {field.sql_type})" if tolerant and field.kind != "text" else text
    match field.name, field.kind:
        case "timestamp", _:
            value = f"date_trunc('second', {local})"
        case "sampled_at", _:
            value = f"coalesce({cast}, {to_utc})"
        case _, "float":
            value = f"CASE WHEN isfinite({cast}) THEN {cast} END"
        case _:
            value = cast
    return f"{value} AS {field.name}"


def _local_to_utc(local: str, day_file: DayFile, zone: ZoneInfo) -> tuple[str, list[Any]]:
    """SQL for the UTC instant of a local time near the file's day, and its parameters."""
    noon = datetime.combine(day_file.day, time(12), tzinfo=UTC).replace(tzinfo=None)
    offsets = utc_offsets(noon - timedelta(days=2), noon + timedelta(days=2), zone)
    sql = f"{local} - to_seconds(?)"
    parameters: list[Any] = [offsets[0][1].total_seconds()]
    for start, offset in offsets[1:]:
        sql = f"CASE WHEN {local} >= ? THEN {local} - to_seconds(?) ELSE {sql} END"
        parameters = [start, offset.total_seconds(), *parameters]
    return f"({sql})", parameters


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
