"""Rows to take away, as many as there are."""

from __future__ import annotations

from datetime import UTC
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from gpumon.errors import QueryError
from gpumon.server.api.asking import RangeAsked, known_parameters
from gpumon.server.api.errors import ErrorAnswer
from gpumon.server.api.state import state_of
from gpumon.server.api.streaming import Streamed
from gpumon.server.exportrows import Wanted
from gpumon.server.tables import POD_USAGE, SAMPLES

router = APIRouter(prefix="/api", tags=["files"])

_TABLES = {table.name: table for table in (SAMPLES, POD_USAGE)}
_KINDS = {
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
    "arrow": "application/vnd.apache.arrow.stream",
}
_EQUAL = ("client_name", "gpu_id", "gpu_uuid", "node", "namespace", "pod")


class ExportAsked(RangeAsked):
    """Which rows, in which form."""

    format: Literal["csv", "parquet", "arrow"] = Field(
        "csv", description="csv: as the daily files. parquet. arrow: an Arrow IPC stream."
    )
    table: Literal["samples", "pod_usage"] = Field(
        "samples", description="samples: a row of each GPU and instant. pod_usage: of each user of it."
    )
    client_name: str | None = Field(None, description="Only this client.")
    gpu_id: int | None = Field(None, ge=0, le=65535, description="Only this index.")
    gpu_uuid: str | None = Field(None, description="Only this GPU.")
    node: str | None = Field(None, description="Only this node.", examples=["gpu-node-a"])
    namespace: str | None = Field(None, description="Only rows of this namespace.", examples=["research"])
    pod: str | None = Field(None, description="Only rows of this pod.", examples=["train-0"])
    columns: str | None = Field(
        None,
        description="Columns, separated by commas; `gpumon fields` lists them. By default all.",
        examples=["timestamp,gpu_id,power_draw"],
    )


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {kind: {} for kind in _KINDS.values()}, "description": "The rows."},
    422: {"model": ErrorAnswer, "description": "A range, column or parameter that can't be."},
    503: {"model": ErrorAnswer, "description": "Another export is under way, or the disk is full."},
}


@router.get("/export", summary="Rows, as many as there are", response_model=None, responses=_ANSWERS)
def export(request: Request, asked: Annotated[ExportAsked, Query()]) -> Response:
    """The rows of one snapshot, in no order, streamed. `sampled_at` is UTC, `timestamp` the same instant in the
    server's zone. A csv can be taken in again by `gpumon import`. An answer without its end is broken off: the
    connection is closed instead of an error."""
    known_parameters(request, asked)
    table, exports = _TABLES[asked.table], state_of(request).engine.exports
    span = exports.span(asked.start, asked.end, asked.last)
    start, end = (instant.astimezone(UTC).replace(tzinfo=None) for instant in (span.start, span.end))
    wanted = Wanted(
        table=table,
        format=asked.format,
        start=start,
        end=end,
        columns=_columns(asked.columns, table.columns),
        equal={name: value for name in _EQUAL if (value := getattr(asked, name)) is not None},
    )
    made = exports.open(wanted)
    day = span.start.astimezone(state_of(request).zone).strftime("%Y%m%d")
    name = f"export_{table.name}_{day}.{asked.format}"
    return Streamed(
        made.blocks(),
        made.close,
        media_type=_KINDS[asked.format],
        headers={"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"},
    )


def _columns(asked: str | None, there: tuple[str, ...]) -> tuple[str, ...]:
    if asked is None:
        return there
    wanted = tuple(name.strip() for name in asked.split(","))
    for name in wanted:
        if name not in there:
            raise QueryError(f"columns: there is no column {name[:80]!r}; there are {', '.join(there)}")
    if len(set(wanted)) < len(wanted):
        raise QueryError("columns: one is named twice; name each once")
    return wanted
