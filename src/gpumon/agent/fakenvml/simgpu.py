"""One simulated GPU: what is true of it at an instant. It knows nothing of NVML's calls.

Values are pure functions of time. Counters are sums in closed form (see `timeline`) on top of whole numbers
carried over from before: so they never step back, agree with power, and go on without a jump when the
scenario is edited or a process that makes the GPU busy starts or ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpumon.agent.fakenvml.scenario import GpuEntry, GpuModel, MigProfile
from gpumon.agent.fakenvml.timeline import Timeline

MIB = 2**20
GIB = 2**30
POWER_AVERAGE_SECONDS = 1.0
THERMAL_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Held:
    """A process with the memory that it holds."""

    pid: int
    kind: str
    memory_bytes: int | None
    gpu_instance: int
    compute_instance: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: total = reserved + used + free."""

    total: int
    reserved: int
    used: int

    @property
    def free(self) -> int:
        """What is left."""
        return self.total - self.reserved - self.used


@dataclass(frozen=True, slots=True)
class Carried:
    """Counters as whole numbers up to an instant (Unix seconds)."""

    since: float
    energy_mj: int = 0
    pcie_tx_bytes: int = 0
    pcie_rx_bytes: int = 0
    nvlink_kib: int = 0


@dataclass(frozen=True, slots=True)
class MigInstance:
    """A part of a GPU with memory and processes of its own."""

    index: int
    uuid: str
    name: str
    profile: MigProfile
    gpu_instance: int
    memory: Memory
    held: tuple[Held, ...]


@dataclass(frozen=True)
class SimGpu:
    """A GPU and everything that holds between two changes of the scenario or of its processes."""

    index: int
    entry: GpuEntry
    model: GpuModel
    uuid: str
    phase: float
    timeline: Timeline
    memory: Memory
    held: tuple[Held, ...]
    instances: tuple[MigInstance | None, ...]
    carried: Carried
    lost: tuple[tuple[float, float], ...]

    def after(self, before: SimGpu, t: float) -> SimGpu:
        """This GPU from an instant on, with the counters and the remembered work of what it was until then."""
        return replace(self, carried=before.counters(t), timeline=self.timeline.after(before.timeline, t))

    def is_lost(self, t: float) -> bool:
        """Whether the GPU has fallen off the bus at an instant."""
        return any(start <= t < end for start, end in self.lost)

    @property
    def mig_enabled(self) -> bool:
        """Whether the GPU is split."""
        return bool(self.instances)

    def busy(self, t: float) -> float:
        """Share of the GPU in use at an instant, 0 to 1."""
        return self.timeline.at(t)

    def mean_busy(self, start: float, end: float) -> float:
        """Mean share in use over a time that is not empty, 0 to 1."""
        return self.timeline.integral(start, end) / (end - start)

    def mean_busy_of(self, instance: MigInstance, start: float, end: float) -> float:
        """Mean share of a MIG instance in use over a time that is not empty, 0 to 1."""
        fraction = instance.profile.compute_slices / self.model.mig_max
        return self.timeline.of_instance(instance.index, start, end) / fraction / (end - start)

    def power_watts(self, t: float) -> float:
        """Power at an instant."""
        return self._watts(self.busy(t))

    def mean_power_watts(self, t: float) -> float:
        """Power as the driver gives it: the mean of the last second."""
        return self._watts(self.mean_busy(t - POWER_AVERAGE_SECONDS, t))

    def _watts(self, busy: float) -> float:
        if self.entry.power_watts is not None:
            return self.entry.power_watts
        return self.model.idle_watts + (self.model.limit_watts - self.model.idle_watts) * busy

    def celsius(self, t: float) -> float:
        """Temperature; it follows the load slowly."""
        if self.entry.temperature_celsius is not None:
            return self.entry.temperature_celsius
        warm = self.mean_busy(t - THERMAL_SECONDS, t)
        return self.model.idle_celsius + (self.model.hot_celsius - self.model.idle_celsius) * warm

    def sm_clock_mhz(self, t: float) -> int:
        """Clock of the multiprocessors: low when idle, a little lower under full load than under half."""
        low, high = self.model.sm_clock_mhz
        busy = self.busy(t)
        return low if busy < 0.01 else int(high - (high - low) * 0.12 * busy)

    def counters(self, t: float) -> Carried:
        """Every counter at an instant; an instant before the last change counts as that change."""
        elapsed = max(0.0, t - self.carried.since)
        worked = self.timeline.integral(self.carried.since, self.carried.since + elapsed)
        if self.entry.power_watts is not None:
            joules = self.entry.power_watts * elapsed
        else:
            span = self.model.limit_watts - self.model.idle_watts
            joules = self.model.idle_watts * elapsed + span * worked
        before = self.carried
        tx, rx, nvlink = self.traffic_bytes(worked)
        return Carried(
            since=before.since + elapsed,
            energy_mj=before.energy_mj + int(joules * 1000),
            pcie_tx_bytes=before.pcie_tx_bytes + int(tx),
            pcie_rx_bytes=before.pcie_rx_bytes + int(rx),
            nvlink_kib=before.nvlink_kib + int(nvlink / 1024),
        )

    def traffic_bytes(self, worked: float) -> tuple[float, float, float]:
        """Bytes over PCIe out, in, and over NVLink each way, for so many seconds of full load."""
        pcie = worked * self.model.pcie_gib_per_second * GIB
        return 0.15 * pcie, 0.3 * pcie, 0.25 * worked * self.model.nvlink_gib_per_second * GIB
