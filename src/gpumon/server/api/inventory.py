"""Now: GPUs, pods on them, nodes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from gpumon.server.api.asking import done, known_parameters, responses
from gpumon.server.api.inventory_models import GpusAnswer, NodesAnswer, PodsAnswer
from gpumon.server.api.state import state_of

router = APIRouter(prefix="/api", tags=["now"])


class NodeAsked(BaseModel):
    """Where."""

    node: str | None = Field(None, description="Only this node.", examples=["gpu-node-a"])


class PodsAsked(NodeAsked):
    """Which pods."""

    namespace: str | None = Field(None, description="Only this namespace.", examples=["research"])


@router.get("/gpus", summary="GPUs now, with who is on them", response_model=None, responses=responses(GpusAnswer))
def gpus(request: Request, asked: Annotated[NodeAsked, Query()]) -> Response:
    """Each GPU with its newest sample and its holders and users at that instant. One whose newest sample is older
    than `[LIMITS] stale_after_seconds` is flagged as stale; after a day it is left out."""
    known_parameters(request, asked)
    return done(state_of(request).engine.answers.gpus(asked.node))


@router.get("/pods", summary="Pods now, with their GPUs", response_model=None, responses=responses(PodsAnswer))
def pods(request: Request, asked: Annotated[PodsAsked, Query()]) -> Response:
    """Each pod that holds or uses a GPU in the GPU's newest sample: its share, use and memory, and how that was
    found."""
    known_parameters(request, asked)
    return done(state_of(request).engine.answers.pods(asked.namespace, asked.node))


@router.get("/nodes", summary="Nodes now", response_model=None, responses=responses(NodesAnswer))
def nodes(request: Request, asked: Annotated[NodeAsked, Query()]) -> Response:
    """Each node with GPUs: how many in which state, how much of them is held, works and is free, power and memory.
    Sums leave stale GPUs out."""
    known_parameters(request, asked)
    return done(state_of(request).engine.answers.nodes(asked.node))
