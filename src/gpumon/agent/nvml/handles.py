"""NVML's handles: getting a GPU's, and who it is that a handle belongs to."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, TypeVar

import pynvml

from gpumon.agent.nvml.errors import LIBRARY_GONE, verdict
from gpumon.agent.nvml.readings import Verdict
from gpumon.agent.ports import Gpu

_NO_UUID = "no-uuid-"
"""With the index after it, stands for the identity of a GPU whose library gives no UUID."""
T = TypeVar("T")


def address(handle: Any) -> int | None:
    """By what two handles are the same."""
    return ctypes.cast(handle, ctypes.c_void_p).value


def handle_of(gpu: Gpu) -> Any:
    """A new handle of a GPU, by who it is. Raises NVMLError."""
    if gpu.uuid.startswith(_NO_UUID):
        return pynvml.nvmlDeviceGetHandleByIndex(gpu.index)
    return pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)


def identified(index: int, handle: Any) -> Gpu:
    """Who a GPU is. Raises NVMLError where its UUID can't be had now: under a name made up for the moment it
    would be another GPU the next time."""
    pci = if_any(lambda: pynvml.nvmlDeviceGetPciInfo(handle))
    return Gpu(
        index=index,
        uuid=_uuid(index, handle),
        name=if_any(lambda: pynvml.nvmlDeviceGetName(handle)) or "unknown GPU",
        pci_bus_id=pci and pci.busId,
        minor_number=if_any(lambda: pynvml.nvmlDeviceGetMinorNumber(handle)),
    )


def _uuid(index: int, handle: Any) -> str:
    try:
        return str(pynvml.nvmlDeviceGetUUID(handle))
    except pynvml.NVMLError as error:
        if verdict(error.value) is Verdict.UNSUPPORTED:
            return f"{_NO_UUID}{index}"
        raise


def if_any(ask: Callable[[], T]) -> T | None:
    """What the library answers, None where it does not: an identity is read with what there is of it. Raises
    NVMLError where the library is gone."""
    try:
        return ask()
    except pynvml.NVMLError as error:
        if error.value in LIBRARY_GONE:
            raise
        return None
