"""The bytes of a request: limited before and after decompression, and of a type we take."""

from __future__ import annotations

import zlib

from fastapi import HTTPException
from starlette.requests import ClientDisconnect
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


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """The headers by their names in small letters; of several of one name the first."""
    return dict(reversed(scope["headers"]))


async def read_json_body(headers: dict[bytes, bytes], receive: Receive, max_bytes: int) -> bytes:
    """The decompressed body. Raises HTTPException: 413 when it unpacks to more than the limit, 415 for another
    type or encoding, 400 for a damaged or truncated gzip; and ClientDisconnect when it does not come whole."""
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind and kind != b"application/json" and not kind.endswith(b"+json"):
        raise HTTPException(415, f"the body is {_text(kind)!r}; send Content-Type: application/json")
    encoding = headers.get(b"content-encoding", b"").strip().lower()
    if encoding not in (b"", b"identity", b"gzip", b"x-gzip"):
        raise HTTPException(415, f"Content-Encoding {_text(encoding)!r} is not understood; send gzip or none")
    body = await _whole_body(receive)
    return body if encoding in (b"", b"identity") else _gunzip(body, max_bytes)


async def _whole_body(receive: Receive) -> bytes:
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _text(header: bytes) -> str:
    return header[:80].decode("latin-1")


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
