"""GPM of the simulated library: what the units of a GPU did between two samples, Hopper and later."""
# ruff: noqa: N802

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from gpumon.agent.fakenvml.abi import Return
from gpumon.agent.fakenvml.calls import number
from gpumon.agent.fakenvml.simgpu import MIB, MigInstance, SimGpu
from gpumon.agent.fakenvml.state import State

_VERSION = 1


@dataclass(slots=True)
class GpmSample:
    """A sample: of which GPU, which of its instances, and when. Empty until it is taken."""

    gpu: SimGpu | None = None
    instance: MigInstance | None = None
    t: float = 0.0


METRICS: Final[dict[int, Callable[[SimGpu, float], float]]] = {
    1: lambda gpu, busy: 100 * busy,  # graphics
    2: lambda gpu, busy: 92 * busy,  # SM
    3: lambda gpu, busy: 41 * busy,  # SM occupancy
    5: lambda gpu, busy: 48 * busy,  # any tensor
    7: lambda gpu, busy: 48 * busy,  # half precision tensor
    10: lambda gpu, busy: 55 * busy,  # DRAM bandwidth
    12: lambda gpu, busy: 17 * busy,  # single precision
    20: lambda gpu, busy: gpu.traffic_bytes(busy)[0] / MIB,  # PCIe out, in
    21: lambda gpu, busy: gpu.traffic_bytes(busy)[1] / MIB,
    60: lambda gpu, busy: gpu.traffic_bytes(busy)[2] / MIB,  # NVLink in, out
    61: lambda gpu, busy: gpu.traffic_bytes(busy)[2] / MIB,
}
"""Metric id → its value for the mean share of the GPU or instance in use: per cent, or MiB a second."""

_OF_WHOLE_GPU = {20, 21, 60, 61}
"""Metrics of links, which an instance has none of."""


def nvmlGpmQueryDeviceSupport(state: State, t: float, device: Any, support: Any) -> int:
    if support._obj.version != _VERSION:
        return Return.ARGUMENT_VERSION_MISMATCH
    found = state.gpu(device, t)
    if isinstance(found, Return):
        return found
    support._obj.isSupportedDevice = int(found[0].model.gpm)
    return Return.SUCCESS


def nvmlGpmSampleAlloc(state: State, t: float, sample: Any) -> int:
    return state.put(sample._obj, GpmSample())


def nvmlGpmSampleFree(state: State, t: float, sample: Any) -> int:
    if not isinstance(state.target(sample), GpmSample):
        return Return.INVALID_ARGUMENT
    state.free(sample)
    return Return.SUCCESS


def nvmlGpmSampleGet(state: State, t: float, device: Any, sample: Any) -> int:
    return _take(state, t, device, sample, None)


def nvmlGpmMigSampleGet(state: State, t: float, device: Any, gpu_instance: Any, sample: Any) -> int:
    return _take(state, t, device, sample, number(gpu_instance))


def _take(state: State, t: float, device: Any, sample: Any, gpu_instance: int | None) -> int:
    target = state.target(sample)
    if not isinstance(target, GpmSample):
        return Return.INVALID_ARGUMENT
    found = state.gpu(device, t)
    if isinstance(found, Return):
        return found
    gpu, mig = found
    if mig is not None:
        return Return.INVALID_ARGUMENT
    if not gpu.model.gpm:
        return Return.NOT_SUPPORTED
    by_id = {instance.gpu_instance: instance for instance in gpu.instances if instance is not None}
    if gpu_instance is not None and gpu_instance not in by_id:
        return Return.INVALID_ARGUMENT
    target.gpu, target.t = gpu, t
    target.instance = None if gpu_instance is None else by_id[gpu_instance]
    return Return.SUCCESS


def nvmlGpmMetricsGet(state: State, t: float, request: Any) -> int:
    request = request._obj
    if request.version != _VERSION:
        return Return.ARGUMENT_VERSION_MISMATCH
    first, second = state.target(request.sample1), state.target(request.sample2)
    if not isinstance(first, GpmSample) or not isinstance(second, GpmSample):
        return Return.INVALID_ARGUMENT
    gpu = second.gpu
    if gpu is None or first.gpu is None or first.gpu.uuid != gpu.uuid or first.t > second.t:
        return Return.INVALID_ARGUMENT
    if (first.instance and first.instance.uuid) != (second.instance and second.instance.uuid):
        return Return.INVALID_ARGUMENT
    for i in range(request.numMetrics):
        metric = request.metrics[i]
        measure = METRICS.get(metric.metricId)
        if measure is None or (second.instance is not None and metric.metricId in _OF_WHOLE_GPU):
            metric.nvmlReturn = Return.NOT_SUPPORTED
        elif first.t == second.t:
            metric.nvmlReturn = Return.NO_DATA
        else:
            metric.value = measure(gpu, _mean_busy(gpu, second.instance, first.t, second.t))
            metric.nvmlReturn = Return.SUCCESS
    return Return.SUCCESS


def _mean_busy(gpu: SimGpu, instance: MigInstance | None, start: float, end: float) -> float:
    return gpu.mean_busy(start, end) if instance is None else gpu.mean_busy_of(instance, start, end)
