"""The kubelet's protobuf: what is read of it, what is skipped, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumon.agent.podresources.wire import Malformed, allocatable_response, list_response
from gpumon.agent.ports import ClaimedDevice, ContainerDevices
from tests.agent import kubelet
from tests.agent.kubelet import device_entry, holds, nested, number, text

GPU = "nvidia.com/gpu"

PROTOC_LIST = bytes.fromhex(
    "0a6f0a07747261696e2d3012026d6c1a550a046d61696e122f0a0e6e76696469612e636f6d2f67707512054750552d6112054750552d62"
    "1a0f0a000a0b08ffffffffffffffffff011a040203c80122160a0d6875676570616765732d324d69108080808080201a090a0773696465"
    "6361720a600a05736572766512026d6c1a530a046d61696e2a4b12036770751a026d6c22400a1c0a1a6b38732e6770752e6e7669646961"
    "2e636f6d2f636c61696d3d31120e6770752e6e76696469612e636f6d1a066e6f64652d3122056770752d302a0173"
)
PROTOC_ALLOCATABLE = bytes.fromhex(
    "0a1d0a0e6e76696469612e636f6d2f67707512054750552d611a040a0208010a1d0a0e6e76696469612e636f6d2f67707512054750552d62"
    "1a040a020801120200011a0a0a066d656d6f72791001"
)
"""Encoded by Google's protobuf from the kubelet's .proto file: pod train-0 with two GPUs and a sidecar, pod serve
with a claim, and CPUs, huge pages, a NUMA node of -1, a share id; and what the same node could give out."""

UNKNOWN = {
    "integer": number(99, 1 << 63),
    "fixed64": b"\xb9\x06" + bytes(8),
    "bytes": nested(99, b"\xff\xff\xff"),
    "group": b"\xbb\x06" + number(1, 7) + b"\x13" + nested(2, b"\x04") + b"\x14" + b"\xbc\x06",
    "fixed32": b"\xbd\x06" + bytes(4),
    "largest number": b"\xfa\xff\xff\xff\x0f\x00",
}
"""Fields of a number that the messages don't have, of each type. The group has a group inside."""


def container_message(*fields: bytes) -> bytes:
    """A ListPodResourcesResponse of one container with these fields."""
    return nested(1, text(1, "pod") + text(2, "ns") + nested(3, text(1, "main") + b"".join(fields)))


def claim(*fields: bytes) -> bytes:
    """A container's field for one claim of one device."""
    return nested(5, nested(4, b"".join(fields)))


def test_googles_own_encoding_is_read() -> None:
    assert list_response(PROTOC_LIST) == [
        ContainerDevices("ml", "train-0", "main", {GPU: ("GPU-a", "GPU-b")}),
        ContainerDevices("ml", "serve", "main", {}, (ClaimedDevice("gpu.nvidia.com", "node-1", "gpu-0"),)),
    ]
    assert allocatable_response(PROTOC_ALLOCATABLE) == {GPU: frozenset({"GPU-a", "GPU-b"})}


def test_a_message_of_nothing_is_a_node_that_nobody_uses() -> None:
    assert list_response(b"") == []
    assert allocatable_response(b"") == {}


def test_entries_of_one_resource_are_one_in_their_order_and_each_device_is_there_once() -> None:
    entries = [(GPU, "GPU-b"), ("rdma/ib", "ib0"), (GPU, "GPU-a"), (GPU, "GPU-b")]

    (container,) = list_response(
        container_message(*(nested(2, device_entry(name, [one])) for name, one in entries))
    )

    assert container.device_ids == {GPU: ("GPU-b", "GPU-a"), "rdma/ib": ("ib0",)}
    allocatable = b"".join(nested(1, device_entry(name, [one])) for name, one in entries)
    assert allocatable_response(allocatable) == {GPU: {"GPU-b", "GPU-a"}, "rdma/ib": {"ib0"}}


def test_a_resource_without_devices_is_none() -> None:
    assert list_response(container_message(nested(2, device_entry(GPU, [])))) == []
    assert allocatable_response(nested(1, device_entry(GPU, []))) == {}


def test_a_claim_is_its_devices_each_once_and_one_without_a_name_is_none() -> None:
    device = text(2, "gpu.nvidia.com") + text(3, "node-1")

    (container,) = list_response(
        container_message(
            claim(device, text(4, "gpu-1")), claim(device, text(4, "gpu-0")), claim(device, text(4, "gpu-1"))
        )
    )

    assert [one.device for one in container.claimed] == ["gpu-1", "gpu-0"]
    assert list_response(container_message(claim(nested(1, text(1, "k8s.gpu.nvidia.com/claim=1"))))) == []


def test_names_come_after_what_they_name_as_well_as_before() -> None:
    inside = nested(2, text(2, "GPU-a") + text(1, GPU)) + text(1, "main")

    assert list_response(nested(1, nested(3, inside) + text(2, "default") + text(1, "train"))) == [
        holds("train", GPU, "GPU-a")
    ]


def test_text_that_is_no_utf_8_is_read_as_far_as_it_is() -> None:
    message = nested(1, nested(1, b"tr\xffin") + nested(3, nested(2, text(1, GPU) + nested(2, b"GPU-\xc3"))))

    assert list_response(message) == [ContainerDevices("", "tr\ufffdin", "", {GPU: ("GPU-\ufffd",)})]


@pytest.mark.parametrize("unknown", UNKNOWN.values(), ids=UNKNOWN)
def test_a_field_that_a_newer_kubelet_adds_is_skipped_wherever_it_is(unknown: bytes) -> None:
    def around(*fields: bytes) -> bytes:
        return unknown + unknown.join(fields) + unknown

    devices = around(text(1, GPU), text(2, "GPU-a"))
    claimed = around(text(2, "driver"), text(3, "pool"), text(4, "device"))
    container = around(text(1, "main"), nested(2, devices), nested(5, around(nested(4, claimed))))
    pod = around(text(1, "train"), text(2, "default"), nested(3, container))

    assert list_response(around(nested(1, pod))) == [
        ContainerDevices(
            "default", "train", "main", {GPU: ("GPU-a",)}, (ClaimedDevice("driver", "pool", "device"),)
        )
    ]
    assert allocatable_response(around(nested(1, devices))) == {GPU: {"GPU-a"}}


GOOD = kubelet.list_response([holds("train", GPU, "GPU-a")])
MALFORMED = {
    "another type": number(1, 7),
    "another type inside": nested(1, number(1, 7)),
    "length past the end": b"\x0a\x05" + text(1, "ab"),
    "length past the end of an unknown field": b"\x7a\x05abcd",
    "length past the end of the message inside": nested(1, b"\x0a\x05abcd") + b"more",
    "integer past the end": b"\x78\x80",
    "integer of eleven bytes": b"\x78" + b"\x80" * 10 + b"\x01",
    "tag past the end": b"\xfa",
    "fixed64 past the end": b"\x79" + bytes(7),
    "fixed32 past the end": b"\x7d" + bytes(3),
    "field zero": b"\x02\x00",
    "number too large": b"\xf8\xff\xff\xff\x1f\x00",
    "type six": b"\x7e",
    "type seven": b"\x7f",
    "group without an end": b"\x7b\x08\x01",
    "group without a start": b"\x7c",
    "group with the end of another": b"\x7b\x84\x01",
    "group with an end of its own and one more": b"\x7b\x7c\x7c",
    "type six in a group": b"\x7b\x7e",
    "field zero in a group": b"\x7b\x00\x00\x7c",
}


@pytest.mark.parametrize("message", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_refused_as_a_whole(message: bytes) -> None:
    for decode in (list_response, allocatable_response):
        with pytest.raises(Malformed):
            decode(message)
    with pytest.raises(Malformed):
        list_response(GOOD + message)


def test_groups_in_groups_are_skipped_however_many() -> None:
    assert list_response(b"\x7b" * 100_000 + b"\x7c" * 100_000 + GOOD) == [holds("train", GPU, "GPU-a")]


names = st.text(max_size=20).filter(lambda name: not any("\ud800" <= letter <= "\udfff" for letter in name))
named = st.text(st.characters(codec="utf-8"), min_size=1, max_size=200)
containers = st.builds(
    ContainerDevices,
    names,
    names,
    names,
    st.dictionaries(names, st.lists(names, min_size=1, max_size=4, unique=True).map(tuple), max_size=3),
    st.lists(st.builds(ClaimedDevice, names, names, named), max_size=3, unique=True).map(tuple),
)


@given(st.lists(containers, max_size=5))
def test_what_the_kubelet_says_is_what_is_read(listed: list[ContainerDevices]) -> None:
    # An empty name is left out of the encoding, and an empty id with it.
    listed = [
        ContainerDevices(
            each.namespace,
            each.pod,
            each.container,
            {name: held for name, ids in each.device_ids.items() if (held := tuple(filter(None, ids)))},
            each.claimed,
        )
        for each in listed
    ]

    read = list_response(kubelet.list_response(listed))

    assert read == [each for each in listed if each.device_ids or each.claimed]


@given(st.dictionaries(named, st.frozensets(named, min_size=1, max_size=5), max_size=5))
def test_what_could_be_given_out_is_what_is_read(devices: dict[str, frozenset[str]]) -> None:
    assert allocatable_response(kubelet.allocatable_response(devices)) == devices


def damaged(draw: Any) -> bytes:
    message = bytearray(PROTOC_LIST)
    for _ in range(draw(st.integers(1, 4))):
        message[draw(st.integers(0, len(message) - 1))] = draw(st.integers(0, 255))
    return bytes(message[: draw(st.integers(0, len(message)))])


@settings(max_examples=1000)
@given(st.binary(max_size=200) | st.composite(damaged)())
def test_no_bytes_bring_anything_but_an_answer_or_malformed(message: bytes) -> None:
    for decode in (list_response, allocatable_response):
        try:
            decode(message)
        except Malformed as error:
            assert str(error)
