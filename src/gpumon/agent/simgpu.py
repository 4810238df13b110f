"""One simulated GPU: what is true of it at an instant. It knows nothing of NVML's calls.

Values are pure functions of time. Counters are sums in closed form (see `loadcurve`) on top of whole numbers
carried over from before: so they never step back, agree with power, and go on without a jump when the
scenario is edited or a process that makes the GPU busy starts or ends (`make_gpu` with `carried`).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from gpumon.agent import loadcurve
from gpumon.agent.scenario import GpuEntry, GpuModel, MigProfile
from gpumon.agent.fakenvml_abi import NO_INSTANCE

MIB = 2**20
GIB = 2**30
POWER_AVERAGE_SECONDS = 1.0
THERMAL_SECONDS = 20.0
_NAMES = uuid.uuid5(uuid.NAMESPACE_DNS, "fake.gpumon.invalid")

@dataclass(frozen=True, slots=True)
class Running:
    """A process that has a context on a GPU now. `mig` is the index of its instance."""

    pid: int
    kind: str
    share: float
    memory_mib: float | None
    memory_known: bool
    mig: int | None


@dataclass(frozen=True, slots=True)
class Held:
    """A process with the memory that it holds; `share` is its part of the GPU's use, 0 to 1."""

    pid: int
    kind: str
    share: float
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
    profile: str
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
    load: loadcurve.Load
    memory: Memory
    held: tuple[Held, ...]
    instances: tuple[MigInstance | None, ...]
    carried: Carried
    lost: tuple[tuple[float, float], ...]

    def is_lost(self, t: float) -> bool:
        """Whether the GPU has fallen off the bus at an instant."""
        return any(start <= t < end for start, end in self.lost)

    @property
    def mig_enabled(self) -> bool:
        """Whether the GPU is split."""
        return bool(self.instances)

    def busy(self, t: float) -> float:
        """Share of the GPU in use at an instant, 0 to 1."""
        return self.load.at(t, self.phase)

    def mean_busy(self, start: float, end: float) -> float:
        """Mean share in use over a time that is not empty, 0 to 1."""
        return self.load.integral(start, end, self.phase) / (end - start)

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
        worked = self.load.integral(self.carried.since, self.carried.since + elapsed, self.phase)
        if self.entry.power_watts is not None:
            joules = self.entry.power_watts * elapsed
        else:
            span = self.model.limit_watts - self.model.idle_watts
            joules = self.model.idle_watts * elapsed + span * worked
        before = self.carried
        pcie = worked * self.model.pcie_gib_per_second * GIB
        return Carried(
            since=before.since + elapsed,
            energy_mj=before.energy_mj + int(joules * 1000),
            pcie_tx_bytes=before.pcie_tx_bytes + int(pcie * 0.15),
            pcie_rx_bytes=before.pcie_rx_bytes + int(pcie * 0.3),
            nvlink_kib=before.nvlink_kib + int(worked * self.model.nvlink_gib_per_second * 0.25 * GIB / 1024),
        )


def make_gpu(
    node: str, index: int, entry: GpuEntry, model: GpuModel, running: Sequence[Running], idle: bool,
    carried: Carried,
    lost: tuple[tuple[float, float], ...],
) -> SimGpu:
    """A GPU with its processes. `idle`: the scenario's load waits for processes that don't run now."""
    seed = uuid.uuid5(_NAMES, f"{node}/{index}")
    phase = seed.int % 10_000 / 10_000
    total, reserved = model.memory_mib * MIB, model.memory_reserved_mib * MIB
    base = model.memory_idle_mib * MIB
    instances: tuple[MigInstance | None, ...] = ()
    if any(entry.mig):
        instances = tuple(
            _instance(f"{node}/{index}", i, model.mig_profiles[profile], profile, running, phase, idle)
            if profile
            else None
            for i, profile in enumerate(entry.mig)
        )
        whole = [instance for instance in instances if instance is not None]
        held = tuple(process for instance in whole for process in instance.held)
        used = base + sum(instance.memory.used for instance in whole)
    else:
        used, held = _hold(running, entry.memory_used_mib, total - reserved, base, phase, idle)
    return SimGpu(
        index=index,
        entry=entry,
        model=model,
        uuid=f"GPU-{seed}",
        phase=phase,
        load=loadcurve.IDLE if idle else entry.load(phase),
        memory=Memory(total, reserved, min(used, total - reserved)),
        held=held,
        instances=instances,
        carried=carried,
        lost=lost,
    )


def _instance(
    gpu: str,
    index: int,
    profile: MigProfile,
    name: str,
    running: Sequence[Running],
    phase: float,
    idle: bool,
) -> MigInstance:
    inside = [process for process in running if process.mig == index]
    total = profile.memory_mib * MIB
    # Instance 0 is the whole GPU in NVML's counting, so ids begin at 1, as on hardware with small profiles.
    used, held = _hold(inside, None, total, 0, phase, idle or not inside, gpu_instance=index + 1)
    return MigInstance(
        index=index,
        uuid=f"MIG-{uuid.uuid5(_NAMES, f'{gpu}/mig/{index}')}",
        profile=name,
        gpu_instance=index + 1,
        memory=Memory(total, 0, used),
        held=held,
    )


def _hold(
    running: Sequence[Running],
    used_mib: float | None,
    room: int,
    base: int,
    phase: float,
    idle: bool,
    gpu_instance: int = NO_INSTANCE,
) -> tuple[int, tuple[Held, ...]]:
    """Memory in use, in bytes, and who holds it. Processes without a size share what is left of it; in use is
    what the scenario says, else what sized processes hold, else a part that comes from the GPU's identity."""
    wished = sum(p.memory_mib * MIB for p in running if p.memory_mib is not None)
    squeeze = min(1.0, (room - base) / wished) if wished else 1.0  # a pattern may find more than fit
    sized = int(wished * squeeze)
    shares = sum(p.share for p in running) or 1.0
    unsized = sum(p.share for p in running if p.memory_mib is None) or 1.0
    if used_mib is not None:
        used = int(used_mib * MIB)
    elif idle or (running and all(p.memory_mib is not None for p in running)):
        used = base + sized
    else:
        used = int(room * (0.35 + 0.5 * phase))
    used = min(max(used, base + sized), room)
    rest = max(0, used - base - sized)
    held = tuple(
        Held(
            pid=p.pid,
            kind=p.kind,
            share=p.share / shares,
            memory_bytes=_size(p, squeeze, rest / unsized) if p.memory_known else None,
            gpu_instance=gpu_instance,
            compute_instance=gpu_instance if gpu_instance == NO_INSTANCE else 0,
        )
        for p in running
    )
    return used, held


def _size(process: Running, squeeze: float, per_share: float) -> int:
    if process.memory_mib is not None:
        return int(process.memory_mib * MIB * squeeze)
    return int(per_share * process.share)
