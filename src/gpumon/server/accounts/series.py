"""One metric over time, in buckets. SQL, and the answer made of its rows.

A sample counts in every bucket that the seconds it stands for touch, by how many of them it touches. A bucket that
no reading touches is null, never 0. A counter is given as its increase per second; a step back, as after a driver
reload, is left out.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import Any, Final
from zoneinfo import ZoneInfo

from gpumon.clock import to_wire
from gpumon.errors import QueryError
from gpumon.model.field import Field
from gpumon.model.fields import FIELDS
from gpumon.model.pod_fields import POD_FIELDS, USE_FIELDS
from gpumon.server.accounts import slices
from gpumon.server.accounts.desk import Reading, Run
from gpumon.server.accounts.ranges import Span, duration
from gpumon.server.days import days_between, local_midnight
from gpumon.server.queries import Query
from gpumon.server.tables import POD_KEY

STEPS: Final = ("10s", "30s", "1m", "5m", "15m", "1h", "6h", "1d")
AGGREGATES: Final = ("mean", "min", "max", "sum")
FEW_POINTS: Final = 300
MOST_POINTS: Final = 10_000
LONGEST_STEP: Final = timedelta(days=366)
_DAY: Final = timedelta(days=1)
_NOT_METRICS: Final = frozenset({"gpu_id", "interval_seconds"})
_USER: Final = ("client_name", "gpu_id", "gpu_uuid", "sampled_at", *POD_KEY, "owner_name")
"""Of a pod's row, beside the metric."""


def _metrics(fields: Sequence[Field]) -> dict[str, Field]:
    return {
        field.name: field for field in fields if field.kind in {"int", "float"} and field.name not in _NOT_METRICS
    }


GPU_METRICS: Final = _metrics(FIELDS)
POD_METRICS: Final = _metrics((*USE_FIELDS, POD_FIELDS[-1]))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which metric of which GPUs or pods; None is any. Pods are meant when one of `namespace`, `pod` or `owner`
    (its name) is given."""

    metric: str
    aggregate: str
    gpu_uuid: str | None = None
    node: str | None = None
    client_name: str | None = None
    gpu_id: int | None = None
    namespace: str | None = None
    pod: str | None = None
    owner: str | None = None

    @property
    def of_pods(self) -> bool:
        """Whether it is about pods' use."""
        return any(value is not None for value in (self.namespace, self.pod, self.owner))

    def field(self) -> Field:
        """The metric in the catalogue. Raises QueryError that lists what there is."""
        there = POD_METRICS if self.of_pods else GPU_METRICS
        if self.metric not in there:
            whose = "a pod's use" if self.of_pods else "a GPU"
            raise QueryError(f"metric = {self.metric[:80]!r} is none of {whose}; take one of {', '.join(there)}")
        return there[self.metric]


def step_of(text: str | None, span: Span) -> timedelta:
    """The buckets' length: what is asked for, else the shortest of STEPS that gives at most FEW_POINTS. Raises
    QueryError where there would be too many buckets."""
    if text is None:
        lengths = [duration("step", step) for step in STEPS]
        return next((step for step in lengths if span.seconds / step.total_seconds() <= FEW_POINTS), _DAY)
    step = duration("step", text)
    if step > LONGEST_STEP:
        raise QueryError(f"step = {text!r} is longer than {LONGEST_STEP.days}d; take a shorter one")
    if step > _DAY and step % _DAY:
        raise QueryError(f"step = {text!r}: beyond a day, take whole days")
    if span.seconds / step.total_seconds() > MOST_POINTS:
        raise QueryError(
            f"step = {text!r} gives {span.seconds / step.total_seconds():.0f} points, more than {MOST_POINTS}; "
            "take a longer step or a shorter range"
        )
    return step


def edges_of(span: Span, step: timedelta, zone: ZoneInfo) -> list[datetime]:
    """Where buckets begin, and where the last one ends. Each local day begins a bucket, whole weeks on Monday.
    Steps of up to an hour follow each other from local midnight; longer ones begin at full local hours, as 0, 6,
    12 and 18, also on days with a change of clocks. The first edge is not after the span's start, the last not
    before its end."""
    first = span.start.astimezone(zone).date()
    last = span.end.astimezone(zone).date() + _DAY
    if step >= _DAY:
        days = days_between(first - step, last + step)
        edges = [local_midnight(day, zone) for day in days if (day.toordinal() - 1) % step.days == 0]
    else:
        days = days_between(first, last)
        edges = sorted({edge for day in days for edge in _edges_of_day(day, step, zone, span)})
    return edges[bisect_right(edges, span.start) - 1 : bisect_left(edges, span.end) + 1]


def select_series(
    wanted: Wanted, span: Span, edges: Sequence[datetime], reading: Reading, stale_after: timedelta
) -> Query:
    """A row for each bucket that a reading touches: its number, the value, how many samples. Of raw rows."""
    whole = (slices.utc(span.start), slices.utc(span.end))
    conditions, values = _conditions(wanted)
    value = {
        "mean": "sum(weighed) / sum(weight)",
        "min": "min(low)",
        "max": "max(high)",
        "sum": "sum(weighed / weight)",
    }[wanted.aggregate]
    told = "NULL AS value" if wanted.of_pods else f"{wanted.field().name} AS value"
    cuts = [_cut_of(wanted, window, reading) for window in slices.windows_of([whole], reading.reach)]
    sql = f"""
        WITH cell_ticks AS MATERIALIZED ({slices.ticks(cuts, told)}),
        cell_stands AS NOT MATERIALIZED ({slices.STANDS}),
        cell_spans AS MATERIALIZED ({slices.SPANS}),
        spans AS NOT MATERIALIZED (
            SELECT cell_ticks.*, (begins - lower) / 1e6 AS begins, (ends - lower) / 1e6 AS ends
            FROM cell_spans JOIN cell_ticks USING (sample)
        ),
        {_readings(wanted, conditions, cuts)},
        buckets AS (
            SELECT unnest(range(len($edges) - 1)) AS bucket, unnest($edges[:-2]) AS lower,
                   unnest($edges[2:]) AS upper
        ),
        cut_readings AS (SELECT *, {_cut("begins", "ends")} FROM readings WHERE value IS NOT NULL),
        cut_buckets AS (SELECT *, {_cut("lower", "upper")} FROM buckets),
        by_subject AS (
            SELECT bucket, subject, sum(value * (least(ends, upper) - greatest(begins, lower))) AS weighed,
                   sum(least(ends, upper) - greatest(begins, lower)) AS weight,
                   min(value) AS low, max(value) AS high, count(*) AS samples
            FROM cut_readings JOIN cut_buckets USING (piece)
            WHERE begins < upper AND ends > lower AND piece = greatest(cut_readings.first, cut_buckets.first)
            GROUP BY bucket, subject
        )
        SELECT bucket, {value}, CAST(sum(samples) AS BIGINT) FROM by_subject GROUP BY bucket ORDER BY bucket"""
    values["edges"] = [(edge - span.start).total_seconds() for edge in edges]
    values["longest"] = max((to - of).total_seconds() for of, to in pairwise(edges))
    return slices.bound(sql, slices.parameters([whole], cuts, stale_after) | values)


def series_of(
    rows: Sequence[tuple[Any, ...]], wanted: Wanted, edges: Sequence[datetime], step: timedelta
) -> dict[str, Any]:
    """The answer: a point for each bucket, in order."""
    field = wanted.field()
    found = {bucket: (value, samples) for bucket, value, samples in rows}
    points = []
    for bucket, begin in enumerate(edges[:-1]):
        value, samples = found.get(bucket, (None, 0))
        points.append({"t": to_wire(begin), "value": value, "samples": samples})
    return {
        "metric": field.name,
        "unit": f"{field.unit}/s" if _is_counter(field) else field.unit,
        "aggregate": wanted.aggregate,
        "step_seconds": step.total_seconds(),
        "points": points,
    }


def _cut_of(wanted: Wanted, window: Run, reading: Reading) -> slices.Cut:
    columns = {"samples": [*slices.TICK_COLUMNS]}
    if wanted.of_pods:
        columns["pod_usage"] = [*_USER]
    columns["pod_usage" if wanted.of_pods else "samples"].append(wanted.field().name)
    relations = {table: reading.rows_in(table, window, names) for table, names in columns.items()}
    # A GPU is its UUID: nobody else's samples bound what its own stand for.
    of = "TRUE" if wanted.gpu_uuid is None else "gpu_uuid = $gpu_uuid"
    return slices.Cut(window, of, relations=relations)


def _readings(wanted: Wanted, conditions: str, cuts: Sequence[slices.Cut]) -> str:
    """The relation `readings`: whose, from when to when, how much. A subject is a GPU, or a container on one."""
    field = wanted.field()
    value = "value"
    if _is_counter(field):
        seconds = "date_diff('us', lag(sampled_at) OVER earlier, sampled_at) / 1e6"
        before = "lag(value) OVER earlier"
        value = f"CASE WHEN value >= {before} THEN (value - {before}) / ({seconds}) END"
    if not wanted.of_pods:
        return f"""
        readings AS (
            SELECT gpu AS subject, begins, ends, {value} AS value
            FROM spans WHERE {conditions} WINDOW earlier AS (PARTITION BY gpu ORDER BY sampled_at)
        )"""
    told = slices.rows(
        "pod_usage",
        f"row_id, {slices.SOURCE} AS source, sampled_at, {', '.join(POD_KEY)}, owner_name, {field.name} AS value",
        cuts,
    )
    return f"""
        told AS MATERIALIZED (
            SELECT sample, gpu, begins, ends, told.*
            FROM ({told}) AS told
            JOIN (SELECT sample, gpu, begins, ends, source, sampled_at, {", ".join(slices.PLACE)}
                  FROM spans) AS spans
            USING (source, sampled_at)
            WHERE {conditions}
        ),
        readings AS (
            SELECT dense_rank() OVER (ORDER BY gpu, mig_uuid, namespace, pod, container) AS subject, begins, ends,
                   {value} AS value
            FROM told
            WHERE row_id IN (SELECT max(row_id) FROM told GROUP BY sample, {", ".join(POD_KEY)})
        )"""


def _cut(begin: str, end: str) -> str:
    """SQL for the pieces of time that are touched, each as long as the longest bucket: to join by. By
    inequalities alone it would be each with each."""
    first, last = (f"CAST(floor({of} / $longest) AS BIGINT)" for of in (begin, end))
    return f"{first} AS first, unnest(range({first}, {last} + 1)) AS piece"


def _conditions(wanted: Wanted) -> tuple[str, dict[str, Any]]:
    columns = {
        "gpu_uuid": "gpu_uuid",
        "node": "node",
        "client_name": "client_name",
        "gpu_id": "gpu_id",
        "namespace": "namespace",
        "pod": "pod",
        "owner": "owner_name",
    }
    values = {name: getattr(wanted, name) for name in columns if getattr(wanted, name) is not None}
    return " AND ".join(["TRUE", *(f"{columns[name]} = ${name}" for name in values)]), values


def _is_counter(field: Field) -> bool:
    return field.metric is not None and field.metric.counter


def _edges_of_day(day: date, step: timedelta, zone: ZoneInfo, span: Span) -> Iterator[datetime]:
    """All of a local day; of the many of short steps those around the span."""
    begin, end = local_midnight(day, zone), local_midnight(day + _DAY, zone)
    if step > timedelta(hours=1):
        begins = datetime.combine(day, time())
        yield from (
            (begins + number * step).replace(tzinfo=zone).astimezone(UTC)
            for number in range(math.ceil(_DAY / step))
        )
    else:
        first, last = ((max(begin, min(edge, end)) - begin) / step for edge in (span.start, span.end))
        of_day = math.ceil((end - begin) / step)
        yield from (begin + number * step for number in range(int(first), min(math.ceil(last) + 1, of_day)))
