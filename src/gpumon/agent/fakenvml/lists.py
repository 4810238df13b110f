"""Answers of the simulated library that are lists: processes, their use of the GPU, retired pages.

NVML's custom with lists: asked with no room, it says INSUFFICIENT_SIZE and how much room it takes; asked with
room, it fills. A caller that brings room at once needs one call.
"""
# ruff: noqa: N802, N816

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpumon.agent.fakenvml.abi import NOT_AVAILABLE, Return
from gpumon.agent.fakenvml.calls import Call, number
from gpumon.agent.fakenvml.simgpu import Held, SimGpu
from gpumon.agent.fakenvml.timeline import HISTORY_SECONDS

_UTILIZATION_INFO_V1 = 0x01000018
_SAMPLES_PER_SECOND = 6
_MICRO = 1_000_000
_GPU_UTILIZATION_SAMPLES = 1
_UNSIGNED_INT = 1
_DOUBLE_BIT_ERROR = 1
_JUNK: Sequence[tuple[int, int]] = ((0, 37_100), (4_294_967_295, 101))
"""Rows seen from real drivers: (pid, utilisation in %)."""


def put_processes(held: Sequence[Held], kind: str, count: Any, array: Any) -> int:
    """Fills a list of processes with those of a kind."""
    chosen = [process for process in held if process.kind == kind]
    room = count._obj.value if array is not None else 0
    count._obj.value = len(chosen)
    if len(chosen) > room:
        return Return.INSUFFICIENT_SIZE
    rows = getattr(array, "_obj", array)
    for i, process in enumerate(chosen):
        row = rows[i]
        row.pid = process.pid
        row.usedGpuMemory = NOT_AVAILABLE if process.memory_bytes is None else process.memory_bytes
        row.gpuInstanceId = process.gpu_instance
        row.computeInstanceId = process.compute_instance
    return Return.SUCCESS


def _of_gpu(kind: str) -> Call:
    return lambda gpu, t, count, array: put_processes(gpu.held, kind, count, array)


nvmlDeviceGetComputeRunningProcesses_v3 = _of_gpu("compute")
nvmlDeviceGetGraphicsRunningProcesses_v3 = _of_gpu("graphics")
nvmlDeviceGetMPSComputeRunningProcesses_v3 = _of_gpu("mps")


def _working(gpu: SimGpu, t: float, seen: int) -> tuple[int, list[tuple[int, int]]]:
    """Rows (pid, mean utilisation in %) over what is remembered since `seen`, and the time of the last sample, in
    microseconds. Only who worked has one, also a process that has ended since."""
    at = int(t * _SAMPLES_PER_SECOND) * _MICRO // _SAMPLES_PER_SECOND
    if at <= seen:
        return at, []
    end = at / _MICRO
    start = max(seen / _MICRO, end - HISTORY_SECONDS)
    worked = gpu.timeline.by_pid(start, end)
    rows = [(pid, round(100 * seconds / (end - start))) for pid, seconds in worked.items()]
    rows = [row for row in rows if row[1]]
    return at, [*rows, *_JUNK] if gpu.entry.junk_rows else rows


def nvmlDeviceGetProcessUtilization(gpu: SimGpu, t: float, array: Any, count: Any, seen: Any) -> int:
    at, rows = _working(gpu, t, number(seen))
    if not rows:
        return Return.NOT_FOUND
    room = count._obj.value if array is not None else 0
    count._obj.value = len(rows)
    if len(rows) > room:
        return Return.INSUFFICIENT_SIZE
    _fill(getattr(array, "_obj", array), rows, at)
    return Return.SUCCESS


def nvmlDeviceGetProcessesUtilizationInfo(gpu: SimGpu, t: float, info: Any) -> int:
    info = info._obj
    if info.version != _UTILIZATION_INFO_V1:
        return Return.ARGUMENT_VERSION_MISMATCH
    at, rows = _working(gpu, t, info.lastSeenTimeStamp)
    if not rows:
        return Return.NOT_FOUND
    room = info.processSamplesCount if info.procUtilArray else 0
    info.processSamplesCount = len(rows)
    if len(rows) > room:
        return Return.INSUFFICIENT_SIZE
    _fill(info.procUtilArray, rows, at)
    return Return.SUCCESS


def _fill(array: Any, rows: Sequence[tuple[int, int]], at: int) -> None:
    for i, (pid, percent) in enumerate(rows):
        row = array[i]
        row.pid, row.timeStamp, row.smUtil, row.memUtil = pid, at, percent, percent // 2
        row.encUtil = row.decUtil = 0


def nvmlDeviceGetSamples(
    gpu: SimGpu, t: float, kind: Any, seen: Any, value_kind: Any, count: Any, array: Any
) -> int:
    """Six samples a second, each the mean of its part of the second."""
    if number(kind) != _GPU_UTILIZATION_SAMPLES:
        return Return.NOT_SUPPORTED
    last = int(t * _SAMPLES_PER_SECOND)
    first = max(
        number(seen) * _SAMPLES_PER_SECOND // _MICRO + 1, last - int(HISTORY_SECONDS * _SAMPLES_PER_SECOND)
    )
    room = count._obj.value
    count._obj.value = max(0, last - first + 1)
    value_kind._obj.value = _UNSIGNED_INT
    if not count._obj.value:
        return Return.NOT_FOUND
    if array is None:
        return Return.SUCCESS  # unlike other lists
    if count._obj.value > room:
        return Return.INSUFFICIENT_SIZE
    for row, tick in zip(getattr(array, "_obj", array), range(first, last + 1), strict=False):
        row.timeStamp = tick * _MICRO // _SAMPLES_PER_SECOND
        end = tick / _SAMPLES_PER_SECOND
        row.sampleValue.uiVal = round(100 * gpu.mean_busy(end - 1 / _SAMPLES_PER_SECOND, end))
    return Return.SUCCESS


def nvmlDeviceGetRetiredPages(gpu: SimGpu, t: float, cause: Any, count: Any, array: Any) -> int:
    pages = gpu.entry.retired_pages if number(cause) == _DOUBLE_BIT_ERROR else 0
    room = count._obj.value if array is not None else 0
    count._obj.value = pages
    if pages > room:
        return Return.INSUFFICIENT_SIZE
    for i in range(pages):
        array[i] = (i + 1) << 16
    return Return.SUCCESS
