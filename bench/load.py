"""A load generator in one thread: prepared requests over kept-alive connections, some 15 µs of CPU each.

`closed` sends as fast as the server answers; `opened` sends by a timetable, whatever the server does, and counts
each latency from the time that the request was due (so a server that stalls does not slow its own measurement).
"""

from __future__ import annotations

import selectors
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator

CONNECTIONS = 64
"""In the open loop: more than a server has under way when it keeps up."""
_PATIENCE_SECONDS = 60


def request(path: str, body: bytes, headers: str = "") -> bytes:
    """The bytes of one POST; `headers` are lines that end in CR LF."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class _Connection:
    """One connection, one request at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self._answer = b""

    def send(self, data: bytes, due: float) -> None:
        """Sends all of a request that was due at a time."""
        self.due = due
        self.socket.sendall(data)

    def receive(self) -> bool:
        """Whether the answer is complete. Raises SystemExit when it is not 200."""
        self._answer += (piece := self.socket.recv(65536))
        head, end, body = self._answer.partition(b"\r\n\r\n")
        if not piece or (end and not head.startswith(b"HTTP/1.1 200")):
            raise SystemExit(f"answer {self._answer[:300]!r}")
        if not end or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return False
        self._answer = b""
        return True


class Load:
    """Connections to one server."""

    def __init__(self, port: int, connections: int) -> None:
        self._connections = [_Connection(port) for _ in range(connections)]
        self._idle = deque(self._connections)
        self._selector = selectors.DefaultSelector()
        for connection in self._connections:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def close(self) -> None:
        """Closes them."""
        for connection in self._connections:
            connection.socket.close()
        self._selector.close()

    def closed(self, requests: Iterator[bytes], seconds: float) -> list[float]:
        """One request after the other on each connection; the latencies in seconds."""
        latencies: list[float] = []
        end = time.perf_counter() + seconds
        busy = len(self._idle)
        while self._idle:
            self._idle.popleft().send(next(requests), time.perf_counter())
        while busy:
            for connection in self._answered(_PATIENCE_SECONDS):
                latencies.append(time.perf_counter() - connection.due)
                if time.perf_counter() < end:
                    connection.send(next(requests), time.perf_counter())
                else:
                    busy -= 1
                    self._idle.append(connection)
        return latencies

    def opened(self, timetable: Iterable[tuple[float, bytes]]) -> list[float]:
        """Requests that are due so many seconds after the start, ascending; the latencies in seconds. One that
        finds no connection idle waits, and its latency grows."""
        latencies: list[float] = []
        start = time.perf_counter()
        for after, data in timetable:
            due = start + after
            while (left := due - time.perf_counter()) > 0 or not self._idle:
                self._take(latencies, max(left, 0) if self._idle else _PATIENCE_SECONDS)
            self._idle.popleft().send(data, due)
        while len(self._idle) < len(self._connections):
            self._take(latencies, _PATIENCE_SECONDS)
        return latencies

    def _take(self, latencies: list[float], timeout: float) -> None:
        for connection in self._answered(timeout):
            latencies.append(time.perf_counter() - connection.due)
            self._idle.append(connection)

    def _answered(self, timeout: float) -> list[_Connection]:
        return [key.data for key, _ in self._selector.select(timeout) if key.data.receive()]
