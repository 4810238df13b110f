"""What NVML's return codes mean: a decision about the library, the GPU, or one reading."""

from __future__ import annotations

import pynvml

from gpumon.agent.nvml.readings import NoReading, Verdict
from gpumon.errors import GpuLost, NvmlUnavailable

LIBRARY_GONE = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)
GPU_GONE = frozenset(
    {
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_GPU_NOT_FOUND,
        pynvml.NVML_ERROR_RESET_REQUIRED,
    }
)
_UNSUPPORTED = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_VGPU_ECC_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FREQ_NOT_SUPPORTED,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        pynvml.NVML_ERROR_DEPRECATED,
    }
)
# A driver that does not know a field or a sensor calls it an invalid argument; so does one whose handle
# died, but then the reading has worked before.
_REFUSED = frozenset({pynvml.NVML_ERROR_INVALID_ARGUMENT, pynvml.NVML_ERROR_NOT_FOUND})


def verdict(code: int) -> Verdict:
    """What a code that is neither the library's nor the GPU's end means for one reading."""
    if code in _UNSUPPORTED:
        return Verdict.UNSUPPORTED
    return Verdict.REFUSED if code in _REFUSED else Verdict.MISSED


def meaning(error: pynvml.NVMLError) -> NvmlUnavailable | GpuLost | NoReading:
    """The exception to raise in an NVMLError's stead."""
    code: int = error.value
    if code in LIBRARY_GONE:
        return NvmlUnavailable(f"NVML has to be opened anew: {error}")
    if code in GPU_GONE:
        return GpuLost(f"the GPU does not answer: {error}")
    return NoReading(str(error), verdict(code))
