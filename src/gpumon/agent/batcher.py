"""Samples become batches: encoded one by one, closed at a size or an age, named for ever.

A batch's id is agent, boot, sequence: the boot is new with each run, the sequence counts its batches from 1,
so no two batches share an id and the server can tell a repetition.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

import msgspec

from gpumon import clock
from gpumon.agent.ports import Batch, Reading
from gpumon.clock import Monotonic
from gpumon.model.sample import MAX_TEXT, BatchId

_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9._-]")


def agent_name(client_name: str) -> str:
    """The client's name in the characters that a batch id and a folder may have. No dot at either end: `..`
    must not become a folder, and Windows drops a dot at the end."""
    return _NOT_ALLOWED.sub("-", client_name)[:MAX_TEXT].strip(".") or "agent"


class Batcher:
    """Gathers samples; hands each full or old batch to `put`, in the order of their sequence."""

    def __init__(
        self,
        put: Callable[[Batch], None],
        *,
        agent: str,
        boot: str,
        size: int,
        max_age_seconds: float,
        monotonic: Monotonic = clock.monotonic,
    ) -> None:
        self._put = put
        self._agent = agent
        self._boot = boot
        self._size = size
        self._max_age_seconds = max_age_seconds
        self._monotonic = monotonic
        self._encode = msgspec.json.Encoder().encode
        self._lock = threading.Lock()
        self._pending: list[bytes] = []
        self._began = 0.0
        self._sequence = 0

    def add(self, sample: Reading) -> None:
        """Takes one sample; the one that fills the batch closes it."""
        encoded = self._encode(sample)
        with self._lock:
            if not self._pending:
                self._began = self._monotonic()
            self._pending.append(encoded)
            if len(self._pending) >= self._size:
                self._close()

    def close_if_old(self) -> float:
        """Closes a batch that has reached its age. Gives the seconds for which none can reach it."""
        with self._lock:
            if not self._pending:
                return self._max_age_seconds
            remaining = self._began + self._max_age_seconds - self._monotonic()
            if remaining > 0:
                return remaining
            self._close()
            return self._max_age_seconds

    def flush(self) -> None:
        """Closes the batch that is being filled, if there is one."""
        with self._lock:
            if self._pending:
                self._close()

    def run(self, stop: threading.Event) -> None:
        """Closes old batches until stopped. Wakes about once per age, not per sample."""
        while not stop.wait(self.close_if_old()):
            pass

    def _close(self) -> None:
        self._sequence += 1
        batch = Batch(
            id=BatchId(self._agent, self._boot, self._sequence),
            samples=len(self._pending),
            body=b"[" + b",".join(self._pending) + b"]",
        )
        self._pending = []
        self._put(batch)
