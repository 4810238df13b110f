"""What NVML tells of the GPUs: freshly opened, or as the running agent has seen them last.

A doctor beside the agent opens NVML itself, which disturbs nobody. One in the agent does not: it looks at the
newest sample of each GPU, and at what the door has learnt of its abilities.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from gpumon import clock
from gpumon.agent.attribution.attributor import known_gpu, processes_of
from gpumon.agent.attribution.deviceids import KnownGpu
from gpumon.agent.counts import SamplerCounts
from gpumon.agent.doctor.looks import Looks, NoLook
from gpumon.agent.nvml import Nvml
from gpumon.agent.ports import USE, Gpu, GpuLibrary, GpuProcess, GpuUse, Reading
from gpumon.errors import GpumonError, NvmlUnavailable

OPEN_SECONDS = 30.0
"""A driver without persistence mode takes up to 3 s per GPU."""
READ_SECONDS = 10.0
BETWEEN_READS_SECONDS = 1.0
"""What is measured between two samples has a value at the second only."""


@dataclass(frozen=True, slots=True)
class SeenGpu:
    """One GPU. `trouble` says why it could not be read. `fields` are the readings that it gives, `unsupported` why
    it does not give others; `use` None: not asked, or not to be had."""

    index: int
    uuid: str
    name: str
    trouble: str | None = None
    fields: frozenset[str] = frozenset()
    unsupported: Mapping[str, str] = field(default_factory=dict)
    use: GpuUse | None = None

    @property
    def known(self) -> KnownGpu:
        """The GPU and its instances, as device ids may name them."""
        return known_gpu(self.uuid, self.use)

    @property
    def processes(self) -> list[GpuProcess]:
        """The processes on it and on its instances."""
        return processes_of(self.use)


@dataclass(frozen=True, slots=True)
class SeenGpus:
    """All GPUs. `trouble` says why NVML as a whole does not answer; `left_out` are indices of GPUs that it counts
    and can't address."""

    gpus: Sequence[SeenGpu] = ()
    trouble: str | None = None
    driver_version: str | None = None
    nvml_version: str | None = None
    left_out: Sequence[int] = ()


class OpenedGpus:
    """NVML, opened for a look. `close` gives it back, unless a call into it hangs."""

    def __init__(
        self,
        library: Nvml,
        *,
        open_seconds: float = OPEN_SECONDS,
        read_seconds: float = READ_SECONDS,
        between_reads_seconds: float = BETWEEN_READS_SECONDS,
    ) -> None:
        self._library = library
        self._open_seconds = open_seconds
        self._read_seconds = read_seconds
        self._between_reads_seconds = between_reads_seconds
        self._looks = Looks()

    def see(self) -> SeenGpus:
        """Opens NVML and reads every GPU twice, all at once; one that hangs does not hide the others."""
        opening = self._looks.begin("nvml", self._library.open)
        try:
            gpus = opening.result(clock.monotonic() + self._open_seconds)
        except NoLook as error:
            return SeenGpus(trouble=f"opening NVML: {error}")
        except NvmlUnavailable as error:
            return SeenGpus(trouble=str(error))
        reads = [(gpu, self._looks.begin(gpu.uuid, partial(self._read, gpu))) for gpu in gpus]
        deadline = clock.monotonic() + self._read_seconds
        seen = []
        for gpu, read in reads:
            try:
                seen.append(read.result(deadline))
            except GpumonError as error:
                seen.append(SeenGpu(gpu.index, gpu.uuid, gpu.name, trouble=str(error)))
        library = self._library
        return SeenGpus(seen, None, library.driver_version, library.nvml_version, library.left_out)

    def close(self) -> None:
        """Closes NVML. Under a call that hangs it stays open: closing could hang, too."""
        if not self._looks.any_hangs:
            self._library.close()

    def _read(self, gpu: Gpu) -> SeenGpu:
        self._library.read(gpu)
        time.sleep(self._between_reads_seconds)
        return _seen(gpu, self._library.read(gpu), self._library)


class LastSamples:
    """Keeps the newest sample of each GPU on its way from the sampler to `emit`."""

    def __init__(self, emit: Callable[[Reading], None]) -> None:
        self._emit = emit
        self._by_uuid: dict[str, Reading] = {}

    def take(self, sample: Reading) -> None:
        """Keeps a copy, for who comes next may take out and add."""
        self._by_uuid[sample["gpu_uuid"]] = dict(sample)
        self._emit(sample)

    def newest(self) -> list[Reading]:
        """Of each GPU that was ever sampled, in the order of their indices. From any thread."""
        return sorted(self._by_uuid.copy().values(), key=lambda sample: sample["gpu_id"])


class LiveGpus:
    """The GPUs as the running agent knows them. Asks nobody who could hang."""

    def __init__(self, library: GpuLibrary, samples: LastSamples, counts: SamplerCounts) -> None:
        self._library = library
        self._samples = samples
        self._counts = counts

    def see(self) -> SeenGpus:
        """The newest sample of each."""
        newest = self._samples.newest()
        trouble = self._counts.nvml_trouble
        if trouble is not None and not newest:
            return SeenGpus(trouble=trouble)
        gpus = [
            _seen(
                Gpu(sample["gpu_id"], sample["gpu_uuid"], sample["gpu_name"], sample.get("pci_bus_id"), None),
                sample,
                self._library,
            )
            for sample in newest
        ]
        versions = (
            (self._library.driver_version, self._library.nvml_version)
            if isinstance(self._library, Nvml)
            else (None, None)
        )
        return SeenGpus(gpus, trouble, *versions, self._library.left_out)


def _seen(gpu: Gpu, reading: Reading, library: GpuLibrary) -> SeenGpu:
    """A GPU by its newest reading; a sample's `state` says whether it was one."""
    state = reading.get("state", "ok")
    trouble = (
        None if state == "ok" else f"its newest sample says that it is {state}; the agent's log has the reason"
    )
    support = library.support(gpu) if isinstance(library, Nvml) else None
    given = frozenset(reading) if support is None else support.supported
    unsupported = {} if support is None else support.unsupported
    return SeenGpu(gpu.index, gpu.uuid, gpu.name, trouble, given, unsupported, reading.get(USE))
