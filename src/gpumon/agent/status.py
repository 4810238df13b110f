"""The agent's own port: /metrics for Prometheus, /healthz and /readyz for the kubelet.

Healthy means that the sampler's loop turns: where it does not, only a new start could help. Ready means that
NVML is open, that a GPU answers where there is one, and that the last delivery, if there was one, went
through; the answer says why not. A port that is taken is a warning: measuring goes on without it.

Whoever can reach the port can't cost the agent more than _MOST_REQUESTS threads: a further request is closed at
once, and one that is not complete after _REQUEST_SECONDS, too.
"""

from __future__ import annotations

import io
import logging
import selectors
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock

import msgspec

from gpumon import __version__, clock
from gpumon.agent.counts import DeliveryCounts, SamplerCounts
from gpumon.clock import Monotonic
from gpumon.listening import listen
from gpumon.tasks import Task

log = logging.getLogger(__name__)

JSON = "application/json"
_SLOW_CLIENT_SECONDS = 5.0
"""The longest wait for the next part of a request, or for the answer to be taken."""
_REQUEST_SECONDS = 15.0
"""The longest wait for the whole of a request."""
_MOST_REQUESTS = 64
"""At a time; the kubelet and Prometheus have one or two."""


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    status: int
    content_type: str
    body: bytes


Pages = Mapping[str, Callable[[], Page]]


class Health:
    """Whether the agent is alive and ready. The sampler's loop has to turn every `turns_within_seconds`."""

    def __init__(
        self,
        sampler: SamplerCounts,
        delivery: DeliveryCounts,
        *,
        turns_within_seconds: float,
        monotonic: Monotonic = clock.monotonic,
    ) -> None:
        self._sampler = sampler
        self._delivery = delivery
        self._turns_within_seconds = turns_within_seconds
        self._monotonic = monotonic
        self._since = monotonic()

    def healthz(self) -> Page:
        """503 when the sampler's loop has stopped turning."""
        seconds = self._monotonic() - (self._sampler.turned_at or self._since)
        stuck = f"the sampler has not turned for {seconds:.0f} s"
        return _verdict("alive", [stuck] if seconds > self._turns_within_seconds else [])

    def readyz(self) -> Page:
        """503 with the reasons when samples can't be taken or can't be delivered."""
        reasons = {"NVML": self._sampler.nvml_trouble, "delivery": self._delivery.trouble}
        return _verdict("ready", [f"{what}: {reason}" for what, reason in reasons.items() if reason])


def _verdict(name: str, reasons: list[str]) -> Page:
    body = {name: not reasons, "reasons": reasons, "version": __version__}
    return Page(503 if reasons else 200, JSON, msgspec.json.encode(body))


def one_at_a_time(make: Callable[[], Page], busy: str) -> Callable[[], Page]:
    """`make`, for a page that costs much. While one is made, a further request is told so at once (429)."""
    making = Lock()

    def page() -> Page:
        if not making.acquire(blocking=False):
            return Page(429, JSON, msgspec.json.encode({"detail": busy}))
        try:
            return make()
        finally:
            making.release()

    return page


class StatusServer:
    """Serves `pages`, path → what makes the page, until stopped. Host * is every interface; port 0 takes a free
    one, -1 opens none."""

    def __init__(self, pages: Pages, *, host: str, port: int, monotonic: Monotonic = clock.monotonic) -> None:
        self._pages = pages
        self._host = host
        self._wanted_port = port
        self._monotonic = monotonic
        self._server: _Server | None = None
        self._task: Task | None = None

    @property
    def port(self) -> int | None:
        """The port that is open; None when none is."""
        return None if self._server is None else int(self._server.server_address[1])

    def start(self) -> None:
        """Opens the port and serves it in a task of its own. A port that can't be had is logged."""
        if self._wanted_port < 0:
            return
        try:
            self._server = _Server(self._host, self._wanted_port, self._pages, self._monotonic)
        except OSError as error:
            log.warning(
                "status_port_unavailable host=%s port=%d reason=%r do=%r",
                self._host,
                self._wanted_port,
                error.strerror or str(error),
                "set [STATUS] port to a free one, or to -1 for none",
            )
            return
        self._task = Task("status", self._server.serve).start()
        log.info("status_port_open host=%s port=%d", self._host, self.port)

    def stop(self, timeout_seconds: float) -> None:
        """Closes the port. Harmless when it is not open."""
        server, task = self._server, self._task
        self._server, self._task = None, None
        if server is not None and task is not None:
            task.stopping.set()
            server.wake()
            if task.stop(timeout_seconds):
                server.server_close()


class _Reader(io.RawIOBase):
    """A request as it comes in. The whole of it has one deadline, for a timeout holds for each part alone, and
    a client that drips would never meet it. Raises TimeoutError."""

    def __init__(self, connection: socket.socket, monotonic: Monotonic) -> None:
        self._connection = connection
        self._monotonic = monotonic
        self._deadline = monotonic() + _REQUEST_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._monotonic() > self._deadline:
            raise TimeoutError("the request does not end")
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    timeout = _SLOW_CLIENT_SECONDS
    server: _Server

    def setup(self) -> None:
        """Puts the request's deadline on what is read."""
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Reader(self.connection, self.server.monotonic))

    def do_GET(self) -> None:
        """Answers one request; the connection is closed then."""
        make = self.server.pages.get(self.path.partition("?")[0])
        page = make() if make is not None else _not_found(sorted(self.server.pages))
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.end_headers()
        self.wfile.write(page.body)

    def log_message(self, format: str, *args: object) -> None:
        """Probes come every few seconds: DEBUG."""
        log.debug("status_request " + format, *args)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, pages: Pages, monotonic: Monotonic) -> None:
        listener = listen(host, port, self.request_queue_size)
        self.address_family = listener.family
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()  # the library's own, which was never bound
        self.socket = listener
        self.pages = pages
        self.monotonic = monotonic
        self._open: set[socket.socket] = set()
        self._wakes, self._waker = socket.socketpair()

    def serve(self, stop: Event) -> None:
        """Serves until `stop` is set and `wake` is called. Sleeps while nobody asks."""
        with selectors.DefaultSelector() as ready:
            ready.register(self, selectors.EVENT_READ)
            ready.register(self._wakes, selectors.EVENT_READ)
            while not stop.is_set():
                if any(key.fileobj is self for key, _ in ready.select()):
                    self.handle_request()

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        """Begins a thread for the request, or closes it where there are too many."""
        if len(self._open) < _MOST_REQUESTS:
            self._open.add(request)
            super().process_request(request, client_address)
        else:
            log.debug("status_request_closed client=%s open=%d", client_address, _MOST_REQUESTS)
            self.shutdown_request(request)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        """The end of every request, also of one for which no thread could begin."""
        self._open.discard(request)
        super().shutdown_request(request)

    def wake(self) -> None:
        """Lets `serve` look at its stop event."""
        self._waker.send(b".")

    def server_close(self) -> None:
        """Closes all sockets."""
        super().server_close()
        self._wakes.close()
        self._waker.close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is not worth a line; a page that can't be made is."""
        if not isinstance(sys.exc_info()[1], OSError):
            log.exception("status_page_failed client=%s", client_address)


def _not_found(paths: list[str]) -> Page:
    return Page(404, JSON, msgspec.json.encode({"detail": "not found", "paths": paths}))
