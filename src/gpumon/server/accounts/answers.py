"""Answers about pods and GPUs: reads the question's words, asks the store, shapes what comes back.

Every answer about a range says which (`range`) and how far it is backed (`coverage`). What could not be measured
is null or no data, never 0.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

from gpumon.clock import Now, to_wire
from gpumon.errors import QueryError
from gpumon.server import queries
from gpumon.server.accounts import buckets, current, idle, ledger, series, usage, utilization
from gpumon.server.accounts.cells import FINE
from gpumon.server.accounts.desk import Desk, Reading, Rows
from gpumon.server.accounts.gathering import Gathered, gather
from gpumon.server.accounts.groups import grouping
from gpumon.server.accounts.prices import Price
from gpumon.server.accounts.ranges import DEFAULT_LAST, Span, duration, span_of
from gpumon.server.accounts.slices import KNOWN_FOR, utc
from gpumon.server.tables import POD_USAGE, SAMPLES, Table

Answer = dict[str, Any]
WAIT_SECONDS = 30.0
"""Longest wait of a question about a range for its turn."""


@dataclass(frozen=True, slots=True)
class RangeWords:
    """A range as it was asked for; see `ranges`."""

    start: str | None = None
    end: str | None = None
    last: str | None = None


class Answers:
    """Answers by the store (a desk), the server's zone, limits and prices."""

    def __init__(
        self,
        desk: Desk,
        refresh: Callable[[], None],
        zone: ZoneInfo,
        now: Now,
        *,
        max_range_days: int,
        stale_after: timedelta,
        prices: tuple[Price, ...],
        currency: str | None,
    ) -> None:
        self._desk = desk
        self._refresh = refresh
        self._zone = zone
        self._now = now
        self._max_range_days = max_range_days
        self._stale_after = stale_after
        self._prices = prices
        self._currency = currency
        self._heavy = threading.Lock()

    def ledger(self, words: RangeWords, group_by: str) -> Answer:
        """The wall time of the GPUs, divided into its parts, whole and by group."""
        span, by = self._span(words), grouping(group_by)
        with self._gathering(span, ledger.KINDS) as (reading, gathered):
            rows = _select(reading, ledger.select_ledger(gathered, by))
        return _about(span, group_by) | ledger.ledger_of(rows, span, by)

    def usage(self, words: RangeWords, group_by: str, limit: int) -> Answer:
        """GPU-hours, energy, memory and cost, whole and by group."""
        span, by = self._span(words), grouping(group_by)
        with self._gathering(span, usage.kinds(by)) as (reading, gathered):
            rows = _select(reading, usage.select_usage(gathered, by, self._prices, limit))
            notes = [note for (note,) in _select(reading, usage.select_notes(gathered))]
        return _about(span, group_by) | usage.usage_of(rows, notes, span, by, self._currency)

    def idle(self, words: RangeWords, threshold: float, at_least: str, namespace: str | None) -> Answer:
        """Who holds GPUs now and has not used them for at least so long, looking back over the range."""
        shortest = duration("at_least", at_least)
        if words == RangeWords() and shortest >= duration("last", DEFAULT_LAST):
            words = RangeWords(last=f"{2 * shortest // timedelta(seconds=1)}s")
        span = self._span(words)
        if shortest > span.end - span.start:
            raise QueryError(
                f"at_least = {at_least.strip()[:40]} is longer than the range, so that it would list nobody; ask "
                "for a longer range by last or start"
            )
        with self._reading() as reading:
            rows = idle.ask(
                reading,
                span,
                now=self._now(),
                threshold=threshold,
                at_least=shortest,
                namespace=namespace,
                prices=self._prices,
                stale_after=self._stale_after,
            )
        return {"range": _range(span)} | idle.idle_of(rows, span, shortest, self._currency)

    def utilization(self, words: RangeWords, group_by: str) -> Answer:
        """How hard GPUs worked: mean, extremes and percentiles of their readings, by group."""
        span, keys = self._span(words), utilization.keys_of(group_by)
        with self._reading() as reading:
            reading.counted(utc(span.start), utc(span.end))
            rows = _select(reading, utilization.select_utilization(keys))
        return _about(span, group_by) | utilization.utilization_of(rows, keys)

    def series(self, words: RangeWords, wanted: series.Wanted, step: str | None) -> Answer:
        """One metric over time."""
        span = self._span(words)
        length = buckets.step_of(step, span)
        edges = buckets.edges_of(span, length, self._zone)
        with self._reading() as reading:
            rows = series.ask(reading, wanted, span, edges, length, self._stale_after)
        return {"range": _range(span)} | series.series_of(rows, wanted, edges, length)

    def gpus(self, node: str | None) -> list[Answer]:
        """Each GPU as it is now."""
        self._refresh()
        now = self._now()
        samples = self._named(SAMPLES, queries.select_latest_all())
        users = self._named(POD_USAGE, queries.select_latest_pods(utc(now - KNOWN_FOR)))
        listed = current.gpus(samples, users, now, self._stale_after)
        return [gpu for gpu in listed if node in (None, gpu["node"])]

    def pods(self, namespace: str | None, node: str | None) -> list[Answer]:
        """Each pod that holds or uses a GPU now."""
        listed = current.pods(self.gpus(node), self._labels())
        return [pod for pod in listed if namespace in (None, pod["namespace"])]

    def nodes(self, node: str | None) -> list[Answer]:
        """Each node with GPUs as it is now."""
        return current.nodes(self.gpus(node), self._labels())

    @contextmanager
    def _reading(self) -> Iterator[Reading]:
        """Questions about a range take memory for it: together they would find none where each alone does."""
        self._refresh()
        if not self._heavy.acquire(timeout=WAIT_SECONDS):
            raise QueryError("other questions about ranges are being answered; try again in a moment", status=503)
        try:
            with self._desk.reading() as reading:
                yield reading
        finally:
            self._heavy.release()

    @contextmanager
    def _gathering(self, span: Span, kinds: frozenset[str]) -> Iterator[tuple[Reading, Gathered]]:
        with self._reading() as reading:
            yield reading, gather(reading, span, self._stale_after, kinds)

    def _labels(self) -> dict[tuple[Any, ...], dict[str, str | None]]:
        return current.labels_by_owner(self._desk.select(current.select_labels(self._now())))

    def _named(self, table: Table, query: queries.Query) -> list[Answer]:
        return [dict(zip(table.columns, row, strict=True)) for row in self._desk.select(query)]

    def _span(self, words: RangeWords) -> Span:
        return span_of(
            words.start,
            words.end,
            words.last,
            now=self._now(),
            zone=self._zone,
            max_days=self._max_range_days,
            kept=FINE,
        )


def _select(reading: Reading, query: queries.Query) -> Rows:
    parameters: dict[str, Any] = dict(query.parameters)
    return reading.answer(query.sql, parameters)


def _about(span: Span, group_by: str) -> Answer:
    return {"range": _range(span), "group_by": group_by}


def _range(span: Span) -> Answer:
    return {"start": to_wire(span.start), "end": to_wire(span.end), "seconds": span.seconds}
