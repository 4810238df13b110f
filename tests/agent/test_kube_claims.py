"""Devices by claim (DRA): ResourceSlices are asked for when a device is met, and not more often than that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

from gpumon.agent.kube import KubeDirectory
from gpumon.agent.kube.objects import read_slice
from gpumon.agent.kube.slices import device_uuids
from gpumon.agent.ports import ClaimedDevice
from tests.agent.kubeapi import SLICES, WATCH, Json, KubeApi, pod_json, slice_json
from tests.agent.kubedirs import directories
from tests.processes import until

GPU, MIG = "GPU-0fc3eda5-e98b-a25b-5b0d-cf5c855d1448", "MIG-41ec2b3f-1111-2222-3333-444455556666"


@pytest.fixture
def api() -> Iterator[KubeApi]:
    with KubeApi() as served:
        yield served


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., KubeDirectory]]:
    with directories(tmp_path) as make:
        yield make


def device(name: str = "gpu-0", pool: str = "node-1", driver: str = "gpu.nvidia.com") -> ClaimedDevice:
    return ClaimedDevice(driver, pool, name)


def uuids(*slices: Json) -> dict[ClaimedDevice, str]:
    return device_uuids([read_slice(msgspec.json.encode(a_slice)) for a_slice in slices])


def let_time_pass(api: KubeApi, directory: KubeDirectory) -> None:
    """Long enough for dozens of requests, if somebody made them."""
    names = [f"pod-{directory.version}-{number}" for number in range(3)]
    for name in names:
        api.put(pod_json(name))
        until(partial(directory.by_name, "default", name))


def test_nobody_asks_for_slices_as_long_as_no_claim_is_met(
    api: KubeApi, start: Callable[..., KubeDirectory]
) -> None:
    directory = start(api, dynamic_resources=True)
    api.wait_for(WATCH, 1)
    until(lambda: directory.trouble is None)

    assert api.count(SLICES) == 0
    assert directory.slices_trouble is None


@pytest.mark.parametrize(("version", "requests"), [("v1", 1), ("v1beta2", 2), ("v1beta1", 3)])
def test_a_device_that_is_met_is_looked_up_at_once(
    api: KubeApi, start: Callable[..., KubeDirectory], version: str, requests: int
) -> None:
    basic = version == "v1beta1"
    elsewhere = slice_json({"gpu-1": "GPU-1"}, node="node-2", pool="node-2", basic=basic)
    api.slices = {version: [slice_json({"gpu-0": GPU, "mig-1": MIG}, basic=basic), elsewhere]}
    directory = start(api, dynamic_resources=True)

    assert until(lambda: directory.claimed_uuid(device())) == GPU
    assert directory.claimed_uuid(device("mig-1")) == MIG
    assert directory.claimed_uuid(device("gpu-1", "node-2")) is None
    assert api.count(SLICES) == requests
    assert api.wait_for(SLICES, requests).path == f"/apis/resource.k8s.io/{version}/resourceslices"
    assert api.wait_for(SLICES, requests).query["fieldSelector"] == "spec.nodeName=node-1"


def test_what_is_known_is_not_asked_again_nor_the_unknown_within_the_minute(
    api: KubeApi, start: Callable[..., KubeDirectory]
) -> None:
    api.slices = {"v1": [slice_json({"gpu-0": GPU})]}
    directory = start(api, dynamic_resources=True)
    until(lambda: directory.claimed_uuid(device()))

    assert directory.claimed_uuid(device("gpu-9")) is None
    let_time_pass(api, directory)
    assert directory.claimed_uuid(device("gpu-9")) is None
    let_time_pass(api, directory)
    assert api.count(SLICES) == 1


def test_when_all_is_known_it_is_not_asked_any_more(api: KubeApi, start: Callable[..., KubeDirectory]) -> None:
    api.slices = {"v1": [slice_json({"gpu-0": GPU})]}
    directory = start(api, dynamic_resources=True, slices_interval_seconds=0.001)
    until(lambda: directory.claimed_uuid(device()))

    let_time_pass(api, directory)
    asked = api.count(SLICES)
    let_time_pass(api, directory)
    assert api.count(SLICES) == asked


def test_a_new_device_is_found_when_the_minute_is_over(api: KubeApi, start: Callable[..., KubeDirectory]) -> None:
    api.slices = {"v1beta1": [slice_json({"gpu-0": GPU}, basic=True)]}
    directory = start(api, dynamic_resources=True, slices_interval_seconds=0.01)
    until(lambda: directory.claimed_uuid(device()))

    api.slices = {"v1beta1": [slice_json({"gpu-0": GPU, "mig-1": MIG}, basic=True)]}
    assert until(lambda: directory.claimed_uuid(device("mig-1"))) == MIG
    paths = [request.path.split("/")[3] for request in api.requests if request.kind == SLICES]
    assert paths[:3] == ["v1", "v1beta2", "v1beta1"]
    assert set(paths[3:]) == {"v1beta1"}


def test_trouble_with_slices_is_told_apart_and_ends(api: KubeApi, start: Callable[..., KubeDirectory]) -> None:
    api.refusals[SLICES] = 403
    api.slices = {"v1": [slice_json({"gpu-0": GPU})]}
    directory = start(api, dynamic_resources=True, slices_interval_seconds=0.01)
    assert directory.claimed_uuid(device()) is None

    until(lambda: "a right on resourceslices" in (directory.slices_trouble or ""))
    assert api.wait_for(SLICES, 1).path == "/apis/resource.k8s.io/v1/resourceslices"
    until(lambda: directory.trouble is None)
    api.refusals.clear()
    assert until(lambda: directory.claimed_uuid(device())) == GPU
    until(lambda: directory.slices_trouble is None)


def test_a_cluster_without_slices_is_named_and_found_once_it_has_them(
    api: KubeApi, start: Callable[..., KubeDirectory]
) -> None:
    directory = start(api, dynamic_resources=True, slices_interval_seconds=0.01)
    directory.claimed_uuid(device())
    until(lambda: "offers no ResourceSlices" in (directory.slices_trouble or ""))

    api.slices = {"v1beta2": [slice_json({"gpu-0": GPU})]}
    assert until(lambda: directory.claimed_uuid(device())) == GPU


def test_a_version_that_an_upgrade_has_taken_away_is_looked_for_anew(
    api: KubeApi, start: Callable[..., KubeDirectory]
) -> None:
    api.slices = {"v1beta1": [slice_json({"gpu-0": GPU}, basic=True)]}
    directory = start(api, dynamic_resources=True, slices_interval_seconds=0.01)
    until(lambda: directory.claimed_uuid(device()))

    api.slices = {"v1": [slice_json({"gpu-0": GPU, "mig-1": MIG})]}
    assert until(lambda: directory.claimed_uuid(device("mig-1"))) == MIG


def test_slices_are_never_asked_for_where_the_settings_say_so(
    api: KubeApi, start: Callable[..., KubeDirectory]
) -> None:
    api.slices = {"v1": [slice_json({"gpu-0": GPU})]}
    directory = start(api, dynamic_resources=False)
    assert directory.claimed_uuid(device()) is None
    api.wait_for(WATCH, 1)

    assert directory.slices_trouble is None
    assert api.count(SLICES) == 0


def test_slices_of_an_earlier_generation_do_not_hold() -> None:
    old = slice_json({"gpu-0": "GPU-old", "gpu-1": GPU}, generation=1)
    new = slice_json({"gpu-0": GPU}, generation=2)
    other = slice_json({"nic-0": "N"}, driver="nic.example.com", generation=1)

    expected = {device(): GPU, device("nic-0", driver="nic.example.com"): "N"}
    assert uuids(old, new, other) == uuids(new, old, other) == expected


def test_attributes_may_be_written_with_their_domain_or_be_of_other_kinds() -> None:
    given = slice_json({"a": GPU, "b": GPU, "c": GPU})
    attributes = [entry["attributes"] for entry in given["spec"]["devices"]]
    attributes[0]["gpu.nvidia.com/uuid"] = attributes[0].pop("uuid")
    attributes[1]["uuid"] = {"int": 5}
    del attributes[2]["uuid"]

    assert uuids(given) == {device("a"): GPU}
    assert uuids({"spec": {"driver": "d", "pool": {"name": "p"}, "devices": None}}, {}) == {}
