"""What a query reads, as SQL; pure: the relations `samples` and `pod_usage` of the hot tables and of the sealed
days that a stretch of time touches: as temporary views of one reading, or each by itself in a statement.

They have those of the catalogue's columns that are asked for, and `row_id`, by which of two rows the larger came
later: what is sealed came before what is still hot, and a sealed day keeps the order in which rows of one GPU and
instant came.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Final

from gpumon.server.tables import POD_USAGE, SAMPLES, Table

SEALABLE: Final = (SAMPLES, POD_USAGE)
"""The tables whose rows are sealed. Labels are few, and are looked up over all days: they stay hot."""

WHOLE: Final = {table.name: table.columns for table in SEALABLE}
"""The columns of both, by name."""

Window = tuple[datetime, datetime]
"""From when to when, both included, naive UTC."""

_HOT = 2**62
_FILE = 2**40
"""Times the day of a sealed row as a number: to the year 9999 below what is hot."""


@dataclass(frozen=True, slots=True)
class SealedRaw:
    """The sealed rows of a day: the folder of the Parquet files, and between which instants (naive UTC) they
    are."""

    day: date
    folder: Path
    first_at: datetime
    last_at: datetime

    def touches(self, window: Window) -> bool:
        """Whether rows of it may be within a window."""
        of, to = window
        return self.first_at <= to and self.last_at >= of


def hot(table: Table) -> str:
    """The hot table of a table."""
    return f"hot_{table.name}" if table in SEALABLE else table.name


def views(sealed: Iterable[SealedRaw], windows: Sequence[Window]) -> list[str]:
    """Statements that make relations, with all rows within the windows (naive UTC) at least."""
    return [
        f"CREATE OR REPLACE TEMP VIEW {table} AS {rows}"
        for table, rows in _relations(sealed, windows, WHOLE).items()
    ]


def with_rows(
    sql: str, sealed: Iterable[SealedRaw], windows: Sequence[Window], tables: Mapping[str, Sequence[str]]
) -> str:
    """A query with these relations in itself: to make views for one takes as long as to read a few minutes."""
    relations = ", ".join(
        f"{table} AS NOT MATERIALIZED ({rows})" for table, rows in _relations(sealed, windows, tables).items()
    )
    query = sql.strip()
    return f"WITH {relations}, {query[5:]}" if query.startswith("WITH ") else f"WITH {relations} {query}"


def rows_in(table: str, columns: Sequence[str], sealed: Iterable[SealedRaw], window: Window) -> str:
    """SQL for one relation with all rows within a window (naive UTC) at least, and these of its columns."""
    return f"({_rows(table, columns, [raw for raw in sealed if raw.touches(window)])})"


def quoted(text: str) -> str:
    """A text as SQL."""
    return "'" + text.replace("'", "''") + "'"


def parquet(files: Iterable[Path], more: str = "") -> str:
    """SQL for the rows of Parquet files, with further options. A folder of the name `a=b` makes no column."""
    listed = ", ".join(quoted(str(file)) for file in files)
    return f"read_parquet([{listed}], hive_partitioning = false{more})"


def sealed_rows(columns: Sequence[str], files: Mapping[int, Path]) -> str:
    """SQL for the rows of sealed files, of which those of a file with a larger number came later."""
    numbers = ", ".join(map(str, files))
    number = numbers if len(files) == 1 else f"[{numbers}][CAST(file_index AS BIGINT) + 1]"
    return (
        f"SELECT {', '.join(columns)}, CAST({number} * {_FILE} + file_row_number AS BIGINT) AS row_id "
        f"FROM {parquet(files.values())}"
    )


def _relations(
    sealed: Iterable[SealedRaw], windows: Sequence[Window], tables: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    touched = [raw for raw in sealed if any(raw.touches(window) for window in windows)]
    return {table: _rows(table, columns, touched) for table, columns in tables.items()}


def _rows(table: str, columns: Sequence[str], sealed: Sequence[SealedRaw]) -> str:
    sources = [f"SELECT {', '.join(columns)}, rowid + {_HOT} AS row_id FROM hot_{table}"]
    if sealed:
        files = {raw.day.toordinal(): raw.folder / f"{table}.parquet" for raw in sealed}
        sources.append(sealed_rows(columns, files))
    return " UNION ALL ".join(sources)
