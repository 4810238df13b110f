"""The socket of one resource in the kubelet's directory: served, and registered with the kubelet.

A kubelet that starts deletes every socket in its directory and makes its own anew. So a new kubelet.sock means:
serve a new socket, and register again. The same is done where the kubelet refuses, or does not watch any more,
every RETRY_SECONDS.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from grpclib.protocol import H2Protocol
from grpclib.server import Server

from gpumon import clock
from gpumon.agent.fakedeviceplugin import messages
from gpumon.agent.fakedeviceplugin.devices import Device
from gpumon.agent.fakedeviceplugin.service import DevicePlugin, RawBytes
from gpumon.clock import Monotonic
from gpumon.logs import Trouble

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
_REGISTER_SECONDS = 5.0
_CLOSE_SECONDS = 1.0
_REGISTER = "/v1beta1.Registration/Register"

SocketId = tuple[int, ...]
"""Tells a socket from another of the same path."""


class Endpoint:
    """One resource. `keep` is called again and again; `close` once."""

    def __init__(self, resource: str, kubelet: Path, *, monotonic: Monotonic = clock.monotonic) -> None:
        self._resource = resource
        self._kubelet = kubelet
        self._socket = kubelet.with_name(f"gpumon-{resource.rpartition('/')[2]}.sock")
        self._monotonic = monotonic
        self._service = DevicePlugin()
        self._server: Server | None = None
        self._registered_at: SocketId | None = None
        self._again_from = 0.0
        self._trouble = Trouble(log, f"register resource={resource}", monotonic=monotonic)

    async def keep(self, devices: Sequence[Device], kubelet: SocketId) -> None:
        """Offers these devices to the kubelet of this socket, with which it is registered if it is not yet.
        Trouble is logged, not raised."""
        self._service.offer(devices)
        new = kubelet != self._registered_at
        if self._service.watchers and not new:
            self._trouble.ended()
            return
        if self._monotonic() < self._again_from and not new:
            return
        if not new and self._trouble.reason is None:
            self._trouble.occurred(
                "the kubelet does not watch it any more", do="see the kubelet's log for this resource"
            )
        self._registered_at = kubelet
        self._again_from = self._monotonic() + RETRY_SECONDS
        try:
            await self._serve()
            await self._register()
        except TimeoutError:
            self._trouble.occurred(f"the kubelet does not answer in {_REGISTER_SECONDS:g} s", do="see its log")
        except GRPCError as error:
            self._trouble.occurred(
                f"the kubelet refuses: {error.message or error.status.name}", do="see its log for this resource"
            )
        except (ProtocolError, StreamTerminatedError) as error:
            self._trouble.occurred(f"no gRPC on {self._kubelet}: {error}", do="see whose socket that is")
        except OSError as error:
            self._trouble.occurred(
                error.strerror or str(error),
                do=f"mount the node's {self._kubelet.parent} writable, run as uid 0, see whether the kubelet runs",
            )
        else:
            log.info("registered resource=%s devices=%d socket=%s", self._resource, len(devices), self._socket)

    async def close(self) -> None:
        """Ends what is served, and takes the socket away. Harmless where nothing is."""
        if self._server is None:
            return
        server, self._server = self._server, None
        self._service.end_watches()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._service.unwatched.wait()
        server.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await server.wait_closed()
        self._socket.unlink(missing_ok=True)

    async def _serve(self) -> None:
        """Serves a socket that is new: the one before may have been deleted by the kubelet."""
        await self.close()
        self._server = _Server(self._service)
        try:
            await self._server.start(path=str(self._socket))
        except OSError:
            self._server = None
            raise

    async def _register(self) -> None:
        request = messages.register_request(self._socket.name, self._resource)
        async with (
            asyncio.timeout(_REGISTER_SECONDS),
            Channel(path=str(self._kubelet), codec=RawBytes()) as channel,
        ):
            await UnaryUnaryMethod[bytes, bytes](channel, _REGISTER, bytes, bytes)(request)


class _Server(Server):
    """A server that closes its connections with itself. grpclib's leaves that to the other side, and asyncio waits
    for it from Python 3.12 on."""

    def __init__(self, service: DevicePlugin) -> None:
        super().__init__([service], codec=RawBytes())
        self._connections: list[H2Protocol] = []

    def close(self) -> None:
        """Takes no more connections, and ends those that there are."""
        super().close()
        for connection in self._connections:
            if hasattr(connection, "processor"):  # one that was accepted just now has none yet
                connection.processor.close()

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        self._connections.append(protocol)
        return protocol
