"""GPUs, pods and nodes as they are now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.samples import pod, sample
from tests.server.conftest import Serve


def ago(seconds: float, gpu: str = "gpu-a", **fields: Any) -> dict[str, Any]:
    """A sample of the agent, so many seconds old."""
    moment = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
    index = ord(gpu[-1]) - ord("a")
    known = {
        "gpu_uuid": gpu,
        "gpu_id": index,
        "node": "node-1",
        "interval_seconds": 5.0,
        "holder_count": 1,
        "state": "ok",
    }
    return sample(**known) | {"timestamp": moment, "sampled_at": moment} | fields


def ask(client: httpx.Client, name: str, *samples: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    if samples:
        client.post("/api/receive-data", json=list(samples)).raise_for_status()
    answer = client.get(f"/api/{name}", params=wanted)
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


def test_a_gpu_is_its_newest_sample_with_the_users_of_that_instant(serve: Serve) -> None:
    client = serve()
    host = {"process_name": "Xorg", "held": False, "method": "process", "memory_used": 30.0}
    (gpu,) = ask(client, "gpus", ago(5, pods=[pod(pod="before")]), ago(1, pods=[pod(), host], temperature=61))
    assert (gpu["gpu_uuid"], gpu["node"], gpu["state"], gpu["stale"], gpu["temperature"]) == (
        "gpu-a", "node-1", "ok", False, 61,
    )  # fmt: skip
    assert 1 <= gpu["age_seconds"] < 30
    assert [(user["pod"], user["process_name"], user["held"]) for user in gpu["pods"]] == [
        ("train-0", None, True),
        (None, "Xorg", False),
    ]


def test_a_stale_gpu_is_flagged_and_after_a_day_left_out(serve: Serve) -> None:
    found = ask(serve(), "gpus", ago(1), ago(3600, "gpu-b"), ago(90_000, "gpu-c"))
    assert [(gpu["gpu_uuid"], gpu["stale"]) for gpu in found] == [("gpu-a", False), ("gpu-b", True)]


def test_a_gpu_that_has_moved_is_listed_once_where_it_is(serve: Serve) -> None:
    client = serve()
    (gpu,) = ask(client, "gpus", ago(60, pods=[pod()]), ago(1, gpu_id=3, pods=[]))
    assert (gpu["gpu_id"], gpu["pods"]) == (3, [])


def test_the_nodes_gpus_alone_can_be_asked_for(serve: Serve) -> None:
    client = serve()
    samples = (
        ago(1, pods=[pod()]),
        ago(1, "gpu-b", node=None, client_name="plain", pods=[pod(namespace="x", pod="y")]),
    )
    assert [gpu["gpu_uuid"] for gpu in ask(client, "gpus", *samples, node="plain")] == ["gpu-b"]
    assert [found["pod"] for found in ask(client, "pods", node="node-1")] == ["train-0"]
    assert [found["pod"] for found in ask(client, "pods", namespace="x")] == ["y"]
    assert [found["node"] for found in ask(client, "nodes")] == ["node-1", "plain"]
    assert [found["node"] for found in ask(client, "nodes", node="plain")] == ["plain"]


def test_a_pod_has_its_parts_of_all_gpus_and_its_labels(serve: Serve) -> None:
    half = pod(gpu_share=0.5, utilization=30.0, memory_used=100.0, labels={"team": "vision"})
    samples = (
        ago(1, pods=[half]),
        ago(1, "gpu-b", pods=[pod(utilization=50.0, memory_used=200.0)]),
        ago(500, "gpu-c", pods=[pod(pod="old", utilization=None)]),
    )
    old, train = ask(serve(), "pods", *samples)
    assert (train["pod"], train["owner_kind"], train["owner_name"]) == ("train-0", "StatefulSet", "train")
    assert (train["gpu_share"], train["utilization"], train["memory_used"]) == (1.5, 80.0, 300.0)
    assert (train["labels"], train["stale"]) == ({"team": "vision"}, False)
    assert [(part["gpu_uuid"], part["gpu_share"], part["method"]) for part in train["gpus"]] == [
        ("gpu-a", 0.5, "exclusive"),
        ("gpu-b", 1.0, "exclusive"),
    ]
    assert (old["stale"], old["utilization"], old["labels"]) == (True, None, {})


def test_what_a_pod_uses_without_holding_it_is_no_share_of_it(serve: Serve) -> None:
    (found,) = ask(
        serve(), "pods", ago(1, holder_count=0, pods=[pod(held=False, gpu_share=None, utilization=7.0)])
    )
    assert (found["gpu_share"], found["utilization"]) == (None, 7.0)


def test_a_node_sums_its_gpus_up(serve: Serve) -> None:
    samples = (
        ago(1, pods=[pod(gpu_share=0.5)], utilization_mean=20.0, power_draw=100.0, node_labels={"pool": "big"}),
        ago(1, "gpu-b", pods=[], holder_count=0, utilization_gpu=0.0, power_draw=50.0),
        ago(1, "gpu-c", pods=[], holder_count=0, utilization_gpu=0.0, power_draw=50.0, unhealthy="Xid 79"),
        ago(
            1,
            "gpu-d",
            state="lost",
            holder_count=None,
            **dict.fromkeys(("utilization_gpu", "power_draw", "memory_used")),
        ),
        ago(500, "gpu-e", pods=[pod()], power_draw=999.0),
    )
    (node,) = ask(serve(), "nodes", *samples)
    assert (node["node"], node["gpus"], node["labels"], node["stale"]) == ("node-1", 5, {"pool": "big"}, False)
    assert node["gpus_by_state"] == {"ok": 3, "lost": 1, "unknown": 0, "stale": 1}
    assert node["gpus_unhealthy"] == 2
    assert (node["gpus_held"], node["gpus_free"], node["gpus_unknown"]) == (0.5, 1.5, 1)
    assert node["gpus_active"] == pytest.approx(0.2)
    assert (node["power_draw"], node["memory_used"]) == (200.0, 60_000)


def test_what_could_not_be_asked_is_null_and_not_0(serve: Serve) -> None:
    silent = dict.fromkeys(("utilization_gpu", "power_draw", "memory_used", "memory_total"))
    client = serve()
    (node,) = ask(client, "nodes", ago(1, holder_count=None, **silent))
    for name in ("gpus_held", "gpus_free", "gpus_active", "power_draw", "memory_used", "memory_total"):
        assert node[name] is None, name
    assert node["gpus_unknown"] == 1
    cordoned = ago(1, "gpu-b", pods=[], holder_count=0, utilization_gpu=0.0, unhealthy="cordoned")
    (node,) = ask(client, "nodes", cordoned)
    assert (node["gpus_held"], node["gpus_free"], node["gpus_unknown"]) == (0.0, 0.0, 1)


def test_nothing_stored_is_an_empty_list(serve: Serve) -> None:
    client = serve()
    assert [ask(client, name) for name in ("gpus", "pods", "nodes")] == [[], [], []]


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("gpus", "GpuNow"), ("pods", "PodNow"), ("nodes", "NodeNow"), ("usage?group_by=pod", "Usage"),
        ("ledger?group_by=node", "Ledger"), ("idle?at_least=1s", "Idle"), ("series?metric=power_draw", "Series"),
    ],
)  # fmt: skip
def test_an_answer_holds_what_the_documentation_says_and_nothing_else(serve: Serve, path: str, model: str) -> None:
    client = serve()
    ask(
        client,
        "gpus",
        *(ago(s, pods=[pod(utilization=0.0, labels={"a": "b"})], utilization_gpu=0.0) for s in (9, 5, 1)),
    )
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    data = client.get(f"/api/{path}").json()["data"]
    assert_described(data[0] if isinstance(data, list) else data, schemas[model], schemas)


def assert_described(value: Any, schema: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Every object has exactly the fields of its schema."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    if isinstance(value, list):
        assert value, schema
        assert_described(value[0], schema["items"], schemas)
    elif "properties" in schema:
        assert value.keys() == schema["properties"].keys()
        for name, inner in value.items():
            if isinstance(inner, dict | list) and name not in ("unmeasured", "notes", "models", "client_names"):
                assert_described(inner, schema["properties"][name], schemas)


def test_a_gpu_is_held_once_however_much_is_given_out_of_it(serve: Serve) -> None:
    (node,) = ask(serve(), "nodes", ago(1, holder_count=2, pods=[pod(), pod(pod="train-1")]))
    assert (node["gpus_held"], node["gpus_free"]) == (1.0, 0.0)
