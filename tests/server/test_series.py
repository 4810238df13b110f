"""A metric over time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import httpx
import pytest

from gpumon.clock import to_wire
from gpumon.server.accounts import pieces, slices
from gpumon.server.accounts.buckets import FEW_POINTS, begins_of, buckets_of, edges_of, step_of
from gpumon.server.accounts.ranges import Span, duration
from gpumon.server.accounts.series import AGGREGATES
from gpumon.server.accounts.slices import microseconds, utc
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


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("metric", ["power_draw", "energy_mj"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_it_makes_no_difference_in_how_many_pieces_the_rows_are_worked_on(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, aggregate: str, metric: str, most: int
) -> None:
    client = serve()
    long = {"interval_seconds": 4000.0}  # over several of the pieces, and buckets

    def told(seconds: int, n: int) -> dict[str, Any]:
        return at(seconds, power_draw=100.0 + n, energy_mj=7 * n**4)

    post(client, *(told(60 * n * n, n) | {"interval_seconds": 60.0 * n} for n in range(1, 12)))
    post(client, *(told(700 * n, n) | {"gpu_uuid": "gpu-b", "gpu_id": 1} | long for n in range(1, 11)))
    post(client, told(7300, 12) | long)
    wanted = {"step": "20m", "aggregate": aggregate}
    whole = data(client, 7400, metric, **wanted)
    assert sum(point["samples"] for point in whole["points"]) > 22
    monkeypatch.setattr(pieces, "MOST_SAMPLES", most)
    assert data(client, 7400, metric, **wanted) == whole


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


def test_a_gpu_without_a_uuid_is_chosen_by_its_client_also_after_its_uuid_is_known(serve: Serve) -> None:
    client = serve()
    post(client, at(10, power_draw=100.0, gpu_uuid=None), at(10, power_draw=900.0, gpu_uuid=None, gpu_id=1))
    post(client, at(40, power_draw=200.0), at(40, power_draw=900.0, gpu_uuid=None, client_name="node-2"))
    assert ask(client, 60, "power_draw", client_name="node-1", gpu_id=0) == [100.0, 200.0]


def test_what_another_client_tells_of_a_gpu_bounds_what_a_sample_stands_for(serve: Serve) -> None:
    client = serve()
    post(client, at(10, power_draw=900.0, client_name="node-2", node="node-2"))
    post(client, at(15, power_draw=100.0), at(35, power_draw=400.0, interval_seconds=20.0))
    for wanted in ({"client_name": "node-1"}, {"node": "node-1"}):
        assert ask(client, 60, "power_draw", step="1m", **wanted) == [pytest.approx((100 * 5 + 400 * 20) / 25)]


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


def test_a_counter_is_its_increase_per_second_and_a_reset_or_a_gap_is_left_out(serve: Serve) -> None:
    client = serve()
    counted = [(0, 0), (10, 1000), (20, 4000), (40, 10_000), (50, 100), (60, 1100), (90, 5100), (100, 5600)]
    post(client, *(at(seconds, energy_mj=value) for seconds, value in counted))
    post(client, at(20, energy_mj=3000))  # corrects the one before, also what the next has since
    answer = data(client, 120, "energy_mj", step="30s")
    expected = [(150.0, 2), (225.0, 2), (None, 0), (50.0, 1)]
    assert [(p["value"], p["samples"]) for p in answer["points"]] == expected
    assert answer["unit"] == "mJ/s"


def test_no_counter_of_a_csv_is_too_far_from_the_one_before() -> None:
    low, high = -(2**63), 2**63 - 1
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE cell_ticks (sample BIGINT, gpu UBIGINT, client_name TEXT, gpu_id BIGINT, moment BIGINT, "
            "stated BIGINT, energy_mj BIGINT)"
        )
        for number, value in enumerate((low, high, low)):
            moment = number * 10_000_000
            row = [number, 7, "node-1", 0, moment, 10_000_000, value]
            connection.execute("INSERT INTO cell_ticks VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        sql = f"SELECT energy_mj FROM ({slices.stands(('sample',), ('energy_mj',))}) ORDER BY sample"
        found = connection.execute(sql, {"stale": 1}).fetchall()
    assert found == [(None,), (pytest.approx(2**64 / 10),), (None,)]


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


@pytest.mark.parametrize(
    ("zone", "day"),
    [
        ("Asia/Kolkata", datetime(2026, 11, 20)),
        ("Africa/Monrovia", datetime(1971, 5, 1)),
    ],  # whose clocks were 44:30
)
def test_a_bucket_says_when_it_begins(zone: str, day: datetime) -> None:
    begin = day.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    edges = edges_of(Span(begin, begin + timedelta(hours=3)), timedelta(hours=1), ZoneInfo(zone))
    assert begins_of(edges) == [to_wire(edge) for edge in edges[:-1]]


@pytest.mark.parametrize("step", ["30s", "1h", "6h", "1d", "1w"])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Australia/Lord_Howe"])
def test_the_bucket_of_an_instant_is_reckoned(zone: str, step: str) -> None:
    span = Span(datetime(2026, 3, 27, 5, tzinfo=UTC), datetime(2026, 4, 7, 5, tzinfo=UTC))
    if step == "30s":
        span = Span(span.start, span.start + timedelta(days=3))
    edges = edges_of(span, duration("step", step), ZoneInfo(zone))
    buckets = buckets_of(edges)
    at, lower, upper = buckets.at("instant"), buckets.lower("bucket"), buckets.upper("bucket")
    instants = [microseconds(utc(edge)) + past for edge in edges[:-1] for past in (0, 1)]
    values = {name: value for name, value in buckets.parameters.items() if f"${name}" in at + lower}
    numbered = f"SELECT *, {at} AS bucket FROM (SELECT unnest($instants) AS instant)"
    found = duckdb.execute(
        f"SELECT {lower}, {upper}, instant FROM ({numbered})", values | {"instants": instants}
    ).fetchall()
    begins = [microseconds(utc(edge)) for edge in edges]
    assert found == [(begins[n // 2], begins[n // 2 + 1], instant) for n, instant in enumerate(instants)]
    assert len(buckets.runs) <= 6


def test_a_stretch_is_divided_by_the_samples_of_its_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MOST_SAMPLES", 10)
    begin = datetime(2026, 11, 20, 8)
    hours = [begin + timedelta(hours=number) for number in range(5)]
    counted = list(zip(hours, [4, 5, 7, 25, 1], strict=True))
    cuts = [to for _, to in pieces.pieces_of((begin, hours[-1]), counted)]
    assert cuts == [hours[2], hours[3], *(hours[3] + timedelta(minutes=n) for n in (20, 40)), hours[4]]
    late = hours[3] + timedelta(minutes=30)
    assert list(pieces.pieces_of((late, hours[-1]), counted)) == [
        (late, hours[3] + timedelta(minutes=40)), (hours[3] + timedelta(minutes=40), hours[-1])
    ]  # fmt: skip
    assert list(pieces.pieces_of((begin, late), [])) == [(begin, late)]


def test_weeks_begin_on_monday() -> None:
    edges = edges_of(Span(START, START + timedelta(days=9)), timedelta(weeks=1), ZoneInfo("UTC"))
    assert [edge.weekday() for edge in edges] == [0, 0, 0]
    assert edges[0] <= START
    assert edges[-1] >= START + timedelta(days=9)
