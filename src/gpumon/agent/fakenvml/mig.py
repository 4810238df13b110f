"""What the simulated library answers about MIG: a few calls for an instance, fewer for a GPU that is split.

Functions get the GPU, the instance, the instant (Unix seconds), and the C arguments after the handle.
"""

from __future__ import annotations

from typing import Any, Final

from gpumon.agent.fakenvml.abi import Return
from gpumon.agent.fakenvml.calls import Call, put_memory, put_memory_v2, put_text
from gpumon.agent.fakenvml.lists import put_processes
from gpumon.agent.fakenvml.simgpu import MigInstance, SimGpu

NOT_ON_MIG_PARENT: Final = frozenset(
    {
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetEncoderUtilization",
        "nvmlDeviceGetDecoderUtilization",
        "nvmlDeviceGetProcessUtilization",
        "nvmlDeviceGetProcessesUtilizationInfo",
        "nvmlDeviceGetRemappedRows",
    }
)
"""Calls that a GPU does not answer while it is split."""


def _mig_name(gpu: SimGpu, mig: MigInstance, t: float, buffer: Any, length: Any) -> int:
    return put_text(buffer, length, f"{gpu.model.name} MIG {mig.profile}")


def _mig_uuid(gpu: SimGpu, mig: MigInstance, t: float, buffer: Any, length: Any) -> int:
    return put_text(buffer, length, mig.uuid)


def _mig_memory(gpu: SimGpu, mig: MigInstance, t: float, info: Any) -> int:
    return put_memory(mig.memory, info)


def _mig_memory_v2(gpu: SimGpu, mig: MigInstance, t: float, info: Any) -> int:
    return put_memory_v2(mig.memory, info)


def _mig_gpu_instance(gpu: SimGpu, mig: MigInstance, t: float, number: Any) -> int:
    number._obj.value = mig.gpu_instance
    return Return.SUCCESS


def _mig_compute_instance(gpu: SimGpu, mig: MigInstance, t: float, number: Any) -> int:
    number._obj.value = 0
    return Return.SUCCESS


def _mig_processes(kind: str) -> Call:
    return lambda gpu, mig, t, count, array: put_processes(mig.held, kind, count, array)


MIG_CALLS: Final[dict[str, Call]] = {
    "nvmlDeviceGetName": _mig_name,
    "nvmlDeviceGetUUID": _mig_uuid,
    "nvmlDeviceGetMemoryInfo": _mig_memory,
    "nvmlDeviceGetMemoryInfo_v2": _mig_memory_v2,
    "nvmlDeviceGetGpuInstanceId": _mig_gpu_instance,
    "nvmlDeviceGetComputeInstanceId": _mig_compute_instance,
    "nvmlDeviceGetComputeRunningProcesses_v3": _mig_processes("compute"),
    "nvmlDeviceGetGraphicsRunningProcesses_v3": _mig_processes("graphics"),
    "nvmlDeviceGetMPSComputeRunningProcesses_v3": _mig_processes("mps"),
}
"""What an instance answers; everything else is not supported there."""
