"""How busy a GPU was since the last sample, by one call.

nvmlDeviceGetUtilizationRates tells the last second or less: of a GPU that works in bursts, an interval of five
seconds catches some by chance. The driver remembers that value for some fourteen seconds, and gives all of them.
"""

from __future__ import annotations

import ctypes
from typing import Any

import pynvml

from gpumon.agent.nvml.lastseen import LastSeen
from gpumon.agent.ports import Reading
from gpumon.clock import Monotonic, Now

NAME = "nvmlDeviceGetSamples"
FIELD = "utilization_mean"
_ROOM_AT_FIRST = 256  # drivers keep about a hundred
_TRIES = 3
_VALUES = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
}


class BusySamples:
    """The driver's utilisation samples of one GPU."""

    def __init__(self, handle: Any, *, monotonic: Monotonic, now: Now) -> None:
        self._handle = handle
        self._seen = LastSeen(monotonic=monotonic, now=now)
        self._buffer = _room(_ROOM_AT_FIRST)

    def read(self) -> Reading:
        """The mean in percent since the last sample, as far as the driver remembers; absent where it has taken
        none since. Raises NVMLError."""
        since = self._seen.since()
        self._seen.sampled()
        samples = [(stamp, value) for stamp, value in self._ask(since) if stamp > since and 0 <= value <= 100]
        if not samples:
            return {FIELD: None}
        self._seen.brought(max(stamp for stamp, _ in samples))
        return {FIELD: round(sum(value for _, value in samples) / len(samples), 2)}

    def forget(self) -> None:
        """The next reading is a first one again."""
        self._seen.forget()

    def _ask(self, since: int) -> list[tuple[int, float]]:
        """(stamp in microseconds since 1970, percent) of each sample. Raises NVMLError."""
        function = pynvml._nvmlGetFunctionPointer(NAME)
        for _ in range(_TRIES):
            kind, count = ctypes.c_uint(), ctypes.c_uint(len(self._buffer))
            code = function(
                self._handle,
                ctypes.c_uint(pynvml.NVML_GPU_UTILIZATION_SAMPLES),
                ctypes.c_ulonglong(since),
                ctypes.byref(kind),
                ctypes.byref(count),
                self._buffer,
            )
            if code != pynvml.NVML_ERROR_INSUFFICIENT_SIZE:
                break
            self._buffer = _room(max(count.value, len(self._buffer)) * 2)
        if code == pynvml.NVML_ERROR_NOT_FOUND:
            return []
        if code != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(code)
        member = _VALUES.get(kind.value)
        if member is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        rows = self._buffer[: min(count.value, len(self._buffer))]
        return [(row.timeStamp, float(getattr(row.sampleValue, member))) for row in rows]


def _room(samples: int) -> Any:
    return (pynvml.c_nvmlSample_t * samples)()
