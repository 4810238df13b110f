"""Pods and labels on the wire: what is good is kept, what is bad is left out and named."""

from __future__ import annotations

import gzip
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gpumon import clock
from gpumon.model.pod_fields import USE_FIELDS
from gpumon.model.sample import MAX_LABELS, MAX_PODS
from tests.samples import full_sample, pod, sample
from tests.server.conftest import Serve
from tests.server.test_pods_storage import lines

PATH = "/api/receive-data"
JSON = {"Content-Type": "application/json"}

BAD_PODS: list[tuple[Any, list[str]]] = [
    (pod(pod="a b"), ["pod"]),
    (pod(pod="=cmd()"), ["pod"]),
    (pod(namespace="a\nb"), ["namespace"]),
    (pod(container="x" * 254), ["container"]),
    (pod(pod=None, process_name="a\x00b"), ["process_name"]),
    (pod(owner_name="-x"), ["owner_name"]),
    (pod(owner_kind="@SUM(A1)"), ["owner_kind"]),
    (pod(pod=7), ["pod"]),
    (pod(held="yes"), ["held"]),
    (pod(held=1), ["held"]),
    (pod(method="guess"), ["method"]),
    (pod(utilization=100.1), ["utilization"]),
    (pod(utilization=1e999), ["utilization"]),
    (pod(gpu_share=-0.1), ["gpu_share"]),
    (pod(memory_used="1"), ["memory_used"]),
    (pod(process_count=1.5), ["process_count"]),
    ("train-0", []),
    (None, []),
    ([], []),
]


@pytest.mark.parametrize(("bad", "place"), BAD_PODS, ids=lambda value: str(value)[-40:])
def test_a_bad_entry_is_left_out_and_named_and_its_sample_and_the_other_entries_are_stored(
    serve: Serve, tmp_path: Path, bad: Any, place: list[str]
) -> None:
    pods = [pod(process_count=3.0), pod(pod="train-1"), pod(pod="train-2"), bad, pod(pod="train-4")]
    body = json.dumps([sample(gpu_id=5), sample(pods=pods)]).replace("Infinity", "1e999")
    answer = serve().post(PATH, content=body, headers=JSON).raise_for_status().json()
    assert (answer["received_count"], answer["failed_count"], answer["left_out_count"]) == (2, 0, 1)
    assert [(e["index"], e["loc"]) for e in answer["errors"]] == [(1, ["pods", "3", *place])]
    assert answer["errors"][0]["msg"]
    assert len(lines(tmp_path / "data", "gpu_metrics")) == 2
    stored = lines(tmp_path / "data", "pod_usage")
    assert [row["pod"] for row in stored] == ["train-0", "train-1", "train-2", "train-4"]
    assert stored[0]["process_count"] == "3", "a whole number written as a float is taken"


def test_two_bad_texts_before_each_other_keep_their_places(serve: Serve, tmp_path: Path) -> None:
    pods = [pod(held="x"), pod(pod="a b"), pod(pod="good"), pod(pod="c d")]
    answer = serve().post(PATH, json=sample(pods=pods)).raise_for_status().json()
    assert [e["loc"] for e in answer["errors"]] == [
        ["pods", "0", "held"],
        ["pods", "1", "pod"],
        ["pods", "3", "pod"],
    ]
    assert [row["pod"] for row in lines(tmp_path / "data", "pod_usage")] == ["good"]


@pytest.mark.parametrize("pods", ["x", {}, 7, True])
def test_pods_that_are_no_list_are_left_out(serve: Serve, tmp_path: Path, pods: Any) -> None:
    answer = serve().post(PATH, json=sample(pods=pods)).raise_for_status().json()
    assert answer["errors"] == [{"index": 0, "loc": ["pods"], "msg": "must be a list of objects"}]
    assert len(lines(tmp_path / "data", "gpu_metrics")) == 1
    assert lines(tmp_path / "data", "pod_usage") == []


@pytest.mark.parametrize("pods", [None, []])
def test_no_pods_are_no_fault(serve: Serve, tmp_path: Path, pods: Any) -> None:
    answer = serve().post(PATH, json=sample(pods=pods, node_labels=None)).raise_for_status().json()
    assert "errors" not in answer and "left_out_count" not in answer
    assert [path.name for path in (tmp_path / "data").glob("*.csv")] == ["gpu_metrics_20261124.csv"]


def test_of_too_many_pods_the_first_are_kept_and_the_others_counted(serve: Serve, tmp_path: Path) -> None:
    pods = [pod(pod=f"p-{n}") for n in range(MAX_PODS + 3)]
    answer = serve().post(PATH, json=sample(pods=pods)).raise_for_status().json()
    assert answer["left_out_count"] == 3
    assert "1000" in answer["errors"][0]["msg"]
    assert [row["pod"] for row in lines(tmp_path / "data", "pod_usage")] == [f"p-{n}" for n in range(MAX_PODS)]


BAD_LABELS: list[tuple[str, Any]] = [
    ("a\nb", "x"),
    ("=a", "x"),
    ("", "x"),
    ("k" * 318, "x"),
    ("team", "a\rb"),
    ("team", "+1"),
    ("team", "v" * 254),
    ("team", 7),
    ("team", None),
    ("team", ["x"]),
]


@pytest.mark.parametrize(("label", "value"), BAD_LABELS, ids=lambda value: repr(value)[:20])
def test_a_bad_label_is_left_out_and_named_and_the_others_are_stored(
    serve: Serve, tmp_path: Path, label: str, value: Any
) -> None:
    mixed = {"a/b": "1", label: value, "empty": ""}
    one = sample(pods=[pod(), pod(pod="train-1", labels=mixed)], node_labels=mixed)
    answer = serve().post(PATH, json=one).raise_for_status().json()
    assert sorted(e["loc"] for e in answer["errors"]) == [
        ["node_labels", label[:80]],
        ["pods", "1", "labels", label[:80]],
    ]
    assert all(e["msg"] for e in answer["errors"])
    assert [(row["pod"], row["label"], row["value"]) for row in lines(tmp_path / "data", "pods")] == [
        ("train-1", "a/b", "1"),
        ("train-1", "empty", ""),
        ("", "a/b", "1"),
        ("", "empty", ""),
    ]
    assert len(lines(tmp_path / "data", "pod_usage")) == 2


@pytest.mark.parametrize("labels", ["x", [], 7])
def test_labels_that_are_no_object_are_left_out(serve: Serve, tmp_path: Path, labels: Any) -> None:
    one = sample(pods=[pod(labels=labels)], node_labels=labels)
    answer = serve().post(PATH, json=one).raise_for_status().json()
    assert [e["loc"] for e in answer["errors"]] == [["pods", "0", "labels"], ["node_labels"]]
    assert len(lines(tmp_path / "data", "pod_usage")) == 1


def test_of_too_many_labels_the_first_are_kept(serve: Serve, tmp_path: Path) -> None:
    labels = {f"l{n}": "x" for n in range(MAX_LABELS + 2)}
    answer = serve().post(PATH, json=sample(node_labels=labels)).raise_for_status().json()
    assert answer["left_out_count"] == 2
    assert [row["label"] for row in lines(tmp_path / "data", "pods")] == list(labels)[:MAX_LABELS]


def test_labels_of_an_entry_without_a_pod_would_pass_for_the_nodes_and_are_left_out(
    serve: Serve, tmp_path: Path
) -> None:
    host = {"process_name": "Xorg", "held": False, "method": "process", "labels": {"team": "x"}}
    answer = serve().post(PATH, json=sample(pods=[host])).raise_for_status().json()
    assert [e["loc"] for e in answer["errors"]] == [["pods", "0", "labels"]]
    assert lines(tmp_path / "data", "pods") == []
    assert [row["process_name"] for row in lines(tmp_path / "data", "pod_usage")] == ["Xorg"]


def test_a_bad_sample_is_refused_with_its_pods(serve: Serve, tmp_path: Path) -> None:
    bad = sample(gpu_id=-1, pods=[pod(held="x")])
    answer = serve().post(PATH, json=[bad, sample(pods=[pod()])]).raise_for_status().json()
    assert (answer["failed_count"], answer.get("left_out_count")) == (1, None)
    assert [e["loc"] for e in answer["errors"]] == [["gpu_id"]]
    assert len(lines(tmp_path / "data", "pod_usage")) == 1


def test_a_pod_that_is_listed_twice_in_a_sample_is_stored_once(serve: Serve, tmp_path: Path) -> None:
    mig = pod(mig_uuid="MIG-1")
    different = [
        pod(), mig, pod(container="side"), pod(held=False), pod(method="process"), pod(namespace="other"),
        pod(pod=None, container=None, process_name="a"), pod(pod=None, container=None, process_name="b"),
        {"pod_uid": "known-by-uid-only-1", "held": False}, {"pod_uid": "known-by-uid-only-2", "held": False},
    ]  # fmt: skip
    again = [pod(utilization=1.0), mig, pod(process_count=9)]
    answer = serve().post(PATH, json=[sample(pods=different + again), sample(gpu_id=1, pods=[pod()])]).json()
    assert "left_out_count" not in answer, "twice is no fault"
    stored = lines(tmp_path / "data", "pod_usage")
    assert [row["gpu_id"] for row in stored] == ["0"] * len(different) + ["1"]
    assert stored[0]["utilization"] == "50.0", "the first counts"


def test_a_full_node_fits_in_a_body(serve: Serve, tmp_path: Path) -> None:
    pods = [pod(pod=f"p-{n}", pod_uid=f"u-{n}", labels={"team": "a", "app": "b"}) for n in range(MAX_PODS)]
    answer = serve().post(PATH, json=[sample(gpu_id=gpu, pods=pods) for gpu in range(10)])
    assert answer.raise_for_status().json()["received_count"] == 10
    assert len(lines(tmp_path / "data", "pod_usage")) == 10 * MAX_PODS
    assert len(lines(tmp_path / "data", "pods")) == 2 * MAX_PODS


@pytest.mark.parametrize("filling", [b"{}", b"[]", b'{"labels":{}}'])
def test_a_small_body_with_millions_of_empty_entries_is_refused_at_once(serve: Serve, filling: bytes) -> None:
    text = (
        json.dumps(sample(pods=[])).encode().replace(b"[]", b"[" + (filling + b",") * 1_000_000 + filling + b"]")
    )
    headers = JSON | {"Content-Encoding": "gzip"}
    assert serve().post(PATH, content=gzip.compress(text), headers=headers).status_code == 413


def test_what_is_left_out_and_what_is_stored_is_counted(serve: Serve) -> None:
    client = serve()
    client.post(PATH, json=sample(pods=[pod(), pod(held="x"), pod(pod="a b")])).raise_for_status()
    text = client.get("/metrics").text
    assert "gpumon_server_entries_left_out_total 2.0" in text
    assert "gpumon_server_rows_stored_total 1.0" in text
    assert "gpumon_server_pod_rows_stored_total 1.0" in text


def test_the_documentation_describes_every_field_of_a_pod(serve: Serve) -> None:
    client = serve()
    document = client.get("/openapi.json").json()
    body = document["paths"][PATH]["post"]["requestBody"]["content"]["application/json"]
    properties = body["schema"]["oneOf"][1]["properties"]
    use = properties["pods"]["anyOf"][0]["items"]["properties"]
    for field in USE_FIELDS:
        assert field.help in use[field.name]["description"]
    assert "Unit: mJ." in use["energy_mj"]["description"]
    assert use["labels"]["description"] and properties["node_labels"]["description"]
    assert "#/$defs" not in json.dumps(body), "a reference into another document"
    example = body["examples"]["pods"]["value"]
    assert client.post(PATH, json=example).raise_for_status().json().get("errors") is None


Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def series(text: str) -> Series:
    """The lines of pods in `/metrics`; none may come twice."""
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            if one.name.startswith("gpumon_pod_"):
                key = (one.name, frozenset(one.labels.items()))
                assert key not in found, key
                found[key] = one.value
    return found


def test_metrics_have_the_pods_of_each_gpus_newest_sample_in_base_units(serve: Serve) -> None:
    client = serve()
    before, at = (clock.to_wire(clock.now() - timedelta(seconds=s)) for s in (10, 5))
    host = {"process_name": "Xorg", "held": False, "method": "process", "utilization": 1.0}
    newest = full_sample(
        timestamp=at,
        sampled_at=at,
        pods=[
            pod(mig_uuid="MIG-1", utilization=10.0),
            pod(mig_uuid="MIG-2", utilization=20.0, memory_used=None),
            host,
            host | {"process_name": "sunshine", "utilization": 2.0},
        ],
    )
    client.post(PATH, json=full_sample(timestamp=before, sampled_at=before, pods=[pod(pod="gone")]))
    for _ in range(2):  # without a batch id it is stored twice
        client.post(PATH, json=newest).raise_for_status()
    client.post(PATH, json=sample(gpu_id=1, timestamp="2026-01-01 00:00:00", pods=[pod(pod="stale")]))
    gpu = {"node": "node-1", "gpu": "0", "uuid": "GPU-8f0c1d3e-0000-0000-0000-000000000001"}
    train = frozenset(
        (gpu | {"namespace": "research", "pod": "train-0", "container": "main", "method": "exclusive"}).items()
    )
    nobodys = frozenset((gpu | {"namespace": "", "pod": "", "container": "", "method": "process"}).items())
    assert series(client.get("/metrics").text) == {
        ("gpumon_pod_gpu_share", train): 2.0,
        ("gpumon_pod_gpu_utilization_ratio", train): pytest.approx(0.3),
        ("gpumon_pod_gpu_utilization_ratio", nobodys): pytest.approx(0.03),
        ("gpumon_pod_gpu_memory_used_bytes", train): 19_000.5 * 2**20,
        ("gpumon_pod_gpu_processes", train): 4,
    }


def test_when_the_newest_sample_tells_of_no_pods_none_are_shown(serve: Serve) -> None:
    client = serve()
    before, at = (clock.to_wire(clock.now() - timedelta(seconds=s)) for s in (10, 5))
    client.post(PATH, json=full_sample(timestamp=before, sampled_at=before, pods=[pod()])).raise_for_status()
    assert len(series(client.get("/metrics").text)) == 4
    client.post(PATH, json=full_sample(timestamp=at, sampled_at=at)).raise_for_status()
    assert series(client.get("/metrics").text) == {}
