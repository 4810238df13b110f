"""By what answers are grouped: pods and what they belong to, GPUs and where they stand; pure.

`summed` are the cells of a range added up by claim and place, the finest that any grouping needs; the groupings
that are asked for are columns of `grouped`, so that whatever the grouping, the sums add up to the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gpumon.errors import QueryError
from gpumon.server.accounts.cells import CLAIM, LEVELS
from gpumon.server.accounts.slices import GPU_KEY, LABEL_VALUE, PLACE

_DIMENSIONS: Final[dict[str, dict[str, str]]] = {
    "pod": {"namespace": "summed.namespace", "pod": "summed.pod"},
    "container": {
        "namespace": "summed.namespace",
        "pod": "summed.pod",
        "container": "summed.container",
    },
    "owner": {
        "namespace": "summed.namespace",
        "owner_kind": "summed.owner_kind",
        "owner_name": "summed.owner_name",
    },
    "namespace": {"namespace": "summed.namespace"},
    "node": {"node": "summed.node"},
    "gpu": {
        "gpu_uuid": "newest.gpu_uuid",
        "client_name": "newest.client_name",
        "gpu_id": "newest.gpu_id",
        "gpu_name": "newest.gpu_name",
    },
    "model": {"gpu_name": "summed.gpu_name"},
}
"""Grouping → name in the answer → column. A GPU is called what it was called last."""

_LABEL: Final = "label:"
GROUPINGS: Final = (*_DIMENSIONS, "label:<key>")
MOST_GROUPINGS: Final = 8


@dataclass(frozen=True, slots=True)
class Grouping:
    """`keys` are the names in the answer, `columns` their SQL, in the same order. `by_claimant`: the groups tell
    users apart, so that what is nobody's is a group of its own. `level` is the coarsest of LEVELS that says which
    group a user is of, 0 where it is the GPU: the peak of a group is the highest of what is together at this
    level, on one GPU. `needs` are the columns of claims that it takes."""

    keys: tuple[str, ...]
    columns: tuple[str, ...]
    by_claimant: bool
    level: int
    needs: tuple[str, ...]
    joins: str
    parameters: dict[str, Any]

    @property
    def names(self) -> str:
        """The groups' columns in `grouped`, for GROUP BY: who is one of them."""
        return ", ".join([*(f"key_{number}" for number in range(len(self.keys))), "group_who"])

    @property
    def selected(self) -> str:
        """The columns of `grouped` that make the groups."""
        columns = [f"{column} AS key_{number}" for number, column in enumerate(self.columns)]
        who = "summed.who" if self.by_claimant else "CAST(NULL AS VARCHAR)"
        return ", ".join([*columns, f"{who} AS group_who"])


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
    columns = tuple(keys.values())
    claim = [
        "who",
        *(name for name in CLAIM if f"summed.{name}" in columns),
        *(["namespace", "pod"] if joins else ()),
    ]
    levels = [LEVELS["pod"]] if joins else []
    levels += [LEVELS[name] for name in wanted if name in LEVELS]
    return Grouping(
        tuple(keys),
        columns,
        by_claimant=bool(levels),
        level=max(levels, default=0),
        needs=tuple(dict.fromkeys(claim)),
        joins=" ".join(joins),
        parameters=parameters,
    )


_PEAKS: Final = {"there": "sum", "active_peak": "max", "memory_peak": "max"}


def grouped(by: Grouping, sums: Mapping[str, str], *, names: Iterable[str] = (), peaks: bool = False) -> str:
    """The relations `summed`: sums of the range's `cells` by claim and place, the peaks of those who are together
    at the grouping's level, and the time of which there is no sample; and `grouped`, these with the groups'
    columns. `names` are further columns of the claims. Needs `fleet`. A part for each kind of row, since that is a
    filter which files and tables know."""
    claim = [*dict.fromkeys([*by.needs, *names])]
    alone = {name: f"{how}(CASE WHEN level < {by.level} THEN {name} END)" for name, how in _PEAKS.items()}
    together = {name: f"{how}({name})" for name, how in _PEAKS.items()}
    parts = [_added("kind = 'claim'", claim, dict(sums) | (alone if peaks and by.level else {}))]
    if peaks and by.level:
        parts.append(_added(f"kind = 'joint' AND level = {by.level}", claim, together))
    elif peaks:
        parts.append(_added("kind = 'whole'", claim, together))
    parts.append(
        f"SELECT {', '.join(PLACE)}, 'nobody' AS who, greatest(0, $wall - covered) AS not_sampled FROM fleet"
    )
    return f"""
    summed AS ({" UNION ALL BY NAME ".join(parts)}),
    grouped AS MATERIALIZED (
        SELECT summed.*, newest.gpu_key, newest.covered, {by.selected}
        FROM (SELECT *, {GPU_KEY} AS gpu_key FROM summed) AS summed
        JOIN fleet AS newest USING (gpu_key) {by.joins}
    )"""


def _added(which: str, claim: Iterable[str], sums: Mapping[str, str]) -> str:
    """SQL for sums of the rows of `cells` of one kind, by claim and place."""
    named = ", ".join(f"any_value({name}) AS {name}" for name in (*PLACE, *claim))
    added = ", ".join(f"{sql} AS {name}" for name, sql in sums.items())
    return f"SELECT {named}, {added} FROM cells WHERE bucket >= $start AND {which} GROUP BY subject"


def _join_label(number: int) -> str:
    """What a pod's label was at the range's end."""
    return f"""
        LEFT JOIN (SELECT namespace, pod, {LABEL_VALUE} AS value FROM pod_labels
                   WHERE label = $group_label_{number} AND pod IS NOT NULL AND sampled_at <= $labels_end
                   GROUP BY namespace, pod) AS label_{number}
          ON label_{number}.namespace IS NOT DISTINCT FROM summed.namespace
         AND label_{number}.pod = summed.pod"""
