"""The seconds that each sample stands for within a range, as SQL; pure. `claims` says whose they are.

A sample at t stands for the seconds up to t: `interval_seconds`, but never beyond the GPU's sample before,
whatever the order of arrival; so no second counts twice, and a gap stays a gap. Where the sender gives no
interval, it is the time since the sample before, if that is no longer than a GPU takes to become stale.

A GPU is its UUID, or its client and index where it has none. It has wall time in a range when it has a sample in
it or in the day before: an outage does not make a GPU vanish, one that is silent for longer has been taken away.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from gpumon.model.fields import BY_NAME
from gpumon.server.accounts.ranges import Span
from gpumon.server.queries import Query

KNOWN_FOR: Final = timedelta(days=1)
"""How long a silent GPU still counts as there."""

LONGEST_SECONDS: Final = BY_NAME["interval_seconds"].high or 0.0
"""The most that one sample can stand for."""


def within(value: str, low: str, high: str | None = None) -> str:
    """SQL that bounds a value and keeps NULL, which `least` and `greatest` don't: a CSV may hold anything."""
    bounded = f"greatest({low}, {value})" if high is None else f"greatest({low}, least({value}, {high}))"
    return f"CASE WHEN ({value}) IS NOT NULL THEN {bounded} END"


PLACES: Final = """
    sightings AS MATERIALIZED (
        SELECT client_name, gpu_id, gpu_uuid, gpu_name, coalesce(node, client_name) AS node,
               coalesce(gpu_uuid, client_name || '/' || gpu_id) AS gpu_key,
               max(sampled_at) FILTER (sampled_at <= $start) AS last_before,
               min(sampled_at) FILTER (sampled_at > $end) AS first_after,
               bool_or(sampled_at >= $known_since AND sampled_at < $end) AS known,
               max(row(sampled_at, samples.rowid)) FILTER (sampled_at <= $end) AS newest
        FROM samples WHERE sampled_at >= $reach_start AND sampled_at <= $reach_end
        GROUP BY ALL
    ),
    places AS MATERIALIZED (
        SELECT row_number() OVER () AS place, dense_rank() OVER (ORDER BY gpu_key) AS gpu,
               sightings.* EXCLUDE (known), bool_or(known) OVER whole AS known,
               max(last_before) OVER whole AS since, min(first_after) OVER whole AS until,
               row_number() OVER (PARTITION BY gpu_key ORDER BY newest DESC NULLS LAST, first_after, client_name,
                                  gpu_id, node, gpu_name) = 1
                   AS is_newest
        FROM sightings WINDOW whole AS (PARTITION BY gpu_key)
    ),
    gpus AS MATERIALIZED (SELECT DISTINCT client_name, gpu_id, gpu_uuid, gpu FROM places)"""
"""Where each GPU was seen, as what: it may change its node, index or name. Of the samples outside of the range the
last before it and the first after it are enough."""

SLICES: Final = f"""
    ticks AS (
        SELECT samples.rowid AS sample, place, gpu, sampled_at,
               (epoch_us(sampled_at) - epoch_us($start::TIMESTAMP)) / 1e6 AS moment,
               {within("interval_seconds", "0", "$longest")} AS stated
        FROM samples JOIN places
          ON samples.client_name = places.client_name AND samples.gpu_id = places.gpu_id
         AND samples.gpu_uuid IS NOT DISTINCT FROM places.gpu_uuid
         AND samples.gpu_name IS NOT DISTINCT FROM places.gpu_name
         AND coalesce(samples.node, samples.client_name) = places.node
        WHERE sampled_at >= $reach_start AND sampled_at <= $reach_end
          AND sampled_at >= coalesce(since, $start) AND sampled_at <= coalesce(until, $end)
    ),
    follows AS (
        SELECT *, moment - lag(moment) OVER (PARTITION BY gpu ORDER BY sampled_at, sample DESC) AS gap FROM ticks
    ),
    stands AS (
        SELECT *, CASE WHEN stated IS NOT NULL THEN least(stated, coalesce(gap, stated))
                       WHEN gap <= $stale THEN gap ELSE 0 END AS whole
        FROM follows WHERE gap IS NULL OR gap > 0
    ),
    spans AS MATERIALIZED (
        SELECT sample, place, gpu, sampled_at, begins, ends, ends - begins AS seconds,
               (ends - begins) / coalesce(stated, whole) AS portion
        FROM (SELECT *, greatest(moment - whole, 0) AS begins, least(moment, $wall) AS ends FROM stands)
        WHERE ends > begins
    ),
    slices AS NOT MATERIALIZED (
        SELECT spans.*, coalesce(state, 'ok') = 'ok' AS readable, coalesce(state = 'lost', false) AS lost,
               holder_count, process_count, unhealthy IS NOT NULL AS is_unhealthy,
               CASE WHEN coalesce(state, 'ok') = 'ok'
                    THEN {within("coalesce(utilization_mean, utilization_gpu)", "0", "100")} / 100 END AS busy,
               {within("memory_used", "0")} AS memory,
               {within("coalesce(interval_energy_mj * portion, power_draw * 1000 * seconds)", "0")} AS energy
        FROM spans JOIN samples ON samples.rowid = spans.sample
    )"""
"""What a sample stands for within the range; `begins` and `ends` are seconds since its start, `portion` the part
of the sample's own interval. Of two samples of a GPU at one instant the later row counts: it is ordered first, and
the other has no gap to it."""


LABEL_VALUE: Final = """arg_max_null(value, (
        sampled_at <= $end, CASE WHEN sampled_at <= $end THEN 1 ELSE -1 END * epoch_us(sampled_at), rowid))"""
"""A label's newest value at the range's end, else the first that is known after it: of rows of `pod_labels` up to
`$reach_end`."""


def uses(name: str) -> str:
    """SQL from FROM on: the rows of `pod_usage`, called `name`, with the spans of their samples."""
    return f"""
        FROM pod_usage AS {name}
        JOIN gpus ON {name}.client_name = gpus.client_name AND {name}.gpu_id = gpus.gpu_id
                 AND {name}.gpu_uuid IS NOT DISTINCT FROM gpus.gpu_uuid
        JOIN spans ON spans.gpu = gpus.gpu AND spans.sampled_at = {name}.sampled_at
                  AND {name}.sampled_at > $start AND {name}.sampled_at <= $reach_end"""


def utc(instant: datetime) -> datetime:
    """An instant as the store has it: UTC, naive."""
    return instant.astimezone(UTC).replace(tzinfo=None)


def parameters(span: Span, stale_after: timedelta) -> dict[str, Any]:
    """What the relations here need to know."""
    reach = max(KNOWN_FOR, stale_after, timedelta(seconds=LONGEST_SECONDS))
    return {
        "start": utc(span.start),
        "end": utc(span.end),
        "wall": span.seconds,
        "known_since": utc(span.start - KNOWN_FOR),
        "reach_start": utc(span.start - reach),
        "reach_end": utc(span.end + reach),
        "longest": LONGEST_SECONDS,
        "stale": stale_after.total_seconds(),
    }


def bound(sql: str, values: Mapping[str, Any]) -> Query:
    """A query with those of the values that it names."""
    return Query(sql, {name: values[name] for name in sorted(set(re.findall(r"\$([a-z_0-9]+)", sql)))})
