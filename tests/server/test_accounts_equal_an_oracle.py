"""Whatever was posted, in whatever order, ledger and usage equal what plain Python makes of it, and add up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.samples import sample
from tests.server import ledger_oracle as oracle
from tests.server.conftest import serving, settings_for

BASE = datetime(1980, 1, 1, tzinfo=UTC)
APART = timedelta(days=10)
"""No example sees another's GPUs: they are known for a day only."""
PARTS = ("active", "held_idle", "used_without_allocation", "free", "unhealthy", "no_data")
REASONS = ("activity_unmeasured", "allocation_unknown", "not_readable", "not_sampled")
MODELS = {"gpu-a": "NVIDIA H100 80GB HBM3", "gpu-b": "NVIDIA A100-SXM4-40GB", "gpu-c": "Tesla T4", None: "Old GPU"}
PRICES = {"NVIDIA H100 80GB HBM3": 4.0, "NVIDIA A100-SXM4-40GB": 2.0}

numbers = itertools.count()
percent = st.none() | st.sampled_from([0.0, 25.0, 50.0, 100.0]) | st.floats(0, 100)
shares = st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0])
pods = st.builds(
    lambda pod, container, owner, held, method, share, used, memory, energy, mig, process: {
        name: value
        for name, value in {
            "namespace": None if pod is None else pod[0],
            "pod": None if pod is None else pod[1],
            "container": container,
            "owner_kind": owner and "Job",
            "owner_name": owner,
            "held": held,
            "method": method,
            "gpu_share": share,
            "utilization": used,
            "memory_used": memory,
            "energy_mj": energy,
            "mig_uuid": mig,
            "process_name": process,
        }.items()
        if value is not None
    },
    st.sampled_from([("red", "p-1"), ("red", "p-2"), ("blue", "p-1"), None]),
    st.sampled_from([None, "main"]),
    st.sampled_from([None, "train"]),
    st.sampled_from([True, True, False, None]),
    st.sampled_from(["exclusive", "process", "equal-split", "unresolved", None]),
    shares,
    percent,
    st.none() | st.floats(0, 90_000),
    st.none() | st.floats(0, 3e6),
    st.sampled_from([None, None, "MIG-1", "MIG-2"]),
    st.sampled_from([None, "Xorg"]),
)
tick = st.builds(
    lambda seconds, gpu, node, interval, busy, mean, state, held, count, unhealthy, users, power, energy, memory: {
        "seconds": seconds,
        "gpu_uuid": gpu,
        "client_name": node,
        "node": None if node == "node-2" else node,
        "gpu_name": MODELS[gpu],
        "interval_seconds": interval,
        "utilization_gpu": busy,
        "utilization_mean": mean,
        "state": state,
        "holder_count": held,
        "process_count": count,
        "unhealthy": unhealthy,
        "pods": users,
        "power_draw": power,
        "interval_energy_mj": energy,
        "memory_used": memory,
    },
    st.integers(0, 600) | st.floats(0, 600) | st.sampled_from([-80_000, -1000, -300, 0, 600, 900, 5000]),
    st.sampled_from(["gpu-a", "gpu-a", "gpu-b", "gpu-c", None]),
    st.sampled_from(["node-1", "node-2"]),
    st.sampled_from([None, 0.0, 5.0, 30.0, 600.0, 3000.0]) | st.floats(0, 400),
    percent,
    st.none() | percent,
    st.sampled_from([None, "ok", "ok", "ok", "lost", "unknown"]),
    st.sampled_from([None, 0, 1, 2]),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([None, None, "cordoned"]),
    st.lists(pods, min_size=1, max_size=4) | st.none() | st.just([]),
    st.none() | st.floats(0, 700),
    st.none() | st.floats(0, 3e6),
    st.none() | st.integers(0, 90_000),
)  # fmt: skip
groupings = st.sampled_from(
    ["pod", "container", "owner", "namespace", "node", "gpu", "model", "node,namespace", "label:team"]
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    wanted = settings_for(
        tmp_path_factory.mktemp("accounts") / "data",
        cost={"prices": "; ".join(f"{name}: {price}" for name, price in PRICES.items())},
    )
    with serving(wanted) as client:
        yield client


def posted_at(base: datetime, ticks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ticks as samples, whose times are relative to `base`."""
    posted = []
    for told in ticks:
        at = (base + timedelta(seconds=told["seconds"])).isoformat(timespec="milliseconds")
        fields = {name: value for name, value in told.items() if name != "seconds" and value is not None}
        posted.append(
            sample(**dict.fromkeys(("utilization_gpu", "power_draw", "memory_used")))
            | {"timestamp": at, "sampled_at": at}
            | fields
        )
    return posted


def ask(client: httpx.Client, name: str, **wanted: Any) -> dict[str, Any]:
    answer = client.get(f"/api/{name}", params=wanted)
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


def close(one: float | None, other: float | None, scale: float = 1.0) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6 * scale)


def key_of(group: dict[str, Any]) -> tuple[Any, ...]:
    return (*group["group"].items(), group["who"])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ticks=st.lists(tick, max_size=14),
    batches=st.integers(1, 4),
    begin=st.integers(-100, 300),
    length=st.integers(60, 600) | st.sampled_from([1, 90_000]),
    by=groupings,
)
def test_ledger_and_usage_equal_an_independent_computation(
    client: httpx.Client, ticks: list[dict[str, Any]], batches: int, begin: int, length: int, by: str
) -> None:
    number = next(numbers)
    base = BASE + number * APART
    posted = posted_at(base, ticks)
    by = by.replace("team", f"team-{number}")
    labels = label_some(posted, f"team-{number}")
    for batch in range(batches):
        if posted[batch::batches]:
            assert client.post("/api/receive-data", json=posted[batch::batches]).status_code == 200
    in_order = [one for batch in range(batches) for one in posted[batch::batches]]
    start = base + timedelta(seconds=begin)
    end = start + timedelta(seconds=length)
    fleet = oracle.fleet_of(in_order, start, end)
    wanted = {"start": start.isoformat(), "end": end.isoformat(), "group_by": by}
    assert_ledger(ask(client, "ledger", **wanted), fleet, by, labels)
    assert_usage(ask(client, "usage", **wanted), fleet, by, labels)


def label_some(posted: list[dict[str, Any]], label: str) -> dict[tuple[Any, Any], Any]:
    """Labels the pods of namespace red, always alike."""
    found = {}
    for one in posted:
        for pod in one.get("pods") or ():
            if pod.get("namespace") == "red":
                pod["labels"] = {label: f"team of {pod['pod']}"}
                found["red", pod["pod"]] = pod["labels"][label]
    return found


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
        assert_figures(group, expected[key], fleet, key[-1])
    for name in ("gpu_hours_allocated", "gpu_hours_active", "memory_gib_hours", "energy_kwh", "cost"):
        told = [group[name] for group in answer["groups"] if group[name] is not None]
        nothing = 0.0 if name == "gpu_hours_allocated" else None
        assert close(answer["total"][name], sum(told) if told else nothing), name
    assert answer["total"]["gpus"] == len(fleet.covered)
    newest = {share.gpu: share.place["gpu_name"] for share in fleet.shares if "not_sampled" in share.parts}
    priced = [PRICES[name] for name in newest.values() if name in PRICES]
    # Names don't change with time here, so that a GPU's price is one.
    assert close(answer["total"]["cost"], sum(priced) * fleet.wall / 3600 if priced else None)


def assert_figures(group: dict[str, Any], shares: list[oracle.Share], fleet: oracle.Fleet, who: Any) -> None:
    def hours(seconds: float | None) -> float | None:
        return None if seconds is None else seconds / 3600

    active = oracle.added(shares, lambda share: oracle.busy(share) if share.measured else None)
    assert close(group["gpu_hours_allocated"], sum(share.allocated for share in shares) / 3600)
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
    moments = oracle.by_sample(shares)
    readings = [
        (sum(oracle.busy(s) for s in moment if s.measured) / moment[0].seconds, moment[0].seconds)
        for moment in moments
        if any(s.measured for s in moment)
    ]
    if who == "nobody" or not readings:
        assert group["utilization_mean"] is group["utilization_max"] is None
    else:
        there = sum(seconds for _, seconds in readings)
        assert close(group["utilization_mean"], min(100.0, sum(b * s for b, s in readings) / there * 100))
        assert close(group["utilization_max"], max(b for b, _ in readings) * 100)
    methods: dict[str, float] = {}
    for share in shares:
        if share.user.get("method"):
            methods[share.user["method"]] = methods.get(share.user["method"], 0.0) + share.seconds
    assert group["methods"].keys() == methods.keys()
    for method, seconds in methods.items():
        assert close(group["methods"][method], seconds / sum(methods.values()))
