"""Readings by hour: the rollup behind the old program's questions, as SQL; pure.

A row says of one GPU and one local hour how many readings of `utilization_gpu` there are, their sum and extremes,
and in which minutes. It depends on nothing but the rows themselves, so rows of different files add up: late ones
are further rows. An hour that the clocks repeat, or that straddles two hours of UTC, is several rows, by
`utc_hour`.

Of sealed days there are beside it `sealed_hours`, the same of all GPUs together, since most questions are about
all, and `levels`: how often a GPU had which utilisation; what exact percentiles are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

PLACE: Final = ("client_name", "gpu_id", "gpu_uuid", "node", "gpu_name")
"""As what a GPU is known in its samples."""

_SHAPE: Final = {
    "client_name": "VARCHAR",
    "gpu_id": "BIGINT",
    "gpu_uuid": "VARCHAR",
    "node": "VARCHAR",
    "gpu_name": "VARCHAR",
    "day": "DATE",
    "hour": "INTEGER",
    "utc_hour": "TIMESTAMP",
    "rows": "BIGINT",
    "total": "DOUBLE",
    "readings": "BIGINT",
    "low": "DOUBLE",
    "high": "DOUBLE",
    "minutes": "BIGINT",
    "first_at": "TIMESTAMP",
    "last_at": "TIMESTAMP",
}
_HOUR: Final = ("day", "hour", "utc_hour")
COLUMNS: Final = tuple(_SHAPE)
CREATE: Final = ", ".join(f"{name} {kind}" for name, kind in _SHAPE.items())
"""Columns and types of the rollup: `rows` counts all rows, `readings` those with a utilisation, `minutes` has a
bit for each minute with one."""

OF_HOURS: Final = tuple(name for name in COLUMNS if name not in PLACE)
HOURS_CREATE: Final = ", ".join(f"{name} {_SHAPE[name]}" for name in OF_HOURS)
"""The same of all GPUs together."""

LEVELS_CREATE: Final = (
    ", ".join(f"{name} {_SHAPE[name]}" for name in PLACE) + ", levels STRUCT(value DOUBLE, readings BIGINT)[]"
)


def readings_of(samples: str) -> str:
    """SQL for the rollup of the rows of a relation with the columns of samples."""
    return f"""
        SELECT {", ".join(PLACE)}, CAST(timestamp AS DATE) AS day, CAST(hour(timestamp) AS INTEGER) AS hour,
               date_trunc('hour', sampled_at) AS utc_hour, count(*) AS rows, sum(utilization_gpu) AS total,
               count(utilization_gpu) AS readings, min(utilization_gpu) AS low, max(utilization_gpu) AS high,
               coalesce(bit_or(CAST(1 AS BIGINT) << minute(timestamp)) FILTER (utilization_gpu IS NOT NULL), 0)
                   AS minutes,
               min(sampled_at) AS first_at, max(sampled_at) AS last_at
        FROM {samples} GROUP BY {", ".join(PLACE)}, day, hour, utc_hour"""


def levels_of(readings: str) -> str:
    """SQL for how often each GPU had which utilisation, of a relation like the rollup with `histogram`, a map of
    value to count: a row for each, with a list."""
    named = ", ".join(PLACE)
    return f"""
        SELECT {named}, list({{'value': value, 'readings': readings}}) AS levels
        FROM (SELECT {named}, entry.key AS value, CAST(sum(entry.value) AS BIGINT) AS readings
              FROM (SELECT {named}, unnest(map_entries(histogram)) AS entry FROM {readings})
              GROUP BY {named}, value)
        GROUP BY {named}"""


def added_up(readings: str, by: Sequence[str]) -> str:
    """SQL for rows of the rollup that say the same as those of a relation, which says it in several: one for each
    hour and value of the columns `by`."""
    return f"""
        SELECT {", ".join((*by, *_HOUR))}, CAST(sum(rows) AS BIGINT) AS rows, sum(total) AS total,
               CAST(sum(readings) AS BIGINT) AS readings, min(low) AS low, max(high) AS high,
               bit_or(minutes) AS minutes, min(first_at) AS first_at, max(last_at) AS last_at
        FROM {readings} GROUP BY {", ".join((*by, *_HOUR))}"""
