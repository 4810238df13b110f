"""For operators: what this is, whether it can store, and its own figures."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse
from pydantic import BaseModel, Field

from gpumon import __version__
from gpumon.clock import to_wire
from gpumon.server.api.errors import answer
from gpumon.server.api.state import state_of

router = APIRouter(tags=["operation"])


class Root(BaseModel):
    """What this is."""

    message: str = Field(examples=["NVIDIA GPU Metrics API"])
    version: str = Field(examples=[__version__])
    docs_url: str = Field(examples=["/docs"])


class Health(BaseModel):
    """Whether samples can be stored."""

    status: str = Field(description="healthy or unhealthy; of /ready: ready or not ready.", examples=["healthy"])
    timestamp: str = Field(description="ISO 8601, UTC.", examples=["2026-11-24T17:33:23.123Z"])
    reasons: list[str] | None = Field(None, description="When unhealthy: why, and what to do.")


_HEALTH: dict[int | str, dict[str, Any]] = {
    200: {"model": Health},
    503: {"model": Health, "description": "Samples can't be stored; `reasons` says why and what to do."},
}


@router.head("/", include_in_schema=False)
@router.get("/", summary="What this is", response_model=None, responses={200: {"model": Root}})
async def root(request: Request) -> Response:
    """Name and version; a browser is sent to the documentation."""
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("/docs")
    return answer({"message": "NVIDIA GPU Metrics API", "version": __version__, "docs_url": "/docs"})


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Can samples be stored?", response_model=None, responses=_HEALTH)
async def health(request: Request) -> Response:
    """200 while samples can be stored; 503 with the reasons while they can't (agents then keep them)."""
    state = state_of(request)
    now, trouble = to_wire(state.now()), state.engine.trouble
    if trouble is None:
        return answer({"status": "healthy", "timestamp": now})
    return answer({"status": "unhealthy", "timestamp": now, "reasons": [trouble]}, 503)


@router.head("/ready", include_in_schema=False)
@router.get("/ready", summary="Is the server open?", response_model=None, responses=_HEALTH)
async def ready(request: Request) -> Response:
    """200 when the data folder is open and loaded, so that queries are answered from all of it."""
    state = state_of(request)
    now, closed = to_wire(state.now()), state.engine.not_ready_because
    if closed is None:
        return answer({"status": "ready", "timestamp": now})
    return answer({"status": "not ready", "timestamp": now, "reasons": [closed]}, 503)


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_model=None,
    response_class=PlainTextResponse,
)
def metrics(request: Request) -> Response:
    """The server's own figures and the newest sample of each GPU that is not stale, with its pods, as Prometheus
    text."""
    text, media_type = state_of(request).metrics.render()
    return Response(text, media_type=media_type)
