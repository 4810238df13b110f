"""Empties the spool into the server, in order, one batch at a time.

A batch that is not taken is tried again until it is, or until the spool drops it for lack of room: there is
no last try. The delay grows by `backoff` from `delay_seconds`, `growths` times at most; of each delay a random
part of up to a half is left out, so that a fleet whose server comes back does not come all at once. What the
server asks for by Retry-After is waited for in full. A batch that is refused for good is set aside, and the
next one gets its turn.

At the stop, it goes on with what is left until the spool is empty or closed, or a batch is not taken; a server
that has asked to be left alone gets no last try.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from typing import Protocol

from gpumon import clock
from gpumon.agent.counts import DeliveryCounts
from gpumon.agent.ports import Batch, BatchSink, Outcome
from gpumon.clock import Monotonic, Now
from gpumon.logs import Trouble

log = logging.getLogger(__name__)

LONGEST_DELAY_SECONDS = 3600.0
"""However the settings multiply, and whatever a server asks for: an agent is not silent for longer."""


class Backlog(Protocol):
    """What the delivery needs of the spool; see `Spool`."""

    def head(self, stop: threading.Event) -> Batch | None:
        """The batch to deliver next; waits for one until `stop` is set."""

    def delivered(self) -> None:
        """It has been taken."""

    def refused(self, reason: str) -> None:
        """It will never be taken."""

    def not_delivered(self) -> None:
        """It has not been taken, and stays first."""


class Delivery:
    """Delivers until stopped."""

    def __init__(
        self,
        backlog: Backlog,
        sink: BatchSink,
        counts: DeliveryCounts,
        *,
        delay_seconds: float,
        backoff: float,
        growths: int,
        now: Now = clock.now,
        monotonic: Monotonic = clock.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._backlog = backlog
        self._sink = sink
        self._counts = counts
        self._first_delay = delay_seconds
        self._backoff = backoff
        self._growths = growths
        self._now = now
        self._chance = chance
        self._failures = 0
        self._delay = delay_seconds
        self._trouble = Trouble(log, "delivery", monotonic=monotonic)

    def run(self, stop: threading.Event) -> None:
        """Delivers until `stop` is set, and then what can be delivered without waiting."""
        while (batch := self._backlog.head(stop)) is not None:
            outcome = self._sink.deliver(batch)
            stopping = stop.is_set()
            pause = self._settle(batch, outcome)
            if pause is None:
                continue
            if stop.wait(pause) and (stopping or outcome.after_seconds is not None):
                return

    def _settle(self, batch: Batch, outcome: Outcome) -> float | None:
        """Tells the backlog and the counts. Gives the seconds to wait before the batch is tried again, None
        when it is done with."""
        if outcome.kind == "retry":
            self._backlog.not_delivered()
            self._counts.retries += 1
            self._counts.trouble = outcome.reason
            self._trouble.occurred(outcome.reason, do="samples wait in the spool; see the server and its log")
            return self._pause(outcome.after_seconds)
        if outcome.kind == "poison":
            self._backlog.refused(outcome.reason)
        else:
            self._backlog.delivered()
            self._counts.batches += 1
            self._counts.samples += batch.samples
            self._counts.delivered_at = self._now().timestamp()
        self._counts.trouble = None
        self._trouble.ended()
        self._failures, self._delay = 0, self._first_delay
        return None

    def _pause(self, after_seconds: float | None) -> float:
        if 0 < self._failures <= self._growths:
            self._delay = min(self._delay * self._backoff, LONGEST_DELAY_SECONDS)
        self._failures += 1
        part = self._chance() / 2
        if after_seconds is not None:
            return min(after_seconds, LONGEST_DELAY_SECONDS) + self._first_delay * part
        return self._delay * (1 - part)
