"""By what answers are grouped: pods and what they belong to, GPUs and where they stand; pure.

`told` is what the cells of a range say of claims, the finest that any grouping needs; the groupings that are asked
for are columns of `grouped`, so that whatever the grouping, the sums add up to the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from gpumon.errors import QueryError
from gpumon.server.accounts.cells import CLAIM, LEVELS
from gpumon.server.accounts.slices import GPU_KEY, LABEL_VALUE, PLACE

_DIMENSIONS: Final[dict[str, dict[str, str]]] = {
    "pod": {"namespace": "told.namespace", "pod": "told.pod"},
    "container": {
        "namespace": "told.namespace",
        "pod": "told.pod",
        "container": "told.container",
    },
    "owner": {
        "namespace": "told.namespace",
        "owner_kind": "told.owner_kind",
        "owner_name": "told.owner_name",
    },
    "namespace": {"namespace": "told.namespace"},
    "node": {"node": "told.node"},
    "gpu": {
        "gpu_uuid": "newest.gpu_uuid",
        "client_name": "newest.client_name",
        "gpu_id": "newest.gpu_id",
        "gpu_name": "newest.gpu_name",
    },
    "model": {"gpu_name": "told.gpu_name"},
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
        who = "told.who" if self.by_claimant else "CAST(NULL AS VARCHAR)"
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
        *(name for name in CLAIM if f"told.{name}" in columns),
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


_PEAKS: Final = ("there", "active_peak", "memory_peak")


def grouped(by: Grouping, figures: Iterable[str], *, names: Iterable[str] = (), peaks: bool = False) -> str:
    """The relations `told`: what the range's `cells` say of claims, their peaks as those who are together at the
    grouping's level, and the time of which there is no sample; and `grouped`, these with the groups' columns, to
    be added up. `names` are further columns of the claims. Needs `fleet`. A part for each kind of row, since that
    is a filter which files and tables know. The cells are added up once, by group: most claims are in a few cells
    of a range, or else these are few, and to add them up by claim before takes longer than it saves."""
    claim = [*PLACE, *dict.fromkeys([*by.needs, *names])]
    alone = [f"CASE WHEN level < {by.level} THEN {name} END AS {name}" for name in _PEAKS]
    parts = [_of_kind("kind = 'claim'", [*claim, *figures, *(alone if peaks and by.level else ())])]
    if peaks and by.level:
        parts.append(_of_kind(f"kind = 'joint' AND level = {by.level}", [*claim, *_PEAKS]))
    elif peaks:
        parts.append(_of_kind("kind = 'whole'", [*claim, *_PEAKS]))
    parts.append(
        f"SELECT {', '.join(PLACE)}, 'nobody' AS who, greatest(0, $wall - covered) AS not_sampled FROM fleet"
    )
    return f"""
    told AS ({" UNION ALL BY NAME ".join(parts)}),
    grouped AS MATERIALIZED (
        SELECT told.*, newest.gpu_key, newest.covered, {by.selected}
        FROM (SELECT *, {GPU_KEY} AS gpu_key FROM told) AS told
        JOIN fleet AS newest USING (gpu_key) {by.joins}
    )"""


def _of_kind(which: str, columns: Iterable[str]) -> str:
    return f"SELECT {', '.join(columns)} FROM cells WHERE bucket >= $start AND {which}"


def _join_label(number: int) -> str:
    """What a pod's label was at the range's end."""
    return f"""
        LEFT JOIN (SELECT namespace, pod, {LABEL_VALUE} AS value FROM pod_labels
                   WHERE label = $group_label_{number} AND pod IS NOT NULL AND sampled_at <= $labels_end
                   GROUP BY namespace, pod) AS label_{number}
          ON label_{number}.namespace IS NOT DISTINCT FROM told.namespace
         AND label_{number}.pod = told.pod"""
