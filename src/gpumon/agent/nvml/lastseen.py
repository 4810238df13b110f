"""From which instant on the driver is asked for what it has sampled.

The driver keeps samples of the last seconds, stamped with the CPU's wall clock, and gives those that are newer
than an instant we name. That is the newest stamp it gave at our last sample; where there is none that can be
believed (the first time, nothing was given, nonsense, the clock was set) the instant of our last sample itself.
Never 0: what was busy long ago and is idle now would stay busy. After a step of the clock backwards, the driver's
samples from before it look new for as long as it keeps them.
"""

from __future__ import annotations

from gpumon.clock import Monotonic, Now

FIRST_SECONDS = 1.0
"""How far back the first sample looks."""

_LATE_SECONDS = 2.0
"""By how much the newest stamp may be older than the sample that brought it; drivers take five or six a second."""
_MICRO = 1_000_000


class LastSeen:
    """What one question of one GPU has seen."""

    def __init__(self, *, monotonic: Monotonic, now: Now) -> None:
        self._monotonic = monotonic
        self._now = now
        self._sampled_at: float | None = None
        self._newest: int | None = None

    def since(self) -> int:
        """The instant to name, in microseconds since 1970."""
        now = int(self._now().timestamp() * _MICRO)
        if self._sampled_at is None:
            return now - int(FIRST_SECONDS * _MICRO)
        sampled_at = now - int((self._monotonic() - self._sampled_at) * _MICRO)
        if self._newest is not None and sampled_at - _LATE_SECONDS * _MICRO <= self._newest <= now:
            return self._newest
        return sampled_at

    def sampled(self) -> None:
        """A sample is taken now; what it brings, `brought` may say."""
        self._sampled_at, self._newest = self._monotonic(), None

    def brought(self, newest: int | None) -> None:
        """The newest stamp that the sample has brought; None where it brought nothing."""
        self._newest = newest

    def forget(self) -> None:
        """The next sample is a first one again."""
        self._sampled_at = None
