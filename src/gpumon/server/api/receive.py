"""POST /api/receive-data: one sample or a list of them in, on disk when the answer is 200."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from gpumon.model.fields import FIELDS
from gpumon.model.sample import BATCH_HEADER, BatchId, GpuSample
from gpumon.server.accept import BadBody
from gpumon.server.api.body import read_json_body
from gpumon.server.api.errors import ErrorAnswer, answer, error_answer
from gpumon.server.api.state import state_of

router = APIRouter(tags=["samples"])

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


class Received(BaseModel):
    """What became of the samples."""

    success: bool = True
    message: str = Field(examples=["2 samples stored"])
    received_count: int = Field(description="Samples stored.", examples=[2])
    failed_count: int = Field(description="Samples refused; the others are stored all the same.", examples=[0])
    timestamp: str = Field(description="The server's local time.", examples=["2026-11-24 17:33:24"])
    duplicate: bool | None = Field(None, description="True when this batch had been stored before.")
    errors: list[dict[str, Any]] | None = Field(
        None, description="For refused samples: index in the list, field, and a sentence. The first 20."
    )


def _body_schema() -> dict[str, Any]:
    sample = msgspec.json.schema(GpuSample)["$defs"]["GpuSample"]
    for field in FIELDS:
        unit = f" Unit: {field.unit}." if field.unit else ""
        sample["properties"][field.name]["description"] = f"{field.help}{unit}"
    examples = {
        "list": {
            "summary": "A list of samples",
            "value": [EXAMPLE, EXAMPLE | {"gpu_id": 1, "utilization_gpu": 3.0}],
        },
        "one": {"summary": "One sample", "value": EXAMPLE},
    }
    schema = {"oneOf": [{"type": "array", "items": sample, "minItems": 1}, sample]}
    return {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}


@router.post(
    "/api/receive-data",
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
    answer 422.
    """
    state = state_of(request)
    body = await read_json_body(request, state.max_body_bytes)
    header = request.headers.get(BATCH_HEADER)
    try:
        batch = None if header is None else BatchId.parse(header)
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
    errors = [asdict(fault) for fault in accepted.faults]
    state.metrics.rows_refused.inc(accepted.failed)
    if not accepted.rows:
        first = accepted.faults[0]
        return error_answer(
            422,
            f"no sample could be stored; sample {first.index}: {'.'.join(first.loc) or 'it'} {first.msg}",
            errors=errors,
            received_count=0,
            failed_count=accepted.failed,
        )
    stored = await state.engine.ingest.submit(accepted.rows, batch)
    count = len(accepted.rows)
    done: dict[str, Any] = {
        "success": True,
        "message": f"{count} sample{'' if count == 1 else 's'} {'stored' if stored else 'had been stored before'}"
        + (f", {accepted.failed} refused" if accepted.failed else ""),
        "received_count": count,
        "failed_count": accepted.failed,
        "timestamp": state.local_time(now),
    }
    if not stored:
        done["duplicate"] = True
    if errors:
        done["errors"] = errors
    return answer(done)
