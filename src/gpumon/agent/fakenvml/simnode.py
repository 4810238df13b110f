"""A node's simulated GPUs as a scenario has them now: their identity, processes, memory, and when they are lost.

A GPU whose processes are all given by `cmdline` is busy only while one of them runs: a pod that trains makes
it busy, and when the pod ends, so does the load.
"""

from __future__ import annotations

import contextlib
import math
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpumon.agent.fakenvml import loadcurve, scenario_file
from gpumon.agent.fakenvml.abi import NO_INSTANCE
from gpumon.agent.fakenvml.scenario import GpuEntry, GpuModel, MigProfile, NodeEntry, ProcessEntry, Window, instant
from gpumon.agent.fakenvml.simgpu import MIB, Carried, Held, Memory, MigInstance, SimGpu

_NAMES = uuid.uuid5(uuid.NAMESPACE_DNS, "fake.gpumon.invalid")
_XID_OFF_THE_BUS = 79
_PAGE = 2 * MIB


@dataclass(frozen=True, slots=True)
class Running:
    """A process that has a context on a GPU now. `mig` is the index of its instance."""

    pid: int
    kind: str
    share: float
    memory_mib: float | None
    memory_known: bool
    mig: int | None


def find_running(entry: NodeEntry, proc: Path) -> list[tuple[int, Running]]:
    """The processes of a node that run now, as (GPU index, process): the cost is a look into `proc`."""
    searched = any(process.cmdline is not None for process in entry.processes)
    lines = dict(_command_lines(proc)) if searched else {}
    return [
        (
            process.gpu,
            Running(pid, process.kind, process.share, process.memory_mib, process.memory_known, process.mig),
        )
        for process in entry.processes
        for pid in _pids(process, lines)
    ]


def make_gpus(
    node: str, entry: NodeEntry, running: Sequence[tuple[int, Running]], started: float, t: float
) -> Iterator[SimGpu]:
    """The GPUs of a node, with counters that have counted since the driver was loaded."""
    for index, spec in enumerate(gpu for gpu in entry.gpus for _ in range(gpu.count)):
        here = [process for gpu, process in running if gpu == index]
        gpu = _gpu(
            node,
            index,
            spec,
            scenario_file.models()[spec.model],
            here,
            idle=not here and _waits_for_processes(entry, index),
            carried=Carried(since=min(t, entry.driver_loaded_at.timestamp())),
            lost=tuple(_lost(entry, spec, index, started)),
        )
        yield replace(gpu, carried=gpu.counters(t))


def _gpu(
    node: str,
    index: int,
    entry: GpuEntry,
    model: GpuModel,
    running: Sequence[Running],
    idle: bool,
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
        used = min(base + sum(instance.memory.used for instance in whole), total - reserved)
    else:
        used, held = _hold(running, entry.memory_used_mib, total - reserved, base, phase, idle)
    return SimGpu(
        index=index,
        entry=entry,
        model=model,
        uuid=f"GPU-{seed}",
        phase=phase,
        load=loadcurve.IDLE if idle else entry.load(phase),
        memory=Memory(total, reserved, used),
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
    sized = min(int(wished), room - base)
    shares = sum(p.share for p in running) or 1.0
    unsized = sum(p.share for p in running if p.memory_mib is None) or 1.0
    if used_mib is not None:
        used = int(used_mib * MIB)
    elif idle or (running and all(p.memory_mib is not None for p in running)):
        used = base + sized
    else:
        used = int(room * (0.35 + 0.5 * phase)) // _PAGE * _PAGE
    used = max(used, base + sized)
    rest = used - base - sized
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


def _waits_for_processes(entry: NodeEntry, gpu: int) -> bool:
    """Whether a GPU's load belongs to processes that are looked for: without them it idles."""
    mine = [process for process in entry.processes if process.gpu == gpu]
    return bool(mine) and all(process.cmdline is not None for process in mine)


def _lost(entry: NodeEntry, spec: GpuEntry, index: int, started: float) -> Iterator[tuple[float, float]]:
    """When a GPU is lost: as its entry says, and from an Xid 79 on if the entry says nothing."""
    if isinstance(spec.lost, Window):
        end = math.inf if spec.lost.to is None else instant(spec.lost.to, started)
        yield instant(spec.lost.from_, started), end
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
