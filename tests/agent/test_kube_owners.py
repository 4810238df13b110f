"""The workload of a pod, told by the pod alone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from gpumon.agent.kube.objects import PodObject, read_pod
from gpumon.agent.kube.owners import workload
from tests.agent.kubeapi import pod_json

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
NOON_MINUTES = int(NOON.timestamp()) // 60
BATCH = "batch/v1"
TEMPLATE = {"pod-template-hash": "5d8f6c7b9"}
JOBSET = {"jobset.sigs.k8s.io/jobset-name": "llama"}
LWS = {"leaderworkerset.sigs.k8s.io/name": "vllm", "leaderworkerset.sigs.k8s.io/worker-index": "1"}
RAY_JOB = {
    "ray.io/originated-from-crd": "RayJob",
    "ray.io/originated-from-cr-name": "tune",
    "ray.io/cluster": "tune-x",
}


def pod(**given: Any) -> PodObject:
    return read_pod(msgspec.json.encode(pod_json(**given)))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"owner": ("ReplicaSet", "web-5d8f6c7b9"), "labels": TEMPLATE}, ("Deployment", "web")),
        ({"owner": ("ReplicaSet", "web-5d8f6c7b9")}, ("ReplicaSet", "web-5d8f6c7b9")),
        (
            {"owner": ("ReplicaSet", "web-5d8f6c7b9"), "labels": {"pod-template-hash": ""}},
            ("ReplicaSet", "web-5d8f6c7b9"),
        ),
        ({"owner": ("ReplicaSet", "web"), "labels": TEMPLATE}, ("ReplicaSet", "web")),
        (
            {"owner": ("ReplicaSet", "web-7f9"), "labels": {"rollouts-pod-template-hash": "7f9"}},
            ("Rollout", "web"),
        ),
        ({"owner": ("StatefulSet", "db"), "labels": TEMPLATE}, ("StatefulSet", "db")),
        ({"owner": ("DaemonSet", "agent")}, ("DaemonSet", "agent")),
        ({"owner": ("PyTorchJob", "bert")}, ("PyTorchJob", "bert")),
        ({"owner": ("Workflow", "etl-x7")}, ("Workflow", "etl-x7")),
        ({"owner": ("Node", "node-1")}, None),
        ({"owner": ("Job", "llama-workers-0"), "api_version": BATCH, "labels": JOBSET}, ("JobSet", "llama")),
        ({"owner": ("StatefulSet", "llama"), "labels": JOBSET}, ("StatefulSet", "llama")),
        ({"owner": ("StatefulSet", "vllm-0"), "labels": LWS}, ("LeaderWorkerSet", "vllm")),
        ({"owner": ("ReplicaSet", "vllm-0"), "labels": LWS}, ("ReplicaSet", "vllm-0")),
        ({"owner": ("RayCluster", "tune-x"), "labels": {"ray.io/cluster": "tune-x"}}, ("RayCluster", "tune-x")),
        ({"owner": ("RayCluster", "tune-x"), "labels": RAY_JOB}, ("RayJob", "tune")),
        ({"owner": ("Job", "tune"), "api_version": BATCH, "labels": RAY_JOB}, ("RayJob", "tune")),
        ({"owner": ("StatefulSet", "tune"), "labels": RAY_JOB}, ("StatefulSet", "tune")),
    ],
)
def test_the_workload_is_told_by_controller_and_labels(
    given: dict[str, Any], expected: tuple[str, str] | None
) -> None:
    assert workload(pod(**given).metadata) == expected


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (f"nightly-{NOON_MINUTES}", ("CronJob", "nightly")),
        (f"nightly-{NOON_MINUTES - 6 * 24 * 60}", ("CronJob", "nightly")),
        (f"nightly-run-{NOON_MINUTES}", ("CronJob", "nightly-run")),
        (f"nightly-{NOON_MINUTES * 60}", ("CronJob", "nightly")),
        # Not the time of a schedule: someone's own date +%s, another day's, the future's, a plain number.
        (f"nightly-{NOON_MINUTES * 60 - 17}", ("Job", f"nightly-{NOON_MINUTES * 60 - 17}")),
        (f"nightly-{NOON_MINUTES - 8 * 24 * 60}", ("Job", f"nightly-{NOON_MINUTES - 8 * 24 * 60}")),
        (f"nightly-{NOON_MINUTES + 2}", ("Job", f"nightly-{NOON_MINUTES + 2}")),
        ("nightly-20261124", ("Job", "nightly-20261124")),
        ("nightly-3", ("Job", "nightly-3")),
        (f"{NOON_MINUTES}", ("Job", f"{NOON_MINUTES}")),
    ],
)
def test_a_job_named_for_a_time_shortly_before_its_pod_is_a_cron_jobs(job: str, expected: tuple[str, str]) -> None:
    assert workload(pod(owner=("Job", job), api_version=BATCH).metadata) == expected


def test_a_job_of_another_api_is_not_a_cron_jobs() -> None:
    job = ("Job", f"nightly-{NOON_MINUTES}")

    assert workload(pod(owner=job, api_version="batch.volcano.sh/v1alpha1").metadata) == job


def test_an_owner_that_is_not_the_controller_does_not_count() -> None:
    given = pod_json(owner=("ReplicaSet", "web"))
    del given["metadata"]["ownerReferences"][0]["controller"]

    assert workload(read_pod(msgspec.json.encode(given)).metadata) is None
