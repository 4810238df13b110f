"""The gate in front of every endpoint: what is not open to all needs a right, also what nobody has thought of.

| request | needs |
|---|---|
| GET and HEAD of what has no data: /, /health, /ready, /docs and what they load | nothing |
| whatever has /api/receive-data in its path | the right to send |
| everything else, also what there is not | the right to read |

A plain ASGI layer, because it is on the path of every sample. It answers before the body is read, and stands
inside the CORS layer: that one answers preflights, and a page may read why it is refused.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from fastapi import FastAPI, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gpumon.server.api.errors import ErrorAnswer, error_answer
from gpumon.server.auth.refusal import Reason, Refusal, Right
from gpumon.server.auth.rights import Rights
from gpumon.server.metrics import ServerMetrics

_OPEN = frozenset({"/", "/health", "/ready", "/docs", "/redoc", "/openapi.json"})
_OPEN_BELOW = "/static-offline-docs/"
"""What /docs and /redoc load."""
_SAMPLES = "/api/receive-data"
"""A path that only contains it may still lead there: a router's pattern takes a line break at its end."""
_STATUS = {
    Reason.MISSING: 401,
    Reason.UNKNOWN: 401,
    Reason.NOT_ALLOWED: 403,
    Reason.LIMITED: 429,
    Reason.UNAVAILABLE: 503,
}
_CHALLENGES = {
    Right.SEND: ('Bearer realm="gpumon"',),
    Right.READ: ('Basic realm="gpumon", charset="UTF-8"', 'Bearer realm="gpumon"'),
}
_SAID = {
    "401": "No token, or one that nobody knows.",
    "403": "A good token, but not for this.",
    "429": "This address has been refused too often, or sends too many unknown tokens at once. Come back after "
    "Retry-After.",
}


class Gate:
    """Wraps the app."""

    def __init__(self, app: ASGIApp, rights: Rights, metrics: ServerMetrics) -> None:
        self._app = app
        self._rights = rights
        self._refusals = metrics.auth_refusals
        for right in Right:
            for reason in Reason:  # a rate needs the 0 before the first
                self._refusals.labels(right, reason)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there is none, and there is to be none past this gate
            await send({"type": "websocket.close", "code": 1008})
            return
        right = self._needed(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if right is not None:
            client = scope.get("client")
            peer = client[0] if client else "unknown"
            refusal = await self._rights.refusal(right, _token(scope, right), peer)
            if refusal is not None:
                self._refusals.labels(right, refusal.reason).inc()
                await _answer(right, refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _needed(self, method: str, path: str) -> Right | None:
        if method in ("GET", "HEAD") and (path in _OPEN or path.startswith(_OPEN_BELOW)):
            return None
        if self._rights.guards(Right.SEND) and _SAMPLES in path:
            return Right.SEND
        return Right.READ if self._rights.guards(Right.READ) and path != _SAMPLES else None


def describe(app: FastAPI, rights: Rights) -> None:
    """Says in the app's OpenAPI which operations need a token, so that /docs offers to enter one."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        known = app.openapi_schema is not None
        schema = plain()
        if not known:
            schema["components"]["securitySchemes"] = {
                "token": {"type": "http", "scheme": "bearer", "description": "One of the server's tokens."}
            }
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    _describe(operation, path, rights)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way


def _describe(operation: dict[str, Any], path: str, rights: Rights) -> None:
    right = Right.SEND if path == _SAMPLES else Right.READ
    if path in _OPEN or not rights.guards(right):
        return
    operation["security"] = [{"token": []}]
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorAnswer.__name__}"}}}
    for status, said in _SAID.items():
        operation["responses"].setdefault(status, {"description": said, "content": content})


def _answer(right: Right, refusal: Refusal) -> Response:
    wait = refusal.retry_after_seconds
    response = error_answer(
        _STATUS[refusal.reason], refusal.detail, headers=None if wait is None else {"Retry-After": str(wait)}
    )
    if response.status_code == 401:
        for challenge in _CHALLENGES[right]:
            response.headers.append("WWW-Authenticate", challenge)
    return response


def _token(scope: Scope, right: Right) -> bytes | None:
    """The token of a request: a bearer's, or for reading also a password; None where there is none."""
    shown = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, credentials = shown.partition(b" ")
    credentials = credentials.strip()
    match scheme.lower():
        case b"bearer":
            return credentials or None
        case b"basic" if right is Right.READ:
            try:
                return base64.b64decode(credentials, validate=True).partition(b":")[2] or None
            except binascii.Error:
                return None
    return None
