"""Who holds a GPU now and does not use it."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from gpumon.server.accounts.answers import RangeWords
from gpumon.server.accounts.desk import Run
from tests.samples import pod, sample
from tests.server.cellbench import Bench
from tests.server.conftest import Serve

MINUTE = timedelta(minutes=1)
FIRST, LAST_USE = datetime(2026, 1, 5, 10, tzinfo=UTC), datetime(2026, 1, 5, 10, 40, tzinfo=UTC)
DAY = (datetime(2026, 1, 5, 10), datetime(2026, 1, 5, 12))


def minutes_ago(minutes: float, *pods: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A sample of a GPU, which stands for a minute."""
    moment = (datetime.now(UTC) - minutes * MINUTE).isoformat(timespec="milliseconds")
    return (
        sample(gpu_uuid="gpu-a", node="node-1", interval_seconds=60.0, holder_count=len(pods), pods=list(pods))
        | {"timestamp": moment, "sampled_at": moment, "utilization_gpu": 0.0}
        | fields
    )


def used(percent: float | None, **fields: Any) -> dict[str, Any]:
    return pod(utilization=percent, **fields)


def ask(client: httpx.Client, *samples: dict[str, Any], **wanted: Any) -> dict[str, Any]:
    client.post("/api/receive-data", json=list(samples)).raise_for_status()
    answer = client.get("/api/idle", params={"last": "2h"} | wanted)
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


def age(entry: dict[str, Any]) -> float:
    """Minutes since it is idle."""
    return (datetime.now(UTC) - datetime.fromisoformat(entry["since"])).total_seconds() / 60


def test_as_long_as_is_asked_for_is_looked_back(serve: Serve) -> None:
    client = serve()
    ask(client, *(minutes_ago(60.0 * hour, used(0.0), interval_seconds=3600.0) for hour in range(80)))

    def found(**asked: str) -> int:
        answer = client.get("/api/idle", params=asked)
        assert answer.status_code == 200, answer.text
        return len(answer.json()["data"]["idle"])

    assert found(at_least="2d") == found(at_least="1d") == found(at_least="2d", last="3d") == 1
    assert found(at_least="4d") == 0
    for refused in ({"at_least": "2d", "last": "47h"}, {"at_least": "2h", "last": "1h"}):
        answer = client.get("/api/idle", params=refused)
        assert (answer.status_code, "last" in answer.json()["detail"]) == (422, True), answer.text


def test_a_holder_is_idle_since_its_last_use(serve: Serve) -> None:
    client = serve(cost={"prices": "NVIDIA H100*: 6"})
    busy = [minutes_ago(m, used(80.0)) for m in range(31, 60)]
    quiet = [minutes_ago(m, used(0.3, energy_mj=3_600_000.0)) for m in range(31)]
    data = ask(client, *busy, *quiet)
    (entry,) = data["idle"]
    assert (entry["pod"], entry["owner_name"], entry["gpu_uuid"], entry["node"]) == (
        "train-0",
        "train",
        "gpu-a",
        "node-1",
    )
    assert age(entry) == pytest.approx(31, abs=0.5)
    assert entry["since_at_least"] is False
    assert entry["idle_seconds"] == pytest.approx(31 * 60, abs=1)
    assert entry["gpu_hours_wasted"] == pytest.approx(31 / 60, abs=0.01)
    assert entry["cost"] == pytest.approx(6 * entry["gpu_hours_wasted"])
    evidence = entry["evidence"]
    assert (evidence["samples"], evidence["utilization_max"], evidence["process_count"]) == (31, 0.3, 2)
    assert evidence["utilization_mean"] == pytest.approx(0.3)
    assert evidence["energy_wh"] == pytest.approx(31, abs=0.1)
    assert evidence["coverage"] == pytest.approx(1, abs=0.02)
    assert data["total"] == {"holders": 1, "gpu_hours_wasted": entry["gpu_hours_wasted"], "cost": entry["cost"]}


def test_whose_last_use_is_before_the_range_is_idle_for_at_least_that_long(serve: Serve) -> None:
    (entry,) = ask(serve(), *(minutes_ago(m, used(0.0)) for m in range(20)))["idle"]
    assert entry["since_at_least"] is True
    assert age(entry) == pytest.approx(20, abs=0.5)


@pytest.mark.parametrize(
    ("share", "percent", "threshold", "is_idle"),
    [(1.0, 0.9, 1, True), (1.0, 1.1, 1, False), (0.5, 0.9, 1, False), (0.5, 0.9, 2, True), (None, 0.9, 1, True)],
)
def test_the_threshold_is_a_share_of_what_is_held(
    serve: Serve, share: float | None, percent: float, threshold: float, is_idle: bool
) -> None:
    data = ask(serve(), *(minutes_ago(m, used(percent, gpu_share=share)) for m in range(15)), threshold=threshold)
    assert bool(data["idle"]) is is_idle


def test_what_can_not_be_measured_is_listed_apart(serve: Serve) -> None:
    data = ask(serve(), *(minutes_ago(m, used(None), utilization_gpu=None) for m in range(15)))
    assert data["idle"] == []
    (entry,) = data["unmeasured"]
    assert entry["evidence"]["unmeasured_samples"] == 15
    assert entry["evidence"]["utilization_max"] is None
    assert data["total"]["holders"] == 0


def test_a_sample_that_tells_nothing_lowers_the_coverage_and_ends_no_idle_time(serve: Serve) -> None:
    blind = minutes_ago(7, used(None), state="unknown", utilization_gpu=None)
    (entry,) = ask(serve(), *(minutes_ago(m, used(0.0)) for m in range(15) if m != 7), blind)["idle"]
    assert age(entry) == pytest.approx(15, abs=0.5)
    assert entry["idle_seconds"] == pytest.approx(14 * 60, abs=1)
    assert entry["evidence"]["coverage"] == pytest.approx(14 / 15, abs=0.02)


def test_a_gap_is_no_idle_time(serve: Serve) -> None:
    (entry,) = ask(serve(), *(minutes_ago(m, used(0.0)) for m in (0, 1, 2, 60, 61)), at_least="4m")["idle"]
    assert entry["idle_seconds"] == pytest.approx(5 * 60, abs=1)
    assert entry["evidence"]["coverage"] < 0.1


def test_only_who_holds_it_now_long_enough_and_in_the_namespace_is_listed(serve: Serve) -> None:
    client = serve()
    gone = [minutes_ago(m, used(0.0, pod="gone")) for m in range(20, 40)]
    short = [minutes_ago(m, used(0.0)) for m in range(5)]
    user = [minutes_ago(m, used(0.0, held=False), gpu_uuid="gpu-b", gpu_id=1) for m in range(15)]
    stale = [minutes_ago(m, used(0.0), gpu_uuid="gpu-c", gpu_id=2) for m in range(5, 25)]
    assert ask(client, *gone, *short, *user, *stale)["idle"] == []
    assert [e["pod"] for e in ask(client, minutes_ago(0, used(0.0)), at_least="4m")["idle"]] == ["train-0"]
    assert ask(client, minutes_ago(0, used(0.0)), at_least="4m", namespace="other")["idle"] == []


def test_two_containers_and_mig_instances_are_told_apart(serve: Serve) -> None:
    parts = [
        used(0.0, mig_uuid="MIG-1", gpu_share=0.5),
        used(50.0, mig_uuid="MIG-2", gpu_share=0.5),
        used(0.0, mig_uuid="MIG-3", gpu_share=0.2, container="side"),
    ]
    data = ask(serve(), *(minutes_ago(m, *parts, utilization_gpu=None) for m in range(15)))
    assert [(e["mig_uuid"], e["container"]) for e in data["idle"]] == [("MIG-1", "main"), ("MIG-3", "side")]
    assert [e["gpu_share"] for e in data["idle"]] == [0.5, 0.2]


def test_a_sample_that_came_twice_counts_once(serve: Serve) -> None:
    client = serve()
    samples = [minutes_ago(m, used(0.0)) for m in range(15)]
    ask(client, *samples)
    (entry,) = ask(client, *samples)["idle"]
    assert entry["evidence"]["samples"] == 15


def test_now_is_now_also_where_the_range_ends_before(serve: Serve) -> None:
    gone = [minutes_ago(m, used(0.0)) for m in range(20, 60)]
    end = (datetime.now(UTC) - 20 * MINUTE).isoformat()
    start = (datetime.now(UTC) - 60 * MINUTE).isoformat()
    client = serve()
    client.post("/api/receive-data", json=gone).raise_for_status()
    answer = client.get("/api/idle", params={"start": start, "end": end})
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"]["idle"] == [], "who is not there now holds nothing now"


def test_who_does_not_hold_it_any_more_is_not_idle(serve: Serve) -> None:
    held = [minutes_ago(m, used(0.0)) for m in range(1, 16)]
    assert ask(serve(), *held, minutes_ago(0, used(0.0, held=False)))["idle"] == []


def test_time_before_it_was_held_is_no_idle_time(serve: Serve) -> None:
    unheld = [minutes_ago(m, used(0.0, held=False)) for m in range(5, 30)]
    (entry,) = ask(serve(), *unheld, *(minutes_ago(m, used(0.0)) for m in range(5)), at_least="4m")["idle"]
    assert age(entry) == pytest.approx(5, abs=0.5)


def busy_until(last_use: datetime) -> list[dict[str, Any]]:
    """A GPU that is held for nearly three hours."""
    return [
        sample(gpu_uuid="gpu-a", node="node-1", interval_seconds=60.0, holder_count=1)
        | {"timestamp": at.isoformat(), "sampled_at": at.isoformat()}
        | {"pods": [pod(held=True, gpu_share=1.0, utilization=80.0 if at < last_use else 0.0)]}
        for at in (FIRST + n * MINUTE for n in range(178))
    ]


@pytest.mark.parametrize("kept", [[], [DAY]], ids=["hours", "days"])
def test_where_the_rows_of_the_last_use_are_deleted_it_is_known_to_the_hour(kept: list[Run]) -> None:
    with closing(Bench(busy_until(LAST_USE), MINUTE)) as bench:
        bench.roll(*DAY)
        bench.days, bench.hours = kept, [DAY]
        answers = bench.answers(FIRST + 177 * MINUTE)
        words = RangeWords(FIRST.isoformat(), (FIRST + 177 * MINUTE).isoformat())
        (exact,) = answers.idle(words, 1.0, "1m", None)["idle"]
        for table in ("samples", "pod_usage"):
            bench.execute(f"DELETE FROM hot_{table} WHERE sampled_at < '2026-01-05 12:00:00'")
        (rough,) = answers.idle(words, 1.0, "1m", None)["idle"]
    assert (exact["since"], exact["since_at_least"]) == ("2026-01-05T10:39:00.000Z", False)
    assert (rough["since"], rough["since_at_least"]) == ("2026-01-05T11:00:00.000Z", True)
    assert rough["idle_seconds"] == pytest.approx(117 * 60)
    assert rough["evidence"]["coverage"] == pytest.approx(1)


def test_who_used_it_at_the_end_of_the_last_hour_is_not_looked_up_in_raw_rows() -> None:
    now = datetime(2026, 1, 5, 12, 2, tzinfo=UTC)
    with closing(Bench(busy_until(now - 4 * MINUTE), MINUTE)) as bench:
        bench.roll(*DAY)
        bench.days, bench.hours, bench.fine, bench.looked_at = [DAY], [DAY], [DAY], []
        answer = bench.answers(now).idle(RangeWords(FIRST.isoformat(), now.isoformat()), 1.0, "10m", None)
    assert answer["idle"] == []
    within = [of for of, to in bench.looked_at if to > DAY[0]]  # before it: who was there
    assert min(within) == datetime(2026, 1, 5, 11, 59)
