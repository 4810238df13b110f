"""Many readings by one call: nvmlDeviceGetFieldValues.

Every value of the batch has a return code and a type of its own. An id that the driver does not know is
dropped from the batch at the first sample; its reading then comes from a call of its own, or is absent. So is a
counter of bytes that has but 32 bits, as that of PCIe on an H100 (driver 580): a busy link fills it ten times a
second, and what it gives between two samples is known but for an unknown number of times 4 GiB.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml

from gpumon.agent.nvml.errors import GPU_GONE, LIBRARY_GONE, verdict
from gpumon.agent.nvml.readings import Verdict
from gpumon.agent.ports import Reading

NAME = "nvmlDeviceGetFieldValues"
ALL_LINKS = 0xFFFFFFFF
_NOT_AVAILABLE = {0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF}
"""What NVML gives in an unsigned number's stead where it has none."""

_MEMBER = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}
_NARROW = {
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT,
    pynvml.NVML_VALUE_TYPE_SIGNED_INT,
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT,
}


@dataclass(frozen=True, slots=True)
class Item:
    """One id of the batch and the catalogue field it becomes."""

    group: str
    field: str
    id: int
    convert: Callable[[float], float]
    scope: int = 0
    wide: bool = False
    """Of use only where it has 64 bits."""


def _milli(value: float) -> float:
    return value / 1000


def _kibi(value: float) -> int:
    return int(value) // 1024


ITEMS = (
    # The one-second average, as nvmlDeviceGetPowerUsage gives it on Ampere and later; GA100 lacks the field.
    Item("power", "power_draw", pynvml.NVML_FI_DEV_POWER_AVERAGE, _milli),
    Item("power", "energy_mj", pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, int),
    Item("temperature", "temperature_memory", pynvml.NVML_FI_DEV_MEMORY_TEMP, int),
    Item("links", "pcie_rx_kib", pynvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES, _kibi, wide=True),
    Item("links", "pcie_tx_kib", pynvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES, _kibi, wide=True),
    Item("links", "nvlink_rx_kib", pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, int, ALL_LINKS),
    Item("links", "nvlink_tx_kib", pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, int, ALL_LINKS),
)


class FieldBatch:
    """The batch of one GPU: the items that the GPU supports, in one reused array."""

    def __init__(self, handle: Any, items: tuple[Item, ...]) -> None:
        self._handle = handle
        self._given: set[str] = set()
        self._prepare(items)

    def read(self) -> Reading:
        """Catalogue field → value; None for one that was missed this time. Raises NVMLError."""
        if not self._items:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        ctypes.memmove(self._values, self._blank, len(self._blank))
        function = pynvml._nvmlGetFunctionPointer(NAME)
        code = function(self._handle, ctypes.c_int32(len(self._items)), self._values)
        if code != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(code)
        reading: Reading = {}
        unknown = set()
        for item, value in zip(self._items, self._values, strict=True):
            code = value.nvmlReturn
            if code == pynvml.NVML_SUCCESS and item.wide and value.valueType in _NARROW:
                unknown.add(item)
            elif code == pynvml.NVML_SUCCESS:
                reading[item.field] = _converted(item, value)
                self._given.add(item.field)
            elif code in GPU_GONE or code in LIBRARY_GONE:
                raise pynvml.NVMLError(code)
            elif self._will_never_answer(item, code):
                unknown.add(item)
            else:
                reading[item.field] = None
        if unknown:
            self._prepare(tuple(item for item in self._items if item not in unknown))
        return reading

    def _will_never_answer(self, item: Item, code: int) -> bool:
        what = verdict(code)
        return what is Verdict.UNSUPPORTED or (what is Verdict.REFUSED and item.field not in self._given)

    def _prepare(self, items: tuple[Item, ...]) -> None:
        self._items = items
        self._values = (pynvml.c_nvmlFieldValue_t * len(items))()
        for item, value in zip(items, self._values, strict=True):
            value.fieldId, value.scopeId = item.id, item.scope
            # A library that leaves a value untouched must not pass for one that measured 0.
            value.nvmlReturn = pynvml.NVML_ERROR_UNKNOWN
        self._blank = bytes(self._values)


def _converted(item: Item, value: Any) -> float | None:
    member = _MEMBER.get(value.valueType)
    raw = math.nan if member is None else getattr(value.value, member)
    return None if not math.isfinite(raw) or raw in _NOT_AVAILABLE else item.convert(raw)
