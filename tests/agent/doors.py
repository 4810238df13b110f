"""The agent's doors for tests: a GPU library, a server, and a clock that moves when it is waited for."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gpumon.agent.ports import Batch, Gpu, Reading
from gpumon.errors import NvmlUnavailable
from gpumon.model.sample import BatchId

NOON = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
PATIENCE_SECONDS = 20.0
"""For what comes in milliseconds, on a machine that is busy."""


def gpu(index: int = 0, **fields: Any) -> Gpu:
    """A GPU; its UUID is GPU-<index>."""
    given: dict[str, Any] = {
        "uuid": f"GPU-{index}",
        "name": "NVIDIA L4",
        "pci_bus_id": None,
        "minor_number": index,
    }
    return Gpu(index, **(given | fields))


def batch(sequence: int, *, boot: str = "boot1", body: bytes = b"[{}]", samples: int = 1) -> Batch:
    """A batch of node-1."""
    return Batch(BatchId("node-1", boot, sequence), samples, body)


class Times:
    """Both clocks, standing still until they are moved; monotonic seconds count from 0 at noon."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.seconds)


class Until(threading.Event):
    """A stop event that passes the time instead of waiting: a wait moves the clock, and is over at once. It is
    set when the clock reaches `end`. What is planned happens at its second, while somebody waits."""

    def __init__(
        self, times: Times, end: float = float("inf"), plan: dict[float, Callable[[], None]] | None = None
    ) -> None:
        super().__init__()
        self._times = times
        self._end = end
        self._plan = sorted((plan or {}).items())

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set():
            assert timeout is not None
            target = min(self._times.seconds + timeout, max(self._end, self._times.seconds))
            while self._plan and self._plan[0][0] <= target:
                self._times.seconds, happen = max(self._plan[0][0], self._times.seconds), self._plan[0][1]
                del self._plan[0]
                happen()
            self._times.seconds = max(target, self._times.seconds)
            if self._times.seconds >= self._end:
                self.set()
        return self.is_set()


class Hang:
    """A read that hangs until it is released, and then brings `reading`."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.entered = threading.Event()
        self.released = threading.Event()


class FakeLibrary:
    """Implements GpuLibrary. `answers` says by GPU index what a read gives: a reading, an exception, a Hang."""

    def __init__(self, *gpus: Gpu, times: Times | None = None) -> None:
        self.gpus: Sequence[Gpu] = gpus
        self.answers: dict[int, Reading | Exception | Hang] = {}
        self.left_out: Sequence[int] = ()
        self.opening: Hang | None = None
        self.open_error: NvmlUnavailable | None = None
        self.found: bool | NvmlUnavailable = True
        self.is_open = False
        self.closed = 0
        self.opened = threading.Semaphore(0)
        self.opened_at: list[float] = []
        self.looked_at: list[float] = []
        self.looked = threading.Semaphore(0)
        self.reads: list[int] = []
        self.asked = threading.Semaphore(0)
        self._times = times or Times()

    def open(self) -> Sequence[Gpu]:
        self.opened_at.append(self._times.seconds)
        if self.open_error is not None:
            raise self.open_error
        if self.opening is not None:
            self.opening.entered.set()
            assert self.opening.released.wait(PATIENCE_SECONDS)
        self.is_open = True
        self.opened.release()
        return self.gpus

    def close(self) -> None:
        self.closed += 1
        self.is_open = False

    def read(self, gpu: Gpu) -> Reading:
        self.reads.append(gpu.index)
        self.asked.release()
        answer = self.answers.get(gpu.index, {"power_draw": 70.5})
        if isinstance(answer, Hang):
            answer.entered.set()
            assert answer.released.wait(PATIENCE_SECONDS)
            return answer.reading
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    def find_again(self, gpu: Gpu) -> bool:
        self.looked_at.append(self._times.seconds)
        self.looked.release()
        if isinstance(self.found, NvmlUnavailable):
            raise self.found
        return self.found


class Post:
    """What the receiver was sent."""

    def __init__(self, path: str, headers: dict[str, str], body: bytes) -> None:
        self.path = path
        self.headers = headers
        self.body = body

    @property
    def samples(self) -> list[dict[str, Any]]:
        packed = self.headers.get("Content-Encoding") == "gzip"
        return json.loads(gzip.decompress(self.body) if packed else self.body)


class Receiver:
    """A server on the loopback, of the standard library. `answer` is what every POST is answered:
    status, headers, body. While `hold` is not set, answers wait for it."""

    def __init__(self) -> None:
        self.answer: tuple[int, dict[str, str], bytes] = (200, {}, b'{"success": true}')
        self.posts: list[Post] = []
        self.hold = threading.Event()
        self.hold.set()
        self.arrived = threading.Semaphore(0)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}/api/receive-data"

    def __enter__(self) -> Receiver:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="receiver")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def batch_ids(self) -> list[str]:
        return [post.headers["Gpumon-Batch"] for post in self.posts]

    def _handler(receiver) -> type[BaseHTTPRequestHandler]:  # noqa: N805  the handler is the inner self
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections are kept, as by uvicorn

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.posts.append(Post(self.path, dict(self.headers), body))
                receiver.arrived.release()
                receiver.hold.wait(PATIENCE_SECONDS)
                status, headers, answer = receiver.answer
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(answer))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler
