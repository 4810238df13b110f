"""Looking at what may hang: each look is a thread of its own, waited for until a deadline.

A thread that hangs can't be ended. It is left behind, and while it hangs no second one is begun under its name:
whoever looks again waits for the first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from gpumon import clock
from gpumon.errors import GpumonError

T = TypeVar("T")


class NoLook(GpumonError):
    """Nothing came of a look: it hangs, or failed in a way that it should not."""


class Look(Generic[T]):
    """One look that has been begun."""

    def __init__(self, name: str, ask: Callable[[], T]) -> None:
        self._ask = ask
        self._found: list[T] = []
        self._error: Exception | None = None
        self._began_at = clock.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"doctor-{name}", daemon=True)
        self._thread.start()

    @property
    def hangs(self) -> bool:
        """Whether it has not come to an end."""
        return self._thread.is_alive()

    def result(self, deadline: float) -> T:
        """What was seen, waited for until `deadline` on the monotonic clock. Raises what the look raised of
        gpumon's own errors, and NoLook for anything else that went wrong."""
        self._thread.join(max(0.0, deadline - clock.monotonic()))
        if self.hangs:
            raise NoLook(f"no answer within {clock.monotonic() - self._began_at:.0f} s: it hangs")
        if self._error is not None:
            if isinstance(self._error, GpumonError):
                raise self._error
            raise NoLook(f"the look itself failed, which is a bug of gpumon: {self._error!r}") from self._error
        return self._found[0]

    def _run(self) -> None:
        try:
            self._found.append(self._ask())
        except Exception as error:  # raised by `result`, in the thread that can act on it
            self._error = error


class Looks:
    """The looks of one doctor. For one thread."""

    def __init__(self) -> None:
        self._begun: dict[str, Look[Any]] = {}

    def begin(self, name: str, ask: Callable[[], T]) -> Look[T]:
        """Begins a look; gives the earlier one of that name where it still hangs."""
        look = self._begun.get(name)
        if look is None or not look.hangs:
            look = self._begun[name] = Look(name, ask)
        return look

    @property
    def any_hangs(self) -> bool:
        """Whether any has not come to an end."""
        return any(look.hangs for look in self._begun.values())
