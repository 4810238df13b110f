"""Calls that are due at an instant, as the end of a query's time: one thread for all, since to start one for each
takes longer than a short statement."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


class Alarms:
    """Calls what is due, on one thread for all. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._set: dict[object, tuple[float, Callable[[], None]]] = {}
        self._changed = threading.Condition()
        self._wakes_at = -math.inf
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def set(self, at: float, action: Callable[[], None]) -> object:
        """Has an action called at an instant of time.monotonic(); gives what `cancel` wants."""
        alarm = object()
        with self._changed:
            if self._thread is None and not self._is_closed:
                thread = threading.Thread(target=self._run, name="alarms", daemon=True)
                thread.start()
                self._thread = thread
            self._set[alarm] = (at, action)
            if at < self._wakes_at:
                self._changed.notify()
        return alarm

    def cancel(self, alarm: object) -> None:
        """From now on it is not called, if it was not before."""
        with self._changed:
            self._set.pop(alarm, None)

    def close(self) -> None:
        """Nothing is called any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                for alarm in [alarm for alarm, (at, _) in self._set.items() if at <= now]:
                    _, action = self._set.pop(alarm)
                    try:
                        action()
                    except Exception:  # the others wait for this thread, too
                        log.exception("alarm_failed")
                self._wakes_at = min((at for at, _ in self._set.values()), default=math.inf)
                self._changed.wait(None if self._wakes_at == math.inf else max(0.0, self._wakes_at - now))
