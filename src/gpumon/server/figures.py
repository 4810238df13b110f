"""What readings add up to; pure. Sums, not means, so that hours add up to days and days to a range."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any


@dataclass(slots=True)
class Figures:
    """What a set of readings adds up to. Adding two gives the figures of both sets together."""

    total: float = 0.0
    readings: int = 0
    low: float | None = None
    high: float | None = None
    minutes: int = 0

    @property
    def mean(self) -> float:
        """The mean; 0.0 where there is no reading, as the old program has it."""
        return self.total / self.readings if self.readings else 0.0

    def add(self, other: Figures) -> None:
        """Takes another set in."""
        self.total += other.total
        self.readings += other.readings
        self.minutes += other.minutes
        if other.low is not None and (self.low is None or other.low < self.low):
            self.low = other.low
        if other.high is not None and (self.high is None or other.high > self.high):
            self.high = other.high


def by_day(by_hour: dict[tuple[date, int], Figures]) -> dict[date, Figures]:
    """The figures of each day, from those of its hours."""
    days: dict[date, Figures] = defaultdict(Figures)
    for (day, _), figures in by_hour.items():
        days[day].add(figures)
    return dict(days)


def together(figures: Iterable[Figures]) -> Figures:
    """The figures of all together."""
    whole = Figures()
    for one in figures:
        whole.add(one)
    return whole


def mean_of_means(figures: Iterable[Figures]) -> float:
    """The mean of the means of those that have readings, rounded; 0.0 of none."""
    means = [f.mean for f in figures if f.readings]
    return rounded(sum(means) / len(means)) if means else 0.0


def rounded(value: float | None, empty: float | None = 0.0) -> Any:
    """A figure to two decimals, as the old program gives it; `empty` where there is none."""
    return empty if value is None else round(value, 2)


def trimmed(answer: Any) -> Any:
    """An answer whose numbers have ten significant digits: without the noise of binary fractions, and exact enough
    that what adds up still does."""
    if isinstance(answer, float):
        return float(f"{answer:.10g}")
    if isinstance(answer, dict):
        return {name: trimmed(value) for name, value in answer.items()}
    return [trimmed(value) for value in answer] if isinstance(answer, list) else answer
