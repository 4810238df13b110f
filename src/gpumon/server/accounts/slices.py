"""The seconds that each sample stands for within intervals of time, as SQL; pure. `claims` says whose they are.

A sample at t stands for the seconds up to t: `interval_seconds`, but never beyond the GPU's sample before,
whatever the order of arrival; so no second counts twice, and a gap stays a gap. Where the sender gives no
interval, it is the time since the sample before, if that is no longer than a GPU takes to become stale. All in
whole microseconds, so that what a sample stands for in adjacent intervals adds up exactly.

A GPU is its UUID, or its client and index where it has none. It has wall time in a range when it has a sample in
it or in the day before: an outage does not make a GPU vanish, one that is silent for longer has been taken away.
A sample is in an interval when it was taken after its start and not after its end.

Each relation here is a part of a statement: of a WITH, or a temporary table of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from gpumon.model.fields import BY_NAME
from gpumon.server.accounts.desk import Run, merged
from gpumon.server.queries import Query

KNOWN_FOR: Final = timedelta(days=1)
"""How long a silent GPU still counts as there."""

LONGEST_SECONDS: Final = BY_NAME["interval_seconds"].high or 0.0
"""The most that one sample can stand for."""

FOLLOWS: Final = 2.5
"""A sample follows the one before if that is up to so many of its intervals ago: one may have been lost."""

PLACE: Final = ("client_name", "gpu_id", "gpu_uuid", "node", "gpu_name")
"""Where a GPU was seen, as what: it may change its node, index or name."""

GPU_KEY: Final = "coalesce(gpu_uuid, client_name || '/' || gpu_id)"
"""SQL for what a GPU is, of a row with a place."""

PLACE_HASH: Final = "hash(client_name, gpu_id, gpu_uuid, gpu_name, coalesce(node, client_name))"
"""SQL for a place's number, of a row of `samples`."""

SOURCE: Final = "hash(client_name, gpu_id, gpu_uuid)"
"""SQL for who told of a GPU: by this and the instant a user's row belongs to its sample."""

SOURCE_COLUMNS: Final = ("client_name", "gpu_id", "gpu_uuid", "sampled_at")
"""What SOURCE, and a join by it, takes of a row."""

TICK_COLUMNS: Final = (
    "client_name", "gpu_id", "gpu_uuid", "gpu_name", "node", "sampled_at", "interval_seconds",
)  # fmt: skip
"""What `ticks` takes of a sample, beside further columns."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Raw rows to be read: of a window, both ends included, those where `of` holds, with its `values`.
    `relations` are SQL for where they are by table, if it is not a relation of the table's name."""

    window: Run
    of: str = "TRUE"
    values: Mapping[str, Any] = field(default_factory=dict)
    relations: Mapping[str, str] = field(default_factory=dict)


RowsIn = Callable[[str, Run, Sequence[str]], str]
"""Where those rows of `samples` or `pod_usage` are that matter in a window: SQL for a relation with these columns
and `row_id`."""


def by_name(table: str, window: Run, columns: Sequence[str]) -> str:
    """RowsIn of a connection on which `samples` and `pod_usage` are relations with all of these rows."""
    return table


def cuts_of(
    windows: Sequence[Run], columns: Mapping[str, Sequence[str]], rows_in: RowsIn, of: str = "TRUE"
) -> list[Cut]:
    """All rows of these windows for which the condition holds, of tables with these columns."""
    return [
        Cut(window, of, relations={table: rows_in(table, window, names) for table, names in columns.items()})
        for window in windows
    ]


def of_gpus(keys: Sequence[str], *, has_uuid: bool, named: str) -> tuple[str, dict[str, Any]]:
    """SQL for whether a row is of one of these GPUs, by GPU_KEY, and its values, whose names begin with `named`.
    All of them have a UUID, or none has. Of a column Parquet files know where a value may be, of what is made of
    several they don't."""
    values: dict[str, Any] = {f"{named}_{number}": key for number, key in enumerate(keys)}
    if has_uuid:
        return f"gpu_uuid IN ({_listed(values)})", values
    clients = {key.rpartition("/")[0]: None for key in keys}
    of_clients: dict[str, Any] = {f"{named}_client_{number}": client for number, client in enumerate(clients)}
    condition = f"client_name IN ({_listed(of_clients)}) AND {GPU_KEY} IN ({_listed(values)})"
    return condition, values | of_clients


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"${name}" for name in values)


def within(value: str, low: str, high: str | None = None) -> str:
    """SQL that bounds a value and keeps NULL, which `least` and `greatest` don't: a CSV may hold anything."""
    bounded = f"greatest({low}, {value})" if high is None else f"greatest({low}, least({value}, {high}))"
    return f"CASE WHEN ({value}) IS NOT NULL THEN {bounded} END"


def rows(table: str, selected: str, cuts: Sequence[Cut]) -> str:
    """SQL for rows of `samples` or `pod_usage`. A part for each cut: a range of instants is a filter that Parquet
    files know, a choice of several is not."""
    return " UNION ALL ".join(
        f"SELECT {selected} FROM {cut.relations.get(table, table)} "
        f"WHERE sampled_at >= $of_{number} AND sampled_at <= $to_{number} AND {cut.of}"
        for number, cut in enumerate(cuts)
    )


def ticks(cuts: Sequence[Cut], columns: str) -> str:
    """SQL for the samples of the cuts, with further columns."""
    stated = within("interval_seconds", "0", f"{LONGEST_SECONDS}")
    selected = f"""
        row_id AS sample, client_name, gpu_id, gpu_uuid, gpu_name, coalesce(node, client_name) AS node,
        {PLACE_HASH} AS place,
        hash({GPU_KEY}) AS gpu, {SOURCE} AS source, sampled_at, epoch_us(sampled_at) AS moment,
        CAST(floor(({stated}) * 1e6 + 0.5) AS BIGINT) AS stated, {columns}"""
    return rows("samples", selected, cuts)


def stands(carried: Sequence[str] = ("sample", "place"), counters: Sequence[str] = ()) -> str:
    """SQL for what each of `cell_ticks` stands for, in microseconds before `moment`, with these further columns of
    it; `total` is its own interval. Of two samples of a GPU at one instant the later row counts: it is ordered
    first, and the other has no gap to it. Where two clients tell of it, the first by name: which of them came
    first is not kept. (In one order of all rows: a window with partitions takes DuckDB 5 ms more, however few rows
    there are.)

    Of `counters` comes the increase per second since the GPU's sample before, if that is no longer ago than
    FOLLOWS intervals: across a gap it says nothing of the seconds that the sample stands for. NULL also where the
    counter has stepped back, as after a driver reload, or the sample before has none."""
    columns = ", ".join(["moment", *carried])
    before = "WINDOW before AS (ORDER BY gpu, moment)" if counters else ""
    return f"""
    SELECT {", ".join([columns, *counters])}, whole, coalesce(stated, whole) AS total
    FROM (SELECT {", ".join([columns, "stated", *map(_increase, counters)])},
                 CASE WHEN stated IS NOT NULL THEN least(stated, coalesce(gap, stated))
                      WHEN gap <= $stale THEN gap ELSE 0 END AS whole
          FROM (SELECT {", ".join(dict.fromkeys(["gpu", "moment", *carried, *counters]))}, stated,
                       CASE WHEN lag(gpu) OVER earlier = gpu THEN moment - lag(moment) OVER earlier END AS gap
                FROM cell_ticks
                WINDOW earlier AS (ORDER BY gpu, moment, client_name, gpu_id, sample DESC))
          WHERE gap IS NULL OR gap > 0 {before})
    WHERE whole > 0"""


def _increase(counter: str) -> str:
    """SQL for a counter's increase per second; of a GPU's first sample there is no `gap`."""
    since = f"(CAST({counter} AS HUGEINT) - lag({counter}) OVER before)"  # a CSV may hold anything
    is_known = f"gap <= coalesce({FOLLOWS} * stated, $stale) AND {since} >= 0"
    return f"CASE WHEN {is_known} THEN {since} / (gap / 1e6) END AS {counter}"


INTERVALS: Final = "SELECT unnest($lowers) AS lower, unnest($uppers) AS upper"

SPANS: Final = f"""
    SELECT sample, place, lower, upper, total, moment <= upper AS own, greatest(moment - whole, lower) AS begins,
           least(moment, upper) AS ends, (ends - begins) / 1e6 AS seconds, (ends - begins) / total AS portion
    FROM cell_stands JOIN ({INTERVALS}) ON moment - whole < upper AND moment > lower"""
"""What a sample of `cell_stands` stands for within each interval: from `begins` to `ends`, microseconds since
1970; `portion` is the part of the sample's own interval, `own` whether it was taken in this one."""

LABEL_VALUE: Final = """arg_max_null(value, (
        sampled_at <= $end, CASE WHEN sampled_at <= $end THEN 1 ELSE -1 END * epoch_us(sampled_at), rowid))"""
"""A label's newest value at the range's end, else the first that is known after it: of rows of `pod_labels` up to
`$labels_end`."""


def utc(instant: datetime) -> datetime:
    """An instant as the store has it: UTC, naive."""
    return instant.astimezone(UTC).replace(tzinfo=None)


def windows_of(intervals: Sequence[Run], reach: timedelta) -> list[Run]:
    """The windows whose rows say everything of these intervals."""
    return list(merged([(of - reach, to + reach) for of, to in intervals]))


def parameters(intervals: Sequence[Run], cuts: Sequence[Cut], stale_after: timedelta) -> dict[str, Any]:
    """What the relations here need to know."""
    values: dict[str, Any] = {
        "lowers": [microseconds(of) for of, _ in intervals],
        "uppers": [microseconds(to) for _, to in intervals],
        "stale": stale_after // timedelta(microseconds=1),
    }
    for number, cut in enumerate(cuts):
        of, to = cut.window
        values |= {f"of_{number}": of, f"to_{number}": to, **cut.values}
    return values


def bound(sql: str, values: Mapping[str, Any]) -> Query:
    """A query with those of the values that it names."""
    return Query(sql, bound_values(sql, values))


_NAME: Final = re.compile(r"'(?:[^']|'')*'|\$([a-z_0-9]+)")
"""A text in SQL, as a file's path, or the name of a value."""


def bound_values(sql: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that the SQL names."""
    return {name: values[name] for name in sorted({name for name in _NAME.findall(sql) if name})}


def microseconds(instant: datetime) -> int:
    """Naive UTC as `epoch_us` has it."""
    return (instant - datetime(1970, 1, 1)) // timedelta(microseconds=1)
