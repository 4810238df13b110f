"""The kubelet's answers: protobuf messages of `v1.PodResourcesLister`, decoded by hand; pure.

    ListPodResourcesResponse       pod_resources=1
      PodResources                 name=1, namespace=2, containers=3
        ContainerResources         name=1, devices=2, dynamic_resources=5
          ContainerDevices         resource_name=1, device_ids=2
          DynamicResource          claim_resources=4
            ClaimResource          driver_name=2, pool_name=3, device_name=4
    AllocatableResourcesResponse   devices=1 (ContainerDevices)

Every field that is read is of text or a message; see `gpumon.agent.protobuf` for what is skipped, and what is
Malformed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gpumon.agent.ports import ClaimedDevice, ContainerDevices
from gpumon.agent.protobuf import Malformed, as_text, known_fields

__all__ = ["Malformed", "allocatable_response", "list_response"]


def list_response(message: bytes) -> list[ContainerDevices]:
    """The containers that hold a device, of a ListPodResourcesResponse, in its order. What a container holds of
    one resource is together, however many entries the kubelet gives it. Raises Malformed."""
    return [
        container
        for _, pod in known_fields(message, 1)
        for container in _pod(pod)
        if container.device_ids or container.claimed
    ]


def allocatable_response(message: bytes) -> dict[str, frozenset[str]]:
    """Resource name → device ids, of an AllocatableResourcesResponse. Raises Malformed."""
    entries = (entry for _, entry in known_fields(message, 1))
    return {resource: frozenset(ids) for resource, ids in _merged(entries).items()}


def _pod(message: bytes) -> Iterator[ContainerDevices]:
    name = namespace = ""
    containers = []
    for field, value in known_fields(message, 1, 2, 3):
        if field == 1:
            name = as_text(value)
        elif field == 2:
            namespace = as_text(value)
        else:
            containers.append(value)
    for container in containers:
        yield _container(container, namespace, name)


def _container(message: bytes, namespace: str, pod: str) -> ContainerDevices:
    name = ""
    devices: list[bytes] = []
    claimed: dict[ClaimedDevice, None] = {}
    for field, value in known_fields(message, 1, 2, 5):
        if field == 1:
            name = as_text(value)
        elif field == 2:
            devices.append(value)
        else:
            claimed |= dict.fromkeys(_claimed(value))
    return ContainerDevices(namespace, pod, name, _merged(devices), tuple(claimed))


def _merged(entries: Iterable[bytes]) -> dict[str, tuple[str, ...]]:
    """Resource name → its device ids of all the ContainerDevices, each once. A resource without any is none."""
    merged: dict[str, dict[str, None]] = {}
    for entry in entries:
        resource = ""
        ids = []
        for field, value in known_fields(entry, 1, 2):
            if field == 1:
                resource = as_text(value)
            else:
                ids.append(as_text(value))
        if ids:
            merged.setdefault(resource, {}).update(dict.fromkeys(ids))
    return {resource: tuple(ids) for resource, ids in merged.items()}


def _claimed(dynamic_resource: bytes) -> Iterator[ClaimedDevice]:
    """The devices of a claim. One without a name is left out: before Kubernetes 1.31 the kubelet gave none."""
    for _, claim in known_fields(dynamic_resource, 4):
        names = {2: "", 3: "", 4: ""}
        for field, value in known_fields(claim, *names):
            names[field] = as_text(value)
        if names[4]:
            yield ClaimedDevice(*names.values())
