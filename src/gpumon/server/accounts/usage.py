"""GPU-hours, energy and cost by whom you like; pure. SQL, and the answer made of its rows.

Sums add up: over the groups of any grouping they are those of the GPUs, because what no user can be charged with
is in the groups of nobody and of unresolved users. A mean or a peak is that of what is together on one GPU: all of
a GPU, a namespace, a workload (of its namespace), a pod (of its workload) or a container, whichever is the
coarsest that says the group. So groups by a label, and mixed ones, have the highest and the mean of their pods,
each by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from gpumon.clock import to_wire
from gpumon.model.fields import METHODS
from gpumon.server.accounts import slices
from gpumon.server.accounts.cells import CELL_PARTS, PARTS
from gpumon.server.accounts.gathering import Gathered
from gpumon.server.accounts.groups import Grouping, grouped
from gpumon.server.accounts.ledger import coverage
from gpumon.server.accounts.prices import NODE_LABELS, Price, price_case
from gpumon.server.accounts.ranges import Span
from gpumon.server.queries import Query

MOST_NOTES: Final = 20
_MIB_SECONDS: Final = 1024 * 3600
_MJ: Final = 3.6e9

_FIGURES: Final = (
    *CELL_PARTS, "allocated", "allocated_measured", "active_of_held", "used", "seconds", "memory", "energy",
    "begins", "ends",
)  # fmt: skip
_ACCOUNTED: Final = " + ".join(f"coalesce({part}, 0)" for part in PARTS)
_HOLDERS_UNKNOWN: Final = ("active", "allocation_unknown", "not_readable", "not_sampled")
"""Parts that say nothing of who held the GPU, where no user's row does."""
_HOLDERS_KNOWN: Final = " + ".join(f"coalesce({part}, 0)" for part in PARTS if part not in _HOLDERS_UNKNOWN)

_BY_METHOD: Final = tuple(f"method_{number}" for number in range(len(METHODS)))
_ADDED: Final = (
    "allocated", "allocated_measured", "active_of_held", "active", "memory", "energy", "cost",
    "there", "active_there", "covered", "wall", "holders_known", *_BY_METHOD,
)  # fmt: skip
_HIGHEST: Final = ("active_peak", "memory_peak", "ends")
_COLUMNS: Final = (*_ADDED, *_HIGHEST, "begins", "gpus", "pods", "unpriced", "all_covered")
_TOGETHER: Final = ", ".join(
    f"{how}({name}) AS {name}"
    for names, how in ((_ADDED, "sum"), (_HIGHEST, "max"), (("begins",), "min"))
    for name in names
)
"""SQL for the figures of several groups as those of one. Distinct GPUs and pods don't add up: they are left
out."""


def kinds(by: Grouping) -> frozenset[str]:
    """Of cells, what is needed: for peaks what is together at the grouping's level."""
    return frozenset({"claim", "place", "note", "joint" if by.level else "whole"})


def select_usage(gathered: Gathered, by: Grouping, prices: tuple[Price, ...], limit: int) -> Query:
    """Rows of: which (group, other or total), the group's keys, who, and _COLUMNS. The `limit` largest groups, the
    largest first; those beyond in one, where there are any; all together."""
    price, price_parameters = price_case(prices)
    by_method = ", ".join(
        f"sum(seconds) FILTER (method = '{method}') AS {column}"
        for method, column in zip(METHODS, _BY_METHOD, strict=True)
    )
    sql = f"""
        WITH {gathered.relations}, {grouped(by, _FIGURES, names=("namespace", "pod", "method"), peaks=True)},
        {NODE_LABELS},
        priced AS MATERIALIZED (SELECT *, {price} AS price, {_ACCOUNTED} AS accounted FROM grouped),
        groups AS (
            SELECT {by.names}, sum(allocated) AS allocated, sum(allocated_measured) AS allocated_measured,
                   sum(active_of_held) AS active_of_held, sum(used) AS active,
                   sum(memory) AS memory, sum(energy) AS energy, sum(accounted * price) / 3600 AS cost,
                   sum({_HOLDERS_KNOWN}) AS holders_known,
                   sum(there) AS there, sum(used) AS active_there, max(active_peak) AS active_peak,
                   max(memory_peak) AS memory_peak, min(begins) AS begins, max(ends) AS ends, {by_method},
                   count(DISTINCT gpu_key) AS gpus, gpus * $wall AS wall,
                   list_sum([gpu.covered FOR gpu IN list(DISTINCT {{'key': gpu_key, 'covered': covered}})])
                       AS covered,
                   count(DISTINCT (namespace, pod)) FILTER (pod IS NOT NULL) AS pods
            FROM priced GROUP BY {by.names}
        ),
        ranked AS MATERIALIZED (
            SELECT *, row_number() OVER (
                       ORDER BY coalesce(allocated, 0) + coalesce(active, 0) DESC, {by.names}) AS rank
            FROM groups
        ),
        lines AS (
            SELECT 'group' AS line, * FROM ranked WHERE rank <= $limit
            UNION ALL BY NAME
            SELECT 'other' AS line, {_TOGETHER} FROM ranked WHERE rank > $limit HAVING count(*) > 0
            UNION ALL BY NAME
            SELECT 'total' AS line, {_TOGETHER}, (SELECT count(*) FROM fleet) AS gpus,
                   (SELECT count(DISTINCT (namespace, pod)) FILTER (pod IS NOT NULL) FROM priced) AS pods,
                   (SELECT list(DISTINCT gpu_name ORDER BY gpu_name) FROM priced WHERE price IS NULL) AS unpriced,
                   (SELECT sum(covered) FROM fleet) AS all_covered
            FROM ranked
        )
        SELECT line, {by.names}, {", ".join(_COLUMNS)} FROM lines ORDER BY line, rank"""
    return slices.bound(sql, gathered.parameters | by.parameters | price_parameters | {"limit": limit})


def select_notes(gathered: Gathered) -> Query:
    """What agents could not ask in the range, the most frequent first."""
    sql = f"""
        WITH {gathered.relations}
        SELECT note FROM cells WHERE kind = 'note' AND bucket >= $start
        GROUP BY note ORDER BY sum(samples) DESC, note LIMIT {MOST_NOTES}"""
    return slices.bound(sql, gathered.parameters)


def usage_of(
    rows: Sequence[tuple[Any, ...]], notes: Iterable[str], span: Span, by: Grouping, currency: str | None
) -> dict[str, Any]:
    """The answer, of the rows of `select_usage`. The groups beyond the limit are one of `who` "other"."""
    entries = []
    total: dict[str, Any] = {}
    for line, *row in rows:
        names, (who, *figures) = row[: len(by.keys)], row[len(by.keys) :]
        of = dict(zip(_COLUMNS, figures, strict=True))
        if line == "total":
            total = of
        else:
            group = dict(zip(by.keys, names, strict=True))
            entries.append({"group": group, "who": "other" if line == "other" else who} | _figures(of))
    if currency is not None and total["unpriced"]:
        notes = [
            *notes,
            f"[COST] prices has none for {', '.join(map(str, total['unpriced']))}: they are not in cost",
        ]
    return {
        "currency": currency,
        "groups": entries if by.keys else [],
        "total": _sums(total),
        "coverage": coverage(total["all_covered"] or 0.0, total["gpus"] * span.seconds),
        "notes": list(notes),
    }


def _sums(of: dict[str, Any]) -> dict[str, Any]:
    return {
        "gpu_hours_allocated": _scaled(of["allocated"] or (0.0 if of["holders_known"] else None), 1 / 3600),
        "gpu_hours_active": _scaled(of["active"], 1 / 3600),
        "gpu_hours_unmeasured": ((of["allocated"] or 0.0) - (of["allocated_measured"] or 0.0)) / 3600,
        "utilization_of_held": _percent(of["active_of_held"], of["allocated_measured"]),
        "memory_gib_hours": _scaled(of["memory"], 1 / _MIB_SECONDS),
        "energy_kwh": _scaled(of["energy"], 1 / _MJ),
        "cost": of["cost"],
        "gpus": of["gpus"],
        "pods": of["pods"],
    }


def _figures(of: dict[str, Any]) -> dict[str, Any]:
    seconds = {method: of[column] for method, column in zip(METHODS, _BY_METHOD, strict=True) if of[column]}
    return _sums(of) | {
        "utilization_mean": _percent(of["active_there"], of["there"]),
        "utilization_max": _scaled(of["active_peak"], 100),
        "memory_gib_peak": _scaled(of["memory_peak"], 1 / 1024),
        "coverage": coverage(of["covered"] or 0.0, of["wall"] or 0.0),
        "methods": {method: value / sum(seconds.values()) for method, value in seconds.items()},
        "first_seen": _instant(of["begins"]),
        "last_seen": _instant(of["ends"]),
    }


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _percent(part: float | None, of: float | None) -> float | None:
    return None if part is None or not of else min(100.0, part / of * 100)


def _instant(naive: datetime | None) -> str | None:
    return None if naive is None else to_wire(naive.replace(tzinfo=UTC))
