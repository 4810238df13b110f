"""What a query reads, as SQL; pure: the relations `samples` and `pod_usage` of the hot tables and of the sealed
days that a stretch of time touches, as temporary views of one reading.

Both have the catalogue's columns and `row_id`, by which of two rows the larger came later: what is sealed came
before what is still hot, and a sealed day keeps the order in which rows of one GPU and instant came.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from gpumon.server.tables import POD_USAGE, SAMPLES, Table

SEALABLE: Final = (SAMPLES, POD_USAGE)
"""The tables whose rows are sealed. Labels are few, and are looked up over all days: they stay hot."""

Window = tuple[datetime, datetime]
"""From when to when, both included, naive UTC."""

_HOT = 2**61
_FILE = 2**40


@dataclass(frozen=True, slots=True)
class SealedRaw:
    """The sealed rows of a day: the folder of the Parquet files, and between which instants (naive UTC) they
    are."""

    folder: Path
    first_at: datetime
    last_at: datetime


def hot(table: Table) -> str:
    """The hot table of a table."""
    return f"hot_{table.name}" if table in SEALABLE else table.name


def views(sealed: Iterable[SealedRaw], windows: Sequence[Window]) -> list[str]:
    """Statements that make the relations, with all rows within the windows (naive UTC) at least."""
    touched = [raw.folder for raw in sealed if any(raw.first_at <= to and raw.last_at >= of for of, to in windows)]
    return [_view(table, touched) for table in SEALABLE]


def quoted(text: str) -> str:
    """A text as SQL."""
    return "'" + text.replace("'", "''") + "'"


def sealed_rows(table: Table, files: Iterable[Path]) -> str:
    """SQL for the rows of sealed files, of which those of a later file came later."""
    listed = ", ".join(quoted(str(file)) for file in files)
    return (
        f"SELECT {', '.join(table.columns)}, CAST(file_index * {_FILE} + file_row_number AS BIGINT) AS row_id "
        f"FROM read_parquet([{listed}])"
    )


def _view(table: Table, folders: Sequence[Path]) -> str:
    columns = ", ".join(table.columns)
    sources = [f"SELECT {columns}, rowid + {_HOT} AS row_id FROM hot_{table.name}"]
    if folders:
        sources.append(sealed_rows(table, [folder / f"{table.name}.parquet" for folder in folders]))
    return f"CREATE OR REPLACE TEMP VIEW {table.name} AS {' UNION ALL '.join(sources)}"
