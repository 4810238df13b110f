"""A node's simulated GPUs as a scenario has them now: their identity, processes, memory, and when they are lost.

Entries come as `identity` has spelled them out: each process has the index of one GPU. A GPU whose processes are
all given by `cmdline` or a time is busy only while one of them runs: a pod that trains makes it busy, and when the
pod ends, so does the load.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpumon.agent.fakenvml import scenario_file
from gpumon.agent.fakenvml.abi import NO_INSTANCE
from gpumon.agent.fakenvml.identity import gpu_seed, gpu_uuid, gpus_of, mig_uuid
from gpumon.agent.fakenvml.scenario import GpuEntry, GpuModel, MigProfile, NodeEntry, ProcessEntry, Window, instant
from gpumon.agent.fakenvml.simgpu import MIB, Carried, Held, Memory, MigInstance, SimGpu
from gpumon.agent.fakenvml.timeline import Ground, Timeline, Worker, make_timeline

_XID_OFF_THE_BUS = 79
_PAGE = 2 * MIB


@dataclass(frozen=True, slots=True)
class Running:
    """A process that was found, with its entry; it has a context on a GPU in the time of its entry."""

    pid: int
    entry: ProcessEntry


def find_running(entry: NodeEntry, proc: Path) -> list[Running]:
    """The processes of a node that run now or are known to run at some time: the cost is a look into `proc`."""
    searched = any(process.cmdline is not None for process in entry.processes)
    lines = dict(_command_lines(proc)) if searched else {}
    return [Running(pid, process) for process in entry.processes for pid in _pids(process, lines)]


def unchanged_within(running: Sequence[Running], started: float, t: float) -> tuple[float, float]:
    """The time around an instant in which the same of these processes run."""
    edges = [edge for process in running for edge in process.entry.span(started)]
    before = max((edge for edge in edges if edge <= t), default=-math.inf)
    return before, min((edge for edge in edges if edge > t), default=math.inf)


def make_gpus(
    node: str, entry: NodeEntry, running: Sequence[Running], started: float, t: float
) -> Iterator[SimGpu]:
    """The GPUs of a node as they are at an instant, with counters that have counted since the driver was
    loaded."""
    for index, spec in enumerate(gpus_of(entry)):
        entries = [process for process in entry.processes if process.gpu == index]
        here = [process for process in running if process.entry.gpu == index]
        gpu = _gpu(
            node,
            index,
            spec,
            scenario_file.models()[spec.model],
            entries,
            here,
            started,
            t,
            carried=Carried(since=min(t, entry.driver_loaded_at.timestamp())),
            lost=tuple(_lost(entry, spec, index, started)),
        )
        yield replace(gpu, carried=gpu.counters(t))


def _gpu(
    node: str,
    index: int,
    entry: GpuEntry,
    model: GpuModel,
    entries: Sequence[ProcessEntry],
    here: Sequence[Running],
    started: float,
    t: float,
    carried: Carried,
    lost: tuple[tuple[float, float], ...],
) -> SimGpu:
    """A GPU with its processes: `entries` are those that it may have, `here` those that were found."""
    phase = gpu_seed(node, index).int % 10_000 / 10_000
    total, reserved = model.memory_mib * MIB, model.memory_reserved_mib * MIB
    base = model.memory_idle_mib * MIB
    present = [process for process in here if process.entry.holds(t, started)]
    idle = not present and _waits_for_processes(entries)
    instances: tuple[MigInstance | None, ...] = ()
    if any(entry.mig):
        instances = tuple(
            _instance(mig_uuid(node, index, i), i, model.mig_profiles[profile], profile, present, phase)
            if profile
            else None
            for i, profile in enumerate(entry.mig)
        )
        whole = [instance for instance in instances if instance is not None]
        held = tuple(process for instance in whole for process in instance.held)
        used = min(base + sum(instance.memory.used for instance in whole), total - reserved)
    else:
        used, held = _hold(present, entry.memory_used_mib, total - reserved, base, phase, idle)
    return SimGpu(
        index=index,
        entry=entry,
        model=model,
        uuid=gpu_uuid(node, index),
        phase=phase,
        timeline=_timeline(entry, model, entries, here, started, phase),
        memory=Memory(total, reserved, used),
        held=held,
        instances=instances,
        carried=carried,
        lost=lost,
    )


def _timeline(
    entry: GpuEntry,
    model: GpuModel,
    entries: Sequence[ProcessEntry],
    here: Sequence[Running],
    started: float,
    phase: float,
) -> Timeline:
    own = {process.mig for process in entries if process.utilization is not None}
    if any(entry.mig):
        grounds = [
            Ground(model.mig_profiles[profile].compute_slices / model.mig_max, i, i in own, unclaimed=not entries)
            for i, profile in enumerate(entry.mig)
            if profile
        ]
    else:
        grounds = [Ground(own=bool(own), unclaimed=not _waits_for_processes(entries))]
    workers = []
    for process in here:
        start, end = process.entry.span(started)
        its = process.entry
        workers.append(Worker(process.pid, its.share, its.load(), its.mig, start, end))
    return make_timeline(entry.load(phase), grounds, workers, phase)


def _instance(
    uuid: str, index: int, profile: MigProfile, name: str, present: Sequence[Running], phase: float
) -> MigInstance:
    inside = [process for process in present if process.entry.mig == index]
    total = profile.memory_mib * MIB
    # Instance 0 is the whole GPU in NVML's counting, so ids begin at 1, as on hardware with small profiles.
    used, held = _hold(inside, None, total, 0, phase, not inside, gpu_instance=index + 1)
    return MigInstance(
        index=index,
        uuid=uuid,
        name=name,
        profile=profile,
        gpu_instance=index + 1,
        memory=Memory(total, 0, used),
        held=held,
    )


def _hold(
    present: Sequence[Running],
    used_mib: float | None,
    room: int,
    base: int,
    phase: float,
    idle: bool,
    gpu_instance: int = NO_INSTANCE,
) -> tuple[int, tuple[Held, ...]]:
    """Memory in use, in bytes, and who holds it. Processes without a size share what is left of it; in use is
    what the scenario says, else what sized processes hold, else a part that comes from the GPU's identity."""
    sizes = [process.entry.memory_mib for process in present]
    wished = sum(size * MIB for size in sizes if size is not None)
    squeeze = min(1.0, (room - base) / wished) if wished else 1.0  # a pattern may find more than fit
    sized = min(int(wished), room - base)
    unsized = sum(process.entry.share for process in present if process.entry.memory_mib is None) or 1.0
    if used_mib is not None:
        used = int(used_mib * MIB)
    elif idle or (sizes and None not in sizes):
        used = base + sized
    else:
        used = int(room * (0.35 + 0.5 * phase)) // _PAGE * _PAGE
    used = max(used, base + sized)
    rest = used - base - sized
    held = tuple(
        Held(
            pid=process.pid,
            kind=process.entry.kind,
            memory_bytes=_size(process.entry, squeeze, rest / unsized) if process.entry.memory_known else None,
            gpu_instance=gpu_instance,
            compute_instance=gpu_instance if gpu_instance == NO_INSTANCE else 0,
        )
        for process in present
    )
    return used, held


def _size(process: ProcessEntry, squeeze: float, per_share: float) -> int:
    if process.memory_mib is not None:
        return int(process.memory_mib * MIB * squeeze)
    return int(per_share * process.share)


def _waits_for_processes(entries: Sequence[ProcessEntry]) -> bool:
    """Whether a GPU's load belongs to processes that come and go: without them it idles."""
    return bool(entries) and all(
        process.cmdline is not None or (process.from_, process.to) != (None, None) for process in entries
    )


def _lost(entry: NodeEntry, spec: GpuEntry, index: int, started: float) -> Iterator[tuple[float, float]]:
    """When a GPU is lost: as its entry says, and from an Xid 79 on if the entry says nothing."""
    if isinstance(spec.lost, Window):
        yield spec.lost.span(started)
    elif spec.lost:
        yield -math.inf, math.inf
    else:
        for event in entry.events:
            if event.gpu == index and event.xid == _XID_OFF_THE_BUS:
                yield instant(event.at, started), math.inf


def _pids(process: ProcessEntry, lines: Mapping[int, str]) -> list[int]:
    if process.pid is not None:
        return [process.pid]
    pattern = re.compile(process.cmdline or "")
    return [pid for pid, line in lines.items() if pattern.search(line)]


def _command_lines(proc: Path) -> Iterator[tuple[int, str]]:
    """Every process's command line, its words joined by spaces. Processes may end while we look; where there
    is no such folder, as outside Linux, there are none."""
    for folder in proc.iterdir() if proc.is_dir() else ():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                line = (folder / "cmdline").read_bytes().decode(errors="replace")
                if line:
                    yield int(folder.name), line.rstrip("\0").replace("\0", " ")
