"""Which cells and which raw rows answer for a stretch of time; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from gpumon.server.accounts.cells import FINE, HOUR
from gpumon.server.accounts.desk import Coverage, Run, merged

_EPOCH = datetime(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """Days, runs of whole hours and of whole fine buckets to take from cells, and what is left for raw rows:
    together the stretch, disjoint."""

    days: list[Run]
    hours: list[Run]
    fine: list[Run]
    raw: list[Run]


def plan(start: datetime, end: datetime, known: Coverage, fine_from: datetime = datetime.max) -> Plan:
    """How to answer for [start, end): with as coarse cells as there are, but from the bucket of `fine_from` on
    with fine ones where there are any."""
    late = []
    if fine_from < end:
        late = whole_buckets(known.fine, [(max(start, fine_from - (fine_from - _EPOCH) % FINE), end)], FINE)
    days = [(of, to) for of, to in known.days if start <= of and to <= min(end, fine_from)]
    rest = without([(start, end)], sorted([*days, *late]))
    hours = whole_buckets(known.hours, rest, HOUR)
    rest = without(rest, hours)
    fine = whole_buckets(known.fine, rest, FINE)
    return Plan(days, hours, sorted([*fine, *late]), without(rest, fine))


def whole_buckets(runs: Sequence[Run], stretches: Sequence[Run], bucket: timedelta) -> list[Run]:
    """The whole buckets of that length which are in one of the runs and in one of the stretches of time."""
    found = []
    for run_of, run_to in merged(runs):
        for of, to in stretches:
            begin, end = -(-(max(of, run_of) - _EPOCH) // bucket), (min(to, run_to) - _EPOCH) // bucket
            if begin < end:
                found.append((_EPOCH + begin * bucket, _EPOCH + end * bucket))
    return sorted(found)


def without(stretches: Sequence[Run], taken: Sequence[Run]) -> list[Run]:
    """What is left of stretches of time; they, and what is taken of them, are in order and disjoint."""
    left = []
    for of, to in stretches:
        begin = of
        for taken_of, taken_to in taken:
            if of <= taken_of < to:
                if begin < taken_of:
                    left.append((begin, taken_of))
                begin = taken_to
        if begin < to:
            left.append((begin, to))
    return left
