"""One try to open NVML, in a thread of its own: initialising a driver in trouble may hang, and the sampler has
to go on turning, to sample the GPUs that answer, and to stop when it shall.

A thread that hangs can't be ended: it dies with the process. There is at most one, for a try is waited for
again as long as it has not ended.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from gpumon.agent.ports import Gpu, GpuLibrary

_STOP_CHECK_SECONDS = 0.25


class Opening:
    """Opens `library`; with `close_first`, closes it before that."""

    def __init__(self, library: GpuLibrary, *, close_first: bool) -> None:
        self._library = library
        self._close_first = close_first
        self._gpus: Sequence[Gpu] = ()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="nvml-open", daemon=True)

    def start(self) -> Opening:
        """Starts the thread; gives the opening itself back."""
        self._thread.start()
        return self

    def ended(self, timeout_seconds: float, stop: threading.Event) -> bool:
        """Waits for the end, not longer than until `stop` is set; False when it still hangs then."""
        remaining = timeout_seconds
        while True:
            self._thread.join(max(0.0, min(remaining, _STOP_CHECK_SECONDS)))
            remaining -= _STOP_CHECK_SECONDS
            if not self._thread.is_alive():
                return True
            if remaining <= 0 or stop.is_set():
                return False

    def result(self) -> Sequence[Gpu]:
        """The GPUs, after the end. Raises what opening raised."""
        if self._error is not None:
            raise self._error
        return self._gpus

    def _run(self) -> None:
        try:
            if self._close_first:
                self._library.close()
            self._gpus = self._library.open()
        except Exception as error:  # raised by `result`, in the thread that can act on it
            self._error = error
