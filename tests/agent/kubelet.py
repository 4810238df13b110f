"""A kubelet for tests: a real gRPC server on a unix socket with the PodResources API, and its protobuf by hand.

    with Kubelet(tmp_path / "kubelet.sock") as kubelet:
        kubelet.containers = [holds("train", "nvidia.com/gpu", "GPU-…")]

What it says, it is told by its attributes, at any time.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from gpumon.agent.ports import ContainerDevices
from tests.agent.doors import PATIENCE_SECONDS

SERVICE = "v1.PodResourcesLister"
LIST = "List"
ALLOCATABLE = "GetAllocatableResources"


def holds(
    pod: str, resource: str, *device_ids: str, namespace: str = "default", container: str = "main"
) -> ContainerDevices:
    """A container that holds devices of one resource."""
    return ContainerDevices(namespace, pod, container, {resource: device_ids})


class Kubelet:
    """The kubelet of a node. Runs inside its `with`; `stop` and `start` restart it on the same socket.

    `containers` and `allocatable` are what it answers; with `allocatable` None it is too old for that call.
    `message` is, where set, what either call is answered instead. `calls` counts them by name, `asked` is
    released at each. While `hang` is true, it takes calls and answers none."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.containers: Sequence[ContainerDevices] = ()
        self.allocatable: Mapping[str, Collection[str]] | None = {}
        self.message: bytes | None = None
        self.calls: Counter[str] = Counter()
        self.asked = threading.Semaphore(0)
        self._failure: tuple[grpc.StatusCode, str] | None = None
        self._answering = threading.Event()
        self._answering.set()
        self._server: grpc.Server | None = None

    def __enter__(self) -> Kubelet:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serves. Raises RuntimeError where the socket can't be bound."""
        # A call that hangs has a thread each, so that those after it can be taken.
        self._server = grpc.server(ThreadPoolExecutor(8, thread_name_prefix="kubelet"))
        calls = {
            name: grpc.unary_unary_rpc_method_handler(answer)
            for name, answer in {LIST: self._list, ALLOCATABLE: self._get_allocatable}.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, calls),))
        self._server.add_insecure_port(f"unix:{self.socket}")
        self._server.start()

    def stop(self) -> None:
        """Cuts every connection and takes the socket away, as the end of a kubelet does."""
        self.hang = False
        if self._server is not None:
            self._server.stop(grace=None).wait(PATIENCE_SECONDS)
            self._server = None
        self.socket.unlink(missing_ok=True)

    def fail_with(self, status: grpc.StatusCode | None, details: str = "") -> None:
        """Answers every call with this status; with None, the calls are answered again."""
        self._failure = None if status is None else (status, details)

    @property
    def hang(self) -> bool:
        return not self._answering.is_set()

    @hang.setter
    def hang(self, hang: bool) -> None:
        if hang:
            self._answering.clear()
        else:
            self._answering.set()

    def _list(self, _: bytes, context: grpc.ServicerContext) -> bytes:
        self._receive(LIST, context)
        return list_response(self.containers) if self.message is None else self.message

    def _get_allocatable(self, _: bytes, context: grpc.ServicerContext) -> bytes:
        self._receive(ALLOCATABLE, context)
        if self.allocatable is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"unknown method {ALLOCATABLE}")
        return allocatable_response(self.allocatable or {}) if self.message is None else self.message

    def _receive(self, call: str, context: grpc.ServicerContext) -> None:
        self.calls[call] += 1
        self.asked.release()
        self._answering.wait(PATIENCE_SECONDS)
        if self._failure is not None:
            context.abort(*self._failure)


def list_response(containers: Iterable[ContainerDevices]) -> bytes:
    """ListPodResourcesResponse: containers of one pod that follow each other are in one PodResources. With each
    container go CPUs and memory, which a kubelet with static managers lists, too."""
    pods: list[tuple[tuple[str, str], list[bytes]]] = []
    for each in containers:
        name = (each.namespace, each.pod)
        if not pods or pods[-1][0] != name:
            pods.append((name, []))
        pods[-1][1].append(_container(each))
    return b"".join(
        nested(1, text(1, pod) + text(2, namespace) + b"".join(nested(3, each) for each in containers_of))
        for (namespace, pod), containers_of in pods
    )


def allocatable_response(devices: Mapping[str, Collection[str]]) -> bytes:
    """AllocatableResourcesResponse, an entry for each device, as the kubelet makes them, and the node's CPUs."""
    each_alone = [device_entry(resource, [one]) for resource, ids in devices.items() for one in ids]
    return b"".join(nested(1, entry) for entry in each_alone) + nested(2, b"\x00\x01\x02\x03")


def device_entry(resource: str, device_ids: Iterable[str]) -> bytes:
    """ContainerDevices, with the NUMA node that its devices are on."""
    topology = nested(1, number(1, 1))
    return text(1, resource) + b"".join(text(2, one) for one in device_ids) + nested(3, topology)


def nested(field: int, message: bytes) -> bytes:
    """A field of bytes or of a message."""
    return varint(field << 3 | 2) + varint(len(message)) + message


def text(field: int, value: str) -> bytes:
    """A field of text; none at all where it is empty, as in proto3."""
    return nested(field, value.encode()) if value else b""


def number(field: int, value: int) -> bytes:
    """A field of an integer."""
    return varint(field << 3) + varint(value)


def varint(value: int) -> bytes:
    """An integer that is not negative, seven bits to a byte, the least first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _container(container: ContainerDevices) -> bytes:
    devices = [device_entry(resource, ids) for resource, ids in container.device_ids.items()]
    claims = [
        text(2, "claim")
        + text(3, container.namespace)
        + nested(
            4,
            nested(1, text(1, f"{claimed.driver}/claim={claimed.device}"))
            + text(2, claimed.driver)
            + text(3, claimed.pool)
            + text(4, claimed.device),
        )
        for claimed in container.claimed
    ]
    memory = text(1, "memory") + number(2, 1 << 30)
    return (
        text(1, container.container)
        + b"".join(nested(2, entry) for entry in devices)
        + nested(3, b"\x02\x03")
        + nested(4, memory)
        + b"".join(nested(5, claim) for claim in claims)
    )
