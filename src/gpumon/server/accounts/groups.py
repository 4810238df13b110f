"""By what answers are grouped: pods and what they belong to, GPUs and where they stand; pure.

`cells` are the accounts summed up by claimant and place, the finest that any grouping needs; the groupings that
are asked for are columns of `cells`, so that whatever the grouping, the sums add up to the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from gpumon.errors import QueryError
from gpumon.server.accounts.slices import LABEL_VALUE

_DIMENSIONS: Final[dict[str, dict[str, str]]] = {
    "pod": {"namespace": "claimants.namespace", "pod": "claimants.pod"},
    "container": {
        "namespace": "claimants.namespace",
        "pod": "claimants.pod",
        "container": "claimants.container",
    },
    "owner": {
        "namespace": "claimants.namespace",
        "owner_kind": "claimants.owner_kind",
        "owner_name": "claimants.owner_name",
    },
    "namespace": {"namespace": "claimants.namespace"},
    "node": {"node": "places.node"},
    "gpu": {
        "gpu_uuid": "newest.gpu_uuid",
        "client_name": "newest.client_name",
        "gpu_id": "newest.gpu_id",
        "gpu_name": "newest.gpu_name",
    },
    "model": {"gpu_name": "places.gpu_name"},
}
"""Grouping → name in the answer → column. A GPU is called what it was called last."""

_LABEL: Final = "label:"
_DEVICE_WIDE: Final = frozenset({"node", "gpu", "model"})
GROUPINGS: Final = (*_DIMENSIONS, "label:<key>")
MOST_GROUPINGS: Final = 8


@dataclass(frozen=True, slots=True)
class Grouping:
    """`keys` are the names in the answer, `columns` their SQL, in the same order. `by_claimant`: the groups tell
    users apart, so that what is nobody's is a group of its own."""

    keys: tuple[str, ...]
    columns: tuple[str, ...]
    by_claimant: bool
    joins: str
    parameters: dict[str, Any]

    @property
    def names(self) -> str:
        """The groups' columns in `cells`, for GROUP BY: who is one of them."""
        return ", ".join([*(f"key_{number}" for number in range(len(self.keys))), "who"])

    @property
    def selected(self) -> str:
        """The columns of `cells` that make the groups."""
        columns = [f"{column} AS key_{number}" for number, column in enumerate(self.columns)]
        return ", ".join([*columns, f"{'claimants.who' if self.by_claimant else 'CAST(NULL AS VARCHAR)'} AS who"])


def grouping(text: str) -> Grouping:
    """The grouping that is asked for: one of GROUPINGS, several separated by commas, or `none`. Raises QueryError
    that names them."""
    keys: dict[str, str] = {}
    joins: list[str] = []
    parameters: dict[str, Any] = {}
    wanted = [] if text == "none" else [part.strip() for part in text.split(",")]
    if len(wanted) > MOST_GROUPINGS:
        raise QueryError(f"group_by names {len(wanted)} groupings; take {MOST_GROUPINGS} at most")
    for number, name in enumerate(wanted):
        label = name.removeprefix(_LABEL) if name.startswith(_LABEL) else None
        if label:
            parameters[f"group_label_{number}"] = label
            joins.append(_join_label(number))
            keys[name] = f"label_{number}.value"
        elif name in _DIMENSIONS:
            keys |= _DIMENSIONS[name]
        else:
            raise QueryError(f"group_by = {name[:80]!r} is no grouping; take one of {', '.join(GROUPINGS)}")
    by_claimant = any(name not in _DEVICE_WIDE for name in wanted)
    return Grouping(tuple(keys), tuple(keys.values()), by_claimant, " ".join(joins), parameters)


def cells(by: Grouping, sums: Iterable[str]) -> str:
    """The relation `cells`: the sums of `accounts` by claimant and place, with the groups' columns."""
    return f"""
    summed AS MATERIALIZED (SELECT claimant, place, {", ".join(sums)} FROM accounts GROUP BY claimant, place),
    cells AS MATERIALIZED (
        SELECT summed.*, places.gpu, places.gpu_name, places.client_name, claimants.method,
               claimants.namespace, claimants.pod, {by.selected}
        FROM summed JOIN places USING (place) JOIN claimants USING (claimant)
        JOIN places AS newest ON newest.gpu = places.gpu AND newest.is_newest {by.joins}
    )"""


def _join_label(number: int) -> str:
    """What a pod's label was at the range's end."""
    return f"""
        LEFT JOIN (SELECT namespace, pod, {LABEL_VALUE} AS value FROM pod_labels
                   WHERE label = $group_label_{number} AND pod IS NOT NULL AND sampled_at <= $reach_end
                   GROUP BY namespace, pod) AS label_{number}
          ON label_{number}.namespace IS NOT DISTINCT FROM claimants.namespace
         AND label_{number}.pod = claimants.pod"""
