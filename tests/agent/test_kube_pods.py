"""A pod's JSON becomes a Pod, and pods are found again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gpumon.agent.kube.labels import LabelChoice
from gpumon.agent.kube.objects import PodObject, read_pod
from gpumon.agent.kube.pods import REMEMBERED_CONTAINERS, known_pod
from gpumon.agent.kube.records import PodRecords
from gpumon.agent.ports import Pod
from tests.agent.kubeapi import container_id, pod_json

GPU_A = "GPU-0fc3eda5-e98b-a25b-5b0d-cf5c855d1448"
GPU_B = "GPU-04dc48d7-1111-2222-3333-444455556666"


def read(given: Any) -> PodObject:
    return read_pod(msgspec.json.encode(given))


def pod(given: Any = None, *patterns: str, **more: Any) -> Pod:
    known = known_pod(read(given if given is not None else pod_json(**more)), LabelChoice(patterns))
    assert known is not None
    return known.pod


def records(*given: Any) -> PodRecords:
    kept = PodRecords(LabelChoice(["*"]))
    kept.replace(map(read, given))
    return kept


def restarted(start: int) -> Any:
    """A pod whose only container has been started so often before."""
    given = pod_json("train")
    status = given["status"]["containerStatuses"][0]
    status["containerID"] = f"containerd://{container_id('train', start=start)}"
    if start:
        ended = {"containerID": f"containerd://{container_id('train', start=start - 1)}", "exitCode": 1}
        status["lastState"] = {"terminated": ended}
    return given


def test_a_pod_is_read_whole() -> None:
    given = pod_json("train", namespace="ml", owner=("StatefulSet", "bert"), containers=("main", "sidecar"))

    assert pod(given) == Pod(
        uid="uid-train",
        namespace="ml",
        name="train",
        owner=("StatefulSet", "bert"),
        containers={container_id("train", "main"): "main", container_id("train", "sidecar"): "sidecar"},
        container_names=("main", "sidecar"),
    )


@pytest.mark.parametrize(
    ("phase", "finished"),
    [("Pending", False), ("Running", False), ("Succeeded", True), ("Failed", True), ("Unknown", False)],
)
def test_only_succeeded_and_failed_are_finished(phase: str, finished: bool) -> None:
    assert pod(phase=phase).finished is finished


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        ([], set()),
        ([""], set()),
        (["app"], {"app"}),
        (["app", "team"], {"app", "team"}),
        (["app.kubernetes.io/name"], {"app.kubernetes.io/name"}),
        (["app*"], {"app", "app.kubernetes.io/name", "app-kubernetes.io/name"}),
        (["*.io/*"], {"app.kubernetes.io/name", "app-kubernetes.io/name"}),
        (["*"], {"app", "team", "app.kubernetes.io/name", "app-kubernetes.io/name"}),
    ],
)
def test_labels_are_kept_by_pattern(patterns: list[str], kept: set[str]) -> None:
    labels = {"app": "a", "team": "t", "app.kubernetes.io/name": "n", "app-kubernetes.io/name": "m"}

    assert pod(pod_json(labels=labels), *patterns).labels == {key: labels[key] for key in kept}


def test_init_and_ephemeral_containers_are_found_by_id_too() -> None:
    given = pod_json("train")
    given["status"]["initContainerStatuses"] = [{"name": "fetch", "containerID": "cri-o://aa"}]
    given["status"]["ephemeralContainerStatuses"] = [{"name": "debug", "containerID": "docker://bb"}]

    assert pod(given).containers == {container_id("train"): "main", "aa": "fetch", "bb": "debug"}
    assert pod(given).container_names == ("main",)


def test_a_container_that_has_not_started_has_no_id() -> None:
    given = pod_json("train")
    del given["status"]["containerStatuses"][0]["containerID"]
    given["status"]["initContainerStatuses"] = [{"name": "fetch", "containerID": ""}]

    assert pod(given).containers == {}


def test_a_restarted_container_is_found_by_its_last_id() -> None:
    assert pod(restarted(1)).containers == {container_id("train", start=start): "main" for start in (0, 1)}


def test_ids_from_before_many_restarts_are_remembered_but_not_without_end() -> None:
    kept = records(restarted(0))
    for start in range(1, REMEMBERED_CONTAINERS + 20):
        kept.put(read(restarted(start)))

    found = kept.by_uid("uid-train")
    assert found is not None
    last = REMEMBERED_CONTAINERS + 19
    assert {container_id("train", start=last - back) for back in range(REMEMBERED_CONTAINERS)} <= set(
        found.containers
    )
    assert len(found.containers) <= REMEMBERED_CONTAINERS + 2


def test_a_new_list_does_not_forget_earlier_ids() -> None:
    kept = records(restarted(0))
    kept.replace([read(restarted(2))])

    found = kept.by_uid("uid-train")
    assert found is not None
    assert set(found.containers) == {container_id("train", start=start) for start in range(3)}


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        (f"{GPU_A},NVIDIA,3000,30:;", ((GPU_A,),)),
        (f"{GPU_A},NVIDIA,3000,30:{GPU_B},NVIDIA,3000,30:;", ((GPU_A, GPU_B),)),
        (f"{GPU_A},NVIDIA,3000,30:;{GPU_B},NVIDIA,1,1:;", ((GPU_A,), (GPU_B,))),
        (f";{GPU_B},NVIDIA,1,1:;", ((), (GPU_B,))),
        (f"{GPU_A}[1-2],NVIDIA,3000,30:;", ((GPU_A,),)),
        (f"MLU-1,MLU,3000,30:{GPU_A},NVIDIA,1,1:;", ((GPU_A,),)),
        ("MLU-1,MLU,3000,30:;", ()),
        (f"{GPU_A}", ((GPU_A,),)),
        (";", ()),
        ("", ()),
        (",,:;:;,", ()),
    ],
)
def test_hami_says_where_it_put_each_container(text: str, gpus: tuple[tuple[str, ...], ...]) -> None:
    assert pod(annotations={"hami.io/vgpu-devices-allocated": text}).hami_gpus == gpus


@pytest.mark.parametrize(
    ("text", "fraction"),
    [
        ("0.5", 0.5),
        ("1", 1.0),
        ("0", None),
        ("-0.5", None),
        ("2", None),
        ("half", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_a_fraction_is_a_part_of_a_gpu_or_nothing(text: str, fraction: float | None) -> None:
    assert pod(annotations={"gpu-fraction": text}).gpu_fraction == fraction


@pytest.mark.parametrize(
    ("given", "reserves"),
    [
        ({}, False),
        ({"namespace": "runai-reservation"}, True),
        ({"namespace": "kai-resource-reservation"}, True),
        ({"labels": {"app": "kai-resource-reservation"}}, True),
        ({"labels": {"app": "runai-reservation"}}, True),
        ({"labels": {"app": "train"}}, False),
        ({"annotations": {"run.ai/reserve_for_gpu_index": "0"}}, True),
    ],
)
def test_reservation_pods_are_known(given: dict[str, Any], reserves: bool) -> None:
    assert pod(**given).reserves is reserves


def test_a_gpu_group_joins_the_pods_that_share_without_the_one_that_reserves() -> None:
    group = {"runai-gpu-group": "g1"}
    kept = records(
        pod_json("a", labels=group),
        pod_json("b", labels=group),
        pod_json("over", labels=group, phase="Succeeded"),
        pod_json("elsewhere", labels={"runai-gpu-group": "g2"}),
        pod_json("reservation", labels=group, namespace="kai-resource-reservation"),
    )

    assert [found.name for found in kept.in_gpu_group("g1")] == ["a", "b"]
    assert kept.in_gpu_group("g3") == ()
    reservation = kept.by_name("kai-resource-reservation", "reservation")
    assert reservation is not None and reservation.gpu_group == "g1"


def test_a_pod_with_fractions_of_two_gpus_is_in_both_groups() -> None:
    kept = records(pod_json("a", labels={"runai-gpu-group/g1": "g1", "runai-gpu-group/g2": "g2"}))

    assert [found.name for found in kept.in_gpu_group("g1")] == ["a"]
    assert [found.name for found in kept.in_gpu_group("g2")] == ["a"]
    assert kept.in_gpu_group("g1")[0].gpu_group == "g1"


def test_a_static_pod_is_found_by_the_hash_in_its_cgroup() -> None:
    static = pod_json("proxy", annotations={"kubernetes.io/config.hash": "0f" * 16})
    kept = records(static, pod_json("train"))

    assert kept.by_uid("0f" * 16) == kept.by_uid("uid-proxy") is not None


def test_no_pod_takes_the_place_of_another_by_writing_its_uid_as_hash() -> None:
    kept = records(pod_json("train"), pod_json("thief", annotations={"kubernetes.io/config.hash": "uid-train"}))

    found = kept.by_uid("uid-train")
    assert found is not None and found.name == "train"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_pods_of_a_name_the_one_that_goes_on_is_found(order: tuple[int, int]) -> None:
    two = [pod_json("job-0", uid="old", phase="Failed"), pod_json("job-0", uid="new")]
    kept = records(*(two[i] for i in order))

    found = kept.by_name("default", "job-0")
    assert found is not None and found.uid == "new"
    assert kept.by_uid("old") is not None


def test_the_version_changes_with_what_can_be_seen_and_not_otherwise() -> None:
    kept = records(pod_json("train"))
    version = kept.version

    unseen = pod_json("train")
    unseen["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    kept.put(read(unseen))
    assert kept.version == version

    kept.put(read(pod_json("train", phase="Succeeded")))
    assert kept.version == version + 1
    kept.remove("uid-train")
    assert kept.version == version + 2
    kept.remove("uid-train")
    assert kept.version == version + 2


@pytest.mark.parametrize("lacking", ["uid", "name"])
def test_what_has_no_identity_is_no_pod(lacking: str) -> None:
    given = pod_json("train")
    del given["metadata"][lacking]

    assert known_pod(read(given), LabelChoice(())) is None


def test_a_pod_may_lack_all_the_rest() -> None:
    bare = {"metadata": {"uid": "u", "name": "n", "labels": None, "annotations": None, "ownerReferences": None}}

    assert pod(bare) == Pod(uid="u", namespace="", name="n")
    assert pod(bare | {"spec": {"containers": None}, "status": {"containerStatuses": None}}) == pod(bare)
