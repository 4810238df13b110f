"""Makes coarser cells of finer ones, of hours and days; pure but for the statement that it runs. Of the same
stretch of time they say the same, so that it makes no difference to an answer which it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from gpumon.server.accounts.cells import COLUMNS, LEVEL_KEYS
from gpumon.server.accounts.desk import Execute, Run
from gpumon.server.accounts.slices import PLACE

_ADDED: Final = ", ".join(f"{column.adds}({column.name}) AS {column.name}" for column in COLUMNS if column.adds)
_KEYS: Final = ", ".join(
    f"any_value({column.name}) AS {column.name}"
    for column in COLUMNS
    if column.adds is None and column.name not in {"bucket", "kind", "subject", "level"}
)
_RANKS: Final = tuple(range(1, len(LEVEL_KEYS) + 1))


def _level_key(rank: int) -> str:
    return f"hash({', '.join(name for names in LEVEL_KEYS[:rank] for name in names)})"


_LEVEL: Final = "CASE " + " ".join(
    f"WHEN kind = 'claim' AND who <> 'nobody' "
    f"AND count(*) OVER (PARTITION BY kind, bucket, place, {_level_key(rank)}) > 1 THEN {rank}"
    for rank in reversed(_RANKS)
) + " WHEN kind = 'claim' THEN 0 END"  # fmt: skip

_PEAKS: Final = "sum(there) AS there, max(active_peak) AS active_peak, max(memory_peak) AS memory_peak"


MOST_CELLS: Final = 50_000
"""Put together at once: some 1 KB each. Of more, one part of the GPUs after the other."""


def hours_of(execute: Execute, hours: Sequence[Run], fine: str, into: str) -> None:
    """Adds the cells of the whole hours in these stretches of time to a table, from a relation with all their fine
    cells."""
    for stretch in hours:
        _put_together(execute, stretch, fine, into, "date_trunc('hour', bucket)")


def whole_of(execute: Execute, stretch: Run, cells: str, into: str) -> None:
    """Adds to a table the one cell of all of a stretch of time, as of a day, from a relation with its cells of
    hours, or its fine ones: its `bucket` is the stretch's start."""
    _put_together(execute, stretch, cells, into, "CAST($of AS TIMESTAMP)")


def _put_together(execute: Execute, stretch: Run, cells: str, into: str, bucket: str) -> None:
    values: dict[str, Any] = dict(zip(("of", "to"), stretch, strict=True))
    ((rows,),) = execute(f"SELECT count(*) FROM {cells} WHERE bucket >= $of AND bucket < $to", values)
    parts = 1 + rows // MOST_CELLS
    for part in range(parts):
        execute(_sql(cells, into, bucket), values | {"parts": parts, "part": part})


def _sql(cells: str, into: str, bucket: str) -> str:
    """Claims that share a GPU in the whole need not have shared it in one of its parts: at a level, what a part
    says is its joint row, or the claims that were alone."""
    level_keys = ", ".join(_level_key(rank) for rank in _RANKS)
    kept = ", ".join(
        f"CASE WHEN level >= {rank} THEN {name} END AS {name}"
        for rank, names in enumerate(LEVEL_KEYS, 1)
        for name in names
    )
    named = ", ".join(f"any_value({name}) AS {name}" for name in (*PLACE, *(n for k in LEVEL_KEYS for n in k)))
    return f"""
        INSERT INTO {into} BY NAME
        WITH parts AS MATERIALIZED (
            SELECT * REPLACE ({bucket} AS bucket), hash({", ".join(PLACE)}) AS place
            FROM {cells} WHERE bucket >= $of AND bucket < $to AND hash({", ".join(PLACE)}) % $parts = $part
        ),
        added AS (
            SELECT bucket, kind, subject, any_value(place) AS place, {_KEYS}, {_ADDED}
            FROM parts WHERE kind <> 'joint' GROUP BY bucket, kind, subject
        ),
        together AS (
            SELECT bucket, place, level, level_key, {named}, {_PEAKS}
            FROM (SELECT * REPLACE (unnest(CASE WHEN kind = 'joint' THEN [level]
                                                ELSE range(level + 1, {len(LEVEL_KEYS) + 1}) END) AS level),
                         unnest(CASE WHEN kind = 'joint' THEN [[{level_keys}][level]]
                                     ELSE [{level_keys}][level + 1:] END) AS level_key
                  FROM parts WHERE kind = 'joint' OR (kind = 'claim' AND who <> 'nobody'))
            GROUP BY bucket, place, level, level_key
            HAVING bool_or(kind = 'joint') OR count(DISTINCT subject) > 1
        )
        SELECT * EXCLUDE (place), {_LEVEL} AS level FROM added
        UNION ALL BY NAME
        SELECT bucket, 'joint' AS kind, level, {", ".join(PLACE)}, {kept},
               hash(place, level, level_key) AS subject, there, active_peak, memory_peak
        FROM together"""
