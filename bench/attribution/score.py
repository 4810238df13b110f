"""How right the server's answers about one node are. The answers are the server's own; nothing is added up here
that it could have added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.attribution import truth
from bench.attribution.node import Node
from bench.attribution.scene import HOST, Key
from bench.attribution.truth import Sampled

_PARTS = ("active", "held_idle", "used_without_allocation", "free", "unhealthy", "no_data")
_EXACT_PERCENT = 1.0
"""Of a range of a minute. A sample that a load changes in errs by up to its length, however long the range is."""
_ROUNDING_SECONDS = 0.01


@dataclass(frozen=True)
class Score:
    """One scene's result, in GPU-seconds. `measured` is None where the answer says that activity could not be
    measured. `worst` is the user with the largest error. `cloned` and `last` are the baselines' errors, None where
    the GPUs tell no value. `adds_up`: of each GPU the ledger's parts make the range that was asked for. `no_data`
    is what it says it does not know, of `wall`."""

    scene: str
    remark: str
    exact: bool
    true: float
    measured: float | None
    error: float
    worst: Key
    worst_error: float
    held_error: float
    unallocated_error: float
    unresolved: float
    cloned: float | None
    last: float | None
    adds_up: bool
    no_data: float
    wall: float
    methods: Sequence[str]
    seconds: float

    @property
    def tolerance_percent(self) -> float:
        """The error that is allowed where the driver's data are exact."""
        return _EXACT_PERCENT * max(1.0, 60 / self.seconds)

    def percent(self, seconds: float) -> float:
        """As a share of the true active seconds; of the wall time, where nothing was active."""
        return 100 * seconds / (self.true or self.wall)

    @property
    def failures(self) -> list[str]:
        """What is not as it should be: in words, none where all is."""
        found = []
        if not self.adds_up:
            found.append("the ledger's parts do not add up to its wall time")
        if self.exact and self.percent(self.error) > self.tolerance_percent:
            found.append(f"error {self.percent(self.error):.2f} %, most of it with {self.worst}")
        if self.percent(self.held_error) > self.tolerance_percent:
            found.append(f"what is held is wrong by {self.held_error:.2f} GPU-seconds")
        if self.percent(self.unallocated_error) > self.tolerance_percent:
            found.append(f"use without allocation is wrong by {self.unallocated_error:.2f} GPU-seconds")
        for name, baseline in (("cloning", self.cloned), ("last wins", self.last)):
            if baseline is not None and self.error > baseline + 0.001 * self.wall:
                found.append(f"{name} has an error of {baseline:.2f} GPU-seconds, ours is {self.error:.2f}")
        return found


def score(
    node: Node, samples: Sequence[Sampled], usage: Mapping[str, Any], ledger: Mapping[str, Any], seconds: float
) -> Score:
    """Compares the answers to `/api/usage` by node and container and to `/api/ledger` by GPU with the truth."""
    ours = [group for group in usage["groups"] if group["group"]["node"] == node.name]
    active: dict[Key, float] = {}
    held: dict[Key, float] = {}
    unresolved = 0.0
    is_measured = False
    methods: dict[str, float] = {}
    for group in ours:
        worked = (group["gpu_hours_active"] or 0.0) * 3600
        is_measured |= group["who"] == "pod" and group["gpu_hours_active"] is not None
        if group["who"] == "unresolved":
            unresolved += worked
        elif group["who"] in {"pod", "host"}:
            names = group["group"]
            key = (names["namespace"], names["pod"], names["container"]) if group["who"] == "pod" else HOST
            active[key] = active.get(key, 0.0) + worked
            held[key] = held.get(key, 0.0) + group["gpu_hours_allocated"] * 3600
            for method, share in group["methods"].items():
                methods[method] = methods.get(method, 0.0) + share
    right = truth.active(node, samples)
    errors = {key: abs(active.get(key, 0.0) - right.get(key, 0.0)) for key in {*active, *right, HOST}}
    worst = max(errors, key=lambda key: errors[key])
    gpus = [group for group in ledger["groups"] if group["group"]["client_name"] == node.name]
    cloned, last = truth.cloned(node, samples), truth.last(node, samples)
    return Score(
        scene=node.scene.name,
        remark=node.scene.remark,
        exact=node.scene.exact,
        true=sum(right.values()),
        measured=sum(active.values()) if is_measured else None,
        error=sum(errors.values()),
        worst=worst,
        worst_error=errors[worst],
        held_error=truth.error(held, truth.allocated(node, samples)),
        unallocated_error=abs(
            sum(gpu["used_without_allocation"] for gpu in gpus) - truth.unallocated(node, samples)
        ),
        unresolved=unresolved,
        cloned=None if cloned is None else truth.error(cloned, right),
        last=None if last is None else truth.error(last, right),
        adds_up=len(gpus) == len(node.uuids)
        and all(abs(sum(gpu[part] for part in _PARTS) - seconds) < _ROUNDING_SECONDS for gpu in gpus),
        no_data=sum(gpu["no_data"] for gpu in gpus),
        wall=seconds * len(node.uuids),
        methods=sorted(methods, key=lambda method: -methods[method]),
        seconds=seconds,
    )
