"""The buckets of time that a series is in; pure. Where they begin, and as SQL in which of them an instant is.

Each local day begins a bucket, whole weeks on Monday. Steps of up to an hour follow each other from local
midnight; longer ones begin at full local hours, as 0, 6, 12 and 18, also on days with a change of clocks.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec

from gpumon.errors import QueryError
from gpumon.server.accounts.ranges import Span, duration
from gpumon.server.accounts.slices import microseconds, utc
from gpumon.server.days import days_between, local_midnight

STEPS: Final = ("10s", "30s", "1m", "5m", "15m", "1h", "6h", "1d")
FEW_POINTS: Final = 300
MOST_POINTS: Final = 10_000
LONGEST_STEP: Final = timedelta(days=366)
_DAY: Final = timedelta(days=1)
_MICROSECOND: Final = timedelta(microseconds=1)


def step_of(text: str | None, span: Span) -> timedelta:
    """The buckets' length: what is asked for, else the shortest of STEPS that gives at most FEW_POINTS. Raises
    QueryError where there would be too many buckets."""
    if text is None:
        lengths = [duration("step", step) for step in STEPS]
        return next((step for step in lengths if span.seconds / step.total_seconds() <= FEW_POINTS), _DAY)
    step = duration("step", text)
    if step > LONGEST_STEP:
        raise QueryError(f"step = {text!r} is longer than {LONGEST_STEP.days}d; take a shorter one")
    if step > _DAY and step % _DAY:
        raise QueryError(f"step = {text!r}: beyond a day, take whole days")
    if span.seconds / step.total_seconds() > MOST_POINTS:
        raise QueryError(
            f"step = {text!r} gives {span.seconds / step.total_seconds():.0f} points, more than {MOST_POINTS}; "
            "take a longer step or a shorter range"
        )
    return step


def edges_of(span: Span, step: timedelta, zone: ZoneInfo) -> list[datetime]:
    """Where buckets begin, and where the last one ends. The first edge is not after the span's start, the last not
    before its end."""
    first = span.start.astimezone(zone).date()
    last = span.end.astimezone(zone).date() + _DAY
    if step >= _DAY:
        days = days_between(first - step, last + step)
        edges = [local_midnight(day, zone) for day in days if (day.toordinal() - 1) % step.days == 0]
    else:
        days = days_between(first, last)
        edges = sorted({edge for day in days for edge in _edges_of_day(day, step, zone, span)})
    return edges[bisect_right(edges, span.start) - 1 : bisect_left(edges, span.end) + 1]


def begins_of(edges: Sequence[datetime]) -> list[str]:
    """Where each bucket begins, as `clock.to_wire` has it: ten times as fast, of what are whole seconds."""
    texts: list[str] = msgspec.json.decode(msgspec.json.encode(edges[:-1]))
    return [f"{text[:-1]}.000Z" for text in texts]


def _edges_of_day(day: date, step: timedelta, zone: ZoneInfo, span: Span) -> Iterator[datetime]:
    """All of a local day; of the many of short steps those around the span."""
    begin, end = local_midnight(day, zone), local_midnight(day + _DAY, zone)
    if step > timedelta(hours=1):
        begins = datetime.combine(day, time())
        yield from (
            (begins + number * step).replace(tzinfo=zone).astimezone(UTC)
            for number in range(math.ceil(_DAY / step))
        )
    else:
        first, last = ((max(begin, min(edge, end)) - begin) / step for edge in (span.start, span.end))
        of_day = math.ceil((end - begin) / step)
        yield from (begin + number * step for number in range(int(first), min(math.ceil(last) + 1, of_day)))


@dataclass(frozen=True, slots=True)
class Buckets:
    """Buckets as SQL, by number, which is reckoned with rather than looked up: `runs` of equally long ones (a
    change of clocks ends one) have the first's number, where it begins (microseconds since 1970) and their length.
    `parameters` are what the SQL names."""

    runs: Sequence[tuple[int, int, int]]

    @property
    def parameters(self) -> dict[str, Any]:
        """Values of `at`, `lower` and `upper`."""
        return {
            f"{name}_{number}": value
            for number, run in enumerate(self.runs)
            for name, value in zip(("bucket", "edge", "length"), run, strict=True)
        }

    def at(self, instant: str) -> str:
        """In which an instant is, both as BIGINT."""
        return self._chosen(
            lambda run: f"{instant} < $edge_{run}",
            lambda run: f"$bucket_{run} + ({instant} - $edge_{run}) // $length_{run}",
        )

    def lower(self, bucket: str) -> str:
        """Where a bucket begins."""
        return self._edge(bucket, bucket)

    def upper(self, bucket: str) -> str:
        """Where it ends."""
        return self._edge(bucket, f"({bucket} + 1)")

    def _edge(self, bucket: str, edge: str) -> str:
        return self._chosen(
            lambda run: f"{bucket} < $bucket_{run}",
            lambda run: f"$edge_{run} + ({edge} - $bucket_{run}) * $length_{run}",
        )

    def _chosen(self, is_before: Callable[[int], str], value: Callable[[int], str]) -> str:
        """SQL for the value by the run that it is in, of which `is_before` says whether it is not there yet."""

        def among(first: int, last: int) -> str:
            if first == last:
                return f"({value(first)})"
            middle = (first + last) // 2  # there are many runs where steps do not divide a day
            earlier, later = among(first, middle), among(middle + 1, last)
            return f"CASE WHEN {is_before(middle + 1)} THEN {earlier} ELSE {later} END"

        return among(0, len(self.runs) - 1)


def buckets_of(edges: Sequence[datetime]) -> Buckets:
    """The buckets between these edges."""
    runs: list[tuple[int, int, int]] = []
    previous = None
    for number, (begin, end) in enumerate(pairwise(edges)):
        if end - begin != previous:
            previous = end - begin
            runs.append((number, microseconds(utc(begin)), previous // _MICROSECOND))
    return Buckets(runs)
