"""Holds answers of ledger and usage against what the oracle makes of the same samples."""

from __future__ import annotations

import math
from typing import Any

from tests.server import ledger_oracle as oracle

PARTS = ("active", "held_idle", "used_without_allocation", "free", "unhealthy", "no_data")
REASONS = ("activity_unmeasured", "allocation_unknown", "not_readable", "not_sampled")
PRICES = {"NVIDIA H100 80GB HBM3": 4.0, "NVIDIA A100-SXM4-40GB": 2.0}


def close(one: float | None, other: float | None, scale: float = 1.0) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6 * scale)


def key_of(group: dict[str, Any]) -> tuple[Any, ...]:
    return (*group["group"].items(), group["who"])


def assert_ledger(
    answer: dict[str, Any], fleet: oracle.Fleet, by: str, labels: dict[tuple[Any, Any], Any]
) -> None:
    wall = fleet.wall * len(fleet.covered)
    total = answer["total"]
    assert answer["gpus"] == len(fleet.covered)
    assert close(total["wall_seconds"], wall)
    assert close(sum(total[part] for part in PARTS), wall, wall)
    assert close(answer["coverage"], sum(fleet.covered.values()) / wall if wall else 0.0)
    expected = oracle.grouped(fleet, by, labels)
    found = {key_of(group): group for group in answer["groups"]}
    assert found.keys() == expected.keys()
    for key, group in found.items():
        for part in PARTS[:-1]:
            assert close(group[part], oracle.total(expected[key], part), fleet.wall), (key, part)
            assert close(group["gpu_hours"][part], group[part] / 3600)
        for reason in REASONS:
            assert close(group["no_data_reasons"][reason], oracle.total(expected[key], reason), fleet.wall)
        assert close(group["no_data"], sum(group["no_data_reasons"].values()), fleet.wall)
        assert min(group[part] for part in PARTS) >= 0
        if group["wall_seconds"] is not None:
            assert close(group["wall_seconds"], sum(group[part] for part in PARTS), fleet.wall)
    for part in PARTS:
        assert close(total[part], sum(group[part] for group in answer["groups"]), fleet.wall)


def assert_usage(answer: dict[str, Any], fleet: oracle.Fleet, by: str, labels: dict[tuple[Any, Any], Any]) -> None:
    expected = oracle.grouped(fleet, by, labels)
    found = {key_of(group): group for group in answer["groups"]}
    assert found.keys() == expected.keys()
    for key, group in found.items():
        assert_figures(group, expected[key], fleet, by)
    for name in ("gpu_hours_allocated", "gpu_hours_active", "memory_gib_hours", "energy_kwh", "cost"):
        told = [group[name] for group in answer["groups"] if group[name] is not None]
        assert close(answer["total"][name], sum(told) if told else None), name
    assert answer["total"]["gpus"] == len(fleet.covered)
    newest = {share.gpu: share.place["gpu_name"] for share in fleet.shares if "not_sampled" in share.parts}
    priced = [PRICES[name] for name in newest.values() if name in PRICES]
    # Names don't change with time here, so that a GPU's price is one.
    assert close(answer["total"]["cost"], sum(priced) * fleet.wall / 3600 if priced else None)


def holders_known(shares: list[oracle.Share]) -> bool:
    unknown = {"active", "allocation_unknown", "not_readable", "not_sampled"}
    return any(seconds for share in shares for part, seconds in share.parts.items() if part not in unknown)


def assert_figures(group: dict[str, Any], shares: list[oracle.Share], fleet: oracle.Fleet, by: str) -> None:
    def hours(seconds: float | None) -> float | None:
        return None if seconds is None else seconds / 3600

    active = oracle.added(shares, lambda share: oracle.busy(share) if share.measured else None)
    allocated = sum(share.allocated for share in shares) / 3600
    assert close(group["gpu_hours_allocated"], allocated or (0.0 if holders_known(shares) else None))
    assert close(group["gpu_hours_active"], hours(active))
    unmeasured = sum(share.allocated - share.allocated_measured for share in shares)
    assert close(group["gpu_hours_unmeasured"], unmeasured / 3600)
    measured = sum(share.allocated_measured for share in shares)
    held = sum(share.active_of_held for share in shares)
    if measured:
        assert close(group["utilization_of_held"], min(100.0, held / measured * 100))
    else:
        assert group["utilization_of_held"] is None
    memory = oracle.added(shares, lambda share: None if share.memory is None else share.memory * share.seconds)
    assert close(hours(memory), None if group["memory_gib_hours"] is None else group["memory_gib_hours"] * 1024)
    energy = oracle.added(shares, lambda share: share.energy)
    assert close(group["energy_kwh"], None if energy is None else energy / 3.6e9)
    costs = [
        PRICES[share.place["gpu_name"]] * sum(share.parts.values()) / 3600
        for share in shares
        if share.place["gpu_name"] in PRICES
    ]
    assert close(group["cost"], sum(costs) if costs else None)
    gpus = {share.gpu for share in shares}
    assert group["gpus"] == len(gpus)
    assert group["pods"] == len(
        {(s.user.get("namespace"), s.user["pod"]) for s in shares if s.user.get("pod") is not None}
    )
    assert close(group["coverage"], sum(fleet.covered[gpu] for gpu in gpus) / (fleet.wall * len(gpus)))
    moments = oracle.together(shares, by)
    readings = [
        (sum(oracle.busy(s) for s in moment if s.measured) / moment[0].seconds, moment[0].seconds)
        for moment in moments
        if any(s.measured for s in moment)
    ]
    if group["who"] == "nobody" or not readings:
        assert group["utilization_mean"] is group["utilization_max"] is None
    else:
        there = sum(seconds for _, seconds in readings)
        assert close(group["utilization_mean"], min(100.0, sum(b * s for b, s in readings) / there * 100))
        assert close(group["utilization_max"], max(b for b, _ in readings) * 100)
    memories = [
        sum(s.memory for s in moment if s.memory is not None)
        for moment in moments
        if any(s.memory is not None for s in moment)
    ]
    peak = None if group["who"] == "nobody" or not memories else max(memories)
    assert close(group["memory_gib_peak"], None if peak is None else peak / 1024)
    methods: dict[str, float] = {}
    for share in shares:
        if share.user.get("method"):
            methods[share.user["method"]] = methods.get(share.user["method"], 0.0) + share.seconds
    assert group["methods"].keys() == methods.keys()
    for method, seconds in methods.items():
        assert close(group["methods"][method], seconds / sum(methods.values()))
