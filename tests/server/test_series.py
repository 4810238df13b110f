"""A metric over time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from gpumon.server.accounts.ranges import Span, duration
from gpumon.server.accounts.series import FEW_POINTS, edges_of, step_of
from tests.samples import pod, sample
from tests.server.conftest import Serve

START = datetime(2026, 11, 20, 8, tzinfo=UTC)


def at(seconds: float, **fields: Any) -> dict[str, Any]:
    """A sample of the agent, which stands for ten seconds."""
    moment = (START + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
    known = {"gpu_uuid": "gpu-a", "node": "node-1", "interval_seconds": 10.0}
    return sample(**known) | {"timestamp": moment, "sampled_at": moment} | fields


def ask(client: httpx.Client, seconds: float, metric: str, **wanted: Any) -> list[float | None]:
    """The values about the first so many seconds, by 30 s."""
    return [point["value"] for point in data(client, seconds, metric, **{"step": "30s"} | wanted)["points"]]


def data(client: httpx.Client, seconds: float, metric: str, **wanted: Any) -> dict[str, Any]:
    span = {"start": START.isoformat(), "end": (START + timedelta(seconds=seconds)).isoformat(), "metric": metric}
    answer = client.get("/api/series", params=span | wanted)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["data"]
    return found


def post(client: httpx.Client, *samples: dict[str, Any]) -> None:
    client.post("/api/receive-data", json=list(samples)).raise_for_status()


def test_a_bucket_is_the_mean_by_seconds_and_an_empty_one_is_null(serve: Serve) -> None:
    client = serve()
    post(
        client, at(10, power_draw=100.0), at(30, power_draw=400.0, interval_seconds=20.0), at(100, power_draw=70.0)
    )
    answer = data(client, 120, "power_draw", step="30s")
    assert [(p["value"], p["samples"]) for p in answer["points"]] == [(300.0, 2), (None, 0), (None, 0), (70.0, 1)]
    assert [p["t"] for p in answer["points"]][1] == "2026-11-20T08:00:30.000Z"
    assert (answer["unit"], answer["step_seconds"]) == ("W", 30.0)


def test_a_sample_counts_in_every_bucket_it_stands_for(serve: Serve) -> None:
    client = serve()
    post(client, at(15, power_draw=100.0, interval_seconds=15.0), at(75, power_draw=400.0, interval_seconds=60.0))
    assert ask(client, 90, "power_draw") == [250.0, 400.0, 400.0]


def test_a_reading_that_is_absent_is_no_zero(serve: Serve) -> None:
    client = serve()
    post(client, at(10, power_draw=None), at(20, power_draw=60.0))
    assert ask(client, 30, "power_draw") == [60.0]
    assert ask(client, 30, "fan_speed") == [None]


@pytest.mark.parametrize(
    ("aggregate", "expected"), [("mean", 225.0), ("min", 100.0), ("max", 400.0), ("sum", 450.0)]
)
def test_the_aggregate_of_two_gpus(serve: Serve, aggregate: str, expected: float) -> None:
    client = serve()
    other = {"gpu_uuid": "gpu-b", "gpu_id": 1}
    post(client, at(10, power_draw=100.0), at(20, power_draw=200.0))
    post(client, at(10, power_draw=400.0, **other), at(20, power_draw=200.0, **other))
    assert ask(client, 30, "power_draw", aggregate=aggregate) == [expected]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"gpu_uuid": "gpu-b"}, 200.0),
        ({"node": "node-2"}, 400.0),
        ({"client_name": "node-1", "gpu_id": 0}, 100.0),
        ({"client_name": "nobody"}, None),
    ],
)
def test_gpus_can_be_chosen(serve: Serve, wanted: dict[str, Any], expected: float | None) -> None:
    client = serve()
    post(
        client,
        at(10, power_draw=100.0),
        at(10, power_draw=200.0, gpu_uuid="gpu-b", gpu_id=1),
        at(10, power_draw=400.0, gpu_uuid="gpu-c", client_name="node-2", node="node-2"),
    )
    assert ask(client, 30, "power_draw", **wanted) == [expected]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"namespace": "research"}, 60.0),
        ({"pod": "train-1"}, 20.0),
        ({"owner": "train", "aggregate": "mean"}, 30.0),
        ({"namespace": "other"}, None),
    ],
)
def test_pods_can_be_chosen(serve: Serve, wanted: dict[str, Any], expected: float | None) -> None:
    client = serve()
    pods = [
        pod(utilization=40.0),
        pod(pod="train-1", utilization=20.0),
        pod(namespace="x", owner_name="y", utilization=5.0),
    ]
    for _ in range(2):  # the same again counts once
        post(client, at(10, pods=pods))
    assert ask(client, 30, "utilization", **{"aggregate": "sum"} | wanted) == [expected]


def test_a_counter_is_its_increase_per_second_and_a_reset_is_left_out(serve: Serve) -> None:
    client = serve()
    counted = [(10, 0), (20, 2000), (30, 4000), (40, 100), (50, 1100), (90, 5100)]
    post(client, *(at(seconds, energy_mj=value) for seconds, value in counted))
    answer = data(client, 90, "energy_mj", step="30s")
    assert [p["value"] for p in answer["points"]] == [200.0, 100.0, 100.0]
    assert answer["unit"] == "mJ/s"


def test_a_step_is_chosen_that_gives_few_points() -> None:
    for last in ("2m", "1h", "24h", "7d", "90d"):
        span = Span(START, START + duration("last", last))
        assert span.seconds / step_of(None, span).total_seconds() <= FEW_POINTS
    assert step_of(None, Span(START, START + timedelta(hours=24))) == timedelta(minutes=5)


@pytest.mark.parametrize(
    ("zone", "day", "step", "hours"),
    [
        ("Asia/Kolkata", datetime(2026, 11, 20), "6h", [0, 6, 12, 18, 0]),
        ("Europe/Berlin", datetime(2026, 10, 25), "6h", [0, 6, 12, 18, 0]),
        ("Europe/Berlin", datetime(2026, 3, 29), "6h", [0, 6, 12, 18, 0]),
        ("Europe/Berlin", datetime(2026, 10, 25), "1d", [0, 0]),
        ("Europe/Berlin", datetime(2026, 10, 25), "1h", [0, 1, 2, 2, *range(3, 24), 0]),
    ],
)
def test_buckets_begin_at_full_local_hours_also_when_clocks_change(
    zone: str, day: datetime, step: str, hours: list[int]
) -> None:
    where = ZoneInfo(zone)
    begin, end = (moment.replace(tzinfo=where).astimezone(UTC) for moment in (day, day + timedelta(days=1)))
    edges = edges_of(Span(begin, end), duration("step", step), where)
    local = [edge.astimezone(where) for edge in edges]
    assert [moment.hour for moment in local] == hours
    assert {moment.minute for moment in local} == {0}


def test_weeks_begin_on_monday() -> None:
    edges = edges_of(Span(START, START + timedelta(days=9)), timedelta(weeks=1), ZoneInfo("UTC"))
    assert [edge.weekday() for edge in edges] == [0, 0, 0]
    assert edges[0] <= START
    assert edges[-1] >= START + timedelta(days=9)
