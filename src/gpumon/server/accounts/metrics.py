"""What samples say of each metric of a GPU, by hour; as SQL. Kept of sealed days, so that a series over months
reads no rows, and is there when they are deleted.

A figure is of one hour of UTC, one GPU as it is known at a place, and one metric: what the samples that stand for
any of the hour's seconds come to. Counters have none: an increase needs the sample before, however far it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from gpumon.model.field import Field
from gpumon.model.fields import FIELDS
from gpumon.server.accounts import slices
from gpumon.server.accounts.cells import HOUR
from gpumon.server.accounts.desk import Run
from gpumon.server.accounts.rolling import Execute, by_name, cuts_of
from gpumon.server.accounts.slices import PLACE

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
KEPT: Final = tuple(name for name, field in GPU_METRICS.items() if not is_counter(field))
"""Of which there are figures."""

_FIGURES: Final = {
    "weighed": "DOUBLE", "weight": "DOUBLE", "low": "DOUBLE", "high": "DOUBLE", "samples": "BIGINT",
    "begun": "BIGINT",
}  # fmt: skip
"""The sum of the readings by the seconds that each stands for in the hour, and of these seconds; the extremes; how
many samples there are, and how many of them stand for nothing before the hour."""

COLUMNS: Final = ("bucket", *PLACE, "metric", *_FIGURES)
CREATE: Final = "(" + ", ".join(
    f"{name} {kind}"
    for name, kind in {
        "bucket": "TIMESTAMP",
        **{name: "BIGINT" if name == "gpu_id" else "VARCHAR" for name in PLACE},
        "metric": "VARCHAR",
        **_FIGURES,
    }.items()
) + ")"  # fmt: skip
"""For CREATE TABLE."""

_OF_METRIC: Final = ", ".join(
    f"{{'metric': '{name}', 'weighed': sum({name} * seconds), 'weight': sum(seconds) FILTER ({name} IS NOT NULL), "
    f"'low': CAST(min({name}) AS DOUBLE), 'high': CAST(max({name}) AS DOUBLE), 'samples': count({name}), "
    f"'begun': count({name}) FILTER (begun)}}"
    for name in KEPT
)


def add_figures(
    execute: Execute, buckets: Sequence[Run], reach: timedelta, stale_after: timedelta, into: str
) -> None:
    """Adds the figures of some disjoint stretches of time to a table that `figures` makes whole hours of. The
    samples, a relation of that name, have to be there as for `rolling.roll`."""
    parts = [part for stretch in buckets for part in _by_hours(stretch)]
    cuts = cuts_of(slices.windows_of(parts, reach), {"samples": (*slices.TICK_COLUMNS, *KEPT)}, by_name)
    values = slices.parameters(parts, cuts, stale_after)
    sql = f"""
        INSERT INTO {into} BY NAME
        WITH cell_ticks AS MATERIALIZED ({slices.ticks(cuts, ", ".join(KEPT))}),
        spans AS (
            SELECT sample, lower, (least(moment, upper) - greatest(moment - whole, lower)) / 1e6 AS seconds,
                   moment - whole >= lower AS begun
            FROM ({slices.stands()}) JOIN ({slices.INTERVALS}) ON moment - whole < upper AND moment > lower
        ),
        told AS (
            SELECT lower, {", ".join(f"any_value({name}) AS {name}" for name in PLACE)}, [{_OF_METRIC}] AS figures
            FROM spans JOIN cell_ticks USING (sample) GROUP BY lower, place
        )
        SELECT make_timestamp(lower) AS bucket, {", ".join(PLACE)}, unnest(figures, max_depth := 2) FROM told"""
    execute(sql, slices.bound_values(sql, values))


def figures(parts: str) -> str:
    """SQL for the figures by whole hours, of a relation to which `add_figures` added. By metric first: that is
    what is asked for."""
    named = ", ".join(PLACE)
    return f"""
        SELECT hour AS bucket, {named}, metric, sum(weighed) AS weighed, sum(weight) AS weight, min(low) AS low,
               max(high) AS high,
               CAST(sum(CASE WHEN bucket = hour THEN samples ELSE begun END) AS BIGINT) AS samples,
               CAST(sum(begun) AS BIGINT) AS begun
        FROM (SELECT *, date_trunc('hour', bucket) AS hour FROM {parts} WHERE samples > 0)
        GROUP BY hour, {named}, metric ORDER BY metric, client_name, gpu_id, hour"""


def _by_hours(stretch: Run) -> list[Run]:
    of, to = stretch
    first = of - (of - datetime.min) % HOUR
    hours = (first + number * HOUR for number in range(1, (to - first) // HOUR + 1))
    return list(pairwise([of, *(hour for hour in hours if of < hour < to), to]))
