"""The ledger: the wall time of GPUs, divided; pure. SQL, and the answer made of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from gpumon.server.accounts import slices
from gpumon.server.accounts.cells import CELL_PARTS, PARTS, REASONS
from gpumon.server.accounts.gathering import Gathered
from gpumon.server.accounts.groups import Grouping, grouped
from gpumon.server.accounts.ranges import Span
from gpumon.server.queries import Query

KINDS: Final = frozenset({"claim", "place"})
"""Of cells, what is needed."""

_OF_USERS: Final = ("active", "held_idle", "used_without_allocation")
"""By these the groups are ordered, the largest first."""


def select_ledger(gathered: Gathered, by: Grouping) -> Query:
    """A row for each group: its keys, who, its GPUs, its seconds in each of PARTS; and one for all, marked by a
    last column that is 1."""
    sums = ", ".join(f"coalesce(sum({part}), 0)" for part in PARTS)
    used = " + ".join(f"coalesce(sum({part}), 0)" for part in _OF_USERS)
    sql = f"""
        WITH {gathered.relations}, {grouped(by, CELL_PARTS)}
        SELECT {by.names}, count(DISTINCT gpu_key), {sums}, CAST(grouping(group_who) AS INTEGER) AS is_total
        FROM grouped GROUP BY GROUPING SETS (({by.names}), ())
        ORDER BY is_total, {used} DESC, {by.names}"""
    return slices.bound(sql, gathered.parameters | by.parameters)


def ledger_of(rows: Sequence[tuple[Any, ...]], span: Span, by: Grouping) -> dict[str, Any]:
    """The answer, of the rows of `select_ledger`."""
    width = len(by.keys)
    entries = []
    for row in rows[:-1]:
        who, gpus, *seconds = row[width:-1]
        entry = {"group": dict(zip(by.keys, row, strict=False)), "who": who, "gpus": gpus}
        wall = None if by.by_claimant else sum(seconds)
        entries.append(entry | {"wall_seconds": wall} | _parts(seconds))
    _, gpus, *seconds = rows[-1][width:-1]
    wall = gpus * span.seconds
    return {
        "groups": entries if by.keys else [],
        "total": {"wall_seconds": wall} | _parts(seconds),
        "gpus": gpus,
        "coverage": coverage(wall - seconds[-1], wall),
    }


def coverage(covered: float, wall: float) -> float:
    """The share of the wall time that samples cover; 0.0 of none."""
    return round(min(1.0, covered / wall), 6) if wall > 0 else 0.0


def _parts(seconds: Sequence[float]) -> dict[str, Any]:
    by_part = dict(zip(PARTS, seconds, strict=True))
    reasons = {reason: by_part.pop(reason) for reason in REASONS}
    six = by_part | {"no_data": sum(reasons.values())}
    hours = {name: value / 3600 for name, value in six.items()}
    return six | {"no_data_reasons": reasons, "gpu_hours": hours}
