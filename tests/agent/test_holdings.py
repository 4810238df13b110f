"""Who holds what: the kubelet's answer in every dialect of sharing, told in GPUs of this node."""

from __future__ import annotations

from typing import Any

import pytest

from gpumon.agent.attribution.deviceids import Devices, KnownGpu, KnownInstance
from gpumon.agent.attribution.holdings import Holder, Holdings, holdings
from gpumon.agent.ports import ClaimedDevice, ContainerDevices
from tests.agent.pods import GPU, MIG, OTHER_GPU, OTHER_MIG, Pods, holding, pod

DEVICES = Devices(
    (KnownGpu(GPU, 0), KnownGpu(OTHER_GPU, 3, (KnownInstance(MIG, 1, 0), KnownInstance(OTHER_MIG, 2, 0))))
)
NAMES = ("nvidia.com/gpu", "nvidia.com/mig-*")


def held(*containers: ContainerDevices, allocatable: Any = None, pods: Pods | None = None) -> Holdings:
    return holdings(containers, allocatable, DEVICES, pods or Pods(), NAMES)


def shares(found: Holdings, gpu: str = GPU) -> dict[str, float]:
    return {holder.pod: holder.share for holder in found.by_gpu.get(gpu, ())}


def test_a_whole_gpu_is_held_whole() -> None:
    assert held(holding("a", GPU)).by_gpu == {GPU: (Holder("ml", "a", "main", 1.0),)}


def test_a_replica_is_its_part_of_all_replicas_there_are() -> None:
    replicas = frozenset(f"{GPU}::{n}" for n in range(4))
    two = (holding("a", f"{GPU}::0"), holding("b", f"{GPU}::1", f"{GPU}::2"))
    assert shares(held(*two, allocatable={"nvidia.com/gpu.shared": replicas})) == {"a": 0.25, "b": 0.5}
    assert shares(held(*two)) == {"a": pytest.approx(1 / 3), "b": pytest.approx(2 / 3)}


def test_a_replica_that_is_held_but_not_healthy_any_more_still_counts() -> None:
    found = held(holding("a", f"{GPU}::0"), allocatable={"nvidia.com/gpu": frozenset({f"{GPU}::1"})})
    assert shares(found) == {"a": 0.5}


def test_instances_are_held_one_by_one_and_may_be_shared() -> None:
    found = held(holding("a", MIG, resource="nvidia.com/mig-3g.20gb"), holding("b", f"{OTHER_MIG}::0"))
    assert {holder.pod: (holder.mig_uuid, holder.share) for holder in found.by_gpu[OTHER_GPU]} == {
        "a": (MIG, 1.0),
        "b": (OTHER_MIG, 1.0),
    }


def test_a_pod_that_is_listed_twice_holds_once() -> None:
    assert shares(held(holding("a", GPU), holding("a", GPU))) == {"a": 1.0}
    assert shares(held(holding("a", GPU, GPU), holding("b", GPU))) == {"a": 0.5, "b": 0.5}


def test_a_finished_pod_that_is_still_listed_holds_nothing() -> None:
    pods = Pods(pod("done", finished=True), pod("a"))
    assert shares(held(holding("done", GPU), holding("a", GPU), pods=pods)) == {"a": 1.0}


def test_of_two_pods_of_one_name_the_one_that_runs_counts() -> None:
    pods = Pods(pod("a", uid="old", finished=True), pod("a", uid="new"))
    assert shares(held(holding("a", GPU), pods=pods)) == {"a": 1.0}


def test_ids_of_another_resource_count_where_they_are_gpus_and_else_are_not_reported() -> None:
    found = held(holding("a", GPU, resource="nvidia.com/a100"), holding("b", "eth7", resource="rdma/hca"))
    assert shares(found) == {"a": 1.0}
    assert found.unknown == {}
    assert (found.resources, found.dialects) == ({"nvidia.com/a100": 1}, {"uuid": 1})


def test_an_id_that_must_be_a_gpu_and_is_none_of_this_node_is_reported() -> None:
    assert held(holding("a", "GPU-elsewhere")).unknown == {"nvidia.com/gpu": ("GPU-elsewhere",)}


def test_what_is_held_and_can_not_be_told_makes_no_gpu_free() -> None:
    claimed = ContainerDevices("ml", "b", "main", {}, (ClaimedDevice("gpu.nvidia.com", "node-1", "gpu-0"),))
    for unclear in (claimed, holding("b", "MIG-5a1cf0b2-0000-4000-8000-0000000000ff"), holding("b", "nvidia9")):
        found = held(holding("a", GPU), unclear)
        assert found.of(GPU) == (Holder("ml", "a", "main", 1.0),)
        assert found.of(OTHER_GPU) is None
    elsewhere = held(holding("a", GPU), holding("b", "GPU-5a1cf0b2-0000-4000-8000-0000000000ff"))
    assert elsewhere.of(OTHER_GPU) == (), "it names a GPU, and that is none of these"
    other_driver = ContainerDevices("ml", "b", "main", {}, (ClaimedDevice("nic.example.com", "node-1", "n0"),))
    assert held(other_driver).of(OTHER_GPU) == ()


def test_gke_ids_go_by_the_minor_number() -> None:
    assert shares(held(holding("a", "nvidia0")), GPU) == {"a": 1.0}
    assert held(holding("a", "nvidia3/gi2")).by_gpu[OTHER_GPU][0].mig_uuid == OTHER_MIG


def test_hamis_annotation_is_believed_more_than_its_device_ids() -> None:
    pods = Pods(pod("a", container_names=("side", "main"), hami_gpus=((), (OTHER_GPU,))))
    found = held(holding("a", f"{GPU}::4"), pods=pods)
    lost = Pods(pod("a", hami_gpus=(("GPU-elsewhere",),)))
    assert shares(held(holding("a", f"{GPU}::4"), pods=lost)) == {"a": 1.0}, "what names no GPU is not believed"
    assert (shares(found, GPU), shares(found, OTHER_GPU)) == ({}, {"a": 1.0})


def test_a_reservation_pod_holds_for_the_pods_of_its_group_by_the_fraction_they_asked_for() -> None:
    reservation = pod("reservation", reserves=True, gpu_group="g1")
    pods = Pods(
        reservation, pod("a", gpu_group="g1", gpu_fraction=0.5), pod("b", gpu_group="g1", gpu_fraction=0.2)
    )
    assert shares(held(holding("reservation", GPU), pods=pods)) == {"a": 0.5, "b": 0.2}
    assert shares(held(holding("reservation", GPU), pods=Pods(reservation))) == {"reservation": 1.0}
    greedy = Pods(reservation, *(pod(name, gpu_group="g1", gpu_fraction=0.8) for name in "ab"))
    assert shares(held(holding("reservation", GPU), pods=greedy)) == {"a": 0.5, "b": 0.5}


def test_a_device_by_claim_is_what_the_resource_slices_say() -> None:
    claimed = ClaimedDevice("gpu.nvidia.com", "node-1", "gpu-0")
    by_claim = ContainerDevices("ml", "a", "main", {}, (claimed,))
    assert shares(held(by_claim, pods=Pods(claimed={claimed: GPU}))) == {"a": 1.0}
    assert held(by_claim).by_gpu == {}
    both = ContainerDevices("ml", "b", "main", {}, (claimed,))
    assert shares(held(by_claim, both, pods=Pods(claimed={claimed: GPU}))) == {"a": 0.5, "b": 0.5}
