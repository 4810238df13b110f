"""Who holds a GPU now and does not use it, since when, with the evidence.

A holder is idle since its last sample with more use than the threshold, counted over samples whose activity could
be measured: seconds without a sample, or with one that tells nothing, are neither idle nor busy, and lower
`coverage`. What it is called, and has, is what its last sample says.

Cells tell in which bucket that last use was, and what came after it: first of days, then of the hours of the days
in question; at the range's end, of five minutes. Raw rows of that bucket tell when; where they are deleted, it was
in the hour before `since`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from gpumon.clock import to_wire
from gpumon.server.accounts import rolling, slices
from gpumon.server.accounts.cells import HOLDER, HOUR
from gpumon.server.accounts.desk import Reading, Rows, Run
from gpumon.server.accounts.gathering import Gathered, gather
from gpumon.server.accounts.ledger import coverage
from gpumon.server.accounts.prices import NODE_LABELS, Price, price_case
from gpumon.server.accounts.ranges import Span
from gpumon.server.accounts.slices import GPU_KEY

_KINDS: Final = frozenset({"holder", "place"})
"""Of cells, what is needed."""

_WHERE: Final = ("gpu_uuid", "client_name", "gpu_id", "gpu_name", "node")
_WHOSE: Final = (*HOLDER, "pod_uid", "owner_kind", "owner_name")
_FIGURES: Final = (
    "price", "gpu_share", "busy_at", "is_rough", "first_begin", "idle_seconds", "unmeasured_seconds", "wasted",
    "samples", "unmeasured_samples", "utilization_max", "utilization_mean", "memory_used", "process_count",
    "energy_mj", "method",
)  # fmt: skip
_NEWEST: Final = {
    name: name for name in ("pod_uid", "owner_kind", "owner_name", "memory_used", "process_count", "method")
} | {"gpu_share": "share"}
_TOLERANCE: Final = 1e-3
"""Seconds. Who is just not idle for long enough is sorted out at the end, by what raw rows say."""


_SAME: Final = " AND ".join(f"told.{name} IS NOT DISTINCT FROM holders.{name}" for name in ("gpu_key", *HOLDER))

_SUMS: Final = {
    "measured": "sum(measured)",
    "unmeasured": "sum(unmeasured)",
    "wasted": "sum(share * measured)",
    "weighed": "sum(weighed)",
    "utilization_max": "max(utilization_max)",
    "samples": "sum(samples)",
    "unmeasured_samples": "sum(unmeasured_samples)",
    "energy": "sum(energy)",
}


def _fine_from(last: datetime, at_least: timedelta) -> datetime:
    """From when on there have to be fine cells, where the last sample is of `last`. Who used a GPU a minute before
    an hour was over looks idle since its beginning, as far as the hour's cells tell: the raw rows of nearly all
    would be looked into in the first minutes of each hour."""
    return last - min(at_least, HOUR)


def _holders(reading: Reading, oldest: datetime) -> str:
    """SQL for who holds what in the newest samples of GPUs that are not stale now."""
    columns = ("client_name", "gpu_id", "sampled_at", "held", *HOLDER)
    pods = reading.rows_in("pod_usage", (oldest, datetime.max), columns)
    return f"""
        CREATE OR REPLACE TEMP TABLE cell_holders AS
        SELECT row_number() OVER () AS holder, *
        FROM (SELECT DISTINCT coalesce(latest.gpu_uuid, client_name || '/' || gpu_id) AS gpu_key,
                     latest.gpu_uuid IS NOT NULL AS has_uuid,
                     {", ".join(f"told.{name}" for name in HOLDER)}
              FROM live.latest JOIN {pods} AS told USING (client_name, gpu_id, sampled_at)
              WHERE latest.sampled_at >= $fresh AND told.sampled_at >= $fresh AND told.held
                AND ($namespace IS NULL OR told.namespace = $namespace))"""


def _evidence(gathered: Gathered) -> str:
    """SQL for each holder's bucket of last use, and sums of the buckets after it; of those only who may have been
    idle for long enough."""
    after = "busy_bucket IS NULL OR bucket > busy_bucket"
    return f"""
        CREATE OR REPLACE TEMP TABLE cell_evidence AS
        WITH {gathered.relations},
        history AS MATERIALIZED (
            SELECT holders.holder, told.*
            FROM (SELECT *, {GPU_KEY} AS gpu_key FROM cells WHERE kind = 'holder' AND bucket >= $start) AS told
            JOIN cell_holders AS holders ON {_SAME}
        ),
        busy AS (
            SELECT holder, max(bucket) FILTER (utilization_max > $threshold * share) AS busy_bucket,
                   max(bucket) AS last_bucket, min(begins) AS first_begin
            FROM history GROUP BY holder
        )
        SELECT holders.*, busy_bucket, last_bucket, first_begin, sums.* EXCLUDE (holder)
        FROM (SELECT holder, {", ".join(f"{sql} FILTER ({after}) AS {name}" for name, sql in _SUMS.items())}
              FROM history JOIN busy USING (holder) WHERE busy_bucket IS NULL OR bucket >= busy_bucket
              GROUP BY holder
              HAVING sum(coalesce(measured, 0) + coalesce(unmeasured, 0)) >= $at_least) AS sums
        JOIN busy USING (holder) JOIN cell_holders AS holders USING (holder)"""


def _figures(gathered: Gathered, cuts: Sequence[slices.Cut], price: str) -> str:
    """SQL for a row for each holder of the evidence, from when its last use is looked up in the raw rows."""
    return f"""
        WITH {gathered.relations}, {NODE_LABELS}, {rolling.holding(cuts)},
        readings AS MATERIALIZED (
            SELECT holder, own, ends, seconds, told.*, energy_mj * portion AS energy, busy_bucket,
                   make_timestamp(lower) IS NOT DISTINCT FROM busy_bucket AS at_use,
                   make_timestamp(lower) = last_bucket AS at_last
            FROM ({rolling.HOLDINGS}) AS told JOIN cell_evidence AS holders ON {_SAME}
            JOIN cell_spans USING (sample)
        ),
        since AS (
            SELECT holder, coalesce(told_at, busy_until) AS busy_at,
                   told_at IS NULL AND busy_until IS NOT NULL AS is_rough
            FROM (SELECT holder, any_value(busy_bucket) AS busy_bucket, make_timestamp(
                             max(ends) FILTER (at_use AND utilization > $threshold * share)) AS told_at
                  FROM readings GROUP BY holder)
            LEFT JOIN (SELECT unnest($begins) AS busy_bucket, unnest($untils) AS busy_until) USING (busy_bucket)
        ),
        after AS (
            SELECT * FROM readings JOIN since USING (holder) WHERE busy_at IS NULL OR ends > epoch_us(busy_at)
        ),
        parts AS (
            SELECT holder, {", ".join(_SUMS)} FROM cell_evidence
            UNION ALL BY NAME
            SELECT holder, seconds AS measured, share * seconds AS wasted, utilization * seconds AS weighed,
                   utilization AS utilization_max, energy
            FROM after WHERE at_use AND utilization IS NOT NULL
            UNION ALL BY NAME
            SELECT holder, seconds AS unmeasured FROM after WHERE at_use AND utilization IS NULL
            UNION ALL BY NAME
            SELECT holder, CAST(utilization IS NOT NULL AS BIGINT) AS samples,
                   CAST(utilization IS NULL AS BIGINT) AS unmeasured_samples
            FROM after WHERE (at_use AND own) OR (at_last AND NOT own)
        ),
        sums AS (
            SELECT holder, sum(measured) AS idle_seconds, sum(unmeasured) AS unmeasured_seconds,
                   sum(wasted) AS wasted, coalesce(sum(samples), 0) AS samples,
                   coalesce(sum(unmeasured_samples), 0) AS unmeasured_samples,
                   max(utilization_max) AS utilization_max, sum(weighed) / sum(measured) AS utilization_mean,
                   sum(energy) AS energy_mj
            FROM parts GROUP BY holder
        ),
        newest AS (
            SELECT holder, {", ".join(f"arg_max_null({sql}, ends) AS {name}" for name, sql in _NEWEST.items())}
            FROM after WHERE at_last GROUP BY holder
        )
        SELECT {", ".join(f"fleet.{name}" for name in _WHERE)}, {", ".join(_WHOSE)}, {price} AS price,
               {", ".join(_FIGURES[1:])}
        FROM (SELECT holder, gpu_key, first_begin, {", ".join(HOLDER)} FROM cell_evidence)
        JOIN since USING (holder) JOIN sums USING (holder) JOIN newest USING (holder)
        JOIN (SELECT {", ".join(_WHERE)}, gpu_key FROM fleet) AS fleet USING (gpu_key)
        ORDER BY wasted DESC NULLS LAST, gpu_key, {", ".join(HOLDER)}"""


def ask(
    reading: Reading,
    span: Span,
    *,
    now: datetime,
    threshold: float,
    at_least: timedelta,
    namespace: str | None,
    prices: tuple[Price, ...],
    stale_after: timedelta,
) -> Rows:
    """A row for each container that holds a GPU, or a MIG instance, in the newest sample of a GPU that is not
    stale now, and has not used it for `at_least`; maybe for others, too."""
    fresh = {"fresh": slices.utc(now - stale_after)}
    newest = "SELECT min(sampled_at), max(sampled_at) FROM live.latest WHERE sampled_at >= $fresh"
    ((oldest, last),) = reading.select(newest, fresh)
    if oldest is None:
        return []
    fine_from = _fine_from(min(last, slices.utc(span.end)), at_least)
    gathered = gather(reading, span, stale_after, _KINDS, fine_from)
    price, price_parameters = price_case(prices)
    values = gathered.parameters | price_parameters
    values |= {
        "fresh": oldest,
        "namespace": namespace,
        "threshold": threshold,
        "at_least": at_least.total_seconds() - _TOLERANCE,
    }

    def run(sql: str) -> Rows:
        return reading.select(sql, slices.bound_values(sql, values))

    def in_question() -> dict[Run, set[tuple[str, bool]]]:
        """The buckets whose raw rows are looked into, with the GPUs of which, and whether that is their UUID."""
        run(_evidence(gathered))
        wanted: dict[Run, set[tuple[str, bool]]] = {}
        for begin, key, has_uuid in run(
            "SELECT DISTINCT unnest([busy_bucket, last_bucket]), gpu_key, has_uuid FROM cell_evidence"
        ):
            if begin is not None:
                wanted.setdefault(gathered.bucket_from(begin), set()).add((key, has_uuid))
        return wanted

    run(_holders(reading, oldest))
    wanted = in_question()
    while days := [bucket for bucket in wanted if bucket in gathered.within.days]:
        gathered = gathered.by_hours(days)
        values |= gathered.parameters
        wanted = in_question()
    if not wanted:
        return []
    values["begins"], values["untils"] = zip(*wanted, strict=True)
    cuts = _cuts(wanted, reading, gathered.reach)
    values |= slices.parameters(sorted(wanted), cuts, stale_after)
    figures = _figures(gathered, cuts, price)
    return reading.answer(figures, slices.bound_values(figures, values))


def _cuts(
    wanted: Mapping[Run, Iterable[tuple[str, bool]]], reading: Reading, reach: timedelta
) -> list[slices.Cut]:
    """What is read of buckets: of each GPU its own, and no row twice."""
    buckets: dict[tuple[str, bool], list[Run]] = {}
    for bucket, gpus in wanted.items():
        for gpu in gpus:
            buckets.setdefault(gpu, []).append(bucket)
    read: dict[tuple[Run, bool], list[str]] = {}
    for (key, has_uuid), of_gpu in buckets.items():
        for window in slices.windows_of(of_gpu, reach):
            read.setdefault((window, has_uuid), []).append(key)
    whole = slices.cuts_of([window for window, _ in read], rolling.HOLDINGS_COLUMNS, reading.rows_in)
    cuts = []
    for number, (cut, ((_, has_uuid), of_window)) in enumerate(zip(whole, read.items(), strict=True)):
        of, values = slices.of_gpus(of_window, has_uuid=has_uuid, named=f"gpu_{number}")
        cuts.append(replace(cut, of=of, values=values))
    return cuts


def idle_of(
    rows: Sequence[tuple[Any, ...]], span: Span, at_least: timedelta, currency: str | None
) -> dict[str, Any]:
    """The answer: `idle`, the largest waste first, and apart `unmeasured`, of which nothing is known."""
    idle, unmeasured = [], []
    for row in rows:
        figures = dict(zip((*_WHERE, *_WHOSE, *_FIGURES), row, strict=True))
        measured, blind = figures["idle_seconds"] or 0.0, figures["unmeasured_seconds"] or 0.0
        if measured >= at_least.total_seconds():
            idle.append(_entry(figures, span))
        elif measured + blind >= at_least.total_seconds():
            unmeasured.append(_entry(figures, span))
    costs = [entry["cost"] for entry in idle if entry["cost"] is not None]
    return {
        "currency": currency,
        "idle": idle,
        "unmeasured": unmeasured,
        "total": {
            "holders": len(idle),
            "gpu_hours_wasted": sum(entry["gpu_hours_wasted"] for entry in idle),
            "cost": sum(costs) if costs else None,
        },
    }


def _entry(of: dict[str, Any], span: Span) -> dict[str, Any]:
    begin = of["first_begin"] if of["busy_at"] is None else of["busy_at"]
    idle_seconds, hours = of["idle_seconds"] or 0.0, (of["wasted"] or 0.0) / 3600
    energy = of["energy_mj"]
    return {
        **{name: of[name] for name in (*_WHERE, *_WHOSE)},
        "gpu_share": of["gpu_share"],
        "since": to_wire(begin.replace(tzinfo=UTC)),
        "since_at_least": of["busy_at"] is None or of["is_rough"],
        "idle_seconds": idle_seconds,
        "gpu_hours_wasted": hours,
        "cost": None if of["price"] is None else of["price"] * hours,
        "evidence": {
            "samples": of["samples"],
            "unmeasured_samples": of["unmeasured_samples"],
            "utilization_max": of["utilization_max"],
            "utilization_mean": of["utilization_mean"],
            "memory_used": of["memory_used"],
            "process_count": of["process_count"],
            "energy_wh": None if energy is None else energy / 3.6e6,
            "method": of["method"],
            "coverage": coverage(idle_seconds, (span.end - begin.replace(tzinfo=UTC)).total_seconds()),
        },
    }
