"""Who works on a simulated GPU when, and how much: the truth that per-process readings can be held against.

A time in which the same processes run is a stretch; in it every process does a fixed part of a load whose
integral is known in closed form (`loadcurve`). So every sum over time is exact, whoever came or went in it.

A process has a load of its own, or a share of the GPU's. On a GPU or instance whose processes have loads of
their own nothing else works; where their peaks together pass the whole, all are scaled down alike, as time
slicing does.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from gpumon.agent.fakenvml.loadcurve import Load

HISTORY_SECONDS = 20.0
"""For how long the driver remembers what processes did."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A process from `start` to `end` (Unix seconds); `load` is None where it has a share of the GPU's."""

    pid: int
    share: float
    load: Load | None
    mig: int | None
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Ground:
    """What processes share: a whole GPU, or the instance `mig` of it. `fraction` is its part of the GPU, 0 to 1.
    `own`: its processes have loads of their own. `unclaimed`: the GPU's load is there though nobody runs."""

    fraction: float = 1.0
    mig: int | None = None
    own: bool = False
    unclaimed: bool = True


@dataclass(frozen=True, slots=True)
class _Part:
    """What one process does, `weight` times a load, as a part of the whole GPU. `pid` None: nobody is seen."""

    pid: int | None
    mig: int | None
    load: Load
    weight: float


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A time in which the same parts work; `whole` is their sum by load."""

    start: float
    end: float
    parts: tuple[_Part, ...]
    whole: tuple[tuple[Load, float], ...]


class Timeline:
    """The work on one GPU over all time. `phase` tells GPUs of one entry apart, see `loadcurve`."""

    def __init__(self, stretches: Sequence[_Stretch], phase: float) -> None:
        self._stretches = stretches
        self._starts = [stretch.start for stretch in stretches]
        self._phase = phase

    def at(self, t: float) -> float:
        """Share of the GPU that is in use at an instant, 0 to 1."""
        stretch = self._stretches[self._index(t)]
        return sum(weight * load.at(t, self._phase) for load, weight in stretch.whole)

    def integral(self, start: float, end: float) -> float:
        """That share summed over a time, in seconds."""
        return sum(
            weight * load.integral(since, until, self._phase)
            for stretch, since, until in self._within(start, end)
            for load, weight in stretch.whole
        )

    def by_pid(self, start: float, end: float) -> dict[int, float]:
        """What each process did of that, in seconds of the whole GPU."""
        seconds: dict[int, float] = defaultdict(float)
        for part, worked in self._parts(start, end, lambda part: part.pid is not None):
            seconds[part.pid or 0] += worked
        return seconds

    def of_instance(self, mig: int, start: float, end: float) -> float:
        """What was done in a MIG instance, in seconds of the whole GPU."""
        return sum(worked for _, worked in self._parts(start, end, lambda part: part.mig == mig))

    def after(self, before: Timeline, t: float) -> Timeline:
        """This one from an instant on; until then, as far as it is remembered, the other."""
        remembered = t - HISTORY_SECONDS
        past = [
            replace(stretch, end=min(stretch.end, t))
            for stretch in before._stretches
            if stretch.end > remembered and stretch.start < t
        ]
        future = [replace(stretch, start=max(stretch.start, t)) for stretch in self._stretches if stretch.end > t]
        past[0] = replace(past[0], start=-math.inf)
        return Timeline([*past, *future], self._phase)

    def _index(self, t: float) -> int:
        return bisect_right(self._starts, t) - 1

    def _within(self, start: float, end: float) -> Iterator[tuple[_Stretch, float, float]]:
        for index in range(self._index(start), len(self._stretches)):
            stretch = self._stretches[index]
            if stretch.start >= end:
                return
            yield stretch, max(start, stretch.start), min(end, stretch.end)

    def _parts(self, start: float, end: float, wanted: Callable[[_Part], bool]) -> Iterator[tuple[_Part, float]]:
        for stretch, since, until in self._within(start, end):
            for part in stretch.parts:
                if wanted(part):
                    yield part, part.weight * part.load.integral(since, until, self._phase)


def make_timeline(curve: Load, grounds: Iterable[Ground], workers: Sequence[Worker], phase: float) -> Timeline:
    """The work of these processes; `curve` is the GPU's own load, which they share unless they have their own."""
    grounds = tuple(grounds)
    edges = sorted({edge for worker in workers for edge in (worker.start, worker.end)} | {-math.inf, math.inf})
    return Timeline(
        [
            _stretch(start, end, curve, grounds, [w for w in workers if w.start <= start and end <= w.end])
            for start, end in pairwise(edges)
        ],
        phase,
    )


def _stretch(
    start: float, end: float, curve: Load, grounds: Iterable[Ground], present: Sequence[Worker]
) -> _Stretch:
    parts = [
        part
        for ground in grounds
        for part in _parts(curve, ground, [worker for worker in present if worker.mig == ground.mig])
    ]
    weights: dict[Load, list[float]] = defaultdict(list)
    for part in parts:
        weights[part.load].append(part.weight)
    whole = tuple((load, math.fsum(own)) for load, own in weights.items())
    return _Stretch(start, end, tuple(parts), whole)


def _parts(curve: Load, ground: Ground, present: Sequence[Worker]) -> Iterator[_Part]:
    """What those who are present on a ground do of its GPU."""
    if ground.own:
        working = [(worker.pid, worker.load) for worker in present if worker.load is not None]
        peak = max(1.0, sum(load.peak for _, load in working))
        for pid, load in working:
            yield _Part(pid, ground.mig, load, ground.fraction / peak)
        return
    shares = sum(worker.share for worker in present)
    for worker in present if shares else ():
        yield _Part(worker.pid, ground.mig, curve, ground.fraction * worker.share / shares)
    if not shares and ground.unclaimed:
        yield _Part(None, ground.mig, curve, ground.fraction)
