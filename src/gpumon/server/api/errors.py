"""The envelope of every error: `{"success": false, "detail": …, "error_code": …}`.

`detail` says what happened and what to do. A fault of the server itself is logged with its traceback; the
answer names neither it nor a path of the machine.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from gpumon.errors import QueryError, StorageBusy, StorageError

log = logging.getLogger(__name__)


class ErrorAnswer(BaseModel):
    """What went wrong, and what to do."""

    success: bool = Field(False, examples=[False])
    detail: str = Field(examples=["start_date 2026-11-24 is after end_date 2026-11-01; exchange them"])
    error_code: str = Field(examples=["VALIDATION_ERROR"])
    errors: list[dict[str, Any]] | None = Field(None, description="Each fault with its place and a sentence.")
    received_count: int | None = Field(None, description="Of receive-data: 0.")
    failed_count: int | None = Field(None, description="Of receive-data: samples refused.")


def answer(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def error_answer(
    status: int,
    detail: str,
    *,
    errors: list[Any] | None = None,
    headers: dict[str, str] | None = None,
    **more: Any,
) -> Response:
    """An error in the envelope."""
    code = {422: "VALIDATION_ERROR", 500: "INTERNAL_SERVER_ERROR"}.get(status, f"HTTP_{status}")
    body: dict[str, Any] = {"success": False, "detail": detail, "error_code": code, **more}
    if errors is not None:
        body["errors"] = errors
    return answer(body, status, headers)


def _sentence(fault: Any) -> str:
    """Pydantic's finding in words that say what to send."""
    match fault["type"]:
        case "missing":
            return "is required"
        case "json_invalid":
            return "is not valid JSON"
        case "model_attributes_type" | "dict_type":
            return "must be a JSON object, sent with Content-Type: application/json"
        case "date_type":
            return "is not a date; write YYYY-MM-DD"
        case _:
            message = str(fault["msg"]).removeprefix("Value error, ")
            return message[0].lower() + message[1:]


def install(app: FastAPI) -> None:
    """Puts every error of the app into the envelope."""

    @app.exception_handler(StorageBusy)
    async def busy(_: Request, error: StorageBusy) -> Response:
        return error_answer(429, str(error), headers={"Retry-After": "1"})

    @app.exception_handler(StorageError)
    async def storage(_: Request, error: StorageError) -> Response:
        return error_answer(503, str(error), headers={"Retry-After": "5"})

    @app.exception_handler(QueryError)
    async def query(request: Request, error: QueryError) -> Response:
        place = "body" if request.method == "POST" else "query"
        faults = [{"loc": [place], "msg": str(error), "type": "value_error"}] if error.status == 422 else None
        return error_answer(error.status, str(error), errors=faults)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        faults = [
            {"loc": list(fault["loc"]), "msg": _sentence(fault), "type": fault["type"]} for fault in error.errors()
        ]
        first = faults[0] if faults else {"loc": ["body"], "msg": "is not valid"}
        place = ".".join(part for part in first["loc"] if isinstance(part, str) and part != "body") or "the body"
        return error_answer(422, f"{place} {first['msg']}", errors=faults)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, _: ClientDisconnect) -> Response:
        log.debug("client_gone path=%s", request.url.path)
        return error_answer(400, "the connection ended before the body was whole")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        detail = str(error.detail)
        if error.status_code == 404:
            detail = f"there is nothing at {request.url.path[:200]}; /docs lists every endpoint"
        elif detail == "There was an error parsing the body":
            detail = "the body can't be read; send a JSON object in UTF-8, not compressed"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            detail = f"{request.method} is not possible at {request.url.path[:200]}; use {allowed}"
        return error_answer(error.status_code, detail, headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> Response:  # uvicorn logs the traceback
        return error_answer(500, "the server failed to answer; its log says why")
