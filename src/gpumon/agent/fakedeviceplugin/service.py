"""What the device plugin answers to the kubelet about one resource: v1beta1.DevicePlugin, by grpclib.

A kubelet that watches is sent the devices at once, and again whenever they change. What can't be answered is
refused as INVALID_ARGUMENT, with a sentence that the kubelet shows among the pod's events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from gpumon.agent.fakedeviceplugin import messages
from gpumon.agent.fakedeviceplugin.devices import Device, preferred, uuids
from gpumon.agent.protobuf import Malformed

Call = Stream[bytes, bytes]


class RawBytes(CodecBase):
    """Messages pass as they are: `messages` reads and writes them."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        """The message itself."""
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> bytes:
        """The message itself."""
        return data


class DevicePlugin:
    """The service of one resource. `watchers` counts the kubelets that watch it: one, or none; `unwatched` is set
    while there is none."""

    def __init__(self) -> None:
        self.watchers = 0
        self.unwatched = asyncio.Event()
        self.unwatched.set()
        self._devices: Sequence[Device] = ()
        self._news = asyncio.Event()
        self._watches_ended = 0

    def offer(self, devices: Sequence[Device]) -> None:
        """From now on these are the devices; who watches is told of a change."""
        if devices != self._devices:
            self._devices = devices
            self._tell()

    def end_watches(self) -> None:
        """Ends every watch in order, so that the kubelet hears of it at once."""
        self._watches_ended += 1
        self._tell()

    def __mapping__(self) -> dict[str, Handler]:
        """The methods by their gRPC paths, as grpclib asks for them."""
        unary = {
            "GetDevicePluginOptions": self._options,
            "GetPreferredAllocation": self._prefer,
            "Allocate": self._allocate,
            "PreStartContainer": self._pre_start,
        }
        handlers = {name: (_answering(answer), Cardinality.UNARY_UNARY) for name, answer in unary.items()}
        handlers["ListAndWatch"] = self._list_and_watch, Cardinality.UNARY_STREAM
        return {
            f"/v1beta1.DevicePlugin/{name}": Handler(call, cardinality, bytes, bytes)
            for name, (call, cardinality) in handlers.items()
        }

    async def _list_and_watch(self, call: Call) -> None:
        await call.recv_message()
        sent, ended = None, self._watches_ended
        with self._watched():
            while ended == self._watches_ended:
                devices, news = self._devices, self._news
                if devices != sent:
                    await call.send_message(messages.list_and_watch_response(devices))
                    sent = devices
                await news.wait()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        self.watchers += 1
        self.unwatched.clear()
        try:
            yield
        finally:
            self.watchers -= 1
            if not self.watchers:
                self.unwatched.set()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _options(self, _: bytes) -> bytes:
        return messages.OPTIONS

    def _allocate(self, request: bytes) -> bytes:
        """NVIDIA_VISIBLE_DEVICES, as NVIDIA's plugin sets it: the UUIDs, without the numbers of replicas."""
        wanted = messages.allocate_request(request)
        known = {device.id for device in self._devices}
        if unknown := [device_id for ids in wanted for device_id in ids if device_id not in known]:
            raise ValueError(f"there are no devices {', '.join(unknown)}")
        return messages.allocate_response(_variables(ids) for ids in wanted)

    def _prefer(self, request: bytes) -> bytes:
        wanted = messages.preferred_allocation_request(request)
        return messages.preferred_allocation_response(
            [preferred(container.available, container.must, container.size) for container in wanted]
        )

    def _pre_start(self, _: bytes) -> bytes:
        """Nothing is to be done; not asked for in the options, either."""
        return messages.EMPTY


def _variables(device_ids: Sequence[str]) -> Mapping[str, str]:
    return {"NVIDIA_VISIBLE_DEVICES": ",".join(uuids(device_ids))}


def _answering(answer: Callable[[bytes], bytes]) -> Callable[[Call], Awaitable[None]]:
    """A method that answers one message by one."""

    async def answering(call: Call) -> None:
        request = await call.recv_message()
        try:
            message = answer(request or messages.EMPTY)
        except (Malformed, ValueError) as error:
            raise GRPCError(Status.INVALID_ARGUMENT, f"the simulated device plugin: {error}") from error
        await call.send_message(message)

    return answering
