"""What the endpoints share, put on the app once by `create_app`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from fastapi import Request

from gpumon.clock import Now
from gpumon.server.engine import Engine
from gpumon.server.metrics import ServerMetrics


@dataclass(frozen=True, slots=True)
class ApiState:
    """The engine and the few values that endpoints need of the settings."""

    engine: Engine
    metrics: ServerMetrics
    now: Now
    zone: ZoneInfo
    max_body_bytes: int

    def local_time(self, instant: datetime) -> str:
        """An instant in the server's zone, as the old program wrote it."""
        return instant.astimezone(self.zone).strftime("%Y-%m-%d %H:%M:%S")


def state_of(request: Request) -> ApiState:
    """The state of the app that serves a request."""
    state: ApiState = request.app.state.gpumon
    return state
