"""One line in the log and one observation in the metrics for each request; a plain ASGI layer, because it is on
the path of every sample."""

from __future__ import annotations

import logging
import time

from prometheus_client import Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpumon.server.metrics import ServerMetrics

log = logging.getLogger("gpumon.access")


class AccessLayer:
    """Wraps the app. Routes, not paths, are labels, so that their number is bounded."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, log_requests: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._log_requests = log_requests
        self._seconds: dict[tuple[str, str, int], Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "other"
            kind = (route, method, status)
            if kind not in self._seconds:  # looking for it takes longer than all else here
                self._seconds[kind] = self._metrics.request_seconds.labels(*kind)
            self._seconds[kind].observe(seconds)
            if self._log_requests:
                log.info("%s %r %d %.1fms", method, scope["path"][:200], status, seconds * 1000)
