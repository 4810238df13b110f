"""The door to NVML, real or fake: implements `gpumon.agent.ports.GpuLibrary`.

`Nvml` opens and closes the library and finds its GPUs. What is asked of a GPU is in `calls`, by which
rules in `readings`, who uses it in `use`, what an error means in `errors`. Only this package and the
simulation import pynvml.

Threads: one thread reads a GPU, another opens and closes, and one waits for Xids (`events`). What is known of a
GPU belongs to its reader; a GPU that is found again, or that has another handle when the library is opened anew,
gets a new one. A reader that hangs in a call keeps its own, so nothing is freed under it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pynvml

from gpumon import clock
from gpumon.agent.nvml.busy import BusySamples
from gpumon.agent.nvml.calls import GROUPS, sources
from gpumon.agent.nvml.errors import LIBRARY_GONE, meaning
from gpumon.agent.nvml.events import XidWatch
from gpumon.agent.nvml.handles import address, handle_of, identified, if_any
from gpumon.agent.nvml.load import initialise
from gpumon.agent.nvml.readings import GpuReader, NoReading, Support, Verdict
from gpumon.agent.nvml.use import Use
from gpumon.agent.ports import USE, Gpu, GpuUse, Reading
from gpumon.clock import Monotonic, Now
from gpumon.errors import GpuLost, NvmlUnavailable

log = logging.getLogger(__name__)

_NOT_WANTED = GpuUse(None, why_not="[GPU_METRICS] include_processes is off")

SLOW_INTERVAL_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Device:
    """One GPU while the library is open. `use` is who uses it, where that is asked. `busy` is held while its
    reader is in a call."""

    handle: Any
    reader: GpuReader
    use: Use | None
    busy: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> Reading:
        """One sample. Raises GpuLost, NvmlUnavailable."""
        with self.busy:
            reading = self.reader.read()
            if self.use is not None:
                try:
                    worked = bool(reading.get("utilization_mean") or reading.get("utilization_gpu"))
                    reading[USE] = self.use.read(worked=worked)
                except GpuLost:
                    self.reader.forget()
                    raise
            return reading

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
        now: Now = clock.now,
    ) -> None:
        self._groups = groups
        self._slow_interval_seconds = slow_interval_seconds
        self._monotonic = monotonic
        self._now = now
        self._opened = False
        self._devices: dict[str, _Device] = {}  # made anew by every `open` and `close`
        self._xids = XidWatch() if "health" in groups else None
        self._renewing = threading.Lock()
        self._left_out: Sequence[int] = ()
        self.driver_version: str | None = None
        self.nvml_version: str | None = None

    @property
    def left_out(self) -> Sequence[int]:
        """See the port."""
        return self._left_out

    def open(self) -> Sequence[Gpu]:
        """Loads and initialises NVML and gives its GPUs; none is no error. A GPU that can't be addressed or
        does not tell who it is, is logged and left out.

        While NVML is open it is initialised once more, and given back once after that, so that GPUs that
        answer are not disturbed: a GPU whose handle is still the same keeps its reader. What fails then
        leaves everything as it was. Raises NvmlUnavailable with where the library was looked for and what to
        do."""
        initialise()
        try:
            driver_version = if_any(pynvml.nvmlSystemGetDriverVersion)
            nvml_version = if_any(pynvml.nvmlSystemGetNVMLVersion)
            gpus, devices, left_out = self._list()
        except pynvml.NVMLError as error:
            _shut_down()
            raise NvmlUnavailable(f"NVML can't list its GPUs ({error}): see whether nvidia-smi can.") from error
        with self._renewing:
            before, self._devices = self._devices, devices
        was_open, self._opened = self._opened, True
        self.driver_version, self.nvml_version, self._left_out = driver_version, nvml_version, left_out
        for uuid, device in before.items():
            if devices.get(uuid) is not device:
                device.release()
                self._begins_anew(uuid)
        self._watch()
        if was_open:
            _shut_down()
        return gpus

    def close(self) -> None:
        """Frees what is held and shuts NVML down. Harmless when it is not open."""
        with self._renewing:
            devices, self._devices = self._devices, {}
        for device in devices.values():
            device.release()
        if self._xids is not None:
            self._xids.stop()
        if self._opened:
            self._opened = False
            _shut_down()

    def read(self, gpu: Gpu) -> Reading:
        """One sample of one GPU; what it does not support is left out. Under USE, who uses it. Raises GpuLost,
        NvmlUnavailable."""
        device = self._devices.get(gpu.uuid)
        if device is None:
            if not self._opened:
                raise NvmlUnavailable("NVML is closed: open it first.")
            raise GpuLost(f"GPU {gpu.uuid} was not there when NVML was opened.")
        reading = device.read()
        reading[USE] = replace(reading.get(USE, _NOT_WANTED), minor_number=gpu.minor_number)
        unhealthy = None if self._xids is None else self._xids.unhealthy(gpu.uuid)
        return reading if unhealthy is None else {**reading, "unhealthy": unhealthy}

    def find_again(self, gpu: Gpu) -> bool:
        """Gets a new handle by UUID and tries one call on it. Raises NvmlUnavailable."""
        devices = self._devices
        handle = None
        try:
            handle = handle_of(gpu)
            pynvml.nvmlDeviceGetPerformanceState(handle)
        except pynvml.NVMLError as error:
            reason = meaning(error)
            if isinstance(reason, NvmlUnavailable):
                raise reason from error
            answers = isinstance(reason, NoReading) and reason.verdict is Verdict.UNSUPPORTED
            if handle is None or not answers:
                return False
        with self._renewing:
            if self._devices is not devices:  # closed or opened meanwhile: the handle may have died with it
                return False
            before = devices.get(gpu.uuid)
            devices[gpu.uuid] = self._device(handle)
        if before is not None:
            before.release()
        self._begins_anew(gpu.uuid)
        self._watch()
        return True

    def support(self, gpu: Gpu) -> Support | None:
        """What the GPU has been found to support; None for a GPU that NVML has not."""
        device = self._devices.get(gpu.uuid)
        return None if device is None else device.reader.support

    def _begins_anew(self, uuid: str) -> None:
        if self._xids is not None:
            self._xids.forget(uuid)

    def _watch(self) -> None:
        """Waits for Xids of the GPUs as they are now."""
        if self._xids is not None:
            with self._renewing:
                self._xids.start({uuid: device.handle for uuid, device in self._devices.items()})

    def _list(self) -> tuple[list[Gpu], dict[str, _Device], list[int]]:
        """The GPUs, what belongs to each by UUID, and the indices of those that are left out. Raises
        NVMLError where the library does not answer."""
        gpus, devices, left_out = [], {}, []
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                gpu = identified(index, handle)
            except pynvml.NVMLError as error:
                if error.value in LIBRARY_GONE:
                    raise
                log.warning("gpu_left_out index=%d reason=%r", index, str(error))
                left_out.append(index)
                continue
            gpus.append(gpu)
            known = self._devices.get(gpu.uuid)
            same = known is not None and address(known.handle) == address(handle)
            devices[gpu.uuid] = known if known is not None and same else self._device(handle)
        return gpus, devices, left_out

    def _device(self, handle: Any) -> _Device:
        use = Use(handle, monotonic=self._monotonic, now=self._now) if "processes" in self._groups else None
        reader = GpuReader(
            sources(
                handle,
                self._groups,
                use,
                BusySamples(handle, monotonic=self._monotonic, now=self._now),
                self._monotonic,
            ),
            slow_interval_seconds=self._slow_interval_seconds,
            monotonic=self._monotonic,
        )
        return _Device(handle, reader, use)


def _shut_down() -> None:
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlShutdown()
