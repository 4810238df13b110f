"""What the simulated library answers about one GPU, call by call, under NVML's own names.

Each function gets the GPU, the instant (Unix seconds), and the C arguments after the handle as the binding
passes them; it fills the objects it is handed and returns an nvmlReturn_t. `byref(x)` shows x as `._obj`.
`fakenvml` finds the functions by their names. A MIG instance answers only the few calls of `mig`.
"""
# ruff: noqa: N802, N816

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpumon.agent.fakenvml.abi import EVENTS_SUPPORTED, Return
from gpumon.agent.fakenvml.simgpu import Memory, SimGpu

Call = Callable[..., int]

_MEMORY_V2 = 0x02000028
_TEMPERATURE_V1 = 0x0100000C
_CODEC_PERIOD_MICROSECONDS = 167_000
_REASON_IDLE, _REASON_POWER_CAP = 0x1, 0x4
_PSTATE_BUSY, _PSTATE_IDLE = 0, 8
_IDLE_BELOW, _CAPPED_FROM = 0.01, 0.95
_SM, _MEMORY = {0, 1, 3}, 2  # nvmlClockType_t: graphics, SM and video go together here
_DOUBLE_BIT = 1


def put_text(buffer: Any, length: Any, text: str) -> int:
    """Fills a character buffer that has room for `length` bytes."""
    if len(text) >= number(length):
        return Return.INSUFFICIENT_SIZE
    buffer.value = text.encode()
    return Return.SUCCESS


def number(argument: Any) -> int:
    """An integer argument; the binding passes some as ctypes objects and some bare."""
    return int(getattr(argument, "value", argument))


def nvmlDeviceGetName(gpu: SimGpu, t: float, buffer: Any, length: Any) -> int:
    return put_text(buffer, length, gpu.model.name)


def nvmlDeviceGetUUID(gpu: SimGpu, t: float, buffer: Any, length: Any) -> int:
    return put_text(buffer, length, gpu.uuid)


def nvmlDeviceGetSerial(gpu: SimGpu, t: float, buffer: Any, length: Any) -> int:
    if not gpu.model.serial:
        return Return.NOT_SUPPORTED
    return put_text(buffer, length, f"16{int(gpu.uuid[-10:], 16) % 10**11:011d}")


def nvmlDeviceGetPciInfo_v3(gpu: SimGpu, t: float, info: Any) -> int:
    pci = info._obj
    pci.domain, pci.bus, pci.device = 0, 0x18 + gpu.index, 0
    pci.busId = f"{pci.domain:08X}:{pci.bus:02X}:{pci.device:02X}.0".encode()
    pci.busIdLegacy = f"{pci.domain:04X}:{pci.bus:02X}:{pci.device:02X}.0".encode()
    return Return.SUCCESS


def nvmlDeviceGetMinorNumber(gpu: SimGpu, t: float, minor: Any) -> int:
    minor._obj.value = gpu.index
    return Return.SUCCESS


def nvmlDeviceGetIndex(gpu: SimGpu, t: float, index: Any) -> int:
    index._obj.value = gpu.index
    return Return.SUCCESS


def nvmlDeviceGetCudaComputeCapability(gpu: SimGpu, t: float, major: Any, minor: Any) -> int:
    major._obj.value, minor._obj.value = gpu.model.compute_capability
    return Return.SUCCESS


def nvmlDeviceGetUtilizationRates(gpu: SimGpu, t: float, rates: Any) -> int:
    busy = gpu.busy(t)
    fixed = gpu.entry.memory_activity_percent
    rates._obj.gpu = round(100 * busy)
    rates._obj.memory = round(55 * busy if fixed is None else fixed)
    return Return.SUCCESS


def put_memory(memory: Memory, info: Any) -> int:
    """Fills version 1 of the memory structure."""
    # Version 1 has no field for what the driver keeps for itself and counts it as used.
    info._obj.total, info._obj.free = memory.total, memory.free
    info._obj.used = memory.used + memory.reserved
    return Return.SUCCESS


def put_memory_v2(memory: Memory, info: Any) -> int:
    """Fills version 2 of the memory structure."""
    if info._obj.version != _MEMORY_V2:
        return Return.ARGUMENT_VERSION_MISMATCH
    info._obj.total, info._obj.free = memory.total, memory.free
    info._obj.used, info._obj.reserved = memory.used, memory.reserved
    return Return.SUCCESS


def nvmlDeviceGetMemoryInfo(gpu: SimGpu, t: float, info: Any) -> int:
    return put_memory(gpu.memory, info)


def nvmlDeviceGetMemoryInfo_v2(gpu: SimGpu, t: float, info: Any) -> int:
    return put_memory_v2(gpu.memory, info)


def nvmlDeviceGetTemperature(gpu: SimGpu, t: float, sensor: Any, celsius: Any) -> int:
    if number(sensor) != 0:
        return Return.INVALID_ARGUMENT
    celsius._obj.value = round(gpu.celsius(t))
    return Return.SUCCESS


def nvmlDeviceGetTemperatureV(gpu: SimGpu, t: float, temperature: Any) -> int:
    if temperature._obj.version != _TEMPERATURE_V1:
        return Return.ARGUMENT_VERSION_MISMATCH
    if temperature._obj.sensorType != 0:
        return Return.INVALID_ARGUMENT
    temperature._obj.temperature = round(gpu.celsius(t))
    return Return.SUCCESS


def nvmlDeviceGetPowerUsage(gpu: SimGpu, t: float, milliwatts: Any) -> int:
    milliwatts._obj.value = int(gpu.mean_power_watts(t) * 1000)
    return Return.SUCCESS


def nvmlDeviceGetEnforcedPowerLimit(gpu: SimGpu, t: float, milliwatts: Any) -> int:
    milliwatts._obj.value = int(gpu.model.limit_watts * 1000)
    return Return.SUCCESS


nvmlDeviceGetPowerManagementLimit = nvmlDeviceGetEnforcedPowerLimit


def nvmlDeviceGetTotalEnergyConsumption(gpu: SimGpu, t: float, millijoules: Any) -> int:
    millijoules._obj.value = gpu.counters(t).energy_mj
    return Return.SUCCESS


def nvmlDeviceGetClockInfo(gpu: SimGpu, t: float, kind: Any, mhz: Any) -> int:
    kind = number(kind)
    if kind in _SM:
        mhz._obj.value = gpu.sm_clock_mhz(t)
    elif kind != _MEMORY:
        return Return.INVALID_ARGUMENT
    elif gpu.model.memory_clock_mhz is None:
        return Return.NOT_SUPPORTED
    else:
        mhz._obj.value = gpu.model.memory_clock_mhz
    return Return.SUCCESS


def nvmlDeviceGetCurrentClocksEventReasons(gpu: SimGpu, t: float, reasons: Any) -> int:
    fixed = gpu.entry.clock_event_reasons
    busy = gpu.busy(t)
    reason = _REASON_IDLE if busy < _IDLE_BELOW else _REASON_POWER_CAP if busy >= _CAPPED_FROM else 0
    reasons._obj.value = reason if fixed is None else fixed
    return Return.SUCCESS


nvmlDeviceGetCurrentClocksThrottleReasons = nvmlDeviceGetCurrentClocksEventReasons


def nvmlDeviceGetPerformanceState(gpu: SimGpu, t: float, pstate: Any) -> int:
    pstate._obj.value = _PSTATE_IDLE if gpu.busy(t) < _IDLE_BELOW else _PSTATE_BUSY
    return Return.SUCCESS


def nvmlDeviceGetFanSpeed(gpu: SimGpu, t: float, percent: Any) -> int:
    fixed = gpu.entry.fan_percent
    percent._obj.value = round(30 + 50 * gpu.busy(t) if fixed is None else fixed)
    return Return.SUCCESS


def nvmlDeviceGetEncoderUtilization(gpu: SimGpu, t: float, percent: Any, period: Any) -> int:
    percent._obj.value, period._obj.value = 0, _CODEC_PERIOD_MICROSECONDS
    return Return.SUCCESS


nvmlDeviceGetDecoderUtilization = nvmlDeviceGetEncoderUtilization


def nvmlDeviceGetTotalEccErrors(gpu: SimGpu, t: float, error: Any, counter: Any, count: Any) -> int:
    double = number(error) == _DOUBLE_BIT
    count._obj.value = gpu.entry.ecc_uncorrected if double else gpu.entry.ecc_corrected
    return Return.SUCCESS


def nvmlDeviceGetRemappedRows(
    gpu: SimGpu, t: float, correctable: Any, uncorrectable: Any, pending: Any, failed: Any
) -> int:
    correctable._obj.value, uncorrectable._obj.value = 0, gpu.entry.remapped_rows
    pending._obj.value, failed._obj.value = 0, 0
    return Return.SUCCESS


def nvmlDeviceGetSupportedEventTypes(gpu: SimGpu, t: float, types: Any) -> int:
    types._obj.value = EVENTS_SUPPORTED
    return Return.SUCCESS
