"""HTTP/1.1 by uvicorn, with an end to what a client may send or leave unsent before there is a request.

uvicorn sets neither a limit nor a time to the head of a request, and anybody may send one: the gate is asked when
the head is complete.
"""

from __future__ import annotations

import asyncio
import logging

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gpumon.server.api.errors import error_answer

log = logging.getLogger(__name__)

HEAD_BYTES = 64 * 1024
"""More of a head, or of what follows a body in chunks, is refused. Other servers allow 8 to 64 KiB."""
HEAD_SECONDS = 30.0
"""So long a head may take, from when the connection was made or from its first byte."""
_HEADER_BYTES = 128
"""What a header takes in memory beside its own bytes: many short ones are as bad as a long one."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    _unused_bytes = 0
    """What came since the last head, piece of a body, or end of a request."""
    _head_timer: asyncio.TimerHandle | None = None
    """Runs as long as a head is awaited that is to come soon."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """The first head is awaited."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._stop_awaiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Hands it to the parser. A body that comes in one piece with its head does not count as one."""
        if self.transport.is_closing():
            return
        self._unused_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._unused_bytes > HEAD_BYTES:
            self._refuse()
        elif self._head_timer is None and self._all_answered() and self.timeout_keep_alive_task is None:
            # uvicorn forgets it when the body of a request comes after its answer
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_message_begin(self) -> None:
        """The parser has met a head's first byte."""
        super().on_message_begin()
        if self._head_timer is None:
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser has met a header."""
        super().on_header(name, value)
        self._unused_bytes += _HEADER_BYTES

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._stop_awaiting()
        self._unused_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._unused_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._unused_bytes = 0
        super().on_message_complete()

    def _all_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _stop_awaiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if self._all_answered():
            self.transport.close()
        else:  # nothing may have been read, because the request before is not answered yet
            self._await_head()

    def _refuse(self) -> None:
        log.debug("head_too_large client=%s", self.client)
        if self._head_timer is not None and self._all_answered():  # else it would stand in another's answer
            refusal = error_answer(
                431,
                f"the head of a request may have {HEAD_BYTES} bytes; send fewer or shorter headers",
                headers={"Connection": "close"},
            )
            head = b"".join(b"%b: %b\r\n" % header for header in refusal.raw_headers)
            self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[431], head, bytes(refusal.body)))
        self.transport.close()
