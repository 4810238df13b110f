"""Every question that is asked of a GPU: which call, which group, which fields, how often.

The order matters: a later call stands in for an earlier one that the GPU does not support. At one sample a
second this makes nine calls for an H100 that works, one of them (`use`) for what its processes do, and half a
call for the slow ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pynvml

from gpumon.agent.nvml import busy, fields, gpm, mig, processes
from gpumon.agent.nvml.errors import meaning
from gpumon.agent.nvml.readings import Source
from gpumon.agent.nvml.use import Use
from gpumon.agent.ports import Reading
from gpumon.clock import Monotonic

_MIB = 2**20


def sources(
    handle: Any, groups: frozenset[str], use: Use | None, samples: busy.BusySamples, monotonic: Monotonic
) -> tuple[Source, ...]:
    """The sources of one GPU for the groups that are on, in the order in which to ask them. `use` is who uses
    it, where that is asked; `samples` is how busy it was."""
    wants_use = "utilization" in groups
    return (
        *(_processes(use) if use is not None else ()),
        *_batch(handle, groups),
        *(call.source(handle) for call in CALLS if call.group in groups),
        *((_source(busy.NAME, (busy.FIELD,), samples.read, forget=samples.forget),) if wants_use else ()),
        *_gpm(handle, groups, monotonic),
    )


def _utilization(handle: Any) -> Reading:
    rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
    return {"utilization_gpu": float(rates.gpu), "utilization_memory": float(rates.memory)}


def _memory_v2(handle: Any) -> Reading:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2)
    return {**_memory(memory), "memory_reserved": memory.reserved // _MIB}


def _memory_v1(handle: Any) -> Reading:
    return _memory(pynvml.nvmlDeviceGetMemoryInfo(handle))


def _memory(memory: Any) -> Reading:
    return {
        "memory_total": memory.total // _MIB,
        "memory_used": memory.used // _MIB,
        "memory_free": memory.free // _MIB,
    }


def _temperature_v(handle: Any) -> Reading:
    return {"temperature": pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU)}


def _temperature(handle: Any) -> Reading:
    return {"temperature": pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)}


def _power_draw(handle: Any) -> Reading:
    return {"power_draw": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000}


def _energy(handle: Any) -> Reading:
    return {"energy_mj": pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)}


def _enforced_power_limit(handle: Any) -> Reading:
    return {"power_limit": pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000}


def _power_management_limit(handle: Any) -> Reading:
    return {"power_limit": pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000}


def _sm_clock(handle: Any) -> Reading:
    return {"sm_clock": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)}


def _memory_clock(handle: Any) -> Reading:
    return {"memory_clock": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)}


def _clock_event_reasons(handle: Any) -> Reading:
    return {"clock_event_reasons": pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)}


def _clock_throttle_reasons(handle: Any) -> Reading:
    return {"clock_event_reasons": pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)}


def _pstate(handle: Any) -> Reading:
    return {"pstate": pynvml.nvmlDeviceGetPerformanceState(handle)}


def _fan_speed(handle: Any) -> Reading:
    return {"fan_speed": pynvml.nvmlDeviceGetFanSpeed(handle)}


def _encoder(handle: Any) -> Reading:
    return {"encoder_utilization": float(pynvml.nvmlDeviceGetEncoderUtilization(handle)[0])}


def _decoder(handle: Any) -> Reading:
    return {"decoder_utilization": float(pynvml.nvmlDeviceGetDecoderUtilization(handle)[0])}


def _ecc_uncorrected(handle: Any) -> Reading:
    count = pynvml.nvmlDeviceGetTotalEccErrors(
        handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    )
    return {"ecc_uncorrected": count}


@dataclass(frozen=True, slots=True)
class Call:
    """One call that reads from a handle. `name` is NVML's, with what tells it from its like."""

    name: str
    group: str
    read: Callable[[Any], Reading]
    fields: tuple[str, ...]
    slow: float = 0.0

    def source(self, handle: Any) -> Source:
        """The call as a source of one GPU."""
        return _source(self.name, self.fields, partial(self.read, handle), slow=self.slow)


_CALM = 1 / 6
"""In slow intervals: what changes within seconds, but needs no call at each sample."""

_MEMORY = ("memory_total", "memory_used", "memory_free")
CALLS = (
    Call(
        "nvmlDeviceGetUtilizationRates",
        "utilization",
        _utilization,
        ("utilization_gpu", "utilization_memory"),
    ),
    Call("nvmlDeviceGetMemoryInfo_v2", "memory", _memory_v2, (*_MEMORY, "memory_reserved")),
    Call("nvmlDeviceGetMemoryInfo", "memory", _memory_v1, _MEMORY),
    Call("nvmlDeviceGetTemperatureV", "temperature", _temperature_v, ("temperature",), slow=_CALM),
    Call("nvmlDeviceGetTemperature", "temperature", _temperature, ("temperature",), slow=_CALM),
    Call("nvmlDeviceGetPowerUsage", "power", _power_draw, ("power_draw",)),
    Call("nvmlDeviceGetTotalEnergyConsumption", "power", _energy, ("energy_mj",)),
    Call("nvmlDeviceGetEnforcedPowerLimit", "power", _enforced_power_limit, ("power_limit",), slow=True),
    Call("nvmlDeviceGetPowerManagementLimit", "power", _power_management_limit, ("power_limit",), slow=True),
    Call("nvmlDeviceGetClockInfo(SM)", "clocks", _sm_clock, ("sm_clock",), slow=_CALM),
    Call("nvmlDeviceGetClockInfo(MEM)", "clocks", _memory_clock, ("memory_clock",), slow=True),
    Call(
        "nvmlDeviceGetCurrentClocksEventReasons",
        "clocks",
        _clock_event_reasons,
        ("clock_event_reasons",),
        slow=_CALM,
    ),
    Call(
        "nvmlDeviceGetCurrentClocksThrottleReasons",
        "clocks",
        _clock_throttle_reasons,
        ("clock_event_reasons",),
        slow=_CALM,
    ),
    Call("nvmlDeviceGetPerformanceState", "clocks", _pstate, ("pstate",), slow=True),
    Call("nvmlDeviceGetFanSpeed", "fan_speed", _fan_speed, ("fan_speed",), slow=True),
    Call("nvmlDeviceGetEncoderUtilization", "utilization", _encoder, ("encoder_utilization",), slow=True),
    Call("nvmlDeviceGetDecoderUtilization", "utilization", _decoder, ("decoder_utilization",), slow=True),
    Call("nvmlDeviceGetTotalEccErrors", "health", _ecc_uncorrected, ("ecc_uncorrected",), slow=True),
)
GROUPS = frozenset({call.group for call in CALLS} | {item.group for item in fields.ITEMS} | {"processes"})
"""The groups that a setting `include_<group>` switches."""


def _batch(handle: Any, groups: frozenset[str]) -> Iterator[Source]:
    items = tuple(item for item in fields.ITEMS if item.group in groups)
    if items:
        batch = fields.FieldBatch(handle, items)
        yield _source(fields.NAME, (item.field for item in items), batch.read)


def _gpm(handle: Any, groups: frozenset[str], monotonic: Monotonic) -> Iterator[Source]:
    wanted = (gpm.METRICS if "utilization" in groups else {}) | (gpm.TRAFFIC if "links" in groups else {})
    if wanted:
        metrics = gpm.Gpm(handle, wanted, monotonic=monotonic)
        yield _source(gpm.NAME, wanted.values(), metrics.read, forget=metrics.forget)


def _processes(use: Use) -> Iterator[Source]:
    """What rarely changes gives no field of its own: it enters the count of the last source."""
    yield _source(mig.MODE, (), use.refresh_instances, slow=True)
    for name in (processes.GRAPHICS, processes.MPS):
        yield _source(name, (), partial(use.refresh_list, name), slow=True)
    yield _source(processes.COMPUTE, ("process_count",), use.count, forget=use.forget)


def _source(
    name: str,
    fields: Iterable[str],
    read: Callable[[], Reading],
    *,
    slow: float = 0.0,
    forget: Callable[[], None] | None = None,
) -> Source:
    def ask() -> Reading:
        try:
            return read()
        except pynvml.NVMLError as error:
            raise meaning(error) from error

    return Source(name, frozenset(fields), ask, slow, forget)
