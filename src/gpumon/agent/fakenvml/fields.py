"""nvmlDeviceGetFieldValues: many readings in one call, each with its own return code, type and cost."""
# ruff: noqa: N802

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Final

from gpumon.agent.fakenvml.abi import FIELD_ID_MAX, NO_INSTANCE, Return, ValueType
from gpumon.agent.fakenvml.calls import number
from gpumon.agent.fakenvml.simgpu import Carried, SimGpu

Value = tuple[ValueType, int] | Return
_LATENCY_MICROSECONDS = 12
_NVLINK_MBPS = 26_562


class _Instant:
    """A GPU at the instant of a call; its counters are worked out once, and only if a field asks for one."""

    def __init__(self, gpu: SimGpu, t: float) -> None:
        self.gpu = gpu
        self.t = t

    @cached_property
    def counters(self) -> Carried:
        """Every counter."""
        return self.gpu.counters(self.t)


_UINT, _ULL, _INT = ValueType.UNSIGNED_INT, ValueType.UNSIGNED_LONG_LONG, ValueType.SIGNED_INT


def _milliwatts(watts: float) -> Value:
    return _UINT, int(watts * 1000)


def _nvlink(at: _Instant, scope: int, factor: float) -> Value:
    """KiB over one link, or over all where the scope is all ones."""
    links = at.gpu.model.nvlinks
    if not links:
        return Return.NOT_SUPPORTED
    if scope != NO_INSTANCE and scope >= links:
        return Return.INVALID_ARGUMENT
    per_link = int(at.counters.nvlink_kib // links * factor)
    return _ULL, per_link * links if scope == NO_INSTANCE else per_link


def _per_link(value: int) -> Callable[[_Instant, int], Value]:
    def read(at: _Instant, scope: int) -> Value:
        if not at.gpu.model.nvlinks:
            return Return.NOT_SUPPORTED
        return (_UINT, value) if scope < at.gpu.model.nvlinks else Return.INVALID_ARGUMENT

    return read


def _constant(kind: ValueType, value: int) -> Callable[[_Instant, int], Value]:
    return lambda at, scope: (kind, value)


def _wrapped(counter: int) -> Value:
    """As driver 580 gives it of an H100: the low 32 bits."""
    return _UINT, counter % 2**32


def _corrected(at: _Instant, scope: int) -> Value:
    return _ULL, at.gpu.entry.ecc_corrected


def _uncorrected(at: _Instant, scope: int) -> Value:
    return _ULL, at.gpu.entry.ecc_uncorrected


def _energy(at: _Instant, scope: int) -> Value:
    return _ULL, at.counters.energy_mj


def _limit(at: _Instant, scope: int) -> Value:
    return _milliwatts(at.gpu.model.limit_watts)


FIELDS: Final[dict[int, Callable[[_Instant, int], Value]]] = {
    1: _constant(_ULL, 1),  # ECC mode, current and pending
    2: _constant(_ULL, 1),
    3: _corrected,  # ECC totals: volatile, then aggregate
    4: _uncorrected,
    5: _corrected,
    6: _uncorrected,
    29: _constant(_UINT, 0),  # retired pages: single bit, double bit, pending
    30: lambda at, scope: (_UINT, at.gpu.entry.retired_pages),
    31: _constant(_UINT, 0),
    82: lambda at, scope: (_UINT, round(at.gpu.celsius(at.t)) + 8),  # memory temperature
    83: _energy,
    91: lambda at, scope: (_UINT, at.gpu.model.nvlinks),
    94: lambda at, scope: (_UINT, at.gpu.entry.pcie_replays),
    138: lambda at, scope: _nvlink(at, scope, 1.0),  # NVLink KiB: data TX, RX, raw TX, RX
    139: lambda at, scope: _nvlink(at, scope, 1.0),
    140: lambda at, scope: _nvlink(at, scope, 1.125),
    141: lambda at, scope: _nvlink(at, scope, 1.125),
    142: _constant(_ULL, 0),  # remapped rows: correctable, uncorrectable, pending, failed
    143: lambda at, scope: (_ULL, at.gpu.entry.remapped_rows),
    144: _constant(_ULL, 0),
    145: _constant(_ULL, 0),
    164: _per_link(_NVLINK_MBPS),  # NVLink speed, state
    165: _per_link(1),
    185: lambda at, scope: _milliwatts(at.gpu.mean_power_watts(at.t)),
    186: lambda at, scope: _milliwatts(at.gpu.power_watts(at.t)),
    187: lambda at, scope: _milliwatts(at.gpu.model.limit_watts / 2),
    188: _limit,  # power limits: highest, default, current
    189: _limit,
    190: _limit,
    191: _energy,
    193: _constant(_INT, -8),  # margins to shutdown, slowdown, memory limit, limit, in °C
    194: _constant(_INT, -2),
    195: _constant(_INT, 0),
    196: _constant(_INT, 0),
    197: lambda at, scope: _wrapped(at.counters.pcie_tx_bytes),
    198: lambda at, scope: _wrapped(at.counters.pcie_rx_bytes),
}
"""Field id → what a GPU answers for it; ids that are not here are not supported."""


def nvmlDeviceGetFieldValues(gpu: SimGpu, t: float, count: Any, values: Any) -> int:
    array = getattr(values, "_obj", values)
    at = _Instant(gpu, t)
    timestamp = int(t * 1_000_000)
    for i in range(number(count)):
        value = array[i]
        answer = _read(at, value.fieldId, value.scopeId)
        value.timestamp, value.latencyUsec = timestamp, _LATENCY_MICROSECONDS
        if isinstance(answer, Return):
            value.nvmlReturn = answer
            continue
        kind, amount = answer
        value.valueType, value.nvmlReturn = kind, Return.SUCCESS
        if kind is _ULL:
            value.value.ullVal = amount
        elif kind is _INT:
            value.value.siVal = amount
        else:
            value.value.uiVal = amount
    return Return.SUCCESS


def _read(at: _Instant, field: int, scope: int) -> Value:
    if not 0 < field <= FIELD_ID_MAX:
        return Return.INVALID_ARGUMENT
    read = FIELDS.get(field)
    if read is None or field in at.gpu.model.unsupported_fields:
        return Return.NOT_SUPPORTED
    return read(at, scope)
