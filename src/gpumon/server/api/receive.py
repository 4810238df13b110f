"""POST /api/receive-data: one sample or a list of them in, on disk when the answer is 200."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from itertools import takewhile
from typing import Any

import msgspec
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from gpumon.model.field import Field as CatalogueField
from gpumon.model.fields import FIELDS
from gpumon.model.pod_fields import USE_FIELDS
from gpumon.model.sample import BATCH_HEADER, BatchId, GpuSample
from gpumon.server.api.body import headers_of, read_json_body
from gpumon.server.api.errors import ErrorAnswer, answer, error_answer
from gpumon.server.api.state import ApiState, state_of
from gpumon.server.decode import BadBody

router = APIRouter(tags=["samples"])

PATH = "/api/receive-data"
_BATCH_HEADER = BATCH_HEADER.lower().encode()
_LARGE_BYTES = 256 * 1024

EXAMPLE = {
    "timestamp": "2026-11-24 17:33:23",
    "gpu_id": 0,
    "gpu_name": "NVIDIA H100 80GB HBM3",
    "utilization_gpu": 87.0,
    "utilization_memory": 41.0,
    "memory_total": 81559,
    "memory_used": 61004,
    "memory_free": 20555,
    "temperature": 61,
    "power_draw": 512.4,
    "power_limit": 700.0,
    "fan_speed": None,
    "client_name": "gpu-node-a",
}
EXAMPLE_WITH_PODS = EXAMPLE | {
    "sampled_at": "2026-11-24T17:33:23.250Z",
    "interval_seconds": 5.0,
    "node": "gpu-node-a",
    "gpu_uuid": "GPU-8f0c1d3e-5b7a-4c1e-9d2f-3a6b8c0d1e2f",
    "holder_count": 2,
    "attribution": "process",
    "pods": [
        {
            "namespace": "research",
            "pod": "train-0",
            "container": "main",
            "pod_uid": "1d5c2c3e-7f54-4f0e-8a55-2f1f3f0a9b11",
            "owner_kind": "StatefulSet",
            "owner_name": "train",
            "held": True,
            "method": "process",
            "gpu_share": 0.5,
            "utilization": 80.0,
            "memory_used": 60416.0,
            "energy_mj": 2100000.0,
            "process_count": 1,
            "labels": {"team": "vision"},
        },
        {
            "namespace": "research",
            "pod": "notebook-7",
            "container": "jupyter",
            "held": True,
            "method": "allocation-only",
            "gpu_share": 0.5,
            "utilization": 0.0,
            "memory_used": 0.0,
            "process_count": 0,
        },
    ],
    "node_labels": {"topology.kubernetes.io/zone": "a"},
}
_NESTED = {
    "pods": "Who holds and uses the GPU, a row each in pod_usage_YYYYMMDD.csv. Absent: the sender can't tell.",
    "node_labels": "Chosen labels of the node, for pods_YYYYMMDD.csv.",
    "labels": "Chosen labels of the pod, for pods_YYYYMMDD.csv.",
}


class Received(BaseModel):
    """What became of the samples."""

    success: bool = True
    message: str = Field(examples=["2 samples stored"])
    received_count: int = Field(description="Samples stored.", examples=[2])
    failed_count: int = Field(description="Samples refused; the others are stored all the same.", examples=[0])
    timestamp: str = Field(description="The server's local time.", examples=["2026-11-24 17:33:24"])
    left_out_count: int | None = Field(
        None, description="Bad entries of `pods` and bad labels, where any: their samples are stored without them."
    )
    duplicate: bool | None = Field(None, description="True when this batch had been stored before.")
    errors: list[dict[str, Any]] | None = Field(
        None,
        description="For what was refused or left out: index of the sample in the list, the place in it, and a "
        "sentence. The first 20.",
    )


def _body_schema() -> dict[str, Any]:
    schemas = msgspec.json.schema(GpuSample)["$defs"]
    sample, use = _described(schemas["GpuSample"], FIELDS), _described(schemas["PodUse"], USE_FIELDS)
    sample["properties"]["pods"]["anyOf"][0]["items"] = use
    examples = {
        "list": {
            "summary": "A list of samples",
            "value": [EXAMPLE, EXAMPLE | {"gpu_id": 1, "utilization_gpu": 3.0}],
        },
        "one": {"summary": "One sample", "value": EXAMPLE},
        "pods": {"summary": "A GPU that pods share", "value": [EXAMPLE_WITH_PODS]},
    }
    schema = {"oneOf": [{"type": "array", "items": sample, "minItems": 1}, sample]}
    return {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}


def _described(schema: dict[str, Any], fields: tuple[CatalogueField, ...]) -> dict[str, Any]:
    properties = schema["properties"]
    for field in fields:
        unit = f" Unit: {field.unit}." if field.unit else ""
        properties[field.name]["description"] = f"{field.help}{unit}"
    for name in _NESTED.keys() & properties.keys():
        properties[name]["description"] = _NESTED[name]
    return schema


@router.post(
    PATH,
    summary="Store samples",
    response_model=None,
    responses={
        200: {"model": Received, "description": "The samples are on disk."},
        400: {"model": ErrorAnswer, "description": "Damaged gzip."},
        413: {"model": ErrorAnswer, "description": "The body is too large, plain or decompressed."},
        415: {"model": ErrorAnswer, "description": "Not JSON, or an unknown encoding."},
        422: {"model": ErrorAnswer, "description": "No JSON, or not one good sample in it. Don't send it again."},
        429: {"model": ErrorAnswer, "description": "Too much waits for the disk. Come back after Retry-After."},
        503: {"model": ErrorAnswer, "description": "The disk takes nothing. Come back after Retry-After."},
    },
    openapi_extra={
        "requestBody": _body_schema(),
        "parameters": [
            {
                "name": BATCH_HEADER,
                "in": "header",
                "required": False,
                "description": "`<agent>/<boot>/<sequence>`, as `gpu-node-a/6f1c2b/42`. A batch with the same id "
                "is stored once, however often it arrives, also across a restart of the server.",
                "schema": {"type": "string"},
            }
        ],
    },
)
async def receive(request: Request) -> Response:
    """Takes one sample object or a list of them, plain or with `Content-Encoding: gzip`.

    **200 means: on disk.** Unknown fields are ignored, null is allowed in every reading, and one bad sample does
    not spoil a batch: it is counted in `failed_count` and described in `errors`. Only when all are bad is the
    answer 422. A bad entry of `pods`, or a bad label, does not spoil its sample: it is left out, counted in
    `left_out_count` and described in `errors`.
    """
    return await _store(state_of(request), request.scope, request.receive)


class DirectRoute:
    """Takes samples without the way through FastAPI's routing, whose CPU time is that of storing ten of them. The
    route above documents the endpoint, and takes what comes by another spelling of its path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._route = next(route for route in router.routes if isinstance(route, APIRoute) and route.path == PATH)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope["route"] = self._route
        app = scope["app"]
        try:
            response = await _store(app.state.gpumon, scope, receive)
        except Exception as error:
            handler = next(filter(None, map(app.exception_handlers.get, _kinds(error))), None)
            if handler is None:  # a fault of ours
                raise
            response = await handler(Request(scope), error)
        await response(scope, receive, send)


def _kinds(error: Exception) -> Iterable[type]:
    return takewhile(lambda kind: kind is not Exception, type(error).__mro__)


async def _store(state: ApiState, scope: Scope, receive: Receive) -> Response:
    headers = headers_of(scope)
    body = await read_json_body(headers, receive, state.max_body_bytes)
    header = headers.get(_BATCH_HEADER)
    try:
        batch = None if header is None else BatchId.parse(header.decode("latin-1"))
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    now = state.now()
    try:
        if len(body) > _LARGE_BYTES:  # others are not kept waiting by it
            accepted = await run_in_threadpool(state.engine.acceptor.accept, body, now)
        else:
            accepted = state.engine.acceptor.accept(body, now)
    except BadBody as error:
        return error_answer(error.status, str(error), errors=[{"loc": ["body"], "msg": str(error)}])
    faults = accepted.faults
    errors = [asdict(fault) for fault in faults.found]
    if errors:
        state.metrics.rows_refused.inc(faults.failed)
        state.metrics.entries_left_out.inc(faults.left_out)
    if not accepted.samples:
        first = faults.found[0]
        return error_answer(
            422,
            f"no sample could be stored; sample {first.index}: {'.'.join(first.loc) or 'it'} {first.msg}",
            errors=errors,
            received_count=0,
            failed_count=faults.failed,
        )
    stored = await state.engine.ingest.submit(accepted, batch)
    count = accepted.samples
    done: dict[str, Any] = {
        "success": True,
        "message": f"{count} sample{'' if count == 1 else 's'} {'stored' if stored else 'had been stored before'}"
        + (f", {faults.failed} refused" if faults.failed else ""),
        "received_count": count,
        "failed_count": faults.failed,
        "timestamp": state.local_time(now),
    }
    if faults.left_out:
        done["left_out_count"] = faults.left_out
    if not stored:
        done["duplicate"] = True
    if errors:
        done["errors"] = errors
    return answer(done)
