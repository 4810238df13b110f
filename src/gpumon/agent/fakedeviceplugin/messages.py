"""The kubelet's device plugin API v1beta1: the few protobuf messages of it, by hand; pure.

    RegisterRequest                    version=1, endpoint=2, resource_name=3, options=4 (DevicePluginOptions)
    DevicePluginOptions                pre_start_required=1, get_preferred_allocation_available=2
    ListAndWatchResponse               devices=1 (Device)
      Device                           ID=1, health=2
    AllocateRequest                    container_requests=1
      ContainerAllocateRequest         devices_ids=1
    AllocateResponse                   container_responses=1
      ContainerAllocateResponse        envs=1 (map entries: key=1, value=2)
    PreferredAllocationRequest         container_requests=1
      ContainerPreferred…Request       available_deviceIDs=1, must_include_deviceIDs=2, allocation_size=3
    PreferredAllocationResponse        container_responses=1
      ContainerPreferred…Response      deviceIDs=1

Reading raises Malformed, see `gpumon.agent.protobuf`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gpumon.agent.fakedeviceplugin.devices import Device
from gpumon.agent.protobuf import as_text, flag, known_fields, known_integer, nested, text

VERSION: Final = "v1beta1"
EMPTY: Final = b""
OPTIONS: Final = flag(2, True)
"""DevicePluginOptions: a preferred allocation can be asked for, and nothing is to be done before a container
starts."""


@dataclass(frozen=True, slots=True)
class Preference:
    """What one container shall have: `size` of the `available` ids, `must` among them."""

    available: tuple[str, ...]
    must: tuple[str, ...]
    size: int


def register_request(endpoint: str, resource: str) -> bytes:
    """RegisterRequest. `endpoint` is the name of a socket in the kubelet's directory."""
    return text(1, VERSION) + text(2, endpoint) + text(3, resource) + nested(4, OPTIONS)


def list_and_watch_response(devices: Iterable[Device]) -> bytes:
    """ListAndWatchResponse."""
    return b"".join(
        nested(1, text(1, device.id) + text(2, "Healthy" if device.healthy else "Unhealthy")) for device in devices
    )


def allocate_request(message: bytes) -> list[tuple[str, ...]]:
    """The device ids of an AllocateRequest, container by container."""
    return [
        tuple(as_text(value) for _, value in known_fields(container, 1))
        for _, container in known_fields(message, 1)
    ]


def allocate_response(environments: Iterable[Mapping[str, str]]) -> bytes:
    """AllocateResponse: the variables that are set in each container."""
    return b"".join(
        nested(1, b"".join(nested(1, text(1, name) + text(2, value)) for name, value in variables.items()))
        for variables in environments
    )


def preferred_allocation_request(message: bytes) -> list[Preference]:
    """What a PreferredAllocationRequest asks for, container by container."""
    return [_preference(container) for _, container in known_fields(message, 1)]


def preferred_allocation_response(chosen: Iterable[Sequence[str]]) -> bytes:
    """PreferredAllocationResponse: the ids for each container."""
    return b"".join(nested(1, b"".join(text(1, one) for one in ids)) for ids in chosen)


def _preference(container: bytes) -> Preference:
    ids: dict[int, list[str]] = {1: [], 2: []}
    for number, value in known_fields(container, *ids):
        ids[number].append(as_text(value))
    return Preference(tuple(ids[1]), tuple(ids[2]), known_integer(container, 3))
