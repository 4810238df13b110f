"""Answers that are made block by block while they are sent, whose source is closed whatever happens.

A client that goes away ends it; so does one that takes nothing for a minute, for it would hold a file, or the only
slot of exports.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

import anyio
import anyio.to_thread
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from gpumon.errors import GpumonError

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0
"""How long a client may take none of a block."""


class Streamed(StreamingResponse):
    """The blocks are made in a worker thread, `close` is called there once."""

    def __init__(
        self,
        blocks: Iterator[bytes],
        close: Callable[[], None],
        *,
        media_type: str,
        headers: Mapping[str, str],
        status: int = 200,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        super().__init__(blocks, status, headers, media_type)
        self._close = close
        self._patience = patience_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it. What is cut off is seen to be: without the last chunk, or shorter than it was said to be."""
        try:
            await super().__call__(scope, receive, send)
        except TimeoutError:
            log.info("stream_given_up path=%s: nothing taken for %g s", scope["path"], self._patience)
        except (GpumonError, OSError) as error:  # the status is sent; what is left is to break off
            log.warning("stream_broken_off path=%s error=%s", scope["path"], error)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._close)

    async def stream_response(self, send: Send) -> None:
        """As the parent's, with an end to the patience."""

        async def send_in_time(message: Message) -> None:
            with anyio.fail_after(self._patience):
                await send(message)

        await super().stream_response(send_in_time)
