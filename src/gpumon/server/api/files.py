"""The CSV files themselves: which there are, and each to take away."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import date
from email.utils import formatdate
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from gpumon.clock import to_wire
from gpumon.errors import QueryError
from gpumon.server.api.asking import done, known_parameters, responses
from gpumon.server.api.errors import ErrorAnswer, error_answer
from gpumon.server.api.seed_models import Day
from gpumon.server.api.state import state_of
from gpumon.server.api.streaming import Streamed

router = APIRouter(prefix="/api", tags=["files"])

_BLOCK = 1 << 18
_CSV = "text/csv; charset=utf-8"
_TABLES = "samples|pod_usage|pod_labels"


class FilesAsked(BaseModel):
    """Which files."""

    table: str | None = Field(
        None, pattern=f"^({_TABLES})$", description=f"Only files of {_TABLES}.", examples=["samples"]
    )
    start: Day | None = Field(None, description="First day.", examples=["2026-11-01"])
    end: Day | None = Field(None, description="Last day, included.", examples=["2026-11-24"])


class File(BaseModel):
    """One CSV file."""

    name: str = Field(examples=["gpu_metrics_20261124.csv"])
    table: str = Field(description=f"{_TABLES}: what its rows are.", examples=["samples"])
    day: date = Field(description="The day of its rows, in the server's zone.")
    part: int = Field(description="0 is the day's first file; all parts together are the day.")
    compressed: bool = Field(description="By gzip.")
    bytes: int = Field(description="Its length. Unit: bytes")
    modified: str = Field(description="ISO 8601, UTC.", examples=["2026-11-24T17:33:23.123Z"])
    open: bool = Field(description="Its day is not over: rows are still appended.")


class FilesAnswer(BaseModel):
    """All that match, by day and name."""

    success: bool = True
    data: list[File]


_GONE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/csv": {}, "application/gzip": {}}, "description": "Its bytes."},
    206: {"content": {"text/csv": {}, "application/gzip": {}}, "description": "The part that Range asked for."},
    404: {"model": ErrorAnswer, "description": "There is no such file."},
    416: {"model": ErrorAnswer, "description": "The file ends before the part that Range asks for."},
}


@router.get("/files", summary="The CSV files", response_model=None, responses=responses(FilesAnswer))
def files(request: Request, asked: Annotated[FilesAsked, Query()]) -> Response:
    """The daily CSV files, oldest first. Rows may still come to a past day, from an agent that was cut off."""
    known_parameters(request, asked)
    if asked.start and asked.end and asked.start > asked.end:
        raise QueryError(f"start {asked.start} is after end {asked.end}; exchange them")
    state = state_of(request)
    today = state.now().astimezone(state.zone).date()
    return done(
        [
            File(
                name=listed.name,
                table=listed.day_file.table.name,
                day=listed.day_file.day,
                part=listed.day_file.part,
                compressed=listed.day_file.compressed,
                bytes=listed.size,
                modified=to_wire(listed.modified),
                open=listed.day_file.day >= today and not listed.day_file.compressed,
            ).model_dump()
            for listed in state.engine.files.list()
            if asked.table in (None, listed.day_file.table.name)
            and (asked.start is None or listed.day_file.day >= asked.start)
            and (asked.end is None or listed.day_file.day <= asked.end)
        ]
    )


@router.head("/files/{name}", include_in_schema=False)
@router.get("/files/{name}", summary="One CSV file", response_model=None, responses=_GONE)
def file(request: Request, name: str) -> Response:
    """The file as it was when it was asked for, every line whole. One that grows may be taken in parts: ask for
    the bytes from where you are (`curl -C -`), as what was given out once does not change. A day's plain name
    stands for all of the day where it is in compressed files, or in parts of which none is called so."""
    files = state_of(request).engine.files
    day = files.open_day(name)
    if day is not None:
        blocks, close = day
        if request.method == "HEAD":
            close()
            return Response(headers=_attached(name), media_type=_CSV)
        return Streamed(blocks, close, media_type=_CSV, headers=_attached(name))
    opened, length = files.open(name)
    first, last, status = 0, length - 1, 200
    headers = {
        **_attached(name),
        "Accept-Ranges": "bytes",
        "Last-Modified": _http_date(opened),
    }
    asked = _range(request, length)
    if asked is not None:
        (first, last), status = asked, 206
        if first >= length:
            opened.close()
            return error_answer(
                416, f"{name} has {length} bytes; nothing follows", headers={"Content-Range": f"bytes */{length}"}
            )
        headers["Content-Range"] = f"bytes {first}-{last}/{length}"
    headers["Content-Length"] = str(last + 1 - first)
    kind = "application/gzip" if name.endswith(".gz") else _CSV
    if request.method == "HEAD":
        opened.close()
        return Response(status_code=status, headers=headers, media_type=kind)
    opened.seek(first)
    return Streamed(
        _blocks(opened, last + 1 - first), opened.close, media_type=kind, headers=headers, status=status
    )


def _attached(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"' if name.isascii() else "attachment"}


def _blocks(file: BinaryIO, left: int) -> Iterator[bytes]:
    while left > 0:
        block = file.read(min(_BLOCK, left))
        if not block:  # somebody else cut it
            return
        left -= len(block)
        yield block


def _range(request: Request, length: int) -> tuple[int, int] | None:
    """The first and last byte that are asked for, the first perhaps beyond the end; None: all. Several ranges at
    once, and what is no range, are answered by all, as HTTP allows."""
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", request.headers.get("range", ""), re.ASCII)
    if match is None or "if-range" in request.headers or not (match[1] or match[2]):
        return None
    if not match[1]:
        return (max(0, length - int(match[2])) if int(match[2]) else length), length - 1
    first, last = int(match[1]), min(int(match[2] or length), length - 1)
    return (first, last) if first <= last or first >= length else None


def _http_date(file: BinaryIO) -> str:
    return formatdate(os.fstat(file.fileno()).st_mtime, usegmt=True)
