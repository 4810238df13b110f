"""How hard each process uses the multiprocessors of a GPU, by one call.

The driver gives each process its mean over its samples that are newer than an instant we name (see `lastseen`).
As seen on an H100 (driver 580): it takes five samples a second, and charges all that the GPU did in each to one of
those that worked. So processes that share a GPU are told apart by lot, ever better the longer the time; those that
begin work more often are drawn more often. A process that has ended has no rows any more, from that moment on.

The new call (driver 550) comes first: on Blackwell the old one says 0 for everybody.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import pynvml

from gpumon.agent.nvml.errors import meaning
from gpumon.agent.nvml.lastseen import LastSeen
from gpumon.agent.nvml.readings import NoReading, Refusals
from gpumon.clock import Monotonic, Now

NEW = "nvmlDeviceGetProcessesUtilizationInfo"
OLD = "nvmlDeviceGetProcessUtilization"
_ROOM_AT_FIRST = 128  # drivers want room for about a hundred rows, however few they fill
_TRIES = 3
Row = tuple[int, int]
"""A pid and its share of the multiprocessors' time in percent, as the driver gives them."""


class Utilization:
    """Per-process use of one GPU since the last sample. `skip` marks a sample without asking."""

    def __init__(self, handle: Any, refusals: Refusals, *, monotonic: Monotonic, now: Now) -> None:
        self._handle = handle
        self._refusals = refusals
        self._seen = LastSeen(monotonic=monotonic, now=now)
        self._buffers = {name: (row * _ROOM_AT_FIRST)() for name, row in _ROWS.items()}
        self._worked: set[str] = set()

    def skip(self) -> None:
        """There is nobody to ask for in this sample."""
        self._seen.sampled()

    def read(self) -> list[Row] | None:
        """The rows of everybody who worked, also those of processes that have ended; empty where nobody did.
        None where it can't be asked, now or ever. Raises GpuLost, NvmlUnavailable."""
        since = self._seen.since()
        self.skip()
        for name, fill in _CALLS.items():
            if name in self._refusals.reasons:
                continue
            try:
                rows = self._ask(name, fill, since)
            except pynvml.NVMLError as error:
                reason = meaning(error)
                if not isinstance(reason, NoReading):
                    raise reason from error
                if self._refusals.note(name, reason, worked=name in self._worked):
                    self._worked.discard(name)
                if name in self._worked:
                    return None
                continue
            self._worked.add(name)
            self._seen.brought(max((row.timeStamp for row in rows), default=None))
            return [(row.pid, row.smUtil) for row in rows]
        return None

    def forget(self) -> None:
        """The next sample is a first one again."""
        self._seen.forget()

    def _ask(self, name: str, fill: Callable[..., tuple[int, int]], since: int) -> list[Any]:
        function = pynvml._nvmlGetFunctionPointer(name)
        for _ in range(_TRIES):
            buffer = self._buffers[name]
            # Drivers have been seen to count rows that they do not fill.
            ctypes.memset(buffer, 0, ctypes.sizeof(buffer))
            code, count = fill(function, self._handle, buffer, since)
            if code != pynvml.NVML_ERROR_INSUFFICIENT_SIZE:
                break
            self._buffers[name] = (_ROWS[name] * (max(count, len(buffer)) * 2))()
        if code == pynvml.NVML_ERROR_NOT_FOUND:
            return []
        if code != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(code)
        return [buffer[row] for row in range(min(count, len(buffer)))]


def _fill_new(function: Any, handle: Any, buffer: Any, since: int) -> tuple[int, int]:
    request = pynvml.c_nvmlProcessesUtilizationInfo_v1_t()
    request.version = pynvml.ProcessesUtilizationInfo_v1
    request.processSamplesCount, request.lastSeenTimeStamp = len(buffer), since
    request.procUtilArray = buffer
    code = function(handle, ctypes.byref(request))
    return code, request.processSamplesCount


def _fill_old(function: Any, handle: Any, buffer: Any, since: int) -> tuple[int, int]:
    count = ctypes.c_uint(len(buffer))
    code = function(handle, buffer, ctypes.byref(count), ctypes.c_ulonglong(since))
    return code, count.value


_CALLS: Mapping[str, Callable[..., tuple[int, int]]] = {NEW: _fill_new, OLD: _fill_old}
_ROWS: Mapping[str, Any] = {
    NEW: pynvml.c_nvmlProcessUtilizationInfo_v1_t,
    OLD: pynvml.c_nvmlProcessUtilizationSample_t,
}
