"""Something that listens on the kubelet's socket and keeps to HTTP/2, but to nothing else."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingUnixStreamServer
from threading import Thread

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import StreamEnded


def frame(message: bytes) -> bytes:
    """A message as gRPC frames it."""
    return b"\x00" + len(message).to_bytes(4, "big") + message


class Call:
    """One call, to be answered step by step. What is sent to a client that has gone raises ConnectionError."""

    def __init__(self, connection: H2Connection, client: socket.socket, stream: int) -> None:
        self._connection = connection
        self._client = client
        self._stream = stream

    def headers(self, status: int | str = 200, *, end: bool = False, **headers: str) -> Call:
        """An answer's headers; `_` in a name is `-`. The type is gRPC's if none is given."""
        given = {"content_type": "application/grpc"} | headers
        named = [(name.replace("_", "-"), value) for name, value in given.items()]
        self._connection.send_headers(self._stream, [(":status", str(status)), *named], end_stream=end)
        return self._sent()

    def data(self, body: bytes) -> Call:
        self._connection.send_data(self._stream, body)
        return self._sent()

    def end(self) -> None:
        """The trailers of a call that went well."""
        self._connection.send_headers(self._stream, [("grpc-status", "0")], end_stream=True)
        self._sent()

    def reset(self) -> None:
        """Ends the call without an answer, and keeps the connection."""
        self._connection.reset_stream(self._stream)
        self._sent()

    def buffer_little(self) -> None:
        """Sends no more than a few times before the client has read it."""
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)

    def nonsense(self) -> None:
        """Breaks the rules of HTTP/2: a frame of data that is of no call."""
        self._client.sendall(bytes(9))

    def hang_up(self) -> None:
        """Cuts the connection."""
        self._client.shutdown(socket.SHUT_RDWR)

    def ping(self) -> None:
        """Shows a sign of life, and says nothing."""
        self._connection.ping(b"still...")
        self._sent()

    def headers_in_bytes(self) -> Iterable[Callable[[], None]]:
        """Long headers, each step a byte of them."""
        self._connection.send_headers(self._stream, [(":status", "200"), ("padding", "~" * 9000)])
        for byte in self._connection.data_to_send():
            yield lambda byte=byte: self._client.sendall(bytes([byte]))  # type: ignore[misc]

    def _sent(self) -> Call:
        self._client.sendall(self._connection.data_to_send())
        return self


class OddKubelet:
    """Gives every call to `answer`; with a `greeting`, says that to whoever speaks, and hangs up. `connections`
    counts those on which something was said."""

    def __init__(self, socket_path: Path, answer: Callable[[Call], object], *, greeting: bytes = b"") -> None:
        self.answer = answer
        self.connections = 0
        self.calls = 0
        self._greeting = greeting
        self._server = ThreadingUnixStreamServer(str(socket_path), self._handler())

    def __enter__(self) -> OddKubelet:
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), name="odd kubelet")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(odd) -> type[BaseRequestHandler]:  # noqa: N805  the handler is the inner self
        class Handler(BaseRequestHandler):
            request: socket.socket

            def handle(self) -> None:
                with suppress(ConnectionError):
                    said = self.request.recv(65536)
                    odd.connections += bool(said)
                    if odd._greeting:
                        self.greet()
                    else:
                        self.converse(said)

            def greet(self) -> None:
                self.request.sendall(odd._greeting)
                self.request.shutdown(socket.SHUT_WR)
                while self.request.recv(65536):  # what closes with something unread is a broken connection
                    pass

            def converse(self, said: bytes) -> None:
                connection = H2Connection(H2Configuration(client_side=False))
                connection.initiate_connection()
                while said:
                    for event in connection.receive_data(said):
                        if isinstance(event, StreamEnded):
                            odd.calls += 1
                            odd.answer(Call(connection, self.request, event.stream_id))
                    self.request.sendall(connection.data_to_send())
                    said = self.request.recv(65536)

        return Handler
