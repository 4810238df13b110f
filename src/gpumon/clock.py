"""The two clocks: wall time for what is stored, monotonic time for how long to wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

Now = Callable[[], datetime]
"""Gives the present as an aware UTC instant. Passed in, so that tests choose the time."""

Monotonic = Callable[[], float]
"""Gives seconds on a clock that never steps. Passed in, so that tests never sleep."""

monotonic: Monotonic = time.monotonic


def now() -> datetime:
    """The present as an aware UTC instant."""
    return datetime.now(UTC)


def to_wire(instant: datetime) -> str:
    """An aware instant as RFC 3339 in UTC with milliseconds, `2026-11-24T17:33:23.123Z`."""
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
