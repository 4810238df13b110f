"""The device manager of a kubelet for tests: real gRPC by grpcio, in the order of the real one.

    with DeviceManager(tmp_path) as kubelet:
        …                                            # a plugin serves its socket and registers
        kubelet.wait(lambda: kubelet.ids("nvidia.com/gpu"))

At its start it deletes every socket in its directory. While a plugin still waits for the answer to its
registration, it connects the plugin's socket and asks for the options; then it watches the devices. When a watch
ends, it closes the connection.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc

from tests.agent.doors import PATIENCE_SECONDS
from tests.agent.kubelet import nested, number, text

T = TypeVar("T")
PLUGIN = "/v1beta1.DevicePlugin"


@dataclass(frozen=True)
class Registration:
    """What a plugin said of itself, and the options that it answered when it was asked."""

    version: str
    endpoint: str
    resource: str
    options: bytes
    asked_options: bytes


class DeviceManager:
    """Runs inside its `with`; `stop` and `start` restart it. `refuse` is what registrations are refused with, and
    `broken` how watches ended that the plugin broke off."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.registrations: list[Registration] = []
        self.refuse: str | None = None
        self.broken: list[str] = []
        self._devices: dict[str, dict[str, str]] = {}
        self._changed = threading.Condition()
        self._server: grpc.Server | None = None
        self._channels: dict[str, grpc.Channel] = {}
        self._watches: list[threading.Thread] = []

    def __enter__(self) -> DeviceManager:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serves on a new kubelet.sock, the only socket in the directory."""
        for path in self.directory.iterdir():
            if path.is_socket():
                path.unlink()
        self._server = grpc.server(ThreadPoolExecutor(8, thread_name_prefix="device-manager"))
        methods = {"Register": grpc.unary_unary_rpc_method_handler(self._register)}
        handler = grpc.method_handlers_generic_handler("v1beta1.Registration", methods)
        self._server.add_generic_rpc_handlers((handler,))
        self._server.add_insecure_port(f"unix:{self.directory / 'kubelet.sock'}")
        self._server.start()

    def stop(self) -> None:
        """Ends: its socket and connections are gone, and so is what it knows."""
        if self._server is not None:
            self._server.stop(grace=None).wait(PATIENCE_SECONDS)
            self._server = None
        (self.directory / "kubelet.sock").unlink(missing_ok=True)
        with self._changed:  # a watch that ends in this moment takes its channel away by itself
            channels = list(self._channels.values())
            self._channels.clear()
        for channel in channels:
            channel.close()
        for watch in self._watches:
            watch.join(PATIENCE_SECONDS)
        self._watches.clear()
        self._devices.clear()
        self.registrations.clear()

    def leave(self, resource: str) -> None:
        """Closes the connection to a plugin."""
        self._channels.pop(resource).close()

    def wait(self, ask: Callable[[], T]) -> T:
        """Waits until the answer is true, which it may become when a plugin says something."""
        with self._changed:
            assert self._changed.wait_for(ask, PATIENCE_SECONDS)
            return ask()

    def ids(self, resource: str) -> list[str]:
        """The ids of a resource, in the plugin's order."""
        return list(self._devices.get(resource, {}))

    def health(self, resource: str) -> dict[str, str]:
        """The same with the health of each."""
        return dict(self._devices.get(resource, {}))

    def resources(self) -> set[str]:
        """The resources that have devices."""
        return {resource for resource, devices in self._devices.items() if devices}

    def allocate(self, resource: str, *containers: Sequence[str]) -> list[dict[str, str]]:
        """The variables that containers get with these ids. Raises grpc.RpcError."""
        request = b"".join(nested(1, b"".join(text(1, one) for one in ids)) for ids in containers)
        answer = self.call(resource, "Allocate", request)
        return [
            {_text(entry, 1): _text(entry, 2) for _, entry in _fields(container)}
            for _, container in _fields(answer)
        ]

    def prefer(self, resource: str, available: Sequence[str], must: Sequence[str], size: int) -> list[str]:
        """The ids that the plugin would choose. Raises grpc.RpcError."""
        container = [text(1, one) for one in available] + [text(2, one) for one in must] + [number(3, size)]
        answer = self.call(resource, "GetPreferredAllocation", nested(1, b"".join(container)))
        (container_answer,) = (value for _, value in _fields(answer))
        return [value.decode() for _, value in _fields(container_answer)]

    def call(self, resource: str, method: str, request: bytes) -> bytes:
        """One call of a plugin. Raises grpc.RpcError."""
        return _unary(self._channels[resource], method)(request, timeout=PATIENCE_SECONDS)

    def _register(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        if self.refuse is not None:
            context.abort(grpc.StatusCode.UNKNOWN, self.refuse)
        fields = dict(_fields(request))
        version, endpoint, resource = (_text(request, each) for each in (1, 2, 3))
        channel = grpc.insecure_channel(
            f"unix:{self.directory / endpoint}", options=[("grpc.default_authority", "localhost")]
        )
        grpc.channel_ready_future(channel).result(PATIENCE_SECONDS)
        asked = _unary(channel, "GetDevicePluginOptions")(b"", timeout=PATIENCE_SECONDS)
        with self._changed:
            self._channels[resource] = channel
            self.registrations.append(Registration(version, endpoint, resource, fields.get(4, b""), asked))
            self._changed.notify_all()
        self._watches.append(threading.Thread(target=self._watch, args=(resource, channel), name="watch"))
        self._watches[-1].start()
        return b""

    def _watch(self, resource: str, channel: grpc.Channel) -> None:
        try:
            for message in channel.unary_stream(f"{PLUGIN}/ListAndWatch")(b""):
                devices = {_text(device, 1): _text(device, 2) for _, device in _fields(message)}
                with self._changed:
                    self._devices[resource] = devices
                    self._changed.notify_all()
        except ValueError:  # we closed it before it began
            pass
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:  # which is ours
                self.broken.append(str(error))
        channel.close()
        with self._changed:
            if self._channels.get(resource, channel) is channel:
                self._channels.pop(resource, None)
                self._devices.pop(resource, None)
            self._changed.notify_all()


def _unary(channel: grpc.Channel, method: str) -> grpc.UnaryUnaryMultiCallable:
    return channel.unary_unary(f"{PLUGIN}/{method}")


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, value) of a message whose fields are all of bytes and short."""
    at = 0
    while at < len(message):
        tag, length = message[at], message[at + 1]
        assert tag & 7 == 2
        at += 2
        if length > 0x7F:
            length, at = length & 0x7F | message[at] << 7, at + 1
        yield tag >> 3, message[at : at + length]
        at += length


def _text(message: bytes, wanted: int) -> str:
    """A field of text; empty where there is none."""
    fields: Mapping[int, bytes] = dict(_fields(message))
    return fields.get(wanted, b"").decode()
