"""Background threads: each has a name, a stop event, and an end.

A task is a function that takes its stop event and returns when the event is set. A task that raises
is logged and started again after a pause: one fault must not end the program's work silently.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

RESTART_AFTER_SECONDS = 5.0


class Task:
    """One named background thread running `work(stop)` until it is stopped."""

    def __init__(self, name: str, work: Callable[[threading.Event], None]) -> None:
        self.name = name
        self._work = work
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> Task:
        """Starts the thread; gives the task itself back."""
        self._thread.start()
        return self

    def stop(self, timeout_seconds: float) -> bool:
        """Asks the work to end and waits for it. False if it is still running at the timeout
        (stuck in a call that can't be interrupted); the thread is a daemon and dies with the process."""
        self.stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self.stopping.is_set():
            try:
                self._work(self.stopping)
                return
            except Exception:
                log.exception("task_failed task=%s restart_in=%gs", self.name, RESTART_AFTER_SECONDS)
                self.stopping.wait(RESTART_AFTER_SECONDS)
