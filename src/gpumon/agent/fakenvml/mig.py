"""What the simulated library answers about MIG: to a GPU that may be split, and to its instances.

What a GPU is asked is named as NVML does, see `calls`. What an instance is asked is in MIG_CALLS; those functions
get the GPU, the instance, the instant (Unix seconds), and the C arguments after the handle.
"""
# ruff: noqa: N802, N816

from __future__ import annotations

from typing import Any, Final

from gpumon.agent.fakenvml.abi import Return
from gpumon.agent.fakenvml.calls import Call, number, put_memory, put_memory_v2, put_text
from gpumon.agent.fakenvml.lists import put_processes
from gpumon.agent.fakenvml.simgpu import MigInstance, SimGpu

_PROFILE_INFO_V2 = 0x02000098
_SLICES_OF_PROFILE = {0: 1, 1: 2, 2: 3, 3: 4, 4: 7}  # NVML_GPU_INSTANCE_PROFILE_n_SLICE

NOT_ON_MIG_PARENT: Final = frozenset(
    {
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetEncoderUtilization",
        "nvmlDeviceGetDecoderUtilization",
        "nvmlDeviceGetProcessUtilization",
        "nvmlDeviceGetSamples",
        "nvmlDeviceGetProcessesUtilizationInfo",
        "nvmlDeviceGetRemappedRows",
    }
)
"""Calls that a GPU does not answer while it is split."""


def nvmlDeviceGetMigMode(gpu: SimGpu, t: float, current: Any, pending: Any) -> int:
    if not gpu.model.mig_max:
        return Return.NOT_SUPPORTED
    current._obj.value = pending._obj.value = int(gpu.mig_enabled)
    return Return.SUCCESS


def nvmlDeviceGetMaxMigDeviceCount(gpu: SimGpu, t: float, count: Any) -> int:
    count._obj.value = gpu.model.mig_max if gpu.mig_enabled else 0
    return Return.SUCCESS


def nvmlDeviceGetGpuInstanceProfileInfo(gpu: SimGpu, t: float, profile: Any, info: Any) -> int:
    slices = _SLICES_OF_PROFILE.get(number(profile))
    if slices is None:
        return Return.INVALID_ARGUMENT
    sizes = gpu.model.mig_profiles.values()
    size = next((size for size in sizes if size.compute_slices == slices), None)
    if size is None:
        return Return.NOT_SUPPORTED
    told = info._obj
    told.id, told.sliceCount = number(profile), slices
    told.instanceCount = gpu.model.mig_max // slices
    told.memorySizeMB = size.memory_mib
    return Return.SUCCESS


def nvmlDeviceGetGpuInstanceProfileInfoV(gpu: SimGpu, t: float, profile: Any, info: Any) -> int:
    if info._obj.version != _PROFILE_INFO_V2:
        return Return.ARGUMENT_VERSION_MISMATCH
    return nvmlDeviceGetGpuInstanceProfileInfo(gpu, t, profile, info)


def nvmlDeviceGetAttributes_v2(gpu: SimGpu, t: float, attributes: Any) -> int:
    return Return.NOT_SUPPORTED  # only instances have them


def nvmlDeviceGetGpuInstanceId(gpu: SimGpu, t: float, number: Any) -> int:
    return Return.NOT_SUPPORTED  # only instances have one


nvmlDeviceGetComputeInstanceId = nvmlDeviceGetGpuInstanceId


def _mig_name(gpu: SimGpu, mig: MigInstance, t: float, buffer: Any, length: Any) -> int:
    return put_text(buffer, length, f"{gpu.model.name} MIG {mig.name}")


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


def _mig_attributes(gpu: SimGpu, mig: MigInstance, t: float, attributes: Any) -> int:
    told = attributes._obj
    told.gpuInstanceSliceCount = told.computeInstanceSliceCount = mig.profile.compute_slices
    told.memorySizeMB = mig.profile.memory_mib
    return Return.SUCCESS


def _mig_processes(kind: str) -> Call:
    return lambda gpu, mig, t, count, array: put_processes(mig.held, kind, count, array)


MIG_CALLS: Final[dict[str, Call]] = {
    "nvmlDeviceGetName": _mig_name,
    "nvmlDeviceGetUUID": _mig_uuid,
    "nvmlDeviceGetMemoryInfo": _mig_memory,
    "nvmlDeviceGetMemoryInfo_v2": _mig_memory_v2,
    "nvmlDeviceGetAttributes_v2": _mig_attributes,
    "nvmlDeviceGetGpuInstanceId": _mig_gpu_instance,
    "nvmlDeviceGetComputeInstanceId": _mig_compute_instance,
    "nvmlDeviceGetComputeRunningProcesses_v3": _mig_processes("compute"),
    "nvmlDeviceGetGraphicsRunningProcesses_v3": _mig_processes("graphics"),
    "nvmlDeviceGetMPSComputeRunningProcesses_v3": _mig_processes("mps"),
}
"""What an instance answers; everything else is not supported there."""
