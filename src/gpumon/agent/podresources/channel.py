"""Unary gRPC calls over a unix socket, by httpx: a POST over HTTP/2, a message in a frame of its own.

One connection is kept. It is closed after anything but a complete answer, and opened anew by the next call; a call
that finds the kept one dead (the server was restarted) does that at once, once.

Time: all of a call has `timeout_seconds`. httpx's timeouts are for each read, and a server that drips never meets
one; so each read is given what is left. Memory: an answer that would be longer than MESSAGE_BYTES is not read.

httpx does not show trailers that follow a body. A call that failed has none, and its status is among the headers;
an answer that was broken off is known by its length.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

import h2.exceptions
import httpx

from gpumon.clock import Monotonic

MESSAGE_BYTES = 16 * 1024 * 1024
"""The longest message that is taken: thousands of pods are less."""

UNKNOWN = 2
_FRAME_HEADER_BYTES = 5
_SHOWN = 200
"""Characters of the server's words that are worth showing."""
_HEADERS = {"Content-Type": "application/grpc", "TE": "trailers"}
_ONE_KEPT = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=None)


class Refused(Exception):
    """The server answered with a status that is not OK: `status` is gRPC's number for it, `said` its words, "" for
    none."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(status, said)
        self.status = status
        self.said = said


class BadAnswer(Exception):
    """An answer that is none by the rules of gRPC. The text says why, in a few words."""


class Channel:
    """Calls of one server. Used by one thread at a time."""

    def __init__(self, socket_path: Path, *, timeout_seconds: float, monotonic: Monotonic) -> None:
        self._socket_path = socket_path
        self._timeout_seconds = timeout_seconds
        self._monotonic = monotonic
        self._kept: httpx.HTTPTransport | None = None

    def call(self, method: str) -> bytes:
        """The message that answers an empty one. `method` is `/package.Service/Method`. Raises Refused; BadAnswer;
        OSError where the socket can't be connected; and of httpx.TransportError TimeoutException where there is no
        complete answer in time, LocalProtocolError for what is not HTTP/2, others where the connection breaks."""
        time_left = _TimeLeft(self._monotonic() + self._timeout_seconds, self._monotonic)
        kept, self._kept = self._kept, None
        if kept is not None:
            try:
                return self._ask(kept, method, time_left)
            except (httpx.NetworkError, httpx.ProtocolError):
                pass  # it died since the last call
        return self._ask(self._connected(time_left), method, time_left)

    def close(self) -> None:
        """Closes the connection. Harmless when there is none."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    def _connected(self, time_left: _TimeLeft) -> httpx.HTTPTransport:
        """A transport to a server that takes connections. It is tried by one of our own, for httpx hides the
        system's error, and leaves the socket of a connection that fails open until it is collected."""
        with socket.socket(socket.AF_UNIX) as knock:
            knock.settimeout(time_left["connect"])
            knock.connect(str(self._socket_path))
        # Certificates cost memory and are not needed on a socket of this machine.
        return httpx.HTTPTransport(
            uds=str(self._socket_path), http1=False, http2=True, verify=False, limits=_ONE_KEPT
        )

    def _ask(self, transport: httpx.HTTPTransport, method: str, time_left: _TimeLeft) -> bytes:
        request = httpx.Request(
            "POST",
            f"http://localhost{method}",
            headers=_HEADERS,
            content=bytes(_FRAME_HEADER_BYTES),
            extensions={"timeout": time_left},
        )
        try:
            response = transport.handle_request(request)
            status, said = _status(response)
            message = _message(response) if status == 0 else _none(response)
        except (h2.exceptions.H2Error, ValueError) as error:  # httpcore lets some through as they are
            transport.close()
            raise httpx.LocalProtocolError(str(error)) from error
        except BaseException:
            transport.close()
            raise
        self._kept = transport
        if status != 0:
            raise Refused(status, said)
        return message


class _TimeLeft(Mapping[str, float]):
    """httpx's timeouts of a request, whichever it asks for: the seconds left until `deadline`. Raises
    httpx.ReadTimeout when there are none."""

    def __init__(self, deadline: float, monotonic: Monotonic) -> None:
        self._deadline = deadline
        self._monotonic = monotonic

    def __getitem__(self, _: str) -> float:
        left = self._deadline - self._monotonic()
        if left <= 0:
            raise httpx.ReadTimeout("the answer does not end")
        return left

    def __iter__(self) -> Iterator[str]:
        return iter(("connect", "read", "write", "pool"))

    def __len__(self) -> int:
        return 4


def _status(response: httpx.Response) -> tuple[int, str]:
    """gRPC's status among the headers, and the server's words; (0, "") while none has been said. Raises BadAnswer
    where something else than gRPC answers."""
    content_type = response.headers.get("Content-Type", "")
    if response.status_code != httpx.codes.OK or not content_type.startswith("application/grpc"):
        raise BadAnswer(f"it is HTTP {response.status_code} of type {content_type[:_SHOWN]!r}")
    status = response.headers.get("grpc-status", "0")
    said = " ".join(unquote(response.headers.get("grpc-message", "")).split())
    return int(status) if status.isascii() and status.isdigit() else UNKNOWN, said[:_SHOWN]


def _message(response: httpx.Response) -> bytes:
    """The one message of an answer, read to its end. Raises BadAnswer."""
    received = bytearray()
    announced = 0
    for chunk in response.iter_raw():
        received += chunk
        if len(received) >= _FRAME_HEADER_BYTES:
            compressed, announced = struct.unpack_from(">BI", received)
            if compressed:
                raise BadAnswer("it is compressed, though that was not offered")
            if announced > MESSAGE_BYTES:
                raise BadAnswer(f"it is longer than {MESSAGE_BYTES >> 20} MiB")
            if len(received) > _FRAME_HEADER_BYTES + announced:
                raise BadAnswer("it is more than one message")
    if not received:
        raise BadAnswer("it is empty")
    if len(received) < _FRAME_HEADER_BYTES + announced:
        raise BadAnswer("it is broken off")
    return bytes(memoryview(received)[_FRAME_HEADER_BYTES:])


def _none(response: httpx.Response) -> bytes:
    """What a call that failed has of a message: nothing. Its answer is read to the end, so that the connection can
    be kept."""
    for _ in response.iter_raw():
        pass
    return b""
