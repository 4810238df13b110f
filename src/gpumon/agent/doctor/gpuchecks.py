"""NVML, its readings, and whether it tells how hard each process works."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from gpumon.agent.doctor.finding import BROKEN, NOT_NEEDED, OK, Finding, Site, after, counted, some
from gpumon.agent.doctor.gpus import SeenGpu, SeenGpus
from gpumon.model.fields import BY_NAME

NVML = "nvml"
READINGS = "readings"
PROCESS_USE = "process-use"

_SEE_KERNEL = "look for NVRM and Xid lines in the kernel's log of the node; a reset or a reboot brings most back"


def check_nvml(seen: SeenGpus, site: Site, *, simulated: bool) -> Finding:
    """Whether NVML is there and has all its GPUs."""
    if seen.trouble is not None:
        return Finding(
            NVML,
            BROKEN,
            seen.trouble,
            site.either(
                "nvidia-smi must work on the node; then set the chart value agent.runtimeClassName to nvidia, or "
                "agent.platform to the node's (gke, eks-bottlerocket, gpu-operator, …)",
                "nvidia-smi must work on this machine: install or load the NVIDIA driver; [MONITORING] fake_nvml "
                "is for simulated GPUs",
            ),
        )
    versions = f"driver {seen.driver_version or 'of unknown version'}, NVML {seen.nvml_version or 'unknown'}"
    kind = "simulated " if simulated else ""
    evidence = f"{kind}{versions}, {_models(seen.gpus) or 'no GPU'}"
    if seen.left_out:
        which = some(str(index) for index in seen.left_out)
        return Finding(NVML, BROKEN, f"of index {which}: counted, but can't be addressed; {evidence}", _SEE_KERNEL)
    if not seen.gpus:
        return Finding(
            NVML,
            BROKEN,
            evidence,
            site.all_gpus + site.either("; or keep it off nodes that have none (agent.affinity)", ""),
        )
    return Finding(NVML, OK, evidence)


def check_readings(seen: SeenGpus, site: Site, *, attributes: bool) -> Finding:
    """What each model tells, and what not: that is a GPU's nature and no trouble, unless nothing is left to
    attribute by."""
    if not seen.gpus:
        return after(READINGS, NVML)
    silent = [gpu for gpu in seen.gpus if gpu.trouble is not None]
    if silent:
        told = "; ".join(f"GPU {gpu.index} ({gpu.name}): {gpu.trouble}" for gpu in silent)
        return Finding(READINGS, BROKEN, told, _SEE_KERNEL)
    by_model: dict[str, SeenGpu] = {gpu.name: gpu for gpu in reversed(seen.gpus)}
    evidence = "; ".join(f"{name}: {_abilities(gpu)}" for name, gpu in sorted(by_model.items()))
    blind = [gpu for gpu in seen.gpus if attributes and _tells_nothing_of_use(gpu)]
    if blind:
        which = some(f"GPU {gpu.index}" for gpu in blind)
        why = next((gpu.use.why_not for gpu in blind if gpu.use is not None and gpu.use.why_not), "")
        return Finding(
            READINGS,
            BROKEN,
            f"{which}: neither utilization nor a list of processes{f' ({why})' if why else ''}, so nobody can be "
            f"told to use it; {evidence}",
            f"{site.setting('gpu_metrics', 'include_utilization')} and include_processes must be true; if they "
            "are, update the driver: this GPU's tells neither",
        )
    return Finding(READINGS, OK, evidence)


def check_process_use(seen: SeenGpus, *, asked: bool) -> Finding:
    """Whether use can be told apart by process, which matters where processes share a GPU."""
    if not asked:
        return Finding(PROCESS_USE, NOT_NEEDED, "processes are not asked for, by the settings")
    whole = [gpu for gpu in seen.gpus if gpu.trouble is None and gpu.use is not None and gpu.use.mig is None]
    if not any(gpu.trouble is None for gpu in seen.gpus):
        return after(PROCESS_USE, READINGS if seen.gpus else NVML)
    if not whole:
        return Finding(PROCESS_USE, NOT_NEEDED, "every GPU is split by MIG: processes are listed by instance")
    unlisted = [gpu for gpu in whole if gpu.use is not None and gpu.use.processes is None]
    blind = [gpu for gpu in whole if gpu.processes and all(p.sm_percent is None for p in gpu.processes)]
    if unlisted or blind:
        which = some(f"GPU {gpu.index}" for gpu in (*unlisted, *blind))
        shared = any(len(gpu.processes) > 1 for gpu in blind)
        return Finding(
            PROCESS_USE,
            OK if shared or unlisted else NOT_NEEDED,
            f"{which}: use by process can't be told here; where pods share the GPU, its use is divided equally "
            "(method equal-split)",
        )
    working = [gpu for gpu in whole if gpu.processes]
    if not working:
        return Finding(PROCESS_USE, NOT_NEEDED, "no process is on a GPU now, so there is none to tell apart")
    processes = sum(len(gpu.processes) for gpu in working)
    told = f"{counted(processes, 'process', 'processes')} on {counted(len(working), 'GPU')}, each with its use"
    return Finding(PROCESS_USE, OK, told)


def _models(gpus: Sequence[SeenGpu]) -> str:
    names = [gpu.name for gpu in gpus]
    return ", ".join(f"{names.count(name)}x {name}" for name in dict.fromkeys(names))


def _abilities(gpu: SeenGpu) -> str:
    """How many readings there are, and which are not to be had, by reason."""
    given = sum(name in BY_NAME for name in gpu.fields)
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in gpu.unsupported.items():
        by_reason[reason].append(name)
    missing = _listed(f"{', '.join(sorted(names))} ({reason})" for reason, names in by_reason.items())
    return f"{given} readings" + (f", not supported: {missing}" if missing else "")


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(sorted(parts))


def _tells_nothing_of_use(gpu: SeenGpu) -> bool:
    lists = gpu.use is not None and (gpu.use.processes is not None or gpu.use.mig is not None)
    return "utilization_gpu" not in gpu.fields and not lists
