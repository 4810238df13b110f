"""How many processes have a context on a GPU, by one call per list.

The binding asks each list twice, first for its size; here the buffer is large enough from the start and
grows. A pid may be in more than one list, so pids are counted, not rows.
"""

from __future__ import annotations

import ctypes
from typing import Any

import pynvml

from gpumon.agent.ports import Reading

COMPUTE = "nvmlDeviceGetComputeRunningProcesses"
GRAPHICS = "nvmlDeviceGetGraphicsRunningProcesses"
MPS = "nvmlDeviceGetMPSComputeRunningProcesses"
_VERSIONS = ("_v3", "_v2")  # both fill the same struct; drivers before 510 have only the second
_ROOM_AT_FIRST = 64
_TRIES = 3
"""Each try doubles what the library asked for; a list that outgrows that is missed this time."""


class ProcessLists:
    """The process lists of one GPU. Graphics and MPS change rarely: `refresh` them less often."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._buffer = _room(_ROOM_AT_FIRST)
        self._others: dict[str, frozenset[int] | None] = {}

    def refresh(self, name: str) -> Reading:
        """Reads GRAPHICS or MPS for the counts to come. Raises NVMLError; a list that has answered before
        then makes the count absent until it answers again, for a count without it would be wrong."""
        try:
            self._others[name] = self._pids(name)
        except pynvml.NVMLError:
            if name in self._others:
                self._others[name] = None
            raise
        return {}

    def count(self) -> Reading:
        """The number of distinct pids on all lists. Raises NVMLError."""
        pids = set(self._pids(COMPUTE))
        for others in self._others.values():
            if others is None:
                return {"process_count": None}
            pids |= others
        return {"process_count": len(pids)}

    def _pids(self, name: str) -> frozenset[int]:
        function = _function(name)
        for _ in range(_TRIES):
            count = ctypes.c_uint(len(self._buffer))
            code = function(self._handle, ctypes.byref(count), self._buffer)
            if code != pynvml.NVML_ERROR_INSUFFICIENT_SIZE:
                break
            self._buffer = _room(max(count.value, len(self._buffer)) * 2)
        if code != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(code)
        return frozenset(self._buffer[row].pid for row in range(min(count.value, len(self._buffer))))


def _room(processes: int) -> Any:
    return (pynvml.c_nvmlProcessInfo_v3_t * processes)()


def _function(name: str) -> Any:
    for version in _VERSIONS:
        try:
            return pynvml._nvmlGetFunctionPointer(name + version)
        except pynvml.NVMLError as error:
            missing = error
    raise missing
