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
from gpumon.server.days import FIRST_DAY, LAST_DAY, DayFile, Offsets, local_offsets, utc_offsets

Execute = Callable[[str, list[Any]], list[tuple[Any, ...]]]
"""Runs SQL with parameters and gives its rows; raises DatabaseError."""


_LINE: Final = "line\n"
"""The column of line numbers where there is one. No header has a name with a line break."""
_TOLD, _AHEAD, _TIME, _HAS_OFFSET = '"told\n"', '"ahead\n"', '"time\n"', '"has offset\n"'
_WITH_OFFSET: Final = (
    r"^\s*(\d{4}-\d{1,2}-\d{1,2}[ T]\d{1,2}:\d\d(?::\d\d(?:\.\d*)?)?)\s*(?:Z|([+-](?:0\d|1[0-4])):?([0-5]\d)?)\s*$"
)
"""A time, hours and minutes: DuckDB passes over an offset by itself."""


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
    rows = _rows(columns, day_file, zone, tolerant=tolerant)
    identity = " AND ".join(f"{name} IS NOT NULL" for name in day_file.table.identity)
    fields = ", ".join(day_file.table.columns)
    counted = execute(
        f"INSERT INTO {target} SELECT {fields}, ? AS file FROM ({rows}) WHERE {identity}", [source, str(path)]
    )
    return int(counted[0][0])


def _rows(columns: list[str], day_file: DayFile, zone: ZoneInfo, *, tolerant: bool) -> str:
    """SQL for the rows of a file, whose path is its one parameter."""
    fields = day_file.table.fields
    kinds = {field.name: "VARCHAR" if tolerant else field.sql_type for field in fields} | {_LINE: "BIGINT"}
    kinds["timestamp"] = "VARCHAR"
    types = "{" + ", ".join(f"{_quoted(name)}: '{kinds.get(name, 'VARCHAR')}'" for name in columns) + "}"
    local, to_utc = _local_and_utc(day_file, zone)
    cells = [_cell(field, columns, local, to_utc, tolerant=tolerant) for field in fields]
    if _LINE in columns:
        cells.append(_quoted(_LINE))
    source = f"""
        read_csv(?, columns = {types}, auto_detect = false, header = false, delim = ',', quote = '"',
                 escape = '"', null_padding = true, ignore_errors = true, strict_mode = false)"""
    return f"SELECT {', '.join(cells)} FROM {_told(source)}"


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
    rows = _rows(columns, day_file, zone, tolerant=True)
    identity = day_file.table.identity
    unread = ", ".join(f"CASE WHEN {name} IS NULL THEN '{name}' END" for name in identity)
    without = " OR ".join(f"{name} IS NULL" for name in identity)
    found = execute(
        f"SELECT {_quoted(_LINE)}, concat_ws(', ', {unread}) FROM ({rows}) WHERE {without} LIMIT {MAX_KEPT}",
        [str(path)],
    )
    reasons: dict[int, str | None] = {line: f"its {names} can't be read" for line, names in found}
    if len(found) < min(unplaced, MAX_KEPT):
        given = f"SELECT {_quoted(_LINE)} AS line FROM ({rows})"
        left_out = execute(
            f"SELECT line FROM range(1, ?) AS all_of(line) ANTI JOIN ({given}) USING (line)",
            [lines + 1, str(path)],
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


def _told(source: str) -> str:
    """SQL for rows with what the text `timestamp` tells: a time, and by how many seconds it is ahead of UTC, where
    it says so."""
    text, form = '"timestamp"', f"'{_WITH_OFFSET}'"
    time_of, hours, minutes = (f"regexp_extract({text}, {form}, {group})" for group in (1, 2, 3))
    sign = f"CASE WHEN {hours} LIKE '-%' THEN -1 ELSE 1 END"
    ahead = f"{_number(hours)} * 3600 + {sign} * {_number(minutes)} * 60"
    return f"""
        (SELECT *, {_plausible(_TIME)} AS {_TOLD}, CASE WHEN {_HAS_OFFSET} THEN {ahead} END AS {_AHEAD}
         FROM (SELECT *, (length({text}) <> 19 OR {text} LIKE '%Z') AND regexp_matches({text}, {form})
                         AS {_HAS_OFFSET},
                      TRY_CAST(CASE WHEN {_HAS_OFFSET} THEN {time_of} ELSE {text} END AS TIMESTAMP) AS {_TIME}
               FROM {source}))"""


def _number(text: str) -> str:
    return f"coalesce(TRY_CAST({text} AS INTEGER), 0)"


def _local_and_utc(day_file: DayFile, zone: ZoneInfo) -> tuple[str, str]:
    """SQL for the local time and the instant that were told, near the file's day."""
    noon = datetime.combine(day_file.day, time(12), tzinfo=UTC).replace(tzinfo=None)
    around = noon - timedelta(days=2), noon + timedelta(days=2)
    exact = f"({_TOLD} - to_seconds({_AHEAD}))"
    local = (
        f"CASE WHEN {_AHEAD} IS NULL THEN {_TOLD} ELSE {_shifted(exact, '+', local_offsets(*around, zone))} END"
    )
    return local, f"coalesce({exact}, {_shifted(_TOLD, '-', utc_offsets(*around, zone))})"


def _shifted(moment: str, sign: str, offsets: Offsets) -> str:
    """SQL for a time that is shifted by the offset that holds then."""
    (_, first), *later = offsets
    sql = f"{moment} {sign} to_seconds({first.total_seconds()})"
    for start, offset in later:
        then = f"{moment} {sign} to_seconds({offset.total_seconds()})"
        sql = f"CASE WHEN {moment} >= TIMESTAMP '{start}' THEN {then} ELSE {sql} END"
    return f"({sql})"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
