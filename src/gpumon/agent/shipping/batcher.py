"""Samples become batches: closed with the tick that reaches a size, or at an age; named for ever.

A batch's id is agent, boot, sequence: the boot is new with each run, the sequence counts its batches from 1,
so no two batches share an id and the server can tell a repetition.

`put` may take its time, for the spool's disk may hang: it is called in the batcher's own thread, never in the
sampler's. Meanwhile closed batches wait here, up to a bound; then the oldest is dropped and counted.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from collections.abc import Callable

import msgspec

from gpumon import clock
from gpumon.agent.counts import BatcherCounts
from gpumon.agent.ports import Batch, Reading
from gpumon.clock import Monotonic
from gpumon.logs import Trouble
from gpumon.model.sample import MAX_TEXT, BatchId

log = logging.getLogger(__name__)

_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9._-]")


def agent_name(client_name: str) -> str:
    """The client's name in the characters that a batch id and a folder may have. No dot at either end: `..`
    must not become a folder, and Windows drops a dot at the end."""
    return _NOT_ALLOWED.sub("-", client_name)[:MAX_TEXT].strip(".") or "agent"


class Batcher:
    """Gathers samples; hands each full or old batch to `put`, in the order of their sequence. Batches that
    `put` has not taken in yet have `waiting_bytes`."""

    def __init__(
        self,
        put: Callable[[Batch], None],
        counts: BatcherCounts,
        *,
        agent: str,
        boot: str,
        size: int,
        max_age_seconds: float,
        waiting_bytes: int,
        monotonic: Monotonic = clock.monotonic,
    ) -> None:
        self._put = put
        self._counts = counts
        self._agent = agent
        self._boot = boot
        self._size = size
        self._max_age_seconds = max_age_seconds
        self._waiting_limit = waiting_bytes
        self._monotonic = monotonic
        self._encode = msgspec.json.Encoder().encode
        self._lock = threading.Lock()
        self._handing_over = threading.Lock()
        self._woken = threading.Event()
        self._pending: list[bytes] = []
        self._began = 0.0
        self._sequence = 0
        self._closed: deque[Batch] = deque()
        self._closed_bytes = 0
        self._full = Trouble(log, "batcher", monotonic=monotonic)

    def add(self, sample: Reading) -> None:
        """Takes one sample. Never waits for the spool."""
        encoded = self._encode(sample)
        with self._lock:
            if not self._pending:
                self._began = self._monotonic()
            self._pending.append(encoded)

    def tick_over(self) -> None:
        """All GPUs have been sampled: closes the batch if it is full. Samples of one instant so go together, in
        fewer requests; a request costs more than all the rest of a tick."""
        with self._lock:
            if len(self._pending) >= self._size:
                self._close()

    def turn(self) -> float:
        """Closes a batch that has reached its age, and hands over what is closed. Gives the seconds for which
        no batch can reach its age."""
        with self._lock:
            if self._pending and self._remaining() <= 0:
                self._close()
        self._hand_over()
        with self._lock:
            return max(0.0, self._remaining()) if self._pending else self._max_age_seconds

    def flush(self) -> None:
        """Closes the batch that is being filled, if there is one, and hands over what is closed."""
        with self._lock:
            if self._pending:
                self._close()
        self._hand_over()

    def run(self, stop: threading.Event) -> None:
        """Hands over batches until stopped. Wakes once per batch, not per sample."""
        while True:
            self._woken.clear()
            if stop.is_set():
                return
            self._woken.wait(self.turn())

    def wake(self) -> None:
        """Lets `run` look at its stop event."""
        self._woken.set()

    def _remaining(self) -> float:
        return self._began + self._max_age_seconds - self._monotonic()

    def _close(self) -> None:
        self._sequence += 1
        batch = Batch(
            id=BatchId(self._agent, self._boot, self._sequence),
            samples=len(self._pending),
            body=b"[" + b",".join(self._pending) + b"]",
        )
        self._pending = []
        self._closed.append(batch)
        self._closed_bytes += len(batch.body)
        while self._closed_bytes > self._waiting_limit and len(self._closed) > 1:
            dropped = self._take_closed()
            self._counts.dropped_batches += 1
            self._counts.dropped_samples += dropped.samples
            self._full.occurred("the spool takes nothing in, the oldest samples are dropped", do="check its disk")
        self._woken.set()

    def _hand_over(self) -> None:
        with self._handing_over:  # one thread at a time, or a later batch could pass an earlier one
            while True:
                with self._lock:
                    if not self._closed:
                        self._full.ended()
                        return
                    batch = self._take_closed()
                self._put(batch)

    def _take_closed(self) -> Batch:
        batch = self._closed.popleft()
        self._closed_bytes -= len(batch.body)
        return batch
