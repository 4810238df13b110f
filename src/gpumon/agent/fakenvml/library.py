"""Answers of the simulated library about itself and the handles it gives out.

Each function gets the state, the instant (Unix seconds), and the C arguments as the binding passes them, and
returns an nvmlReturn_t. `nvmlErrorString` alone returns text. `fakenvml` finds the functions by their names.
"""
# ruff: noqa: N802, N816

from __future__ import annotations

from typing import Any, Final

from gpumon.agent.fakenvml.abi import ERRORS, Return
from gpumon.agent.fakenvml.calls import number, put_text
from gpumon.agent.fakenvml.state import GpuHandle, State

WITHOUT_INIT: Final = frozenset({"nvmlInitWithFlags", "nvmlInit_v2", "nvmlErrorString"})
"""Calls that are answered before nvmlInit."""

_NVML_VERSION = "13.580.95.05"


def nvmlInitWithFlags(state: State, t: float, flags: Any) -> int:
    if state.entry is None:  # a node without GPUs
        return Return.DRIVER_NOT_LOADED
    if state.entry.init_error is not None:
        return ERRORS[state.entry.init_error]
    with state.lock:
        state.references += 1
    return Return.SUCCESS


def nvmlInit_v2(state: State, t: float) -> int:
    return nvmlInitWithFlags(state, t, 0)


def nvmlShutdown(state: State, t: float) -> int:
    with state.lock:
        state.references -= 1
        if state.references == 0:
            state.forget_handles()
    return Return.SUCCESS


def nvmlErrorString(state: State, t: float, code: Any) -> bytes:
    name = next((name for name, known in ERRORS.items() if known == number(code)), "Unknown")
    return name.encode()


def nvmlSystemGetDriverVersion(state: State, t: float, buffer: Any, length: Any) -> int:
    return put_text(buffer, length, state.entry.driver if state.entry is not None else "")


def nvmlSystemGetNVMLVersion(state: State, t: float, buffer: Any, length: Any) -> int:
    return put_text(buffer, length, _NVML_VERSION)


def nvmlSystemGetCudaDriverVersion_v2(state: State, t: float, version: Any) -> int:
    version._obj.value = state.entry.cuda if state.entry is not None else 0
    return Return.SUCCESS


nvmlSystemGetCudaDriverVersion = nvmlSystemGetCudaDriverVersion_v2


def nvmlDeviceGetCount_v2(state: State, t: float, count: Any) -> int:
    count._obj.value = len(state.gpus)
    return Return.SUCCESS


def nvmlDeviceGetHandleByIndex_v2(state: State, t: float, index: Any, device: Any) -> int:
    gpus = state.gpus
    if number(index) >= len(gpus):
        return Return.INVALID_ARGUMENT
    return state.put_gpu(device._obj, gpus[number(index)], t)


def nvmlDeviceGetHandleByUUID(state: State, t: float, uuid: Any, device: Any) -> int:
    wanted = (uuid.value or b"").decode()
    for gpu in state.gpus:
        if gpu.uuid == wanted:
            return state.put_gpu(device._obj, gpu, t)
        for instance in gpu.instances:
            if instance is not None and instance.uuid == wanted:
                return state.put_gpu(device._obj, gpu, t, instance.index)
    return Return.NOT_FOUND


def nvmlDeviceGetMigDeviceHandleByIndex(state: State, t: float, device: Any, index: Any, mig: Any) -> int:
    found = state.gpu(device, t)
    if isinstance(found, Return):
        return found
    gpu, instance = found
    if instance is not None or not gpu.model.mig_max:
        return Return.NOT_SUPPORTED
    wanted = number(index)
    if wanted >= gpu.model.mig_max:
        return Return.INVALID_ARGUMENT
    if wanted >= len(gpu.instances) or gpu.instances[wanted] is None:
        return Return.NOT_FOUND
    return state.put_gpu(mig._obj, gpu, t, wanted)


def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(state: State, t: float, mig: Any, device: Any) -> int:
    found = state.gpu(mig, t)
    if isinstance(found, Return):
        return found
    gpu, instance = found
    return Return.INVALID_ARGUMENT if instance is None else state.put_gpu(device._obj, gpu, t)


def nvmlDeviceIsMigDeviceHandle(state: State, t: float, device: Any, answer: Any) -> int:
    target = state.target(device)
    if not isinstance(target, GpuHandle):
        return Return.INVALID_ARGUMENT
    answer._obj.value = int(target.mig is not None)
    return Return.SUCCESS
