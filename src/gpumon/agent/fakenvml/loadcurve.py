"""How busy a simulated GPU is, as a function of time whose integral is known in closed form.

The integral is what makes counters honest: energy is the integral of power whenever it is read, however
often, and two reads never disagree. `phase` in [0, 1) tells GPUs of one entry apart.
"""

from __future__ import annotations

import math
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

Percent = Annotated[float, Meta(ge=0, le=100)]
Period = Annotated[float, Meta(gt=0)]


class Load(Protocol):
    """Share of a GPU that is in use, 0 to 1, over Unix time in seconds."""

    @property
    def peak(self) -> float:
        """The largest share."""

    def at(self, t: float, phase: float) -> float:
        """The share at an instant."""

    def integral(self, start: float, end: float, phase: float) -> float:
        """The share summed over a time, in seconds."""


class Steady(msgspec.Struct, frozen=True):
    """Always the same. In a scenario: a bare number, `utilization = 42`."""

    percent: float

    @property
    def peak(self) -> float:
        """See Load."""
        return self.percent / 100

    def at(self, t: float, phase: float) -> float:
        """See Load."""
        return self.percent / 100

    def integral(self, start: float, end: float, phase: float) -> float:
        """See Load."""
        return self.percent / 100 * (end - start)


class Wave(msgspec.Struct, frozen=True, tag_field="shape", tag="wave", kw_only=True, forbid_unknown_fields=True):
    """Rises and falls smoothly around a mean, on three time scales: a service with users."""

    mean: Annotated[Percent, Meta(description="utilisation around which it swings, in %")]
    swing: Annotated[Percent, Meta(description="largest distance from the mean, in %")] = 0
    period_seconds: Annotated[Period, Meta(description="length of the slow wave, in seconds")] = 600

    def __post_init__(self) -> None:
        if not self.swing <= self.mean <= 100 - self.swing:
            raise ValueError("mean - swing must be at least 0 and mean + swing at most 100")

    @property
    def peak(self) -> float:
        """See Load."""
        return (self.mean + self.swing) / 100

    def at(self, t: float, phase: float) -> float:
        """See Load."""
        total = self.mean
        for weight, period, shift in self._parts(phase):
            total += self.swing * weight * math.sin(math.tau * (t / period + shift))
        return total / 100

    def integral(self, start: float, end: float, phase: float) -> float:
        """See Load."""
        total = self.mean * (end - start)
        for weight, period, shift in self._parts(phase):
            fall = math.cos(math.tau * (start / period + shift)) - math.cos(math.tau * (end / period + shift))
            total += self.swing * weight * period / math.tau * fall
        return total / 100

    def _parts(self, phase: float) -> tuple[tuple[float, float, float], ...]:
        # Ratios of the periods are no whole numbers, so that the sum does not visibly repeat.
        period = self.period_seconds
        return (0.6, period, phase), (0.3, period / 3.7, 2 * phase), (0.1, period / 11.3, 3 * phase)


class Bursts(
    msgspec.Struct, frozen=True, tag_field="shape", tag="bursts", kw_only=True, forbid_unknown_fields=True
):
    """Busy for a share of each period, then idle: jobs that come and go."""

    busy: Annotated[Percent, Meta(description="utilisation while busy, in %")] = 95
    idle: Annotated[Percent, Meta(description="utilisation in between, in %")] = 0
    period_seconds: Annotated[Period, Meta(description="time from one start to the next, in seconds")] = 600
    duty: Annotated[float, Meta(gt=0, lt=1, description="share of the period that is busy, 0 to 1")] = 0.5

    @property
    def peak(self) -> float:
        """See Load."""
        return max(self.busy, self.idle) / 100

    def at(self, t: float, phase: float) -> float:
        """See Load."""
        return (self.busy if (t / self.period_seconds + phase) % 1 < self.duty else self.idle) / 100

    def integral(self, start: float, end: float, phase: float) -> float:
        """See Load."""
        first = start / self.period_seconds + phase
        origin = math.floor(first)  # counted from here, a long history costs no precision
        after = self._since(end / self.period_seconds + phase - origin)
        return (after - self._since(first - origin)) * self.period_seconds / 100

    def _since(self, periods: float) -> float:
        whole = math.floor(periods)
        part = periods - whole
        per_period = self.duty * self.busy + (1 - self.duty) * self.idle
        return whole * per_period + min(part, self.duty) * self.busy + max(0.0, part - self.duty) * self.idle
