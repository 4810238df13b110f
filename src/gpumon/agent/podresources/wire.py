"""The kubelet's answers: protobuf messages of `v1.PodResourcesLister`, decoded by hand; pure.

    ListPodResourcesResponse       pod_resources=1
      PodResources                 name=1, namespace=2, containers=3
        ContainerResources         name=1, devices=2, dynamic_resources=5
          ContainerDevices         resource_name=1, device_ids=2
          DynamicResource          claim_resources=4
            ClaimResource          driver_name=2, pool_name=3, device_name=4
    AllocatableResourcesResponse   devices=1 (ContainerDevices)

Every field that is read is of text or a message. All others, known or not, are skipped: a newer kubelet may say
more. Bytes that are no protobuf, or give one of these fields another type, are Malformed as a whole. Text that is
no UTF-8 is read with U+FFFD in the place of what is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gpumon.agent.ports import ClaimedDevice, ContainerDevices

_VARINT, _FIXED64, _BYTES, _GROUP_START, _GROUP_END, _FIXED32 = 0, 1, 2, 3, 4, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_LARGEST_TAG = 0xFFFF_FFFF


class Malformed(Exception):
    """Bytes that are not the message they should be. The text says why, in a few words."""


def list_response(message: bytes) -> list[ContainerDevices]:
    """The containers that hold a device, of a ListPodResourcesResponse, in its order. What a container holds of
    one resource is together, however many entries the kubelet gives it. Raises Malformed."""
    return [
        container
        for _, pod in _known_fields(message, 1)
        for container in _pod(pod)
        if container.device_ids or container.claimed
    ]


def allocatable_response(message: bytes) -> dict[str, frozenset[str]]:
    """Resource name → device ids, of an AllocatableResourcesResponse. Raises Malformed."""
    entries = (entry for _, entry in _known_fields(message, 1))
    return {resource: frozenset(ids) for resource, ids in _merged(entries).items()}


def _pod(message: bytes) -> Iterator[ContainerDevices]:
    name = namespace = ""
    containers = []
    for field, value in _known_fields(message, 1, 2, 3):
        if field == 1:
            name = _text(value)
        elif field == 2:
            namespace = _text(value)
        else:
            containers.append(value)
    for container in containers:
        yield _container(container, namespace, name)


def _container(message: bytes, namespace: str, pod: str) -> ContainerDevices:
    name = ""
    devices: list[bytes] = []
    claimed: dict[ClaimedDevice, None] = {}
    for field, value in _known_fields(message, 1, 2, 5):
        if field == 1:
            name = _text(value)
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
        for field, value in _known_fields(entry, 1, 2):
            if field == 1:
                resource = _text(value)
            else:
                ids.append(_text(value))
        if ids:
            merged.setdefault(resource, {}).update(dict.fromkeys(ids))
    return {resource: tuple(ids) for resource, ids in merged.items()}


def _claimed(dynamic_resource: bytes) -> Iterator[ClaimedDevice]:
    """The devices of a claim. One without a name is left out: before Kubernetes 1.31 the kubelet gave none."""
    for _, claim in _known_fields(dynamic_resource, 4):
        names = {2: "", 3: "", 4: ""}
        for field, value in _known_fields(claim, *names):
            names[field] = _text(value)
        if names[4]:
            yield ClaimedDevice(*names.values())


def _text(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")


def _known_fields(message: bytes, *numbers: int) -> Iterator[tuple[int, bytes]]:
    """(field number, value) of the fields with these numbers, in the message's order. Raises Malformed where one
    of them is of another type, and for whatever is no protobuf, in the fields between, too."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if number not in numbers:
            at = _skip(message, at, tag)
        elif kind == _BYTES:
            length, at = _varint(message, at)
            end = _within(message, at + length)
            yield number, message[at:end]
            at = end
        else:
            raise Malformed(f"field {number} is of another type")


def _skip(message: bytes, at: int, tag: int) -> int:
    """Where the field ends whose tag was read and whose value begins at `at`; a group does with its end tag."""
    groups: list[int] = []
    while True:
        number, kind = tag >> 3, tag & 7
        if number == 0 or tag > _LARGEST_TAG:
            raise Malformed("it has a field without a number that can be")
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _BYTES:
            length, at = _varint(message, at)
            at = _within(message, at + length)
        elif kind in _FIXED_BYTES:
            at = _within(message, at + _FIXED_BYTES[kind])
        elif kind == _GROUP_START:
            groups.append(number)
        elif kind != _GROUP_END or not groups or groups.pop() != number:
            raise Malformed("it has a field of no type that there is")
        if not groups:
            return at
        tag, at = _varint(message, at)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The integer at `at`, of ten bytes at most, and where it ends."""
    if at < len(message) and message[at] < 0x80:  # nearly every one
        return message[at], at + 1
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise Malformed("it ends too early")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise Malformed("it has an integer that does not end")


def _within(message: bytes, end: int) -> int:
    if end > len(message):
        raise Malformed("it ends too early")
    return end
