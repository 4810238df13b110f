"""One metric over time, in buckets. SQL, and the answer made of its rows.

A sample counts in every bucket that the seconds it stands for touch, by how many of them it touches. A bucket that
no reading touches is null, never 0. A counter is given as its increase per second.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from gpumon.errors import QueryError
from gpumon.model.field import Field
from gpumon.server.accounts import slices
from gpumon.server.accounts.buckets import Buckets, begins_of, buckets_of
from gpumon.server.accounts.cells import HOUR
from gpumon.server.accounts.desk import Reading, Rows, Run
from gpumon.server.accounts.metrics import GPU_METRICS, POD_METRICS, is_counter
from gpumon.server.accounts.pieces import pieces_of
from gpumon.server.accounts.plan import without
from gpumon.server.accounts.ranges import Span
from gpumon.server.tables import POD_KEY

AGGREGATES: Final = ("mean", "min", "max", "sum")
_USER: Final = (*slices.SOURCE_COLUMNS, *POD_KEY, "owner_name")
"""Of a pod's row, beside the metric."""

_POD: Final = "hash(gpu, mig_uuid, namespace, pod, container)"
"""SQL for what a series of pods is of: a container on a GPU."""

_OF_PODS: Final = ("namespace", "pod", "owner_name")

_ROWS_OF_PODS: Final = 4
"""What a sample's users take, in samples."""
_DAY: Final = timedelta(days=1)


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
        return any(name in self.chosen for name in _OF_PODS)

    @property
    def chosen(self) -> dict[str, Any]:
        """What is wanted of which columns."""
        values = {name: getattr(self, name, None) for name in slices.PLACE}
        values |= dict(zip(_OF_PODS, (self.namespace, self.pod, self.owner), strict=True))
        return {name: value for name, value in values.items() if value is not None}

    def field(self) -> Field:
        """The metric in the catalogue. Raises QueryError that lists what there is."""
        there = POD_METRICS if self.of_pods else GPU_METRICS
        if self.metric not in there:
            whose = "a pod's use" if self.of_pods else "a GPU"
            raise QueryError(f"metric = {self.metric[:80]!r} is none of {whose}; take one of {', '.join(there)}")
        return there[self.metric]


def ask(
    reading: Reading,
    wanted: Wanted,
    span: Span,
    edges: Sequence[datetime],
    step: timedelta,
    stale_after: timedelta,
) -> Rows:
    """A row for each bucket that a reading touches: its number, the value, how many samples. Of the figures that
    are kept of whole hours, where a bucket has such, and else of raw rows, in pieces."""
    buckets = buckets_of(edges)
    start, end = slices.utc(span.start), slices.utc(span.end)
    sources, values = [], buckets.parameters | wanted.chosen | {"first": slices.microseconds(start)}
    hours, kept = _whole_hours(wanted, span, edges, step, reading)
    if hours:
        sources.append(_of_hours(wanted, kept, buckets))
        values |= {"hours": hours, "metric": wanted.metric, "of_user": wanted.of_pods}
    left = without([(start, end)], [(hour, hour + HOUR) for hour in hours])
    pieces = [piece for run in left for piece in _pieces(wanted, run, reading)]
    for number, piece in enumerate(pieces):
        sql, named = _of_rows(wanted, piece, buckets, reading, stale_after)
        if len(pieces) == 1:
            sources.append(sql)
            values |= named
            break
        into = "INSERT INTO series_parts" if number else "CREATE OR REPLACE TEMP TABLE series_parts AS"
        reading.select(f"{into} {sql}", slices.bound_values(sql, values | named))
    if len(pieces) > 1:
        sources.append("FROM series_parts")
    value = {
        "mean": "sum(weighed) / sum(weight)",
        "min": "min(low)",
        "max": "max(high)",
        "sum": "sum(weighed / weight)",
    }[wanted.aggregate]
    sql = f"""
        WITH by_subject AS (
            SELECT bucket, sum(weighed) AS weighed, sum(weight) AS weight, min(low) AS low, max(high) AS high,
                   sum(samples) AS samples
            FROM ({" UNION ALL BY NAME ".join(f"({source})" for source in sources)}) GROUP BY bucket, subject
        )
        SELECT bucket, {value}, CAST(sum(samples) AS BIGINT) FROM by_subject GROUP BY bucket ORDER BY bucket"""
    return reading.answer(sql, slices.bound_values(sql, values))


def series_of(
    rows: Sequence[tuple[Any, ...]], wanted: Wanted, edges: Sequence[datetime], step: timedelta
) -> dict[str, Any]:
    """The answer: a point for each bucket, in order."""
    field = wanted.field()
    found = {bucket: (value, samples) for bucket, value, samples in rows}
    points = []
    for bucket, begin in enumerate(begins_of(edges)):
        value, samples = found.get(bucket, (None, 0))
        points.append({"t": begin, "value": value, "samples": samples})
    return {
        "metric": field.name,
        "unit": f"{field.unit}/s" if is_counter(field) else field.unit,
        "aggregate": wanted.aggregate,
        "step_seconds": step.total_seconds(),
        "points": points,
    }


def _whole_hours(
    wanted: Wanted, span: Span, edges: Sequence[datetime], step: timedelta, reading: Reading
) -> tuple[list[datetime], str]:
    """The hours, in order, that lie in one bucket and have figures, and where these are."""
    if step < HOUR:
        return [], ""
    hours, kept = reading.figures_in(slices.utc(span.start), slices.utc(span.end))
    at = [slices.utc(edge) for edge in edges]
    return [hour for hour in hours if bisect_right(at, hour) == bisect_left(at, hour + HOUR)], kept


def _of_hours(wanted: Wanted, kept: str, buckets: Buckets) -> str:
    """SQL for what each GPU has of each bucket, of the figures of hours. A sample is counted in the first hour of
    a bucket that it stands for."""
    subject = _POD if wanted.of_pods else "gpu"
    return f"""
        SELECT {buckets.at("hour")} AS bucket, {subject} AS subject, weighed, weight, low, high,
               CASE WHEN hour = greatest({buckets.lower("bucket")}, $first) THEN samples ELSE begun END AS samples
        FROM (SELECT * EXCLUDE (bucket) REPLACE (coalesce(node, client_name) AS node), epoch_us(bucket) AS hour,
                     hash({slices.GPU_KEY}) AS gpu
              FROM {kept} SEMI JOIN (SELECT unnest($hours) AS bucket) USING (bucket)
              WHERE of_user = $of_user AND metric = $metric)
        WHERE {_conditions(wanted.chosen)}"""


def _pieces(wanted: Wanted, run: Run, reading: Reading) -> Iterator[Run]:
    """A stretch of time, divided so that memory is enough for each part's rows of the GPUs in question."""
    if wanted.gpu_uuid is not None and run[1] - run[0] <= _DAY:
        return iter([run])
    gpus = _of_gpus(wanted, run, reading)
    weight = _ROWS_OF_PODS if wanted.of_pods else 1
    sql = f"""
        SELECT utc_hour, {weight} * sum(rows) FROM {reading.places_in(run)}
        WHERE {" OR ".join(of for of, _ in gpus)} GROUP BY utc_hour ORDER BY utc_hour"""
    values = dict(wanted.chosen)
    for _, named in gpus:
        values |= named
    return pieces_of(run, reading.select(sql, slices.bound_values(sql, values)))


def _of_rows(
    wanted: Wanted, piece: Run, buckets: Buckets, reading: Reading, stale_after: timedelta
) -> tuple[str, dict[str, Any]]:
    """SQL for what each subject has of each bucket, of a piece's raw rows, and its values."""
    place = [column for column in slices.PLACE if column in wanted.chosen]
    if wanted.of_pods:
        told, stands = "NULL AS value", slices.stands(("sample", "gpu", "source", "sampled_at", *place))
    elif is_counter(wanted.field()):
        told, stands = f"{wanted.metric} AS value", slices.stands(("gpu", *place), ("value",))
    else:
        told, stands = f"{wanted.metric} AS value", slices.stands(("gpu", "value", *place))
    cuts = [cut for window in slices.windows_of([piece], reading.reach) for cut in _cuts(wanted, window, reading)]
    sql = f"""
        WITH cell_ticks AS NOT MATERIALIZED ({slices.ticks(cuts, told)}),
        spans AS NOT MATERIALIZED (
            SELECT * EXCLUDE (whole), moment - whole AS since, greatest(since, $lower) AS begins,
                   least(moment, $upper) AS ends
            FROM ({stands}) WHERE moment - whole < $upper AND moment > $lower
        ),
        {_readings(wanted, cuts)},
        touched AS (
            SELECT *, unnest(range({buckets.at("begins")}, {buckets.at("(ends - 1)")} + 1)) AS bucket
            FROM readings WHERE value IS NOT NULL
        ),
        parted AS (
            SELECT * REPLACE (CAST(value AS DOUBLE) AS value), {buckets.lower("bucket")} AS edge,
                   greatest(edge, $lower) AS of,
                   (least(ends, {buckets.upper("bucket")}) - greatest(begins, of)) / 1e6 AS seconds
            FROM touched
        )
        SELECT bucket, subject, sum(value * seconds) AS weighed, sum(seconds) AS weight, min(value) AS low,
               max(value) AS high, count(*) FILTER (since >= of OR of = greatest(edge, $first)) AS samples
        FROM parted GROUP BY bucket, subject"""
    values = {"lower": slices.microseconds(piece[0]), "upper": slices.microseconds(piece[1])}
    return sql, values | slices.parameters([piece], cuts, stale_after)


def _cuts(wanted: Wanted, window: Run, reading: Reading) -> list[slices.Cut]:
    """What is read: of the GPUs that are wanted, everything that anybody says of them, since it bounds what their
    samples stand for; of those with a UUID, and of those without."""
    columns = {"samples": [*slices.TICK_COLUMNS]}
    if wanted.of_pods:
        columns["pod_usage"] = [*_USER]
    columns["pod_usage" if wanted.of_pods else "samples"].append(wanted.field().name)
    relations = {table: reading.rows_in(table, window, names) for table, names in columns.items()}
    return [slices.Cut(window, of, values, relations) for of, values in _of_gpus(wanted, window, reading)]


def _of_gpus(wanted: Wanted, window: Run, reading: Reading) -> list[tuple[str, dict[str, Any]]]:
    """Conditions on a row, one of which holds for those of GPUs that are wanted, or on which the pods were."""
    if wanted.gpu_uuid is not None:
        return [("gpu_uuid = $gpu_uuid", {})]
    chosen = {column: value for column, value in wanted.chosen.items() if (column in _OF_PODS) == wanted.of_pods}
    if not chosen:
        return [("TRUE", {})]
    if wanted.of_pods:
        told = reading.rows_in("pod_usage", window, (*slices.SOURCE_COLUMNS, *chosen))
        known = f"SELECT * FROM {told} WHERE sampled_at >= $of AND sampled_at <= $to"
    else:
        known = _known_as(reading.places_in(window))
    sql = f"""
        SELECT gpu_uuid IS NOT NULL AS has_uuid, list(DISTINCT {slices.GPU_KEY} ORDER BY {slices.GPU_KEY})
        FROM ({known}) WHERE {_conditions(chosen)} GROUP BY has_uuid"""
    found = reading.select(sql, slices.bound_values(sql, chosen | {"of": window[0], "to": window[1]}))
    return [slices.of_gpus(keys, has_uuid=has, named=f"gpu_{has:d}") for has, keys in found] or [("FALSE", {})]


def _known_as(places: str) -> str:
    return f"SELECT * REPLACE (coalesce(node, client_name) AS node) FROM {places}"


def _conditions(chosen: Iterable[str]) -> str:
    return " AND ".join(["TRUE", *(f"{column} = ${column}" for column in chosen)])


def _readings(wanted: Wanted, cuts: Sequence[slices.Cut]) -> str:
    """The relation `readings`: whose, from when to when, how much. A subject is a GPU, or a container on one."""
    conditions, metric = _conditions(wanted.chosen), wanted.metric
    if not wanted.of_pods:
        return f"readings AS (SELECT gpu AS subject, since, begins, ends, value FROM spans WHERE {conditions})"
    told = slices.rows(
        "pod_usage",
        f"row_id, {slices.SOURCE} AS source, sampled_at, {', '.join(POD_KEY)}, owner_name, {metric} AS value",
        cuts,
    )
    # Of a row that came twice the later counts, which may be of another owner: so owners are compared last.
    return f"""
        told AS MATERIALIZED (
            SELECT told.*, spans.* EXCLUDE (moment, total, source, sampled_at)
            FROM ({told}) AS told JOIN spans USING (source, sampled_at)
        ),
        readings AS (
            SELECT {_POD} AS subject, since, begins, ends, value
            FROM told
            WHERE row_id IN (SELECT max(row_id) FROM told GROUP BY sample, {", ".join(POD_KEY)}) AND {conditions}
        )"""
