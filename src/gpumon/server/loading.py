"""From bytes of a CSV file to rows of a table, by DuckDB's CSV reader.

A cell that is no number is NULL and its row stays. Rows of the old program's thirteen columns and gpumon's may
mix in one file. A line that is no CSV, or whose time, GPU or client can't be read, is damaged: it is left out and
told of by its number (see `damage`); the others are served.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from gpumon.model.field import Field
from gpumon.server.damage import MAX_KEPT, Damage, copy_sound_lines, note_unplaced
from gpumon.server.database import DatabaseError
from gpumon.server.days import FIRST_DAY, LAST_DAY, DayFile, utc_offsets

Execute = Callable[[str, list[Any]], list[tuple[Any, ...]]]
"""Runs SQL with parameters and gives its rows; raises DatabaseError."""


_LINE: Final = "line\n"
"""The column of line numbers where there is one. No header has a name with a line break."""


def load_piece(
    execute: Execute,
    target: str,
    piece: Path,
    lines: int,
    columns: list[str],
    day_file: DayFile,
    zone: ZoneInfo,
    source: str,
) -> Damage:
    """Inserts the `lines` lines of a piece, which has no header, into `target`, a table of the shape of the file's
    own, marked as `source`'s: all at once, and where some are left out, once more tolerantly without those that
    are no CSV, since one may swallow its neighbours. Gives the damaged lines by their numbers in the piece. Raises
    DatabaseError where DuckDB can't read it at all."""
    lacking = [name for name in day_file.table.identity if name not in columns]
    if lacking:
        return Damage(lines, {0: (f"the header has no {', '.join(lacking)}", ",".join(columns))} if lines else {})
    try:
        rows = insert_lines(execute, target, piece, columns, day_file, zone, source, tolerant=False)
    except DatabaseError as error:
        if not error.about_input:
            raise
        rows = -1
    if rows == lines:
        return Damage()
    execute(f"DELETE FROM {target} WHERE file = ?", [source])
    damage = Damage()
    cleaned = piece.with_name("cleaned.csv")
    try:
        with piece.open("rb") as damaged, cleaned.open("wb") as numbered:
            sound = copy_sound_lines(damaged, numbered, damage)
        columns = [_LINE, *columns]
        unplaced = sound - insert_lines(execute, target, cleaned, columns, day_file, zone, source, tolerant=True)
        if unplaced:
            total = damage.count + unplaced
            reasons = _reasons(execute, cleaned, columns, day_file, zone, lines, unplaced)
            with piece.open("rb") as damaged:
                note_unplaced(damaged, reasons, damage)
            damage.count = total
    finally:
        cleaned.unlink(missing_ok=True)
    return damage


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
    rows, parameters = _rows(path, columns, day_file, zone, tolerant=tolerant)
    identity = " AND ".join(f"{name} IS NOT NULL" for name in day_file.table.identity)
    fields = ", ".join(day_file.table.columns)
    counted = execute(
        f"INSERT INTO {target} SELECT {fields}, ? AS file FROM ({rows}) WHERE {identity}", [source, *parameters]
    )
    return int(counted[0][0])


def _rows(
    path: Path, columns: list[str], day_file: DayFile, zone: ZoneInfo, *, tolerant: bool
) -> tuple[str, list[Any]]:
    """SQL for the rows of a file, and its parameters."""
    fields = day_file.table.fields
    kinds = {field.name: "VARCHAR" if tolerant else field.sql_type for field in fields} | {_LINE: "BIGINT"}
    types = "{" + ", ".join(f"{_quoted(name)}: '{kinds.get(name, 'VARCHAR')}'" for name in columns) + "}"
    local = _plausible('TRY_CAST("timestamp" AS TIMESTAMP)' if tolerant else '"timestamp"')
    to_utc, parameters = _local_to_utc(local, day_file, zone)
    cells = [_cell(field, columns, local, to_utc, tolerant=tolerant) for field in fields]
    if _LINE in columns:
        cells.append(_quoted(_LINE))
    return (
        f"""
        SELECT {", ".join(cells)}
        FROM read_csv(?, columns = {types}, auto_detect = false, header = false, delim = ',', quote = '"',
                      escape = '"', null_padding = true, ignore_errors = true, strict_mode = false)
        """,
        [*parameters, str(path)],
    )


def _reasons(
    execute: Execute,
    path: Path,
    columns: list[str],
    day_file: DayFile,
    zone: ZoneInfo,
    lines: int,
    unplaced: int,
) -> dict[int, str | None]:
    """Why numbered lines are no rows, by number, for the first of them: what of a row's identity can't be read.
    None stands for any line that DuckDB does not give, some of which were not among the numbered ones."""
    rows, parameters = _rows(path, columns, day_file, zone, tolerant=True)
    identity = day_file.table.identity
    unread = ", ".join(f"CASE WHEN {name} IS NULL THEN '{name}' END" for name in identity)
    without = " OR ".join(f"{name} IS NULL" for name in identity)
    found = execute(
        f"SELECT {_quoted(_LINE)}, concat_ws(', ', {unread}) FROM ({rows}) WHERE {without} LIMIT {MAX_KEPT}",
        parameters,
    )
    reasons: dict[int, str | None] = {line: f"its {names} can't be read" for line, names in found}
    if len(found) < min(unplaced, MAX_KEPT):
        given = f"SELECT {_quoted(_LINE)} AS line FROM ({rows})"
        left_out = execute(
            f"SELECT line FROM range(1, ?) AS all_of(line) ANTI JOIN ({given}) USING (line)",
            [lines + 1, *parameters],
        )
        reasons |= {line: None for (line,) in left_out}
    return reasons


def _cell(field: Field, columns: list[str], local: str, to_utc: str, *, tolerant: bool) -> str:
    if field.name not in columns:
        return f"{to_utc} AS {field.name}" if field.name == "sampled_at" else f"NULL AS {field.name}"
    text = _quoted(field.name)
    cast = f"TRY_CAST({text} AS {field.sql_type})" if tolerant and field.kind != "text" else text
    match field.name, field.kind:
        case "timestamp", _:
            value = f"date_trunc('second', {local})"
        case "sampled_at", _:
            value = f"coalesce({_plausible(cast)}, {to_utc})"
        case _, "float":
            value = f"CASE WHEN isfinite({cast}) THEN {cast} END"
        case _:
            value = cast
    return f"{value} AS {field.name}"


def _plausible(instant: str) -> str:
    """SQL for a time that can be reckoned with; NULL for any other, as `infinity` and the year 9999 are."""
    end = LAST_DAY + timedelta(days=1)
    inside = f"{instant} >= TIMESTAMP '{FIRST_DAY}' AND {instant} < TIMESTAMP '{end}'"
    return f"CASE WHEN {inside} THEN {instant} END"


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
