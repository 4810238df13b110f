"""How hard GPUs worked over a range, with exact percentiles; SQL, and the answer made of its rows.

Made of all readings of `utilization_gpu`, each counting once. A percentile is a reading that was there: the least
that so many percent of the readings do not exceed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from gpumon.errors import QueryError
from gpumon.server.queries import Query

_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "none": (),
    "gpu": ("gpu_uuid", "client_name", "gpu_id", "gpu_name"),
    "node": ("node",),
    "model": ("gpu_name",),
}
PERCENTILES: Final = (50, 90, 95, 99)


def keys_of(group_by: str) -> tuple[str, ...]:
    """By what groups are told apart. Raises QueryError that lists what there is."""
    if group_by not in _KEYS:
        raise QueryError(f"group_by = {group_by[:80]!r} is no grouping here; take one of {', '.join(_KEYS)}")
    return _KEYS[group_by]


def select_utilization(keys: Sequence[str]) -> Query:
    """A row for each group: its keys, readings, mean, extremes, and PERCENTILES. From the relation `counted`: how
    often a GPU, as it was known at a place, had which value."""
    named = ", ".join(keys)
    selected, by = (f"{named}, ", f"PARTITION BY {named}") if keys else ("", "")
    percentiles = ", ".join(
        f"min(value) FILTER (upto >= ceil(total * {percent} / 100.0)) AS p{percent}" for percent in PERCENTILES
    )
    return Query(f"""
        WITH grouped AS (
            SELECT {selected}value, sum(readings) AS readings
            FROM (SELECT * REPLACE (coalesce(node, client_name) AS node) FROM counted) GROUP BY ALL
        ),
        ranked AS (
            SELECT *, sum(readings) OVER ({by} ORDER BY value) AS upto, sum(readings) OVER ({by}) AS total
            FROM grouped
        )
        SELECT {selected}CAST(any_value(total) AS BIGINT), sum(value * readings) / any_value(total), min(value),
               max(value), {percentiles}
        FROM ranked {f"GROUP BY {named} ORDER BY {named}" if keys else "HAVING count(*) > 0"}""")


def utilization_of(rows: Sequence[Sequence[Any]], keys: Sequence[str]) -> dict[str, Any]:
    """The answer, of the rows of `select_utilization`."""
    return {"groups": [_group(keys, row) for row in rows]}


def _group(keys: Sequence[str], row: Sequence[Any]) -> dict[str, Any]:
    readings, mean, low, high, *percentiles = row[len(keys) :]
    return {
        "group": dict(zip(keys, row, strict=False)),
        "readings": readings,
        "mean": mean,
        "min": low,
        "max": high,
        "percentiles": {f"p{percent}": value for percent, value in zip(PERCENTILES, percentiles, strict=True)},
    }
