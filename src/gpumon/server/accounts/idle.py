"""Who holds a GPU now and does not use it, since when, with the evidence; pure. SQL, and the answer of its rows.

A holder is idle since its last sample with more use than the threshold, counted over samples whose activity could
be measured: seconds without a sample, or with one that tells nothing, are neither idle nor busy, and lower
`coverage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from gpumon.clock import to_wire
from gpumon.server.accounts import slices
from gpumon.server.accounts.ledger import coverage
from gpumon.server.accounts.prices import NODE_LABELS, Price, price_case
from gpumon.server.accounts.ranges import Span
from gpumon.server.queries import Query

_HOLDER: Final = ("mig_uuid", "namespace", "pod", "container")
_WHERE: Final = ("gpu_uuid", "client_name", "gpu_id", "gpu_name", "node")
_WHOSE: Final = (*_HOLDER, "pod_uid", "owner_kind", "owner_name")
_FIGURES: Final = (
    "price", "gpu_share", "busy_at", "first_begin", "idle_seconds", "unmeasured_seconds", "wasted", "samples",
    "unmeasured_samples", "utilization_max", "utilization_mean", "memory_used", "process_count", "energy_mj",
    "method",
)  # fmt: skip


def select_idle(
    span: Span,
    now: datetime,
    threshold: float,
    namespace: str | None,
    prices: tuple[Price, ...],
    stale_after: timedelta,
) -> Query:
    """A row for each container that holds a GPU, or a MIG instance, in the newest sample of a GPU that is not
    stale now."""
    price, price_parameters = price_case(prices)
    same = " AND ".join(f"told.{name} IS NOT DISTINCT FROM holders.{name}" for name in _HOLDER)
    sql = f"""
        WITH {slices.PLACES}, {slices.SLICES}, {NODE_LABELS},
        holders AS MATERIALIZED (
            SELECT row_number() OVER () AS holder, *
            FROM (SELECT DISTINCT gpu, {", ".join(f"pod_usage.{name}" for name in _HOLDER)}
                  FROM live.latest JOIN pod_usage USING (client_name, gpu_id, sampled_at)
                  JOIN gpus ON gpus.client_name = latest.client_name AND gpus.gpu_id = latest.gpu_id
                           AND gpus.gpu_uuid IS NOT DISTINCT FROM latest.gpu_uuid
                  WHERE latest.sampled_at >= $fresh AND pod_usage.held
                    AND ($namespace IS NULL OR pod_usage.namespace = $namespace))
        ),
        once AS (
            SELECT sample, holder, max(told.rowid) AS use
            {slices.uses("told")} JOIN holders ON holders.gpu = gpus.gpu AND {same}
            WHERE held
            GROUP BY sample, holder
        ),
        history AS MATERIALIZED (
            SELECT holder, begins, ends, seconds, method, pod_usage.process_count, pod_usage.memory_used, pod_uid,
                   owner_kind, owner_name, greatest(0, least(coalesce(gpu_share, 1), 1)) AS share,
                   CASE WHEN readable THEN utilization END AS utilization, energy_mj * portion AS energy_mj
            FROM once JOIN pod_usage ON pod_usage.rowid = once.use JOIN slices USING (sample)
        ),
        since AS (
            SELECT holder, max(ends) FILTER (utilization > $threshold * share) AS busy_at,
                   min(begins) AS first_begin
            FROM history GROUP BY holder
        ),
        figures AS (
            SELECT holder, busy_at, first_begin, arg_max(share, ends) AS gpu_share,
                   arg_max(pod_uid, ends) AS pod_uid, arg_max(owner_kind, ends) AS owner_kind,
                   arg_max(owner_name, ends) AS owner_name,
                   sum(seconds) FILTER (utilization IS NOT NULL) AS idle_seconds,
                   sum(seconds) FILTER (utilization IS NULL) AS unmeasured_seconds,
                   sum(share * seconds) FILTER (utilization IS NOT NULL) AS wasted,
                   count(*) FILTER (utilization IS NOT NULL) AS samples,
                   count(*) FILTER (utilization IS NULL) AS unmeasured_samples,
                   max(utilization) AS utilization_max,
                   sum(utilization * seconds) / sum(seconds) FILTER (utilization IS NOT NULL) AS utilization_mean,
                   arg_max(memory_used, ends) AS memory_used, arg_max(process_count, ends) AS process_count,
                   sum(energy_mj) FILTER (utilization IS NOT NULL) AS energy_mj, arg_max(method, ends) AS method
            FROM history JOIN since USING (holder) WHERE busy_at IS NULL OR ends > busy_at
            GROUP BY holder, busy_at, first_begin
        )
        SELECT {", ".join(f"places.{name}" for name in _WHERE)}, {", ".join(_WHOSE)}, {price} AS price,
               {", ".join(_FIGURES[1:])}
        FROM figures JOIN holders USING (holder) JOIN places ON places.gpu = holders.gpu AND places.is_newest
        ORDER BY wasted DESC NULLS LAST, places.gpu_key, {", ".join(_HOLDER)}"""
    values = slices.parameters(span, stale_after) | price_parameters
    values |= {
        "fresh": slices.utc(now - stale_after),
        "namespace": namespace,
        "threshold": threshold,
    }
    return slices.bound(sql, values)


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
        "since": to_wire(span.start + timedelta(seconds=begin)),
        "since_at_least": of["busy_at"] is None,
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
            "coverage": coverage(idle_seconds, span.seconds - begin),
        },
    }
