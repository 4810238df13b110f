"""The ledger and the usage, told by small stories over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.samples import pod, sample
from tests.server.conftest import Serve

START = datetime(2026, 11, 20, 8, tzinfo=UTC)
MINUTE = 60.0


def at(seconds: float, **fields: Any) -> dict[str, Any]:
    """A sample of the agent, which stands for a minute."""
    moment = (START + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
    return (
        sample(gpu_uuid="gpu-a", node="node-1", interval_seconds=MINUTE, holder_count=1, state="ok")
        | {"timestamp": moment, "sampled_at": moment}
        | fields
    )


def post(client: httpx.Client, *samples: dict[str, Any]) -> None:
    client.post("/api/receive-data", json=list(samples)).raise_for_status()


def ask(client: httpx.Client, name: str, seconds: float, **wanted: Any) -> dict[str, Any]:
    """The answer about the first so many seconds."""
    span = {"start": START.isoformat(), "end": (START + timedelta(seconds=seconds)).isoformat()}
    answer = client.get(f"/api/{name}", params=span | wanted)
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


def parts(of: dict[str, Any]) -> dict[str, float]:
    """The parts that are not 0, in seconds."""
    six = ("active", "held_idle", "used_without_allocation", "free", "unhealthy", "no_data")
    return {part: pytest.approx(of[part]) for part in six if of[part] > 1e-6}


STORIES: list[tuple[str, dict[str, Any], dict[str, float]]] = [
    ("a pod that works half of the time", {"pods": [pod()]}, {"active": 30, "held_idle": 30}),
    (
        "half of a shared GPU, the rest free",
        {"pods": [pod(gpu_share=0.5, method="process")]},
        {"active": 30, "held_idle": 15, "free": 15},
    ),
    (
        "two sharers who each are told the whole GPU's use",
        {"holder_count": 2, "pods": [pod(gpu_share=0.5), pod(pod="train-1", gpu_share=0.5)]},
        {"active": 30, "held_idle": 30},
    ),
    ("nobody holds it", {"holder_count": 0, "utilization_gpu": 0.0, "pods": []}, {"free": 60}),
    ("a user who does not hold it", {"holder_count": 0, "pods": [pod(held=False, gpu_share=None)]},
     {"used_without_allocation": 30, "free": 30}),
    ("nobody holds it, somebody unknown works", {"holder_count": 0, "pods": []},
     {"used_without_allocation": 30, "free": 30}),
    ("a cordoned GPU", {"holder_count": 0, "utilization_gpu": 0.0, "unhealthy": "cordoned"}, {"unhealthy": 60}),
    ("a cordoned GPU with a pod on it", {"unhealthy": "cordoned", "pods": [pod()]},
     {"active": 30, "held_idle": 30}),
    ("a lost GPU", {"state": "lost", "utilization_gpu": None, "pods": [pod(utilization=None)]}, {"unhealthy": 60}),
    ("a holder of whom no row tells", {"utilization_gpu": 0.0, "pods": []}, {"no_data": 60}),
    ("a holder that does not tell its share", {"pods": [pod(gpu_share=None)]}, {"active": 30, "held_idle": 30}),
    ("a MIG instance that can't be read",
     {"utilization_gpu": None, "pods": [pod(mig_uuid="MIG-1", gpu_share=None, utilization=None)]},
     {"no_data": 60}),
    ("a hanging GPU", {"state": "unknown", "utilization_gpu": None}, {"no_data": 60}),
    ("a client that does not know of pods", {"holder_count": None}, {"active": 30, "no_data": 30}),
    ("a MIG instance that tells its use",
     {"utilization_gpu": None, "pods": [pod(mig_uuid="MIG-1", gpu_share=0.5, utilization=20.0)]},
     {"active": 12, "held_idle": 18, "free": 30}),
    ("a MIG instance that does not",
     {"utilization_gpu": None, "pods": [pod(mig_uuid="MIG-1", gpu_share=0.5, utilization=None)]},
     {"no_data": 30, "free": 30}),
    ("a MIG GPU without instances in use",
     {"utilization_gpu": None, "holder_count": 0, "process_count": 0, "pods": []}, {"free": 60}),
    ("a GPU that tells no use, with processes", {"utilization_gpu": None, "holder_count": 0, "process_count": 1},
     {"no_data": 60}),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "expected"), [story[1:] for story in STORIES], ids=[s[0] for s in STORIES])
def test_a_minute_of(serve: Serve, fields: dict[str, Any], expected: dict[str, float]) -> None:
    client = serve()
    post(client, at(60, **fields))
    assert parts(ask(client, "ledger", 60)["total"]) == expected


def test_a_gap_is_no_data_until_late_samples_fill_it(serve: Serve) -> None:
    client = serve()
    post(client, at(60, pods=[pod()]), at(180, pods=[pod()]))
    before = ask(client, "ledger", 180)
    assert before["total"]["no_data_reasons"]["not_sampled"] == pytest.approx(60)
    assert before["coverage"] == pytest.approx(2 / 3, abs=1e-6)
    post(client, at(120, pods=[pod()]))
    assert parts(ask(client, "ledger", 180)["total"]) == {"active": 90, "held_idle": 90}


def test_a_longer_interval_than_the_gap_counts_no_second_twice(serve: Serve) -> None:
    client = serve()
    post(client, *(at(s, pods=[pod(utilization=100.0)], utilization_gpu=100.0) for s in (10, 20, 30, 40)))
    assert parts(ask(client, "ledger", 40)["total"]) == {"active": 40}


def test_a_sample_after_the_range_counts_with_the_seconds_inside(serve: Serve) -> None:
    client = serve()
    post(client, at(90, pods=[pod()]))
    assert parts(ask(client, "ledger", 60)["total"]) == {"active": 15, "held_idle": 15, "no_data": 30}


def test_the_same_sample_twice_counts_once_and_the_later_counts(serve: Serve) -> None:
    client = serve()
    post(client, at(60, pods=[pod()]))
    post(client, at(60, utilization_gpu=100.0, pods=[pod(utilization=100.0)]))
    assert parts(ask(client, "ledger", 60)["total"]) == {"active": 60}
    assert ask(client, "usage", 60, group_by="pod")["total"]["gpu_hours_allocated"] == pytest.approx(1 / 60)


def test_a_gpu_that_was_silent_for_a_day_is_no_data_and_after_that_is_gone(serve: Serve) -> None:
    client = serve()
    post(client, at(-86_000, pods=[pod()]))
    assert parts(ask(client, "ledger", 60)["total"]) == {"no_data": 60}
    later = {"start": (START + timedelta(hours=1)).isoformat(), "end": (START + timedelta(hours=2)).isoformat()}
    gone = client.get("/api/ledger", params=later).json()["data"]
    assert (gone["gpus"], gone["total"]["wall_seconds"], gone["coverage"]) == (0, 0, 0)


def test_who_holds_and_who_uses_stand_apart_and_nothing_gets_lost(serve: Serve) -> None:
    client = serve()
    users = [
        pod(gpu_share=0.5, utilization=20.0, energy_mj=8e6, memory_used=10_240),
        {"process_name": "Xorg", "held": False, "utilization": 10.0, "energy_mj": 2e6, "memory_used": 1024},
    ]
    post(client, at(60, interval_energy_mj=18e6, memory_used=20_480, pods=users))
    data = ask(client, "usage", 60, group_by="pod")
    by_who = {group["who"]: group for group in data["groups"]}
    assert by_who.keys() == {"pod", "host", "unresolved", "nobody"}
    assert by_who["pod"]["group"] == {"namespace": "research", "pod": "train-0"}
    assert by_who["host"]["group"] == {"namespace": None, "pod": None}
    hours = {who: group["gpu_hours_active"] * 60 for who, group in by_who.items()}
    assert hours == {
        who: pytest.approx(x) for who, x in (("pod", 0.2), ("host", 0.1), ("unresolved", 0.2), ("nobody", 0))
    }
    assert by_who["pod"]["gpu_hours_allocated"] * 60 == pytest.approx(0.5)
    assert by_who["pod"]["utilization_of_held"] == pytest.approx(40)
    assert by_who["nobody"]["energy_kwh"] * 3.6e9 == pytest.approx(8e6)
    assert by_who["nobody"]["memory_gib_hours"] * 60 == pytest.approx(9)
    assert data["total"]["energy_kwh"] * 3.6e9 == pytest.approx(18e6)
    assert data["total"]["memory_gib_hours"] * 60 == pytest.approx(20)


def test_use_that_percents_lose_by_rounding_is_nobody_elses(serve: Serve) -> None:
    client = serve()
    thirds = [pod(pod=f"train-{n}", gpu_share=0.3333, utilization=33.3333) for n in range(3)]
    post(client, at(60, utilization_gpu=100.0, pods=thirds))
    assert "unresolved" not in {group["who"] for group in ask(client, "usage", 60, group_by="pod")["groups"]}


def test_what_was_never_measured_is_null_and_not_idle(serve: Serve) -> None:
    client = serve()
    post(client, at(60, utilization_gpu=None, pods=[pod(utilization=None, memory_used=None, energy_mj=None)]))
    (group,) = [g for g in ask(client, "usage", 60, group_by="pod")["groups"] if g["who"] == "pod"]
    assert group["gpu_hours_active"] is group["utilization_mean"] is group["utilization_of_held"] is None
    assert group["memory_gib_hours"] is group["energy_kwh"] is None
    assert group["gpu_hours_unmeasured"] == group["gpu_hours_allocated"] == pytest.approx(1 / 60)


@pytest.mark.parametrize("by", ["gpu", "node", "model", "none"])
@pytest.mark.parametrize("mig", [None, "MIG-1"])
def test_a_gpu_of_which_nothing_was_measured_has_no_use_that_is_0(serve: Serve, by: str, mig: str | None) -> None:
    client = serve()
    post(client, at(60, utilization_gpu=None, pods=[pod(mig_uuid=mig, gpu_share=1.0, utilization=None)]))
    data = ask(client, "usage", 60, group_by=by)
    for figures in (data["total"], *data["groups"]):
        assert figures["gpu_hours_active"] is None
        assert figures["gpu_hours_unmeasured"] == figures["gpu_hours_allocated"] == pytest.approx(1 / 60)
    for group in data["groups"]:
        assert group["utilization_mean"] is group["utilization_max"] is None


@pytest.mark.parametrize(
    ("fields", "allocated"),
    [({"holder_count": None}, None), ({"state": "unknown", "utilization_gpu": None}, None),
     ({"holder_count": 0, "pods": [], "utilization_gpu": 0.0}, 0.0), ({"holder_count": 0, "pods": []}, 0.0)],
    ids=["a client that does not know of pods", "a GPU that hangs", "free", "used, not held"],
)  # fmt: skip
def test_hours_held_are_0_only_where_it_is_known_that_nobody_held(
    serve: Serve, fields: dict[str, Any], allocated: float | None
) -> None:
    client = serve()
    post(client, at(60, **fields))
    data = ask(client, "usage", 60, group_by="gpu")
    assert [group["gpu_hours_allocated"] for group in (data["total"], *data["groups"])] == [allocated] * 2


def test_shares_that_add_up_to_too_much_allocate_no_more_than_the_gpu(serve: Serve) -> None:
    client = serve()
    post(client, at(60, holder_count=3, pods=[pod(pod=f"train-{n}", utilization=10.0) for n in range(3)]))
    total = ask(client, "usage", 60, group_by="pod")["total"]
    assert total["gpu_hours_allocated"] == pytest.approx(1 / 60)


def test_a_user_that_is_told_twice_in_different_words_counts_once(serve: Serve) -> None:
    client = serve()
    post(client, at(60, pods=[pod(method="exclusive")]))
    post(client, at(60, pods=[pod(method="process")]))
    (group,) = [g for g in ask(client, "usage", 60, group_by="pod")["groups"] if g["who"] == "pod"]
    assert group["gpu_hours_allocated"] == pytest.approx(1 / 60)
    assert group["methods"] == {"process": 1.0}


def test_numbers_have_no_noise(serve: Serve) -> None:
    client = serve()
    post(client, *(at(60 * n, utilization_gpu=10.1 * n, pods=[pod(utilization=10.1 * n)]) for n in range(1, 8)))
    for figure in ask(client, "usage", 500, group_by="pod")["total"].values():
        assert len(str(figure or 0).replace(".", "").lstrip("0")) <= 10


def test_groups_beyond_the_limit_are_summed_up(serve: Serve) -> None:
    client = serve()
    post(client, at(60, pods=[pod(pod=f"p-{n}", gpu_share=0.1 * n, utilization=12.5) for n in range(1, 5)]))
    whole = ask(client, "usage", 60, group_by="pod")
    cut = ask(client, "usage", 60, group_by="pod", limit=1)
    assert [group["group"]["pod"] for group in whole["groups"]][:4] == ["p-4", "p-3", "p-2", "p-1"]
    assert [(group["who"], group["group"]["pod"]) for group in cut["groups"]] == [("pod", "p-4"), ("other", None)]
    assert cut["total"] == whole["total"]
    for name in ("gpu_hours_allocated", "gpu_hours_active", "memory_gib_hours", "energy_kwh"):
        added = sum(group[name] for group in cut["groups"] if group[name] is not None)
        assert added == pytest.approx(whole["total"][name])
    assert cut["groups"][1]["pods"] is None


def test_a_label_is_what_it_was_last_before_the_ranges_end(serve: Serve) -> None:
    client = serve()
    post(
        client,
        at(60, pods=[pod(labels={"team": "vision"})]),
        at(120, pods=[pod(labels={"team": "speech"})]),
        at(180, pods=[pod(pod="plain")]),
    )
    assert _teams(ask(client, "usage", 60, group_by="label:team")) == {("vision", "pod"), (None, "nobody")}
    assert _teams(ask(client, "usage", 180, group_by="label:team")) == {
        ("speech", "pod"),
        (None, "pod"),
        (None, "nobody"),
    }


def test_a_label_that_is_told_after_the_range_only_is_the_first_one(serve: Serve) -> None:
    client = serve()
    later = [at(90, pods=[pod(labels={"team": "vision"})]), at(150, pods=[pod(labels={"team": "speech"})])]
    post(client, *later)
    assert _teams(ask(client, "usage", 60, group_by="label:team")) == {("vision", "pod"), (None, "nobody")}


def _teams(data: dict[str, Any]) -> set[tuple[str | None, str]]:
    return {(group["group"]["label:team"], group["who"]) for group in data["groups"]}


def test_a_workload_is_one_group_whatever_its_pods_and_a_pod_without_one_is_its_own(serve: Serve) -> None:
    client = serve()
    lone = pod(pod="lone", owner_kind=None, owner_name=None, gpu_share=0.2, utilization=10.0)
    post(
        client,
        at(
            60,
            pods=[pod(gpu_share=0.4, utilization=20.0), pod(pod="train-1", gpu_share=0.4, utilization=20.0), lone],
        ),
    )
    groups = [g["group"] for g in ask(client, "usage", 60, group_by="owner")["groups"] if g["who"] == "pod"]
    assert groups == [
        {"namespace": "research", "owner_kind": "StatefulSet", "owner_name": "train"},
        {"namespace": "research", "owner_kind": "Pod", "owner_name": "lone"},
    ]


def test_what_agents_could_not_ask_is_told(serve: Serve) -> None:
    client = serve()
    post(client, at(60, holder_count=None, attribution_note="the kubelet could not be asked"))
    assert ask(client, "usage", 60)["notes"] == ["the kubelet could not be asked"]


def test_an_empty_store_has_empty_answers(serve: Serve) -> None:
    client = serve()
    usage = client.get("/api/usage").json()["data"]
    assert (usage["groups"], usage["total"]["gpus"], usage["coverage"]) == ([], 0, 0)
    assert client.get("/api/ledger").json()["data"]["total"]["wall_seconds"] == 0


@pytest.mark.parametrize("path", ["usage", "ledger", "idle", "series", "pods", "gpus", "nodes"])
def test_a_parameter_that_is_not_known_is_refused_with_those_that_are(serve: Serve, path: str) -> None:
    wanted = {"colour": "red"} | ({"metric": "power_draw"} if path == "series" else {})
    answer = serve().get(f"/api/{path}", params=wanted)
    assert answer.status_code == 422
    assert answer.json()["error_code"] == "VALIDATION_ERROR"
    assert "'colour'" in answer.json()["detail"]
    assert ("node" if path in ("pods", "gpus", "nodes") else "last") in answer.json()["detail"]


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("usage?group_by=colour", ["colour", "label:<key>", "namespace"]),
        ("usage?group_by=label:", ["label:"]),
        ("usage?group_by=pod,", ["group_by"]),
        ("usage?limit=0", ["limit"]),
        ("usage?last=ever", ["last", "24h"]),
        ("usage?last=1h&last=2h", ["last", "once"]),
        ("ledger?start=2026-11-24&end=2026-11-23", ["empty"]),
        ("ledger?last=9999d", ["max_range_days"]),
        ("idle?at_least=long", ["at_least", "15m"]),
        ("idle?threshold=200", ["threshold"]),
        ("series", ["metric"]),
        ("series?metric=gpu_name", ["gpu_name", "power_draw"]),
        ("series?metric=power_draw&pod=p", ["power_draw", "gpu_share"]),
        ("series?metric=power_draw&aggregate=median", ["aggregate"]),
        ("series?metric=power_draw&last=30d&step=1s", ["step", "10000"]),
        ("series?metric=power_draw&last=30d&step=36h", ["step", "whole days"]),
        ("series?metric=power_draw&last=30d&step=800000d", ["step", "366d"]),
        ("series?metric=power_draw&gpu_id=x", ["gpu_id"]),
        ("usage?group_by=" + ",".join(f"label:{n}" for n in range(9)), ["group_by", "8"]),
    ],
)
def test_a_question_that_can_not_be_is_refused_in_words(serve: Serve, question: str, words: list[str]) -> None:
    answer = serve().get(f"/api/{question}")
    assert answer.status_code == 422, answer.text
    assert answer.json()["success"] is False
    for word in words:
        assert word in answer.json()["detail"]
