"""The processes that have a context on a GPU or on a MIG instance, by one call per list.

The binding asks each list twice, first for its size; here the buffer is large enough from the start and
grows. A pid may be in more than one list, so pids are counted, not rows.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any, Final, Literal

import pynvml

from gpumon.agent.nvml.errors import GPU_GONE, LIBRARY_GONE
from gpumon.agent.ports import GpuProcess

COMPUTE: Final = "nvmlDeviceGetComputeRunningProcesses"
MPS: Final = "nvmlDeviceGetMPSComputeRunningProcesses"
GRAPHICS: Final = "nvmlDeviceGetGraphicsRunningProcesses"
_KINDS: Final[dict[str, Literal["compute", "graphics", "mps"]]] = {
    COMPUTE: "compute",
    MPS: "mps",
    GRAPHICS: "graphics",
}
_VERSIONS = ("_v3", "_v2")  # both fill the same struct; drivers before 510 have only the second
_ROOM_AT_FIRST = 64
_TRIES = 3
"""Each try doubles what the library asked for; a list that outgrows that is missed this time."""

_NOT_AVAILABLE = pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value


class ProcessLists:
    """The process lists of one GPU or MIG instance. The compute list is read each time; MPS and graphics are
    empty on most GPUs, so an empty one is read only by `refresh`, and one that has processes each time, too."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._buffer = _room(_ROOM_AT_FIRST)
        self._others: dict[str, tuple[GpuProcess, ...] | None] = {}

    def refresh(self, name: str) -> None:
        """Reads GRAPHICS or MPS for what is to come. Raises NVMLError; a list that has answered before is
        missing then, until it answers again."""
        try:
            self._others[name] = self._list(name)
        except pynvml.NVMLError:
            if name in self._others:
                self._others[name] = None
            raise

    def refresh_known(self) -> None:
        """Reads the lists anew that have answered before, because a process has come from somewhere. Raises
        NVMLError for a GPU or library that is gone; else what fails is missing until it answers again."""
        for name in self._others:
            self._refresh_if_any(name)

    def read(self) -> tuple[GpuProcess, ...] | None:
        """The processes, each once, without their use. None where a list that has answered before is missing:
        without it the others would be believed to be all. Raises NVMLError where the compute list fails."""
        found: dict[int, GpuProcess] = {process.pid: process for process in self._list(COMPUTE)}
        for name, listed in self._others.items():
            if listed != ():
                self._refresh_if_any(name)
        return self._with_others(found)

    def again(self, processes: tuple[GpuProcess, ...]) -> tuple[GpuProcess, ...] | None:
        """Processes that were read, with those that a refresh has found since."""
        return self._with_others({process.pid: process for process in processes})

    def _with_others(self, found: dict[int, GpuProcess]) -> tuple[GpuProcess, ...] | None:
        for name in (MPS, GRAPHICS):
            others = self._others.get(name, ())
            if others is None:
                return None
            for process in others:
                known = found.setdefault(process.pid, process)
                if known.memory_bytes is None:
                    found[process.pid] = replace(known, memory_bytes=process.memory_bytes)
        return tuple(found.values())

    def _refresh_if_any(self, name: str) -> None:
        try:
            self.refresh(name)
        except pynvml.NVMLError as error:
            if error.value in GPU_GONE or error.value in LIBRARY_GONE:
                raise

    def _list(self, name: str) -> tuple[GpuProcess, ...]:
        function = _function(name)
        for _ in range(_TRIES):
            count = ctypes.c_uint(len(self._buffer))
            code = function(self._handle, ctypes.byref(count), self._buffer)
            if code != pynvml.NVML_ERROR_INSUFFICIENT_SIZE:
                break
            self._buffer = _room(max(count.value, len(self._buffer)) * 2)
        if code != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(code)
        rows = (self._buffer[row] for row in range(min(count.value, len(self._buffer))))
        return tuple({row.pid: _process(row, _KINDS[name]) for row in rows}.values())


def _process(row: Any, kind: Literal["compute", "graphics", "mps"]) -> GpuProcess:
    memory = None if row.usedGpuMemory in (None, _NOT_AVAILABLE) else int(row.usedGpuMemory)
    return GpuProcess(pid=row.pid, memory_bytes=memory, kind=kind)


def _room(processes: int) -> Any:
    return (pynvml.c_nvmlProcessInfo_v3_t * processes)()


def _function(name: str) -> Any:
    for version in _VERSIONS:
        try:
            return pynvml._nvmlGetFunctionPointer(name + version)
        except pynvml.NVMLError as error:
            missing = error
    raise missing
