"""What samples say of each metric of a GPU, and of its users, by hour; as SQL. Kept of sealed days, so that a
series over months reads no rows, and is there when they are deleted.

A figure is of one hour of a local day, one GPU as it is known at a place, or one user of it, and one metric: what
the samples that stand for any of the hour's seconds come to; of a counter, its increase per second. (The accounts'
hours are of UTC; in zones with half hours, each is in two of a chart's.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from gpumon.model.field import Field
from gpumon.model.fields import FIELDS
from gpumon.model.pod_fields import POD_FIELDS, USE_FIELDS
from gpumon.server.accounts import slices
from gpumon.server.accounts.cells import FINE, HOUR
from gpumon.server.accounts.desk import Execute, Run, merged
from gpumon.server.accounts.pieces import Part
from gpumon.server.accounts.slices import PLACE, by_name, cuts_of
from gpumon.server.tables import POD_KEY

_NOT_METRICS: Final = frozenset({"gpu_id", "interval_seconds"})


def metrics_of(fields: Sequence[Field]) -> dict[str, Field]:
    """Those that are numbers to be charted, by name."""
    return {
        field.name: field for field in fields if field.kind in {"int", "float"} and field.name not in _NOT_METRICS
    }


def is_counter(field: Field) -> bool:
    """Whether only its increase says anything."""
    return field.metric is not None and field.metric.counter


GPU_METRICS: Final = metrics_of(FIELDS)
POD_METRICS: Final = metrics_of((*USE_FIELDS, POD_FIELDS[-1]))

USER: Final = ("mig_uuid", "namespace", "pod", "container", "owner_name")
"""By what users are told apart, and asked for."""


_COUNTERS: Final = tuple(name for name, field in GPU_METRICS.items() if is_counter(field))

_KEYS: Final = ("of_user", *PLACE, *USER, "metric")
_KINDS: Final = {
    "bucket": "TIMESTAMP", "of_user": "BOOLEAN", "gpu_id": "BIGINT", "weighed": "DOUBLE", "weight": "DOUBLE",
    "low": "DOUBLE", "high": "DOUBLE", "samples": "BIGINT", "begun": "BOOLEAN",
}  # fmt: skip
_NAMES: Final = ("bucket", *_KEYS, "weighed", "weight", "low", "high", "samples", "begun")
_COLUMNS: Final = {name: _KINDS.get(name, "VARCHAR") for name in _NAMES}
CREATE: Final = f"({', '.join(f'{name} {kind}' for name, kind in _COLUMNS.items())})"
"""For CREATE TABLE, of what `add_figures` adds and `figures` puts together: the sum of the readings by the seconds
that each stands for in the bucket, and of these seconds; the extremes; how many samples there are, of those that
stand for nothing before the bucket (`begun`) and of the others."""


def _figures_of(metrics: Iterable[str]) -> str:
    """SQL for a row of each metric. A sum with 0 times the metric is one where there is a metric, and takes a
    third of the time of a filter."""
    of_each = ", ".join(
        f"{{'metric': '{name}', 'weighed': sum({name} * seconds), 'weight': sum(seconds + 0 * {name}), "
        f"'low': CAST(min({name}) AS DOUBLE), 'high': CAST(max({name}) AS DOUBLE), 'samples': count({name})}}"
        for name in metrics
    )
    return f"unnest([{of_each}], max_depth := 2)"


def hours_of_day(begin: datetime, end: datetime) -> list[Run]:
    """The stretch of whole hours that begins with a day (naive UTC), if there is one: none where it does not begin
    with a fine bucket."""
    hours = (end - begin) // HOUR
    return [(begin, begin + hours * HOUR)] if hours and not (begin - datetime.min) % FINE else []


def add_figures(
    execute: Execute, part: Part, reach: timedelta, stale_after: timedelta, into: str, begin: datetime
) -> None:
    """Adds the figures of some buckets, and some GPUs, of the day that begins then to a table that `figures` makes
    whole hours of. The samples, a relation of that name, have to be there as for `rolling.roll`."""
    stretches = [inside for stretch in merged(part.buckets) for inside in _by_hours(stretch, begin)]
    columns = {
        "samples": (*slices.TICK_COLUMNS, *GPU_METRICS),
        "pod_usage": tuple(dict.fromkeys([*slices.SOURCE_COLUMNS, *POD_KEY, *USER, *POD_METRICS])),
    }
    cuts = cuts_of(slices.windows_of(stretches, reach), columns, by_name, part.of)
    values = slices.parameters(stretches, cuts, stale_after)
    user = ", ".join(dict.fromkeys([*POD_KEY, *USER, *POD_METRICS]))
    told = slices.rows("pod_usage", f"row_id, {slices.SOURCE} AS source, sampled_at, {user}", cuts)
    place, named, counters = ", ".join(PLACE), ", ".join(USER), ", ".join(_COUNTERS)
    sql = f"""
        INSERT INTO {into} BY NAME
        WITH cell_ticks AS MATERIALIZED ({slices.ticks(cuts, ", ".join(GPU_METRICS))}),
        spans AS MATERIALIZED (
            SELECT sample, {counters}, lower,
                   (least(moment, upper) - greatest(moment - whole, lower)) / 1e6 AS seconds,
                   moment - whole >= lower AS begun
            FROM ({slices.stands(("sample",), _COUNTERS)})
            JOIN ({slices.INTERVALS}) ON moment - whole < upper AND moment > lower
        ),
        users AS MATERIALIZED (
            SELECT told.*, sample, place, {place}
            FROM ({told}) AS told
            JOIN (SELECT sample, place, {place}, source, sampled_at FROM cell_ticks
                  WHERE sample IN (SELECT sample FROM spans)) AS ticks USING (source, sampled_at)
        )
        SELECT make_timestamp(lower) AS bucket, false AS of_user, {place}, begun, {_figures_of(GPU_METRICS)}
        FROM spans JOIN (SELECT * EXCLUDE ({counters}) FROM cell_ticks) USING (sample)
        GROUP BY lower, {place}, begun
        UNION ALL BY NAME
        SELECT make_timestamp(lower) AS bucket, true AS of_user, {place}, {named}, begun,
               {_figures_of(POD_METRICS)}
        FROM (SELECT * EXCLUDE ({counters}) FROM spans) JOIN users USING (sample)
        WHERE row_id IN (SELECT max(row_id) FROM users GROUP BY sample, {", ".join(POD_KEY)})
        GROUP BY lower, {place}, {named}, begun"""
    execute(sql, slices.bound_values(sql, values))


def figures(parts: str, begin: datetime) -> str:
    """SQL for the figures by whole hours of the day that begins then, of a relation to which `add_figures` added:
    `samples` are all, `begun` those that stand for nothing before the hour. By metric first: that is what is asked
    for."""
    hour = f"time_bucket(INTERVAL 1 HOUR, bucket, TIMESTAMP '{begin}')"
    keys = ", ".join(_KEYS)
    return f"""
        SELECT hour AS bucket, {keys}, sum(weighed) AS weighed, sum(weight) AS weight, min(low) AS low,
               max(high) AS high,
               CAST(sum(CASE WHEN begun OR bucket = hour THEN samples ELSE 0 END) AS BIGINT) AS samples,
               CAST(sum(CASE WHEN begun THEN samples ELSE 0 END) AS BIGINT) AS begun
        FROM (SELECT *, {hour} AS hour FROM {parts} WHERE samples > 0)
        GROUP BY hour, {keys} ORDER BY of_user, metric, client_name, gpu_id, hour"""


def _by_hours(stretch: Run, begin: datetime) -> list[Run]:
    of, to = stretch
    first = of - (of - begin) % HOUR
    hours = (first + number * HOUR for number in range(1, (to - first) // HOUR + 1))
    return list(pairwise([of, *(hour for hour in hours if of < hour < to), to]))
