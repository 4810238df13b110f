"""The bytes of a request: limited before and after decompression, and of a type we take."""

from __future__ import annotations

import zlib

from fastapi import HTTPException, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpumon.server.api.errors import error_answer

_GZIP = 16 + zlib.MAX_WBITS


class BodyLimit:
    """Refuses bodies over the limit on every route, before they are in memory. (FastAPI's own max_body_size
    answers outside of the envelope.)"""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await error_answer(413, _too_large(self._max_bytes))(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise HTTPException(413, _too_large(self._max_bytes))
            return message

        await self._app(scope, counted, send)


async def read_json_body(request: Request, max_bytes: int) -> bytes:
    """The decompressed body. Raises HTTPException: 413 when it unpacks to more than the limit, 415 for another
    type or encoding, 400 for a damaged or truncated gzip."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind != "application/json" and not kind.endswith("+json"):
        raise HTTPException(415, f"the body is {kind[:80]!r}; send Content-Type: application/json")
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return await request.body()
    if encoding not in ("gzip", "x-gzip"):
        raise HTTPException(415, f"Content-Encoding {encoding[:80]!r} is not understood; send gzip or none")
    return _gunzip(await request.body(), max_bytes)


def _gunzip(body: bytes, max_bytes: int) -> bytes:
    unpacker = zlib.decompressobj(_GZIP)
    try:
        plain = unpacker.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise HTTPException(400, f"the body is not valid gzip ({error}); send it again") from error
    if len(plain) > max_bytes:
        raise HTTPException(413, _too_large(max_bytes))
    if not unpacker.eof or unpacker.unused_data:
        raise HTTPException(400, "the gzip body is truncated or followed by other bytes; send it again")
    return plain


def _too_large(max_bytes: int) -> str:
    return (
        f"the body is larger than {max_bytes / 10**6:g} MB ([SERVER] max_body_mb), plain or decompressed; "
        "send fewer samples at once"
    )
