"""The door to NVML, real or fake: implements `gpumon.agent.ports.GpuLibrary`.

`Nvml` opens and closes the library and finds its GPUs. What is asked of a GPU is in `calls`, by which
rules in `readings`, what an error means in `errors`. Only this package and the
simulation import pynvml.

Threads: one thread reads a GPU, another opens and closes. What is known of a GPU belongs to its reader; a
GPU that is found again, and a library that is opened anew, get new readers. A reader that hangs in a call
keeps its own, so nothing is freed under it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pynvml

from gpumon import clock
from gpumon.agent.nvml.calls import GROUPS, sources
from gpumon.agent.nvml.errors import LIBRARY_GONE, meaning
from gpumon.agent.nvml.load import initialise
from gpumon.agent.ports import Gpu, Reading
from gpumon.agent.readings import GpuReader, NoReading, Support, Verdict
from gpumon.clock import Monotonic
from gpumon.errors import GpuLost, NvmlUnavailable

log = logging.getLogger(__name__)

SLOW_INTERVAL_SECONDS = 30.0
_NO_UUID = "no-uuid-"
"""With the index after it, stands for the identity of a GPU whose library gives no UUID."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Device:
    """One GPU while the library is open. `busy` is held while its reader is in a call."""

    reader: GpuReader
    busy: threading.Lock = field(default_factory=threading.Lock)

    def release(self) -> None:
        """Frees what the reader keeps in the library. What a hanging reader keeps is left to leak."""
        if self.busy.acquire(blocking=False):
            try:
                self.reader.forget()
            finally:
                self.busy.release()


class Nvml:
    """NVML of this machine. `groups` says which groups of readings are taken (see `GROUPS`); the readings
    that rarely change are taken once per `slow_interval_seconds`."""

    def __init__(
        self,
        groups: frozenset[str] = GROUPS,
        *,
        slow_interval_seconds: float = SLOW_INTERVAL_SECONDS,
        monotonic: Monotonic = clock.monotonic,
    ) -> None:
        self._groups = groups
        self._slow_interval_seconds = slow_interval_seconds
        self._monotonic = monotonic
        self._opened = False
        self._devices: dict[str, _Device] = {}
        self.driver_version: str | None = None
        self.nvml_version: str | None = None

    def open(self) -> Sequence[Gpu]:
        """Loads and initialises NVML and gives its GPUs; none is no error. A GPU that can't be addressed is
        logged and left out. Raises NvmlUnavailable with where the library was looked for and what to do."""
        self.close()
        initialise()
        self._opened = True
        try:
            self.driver_version = _if_any(pynvml.nvmlSystemGetDriverVersion)
            self.nvml_version = _if_any(pynvml.nvmlSystemGetNVMLVersion)
            found = [self._found(index) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            self.close()
            raise NvmlUnavailable(f"NVML can't list its GPUs ({error}): see whether nvidia-smi can.") from error
        return [gpu for gpu in found if gpu is not None]

    def close(self) -> None:
        """Frees what is held and shuts NVML down. Harmless when it is not open."""
        devices, self._devices = self._devices, {}
        for device in devices.values():
            device.release()
        if self._opened:
            self._opened = False
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()

    def read(self, gpu: Gpu) -> Reading:
        """One sample of one GPU; what it does not support is left out. Raises GpuLost, NvmlUnavailable."""
        device = self._devices.get(gpu.uuid)
        if device is None:
            if not self._opened:
                raise NvmlUnavailable("NVML is closed: open it first.")
            raise GpuLost(f"GPU {gpu.uuid} was not there when NVML was opened.")
        with device.busy:
            return device.reader.read()

    def find_again(self, gpu: Gpu) -> bool:
        """Gets a new handle by UUID and tries one call on it. Raises NvmlUnavailable."""
        handle = None
        try:
            handle = _handle_of(gpu)
            pynvml.nvmlDeviceGetPerformanceState(handle)
        except pynvml.NVMLError as error:
            reason = meaning(error)
            if isinstance(reason, NvmlUnavailable):
                raise reason from error
            answers = isinstance(reason, NoReading) and reason.verdict is Verdict.UNSUPPORTED
            if handle is None or not answers:
                return False
        before = self._devices.get(gpu.uuid)
        self._devices[gpu.uuid] = self._device(handle)
        if before is not None:
            before.release()
        return True

    def support(self, gpu: Gpu) -> Support | None:
        """What the GPU has been found to support; None for a GPU that NVML has not."""
        device = self._devices.get(gpu.uuid)
        return None if device is None else device.reader.support

    def _found(self, index: int) -> Gpu | None:
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        except pynvml.NVMLError as error:
            if error.value in LIBRARY_GONE:
                raise
            log.warning("gpu_left_out index=%d reason=%r", index, str(error))
            return None
        pci = _if_any(lambda: pynvml.nvmlDeviceGetPciInfo(handle))
        gpu = Gpu(
            index=index,
            uuid=_if_any(lambda: pynvml.nvmlDeviceGetUUID(handle)) or f"{_NO_UUID}{index}",
            name=_if_any(lambda: pynvml.nvmlDeviceGetName(handle)) or "unknown GPU",
            pci_bus_id=pci and pci.busId,
            minor_number=_if_any(lambda: pynvml.nvmlDeviceGetMinorNumber(handle)),
        )
        self._devices[gpu.uuid] = self._device(handle)
        return gpu

    def _device(self, handle: Any) -> _Device:
        reader = GpuReader(
            sources(handle, self._groups),
            slow_interval_seconds=self._slow_interval_seconds,
            monotonic=self._monotonic,
        )
        return _Device(reader)


def _handle_of(gpu: Gpu) -> Any:
    if gpu.uuid.startswith(_NO_UUID):
        return pynvml.nvmlDeviceGetHandleByIndex(gpu.index)
    return pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)


def _if_any(ask: Callable[[], T]) -> T | None:
    """What the library answers, None where it does not: an identity is read with what there is of it."""
    try:
        return ask()
    except pynvml.NVMLError:
        return None
