"""Xid errors that leave a GPU unfit for work, waited for in a thread of their own; Linux only, as NVML has it.

A GPU that fell off the bus makes the wait of its set fail at once and for ever, also for the GPUs beside it. So
after each failure there is a pause, and then a new set of the GPUs that are still there.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

import pynvml

from gpumon.agent.nvml.errors import LIBRARY_GONE
from gpumon.agent.nvml.handles import address
from gpumon.tasks import Task

log = logging.getLogger(__name__)

WAIT_MILLISECONDS = 1000
PAUSE_SECONDS = 1.0
STOP_TIMEOUT_SECONDS = 2.0
_OFF_THE_BUS: Final = 79

UNFIT: Final[Mapping[int, str]] = {
    46: "the GPU stopped processing: reset it",
    48: "double bit ECC error: reset the GPU",
    62: "its microcontroller halted: reset the GPU",
    64: "a row of its memory could not be remapped: reset the GPU",
    _OFF_THE_BUS: "it has fallen off the bus: restart the node",
    95: "uncontained ECC error: reset the GPU",
    110: "security fault: reset the GPU",
    119: "its system processor does not answer: reset the GPU",
    120: "its system processor failed: reset the GPU",
    136: "a link could not be trained: reset the GPU",
    140: "ECC error that was not recovered from: reset the GPU",
    143: "the GPU could not be initialised: reset it",
}
"""Xids after which NVIDIA's catalogue asks for a reset of the GPU or a restart of the node. Left out are those of
applications (13, 31, 43, 45, 68, 109), those after which work may go on (63, 92, 94), and those whose remedy has
to be found out (74)."""


class XidWatch:
    """Which GPUs have reported an Xid that leaves them unfit, since they were last begun with."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unfit: dict[str, int] = {}
        self._task: Task | None = None
        self._ending: list[Task] = []  # earlier ones, each in its last wait

    def start(self, handles: Mapping[str, Any]) -> None:
        """Watches these GPUs, by UUID, instead of those before; what these have reported stays known."""
        if sys.platform != "linux":
            return
        with self._lock:
            self._end_soon()
            self._unfit = {uuid: xid for uuid, xid in self._unfit.items() if uuid in handles}
            if handles:
                self._task = Task("nvml-xids", lambda stop: self._watch(stop, handles)).start()

    def stop(self) -> None:
        """Ends the watch and those before it, as has to be before NVML is shut down, and forgets what was
        reported."""
        with self._lock:
            self._end_soon()
            self._unfit = {}
            ending, self._ending = self._ending, []
        until = time.monotonic() + STOP_TIMEOUT_SECONDS
        for task in ending:
            task.stop(max(0.0, until - time.monotonic()))

    def forget(self, uuid: str) -> None:
        """A GPU begins anew: it was reset, or found again."""
        with self._lock:
            self._unfit.pop(uuid, None)

    def unhealthy(self, uuid: str) -> str | None:
        """`xid <number>` of the first Xid that left a GPU unfit; None where there was none."""
        xid = self._unfit.get(uuid)
        return None if xid is None else f"xid {xid}"

    def _end_soon(self) -> None:
        """The task is told to end, which it does with its wait, and frees its set."""
        tasks = self._ending if self._task is None else [*self._ending, self._task]
        self._task, self._ending = None, [task for task in tasks if not task.stop(0)]

    def _watch(self, stop: threading.Event, handles: Mapping[str, Any]) -> None:
        while not stop.is_set():
            try:
                if not self._wait(stop, handles):
                    return
            except pynvml.NVMLError as error:
                if error.value in LIBRARY_GONE or isinstance(error, pynvml.NVMLError_FunctionNotFound):
                    return
                log.debug("xid_wait_failed reason=%r", str(error))
            stop.wait(PAUSE_SECONDS)

    def _wait(self, stop: threading.Event, handles: Mapping[str, Any]) -> bool:
        """Gathers Xids until `stop`. False where no GPU has such events. Raises NVMLError."""
        events = pynvml.nvmlEventSetCreate()
        try:
            by_address = {
                address(handle): uuid for uuid, handle in handles.items() if self._added(events, uuid, handle)
            }
            while by_address and not stop.is_set():
                with contextlib.suppress(pynvml.NVMLError_Timeout):
                    data = pynvml.nvmlEventSetWait_v2(events, WAIT_MILLISECONDS)
                    self._note(stop, by_address.get(address(data.device)), int(data.eventData))
            return bool(by_address)
        finally:
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlEventSetFree(events)

    def _added(self, events: Any, uuid: str, handle: Any) -> bool:
        """Whether a GPU's Xids come with a set: not those of one that is gone, or has none. Raises NVMLError
        where the library is gone."""
        if self._unfit.get(uuid) == _OFF_THE_BUS:
            return False
        try:
            pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, events)
        except pynvml.NVMLError as error:
            if error.value in LIBRARY_GONE:
                raise
            return False
        return True

    def _note(self, stop: threading.Event, uuid: str | None, xid: int) -> None:
        with self._lock:
            if uuid is None or xid not in UNFIT or stop.is_set():
                return
            first = self._unfit.setdefault(uuid, xid) == xid
        if first:
            log.warning("gpu_unfit uuid=%s xid=%d reason=%r", uuid, xid, UNFIT[xid])
