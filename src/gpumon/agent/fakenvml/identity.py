"""What simulated GPUs are called, and the processes of a scenario by those names.

A GPU's UUID comes from the names of the node and its place on it alone: whoever has the same scenario on the same
node, the agent and the fake device plugin, has the same UUIDs, without a word between them.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence

import msgspec

from gpumon.agent.fakenvml.scenario import EACH, UUID_PLACE, GpuEntry, NodeEntry, ProcessEntry, Scenario

_NAMES = uuid.uuid5(uuid.NAMESPACE_DNS, "fake.gpumon.invalid")


def gpu_seed(node: str, index: int) -> uuid.UUID:
    """The identity of a node's GPU, from which all comes that tells it apart from others."""
    return uuid.uuid5(_NAMES, f"{node}/{index}")


def gpu_uuid(node: str, index: int) -> str:
    """The UUID of a node's GPU as NVML tells it."""
    return f"GPU-{gpu_seed(node, index)}"


def mig_uuid(node: str, index: int, instance: int) -> str:
    """The UUID of an instance of a node's GPU as NVML tells it."""
    return f"MIG-{uuid.uuid5(_NAMES, f'{node}/{index}/mig/{instance}')}"


def gpus_of(entry: NodeEntry) -> list[GpuEntry]:
    """The GPUs of a node, one an index."""
    return [gpu for gpu in entry.gpus for _ in range(gpu.count)]


def places(process: ProcessEntry, gpus: Sequence[GpuEntry]) -> list[int]:
    """The indices of the GPUs on which an entry's processes are. Where it says "each": of those that are not
    split or, with a MIG instance, of those that have this instance."""
    if process.gpu != EACH:
        return [process.gpu]
    if process.mig is None:
        return [index for index, gpu in enumerate(gpus) if not any(gpu.mig)]
    return [index for index, gpu in enumerate(gpus) if has_instance(gpu, process.mig)]


def has_instance(gpu: GpuEntry, index: int) -> bool:
    """Whether a GPU has a MIG instance of this index: it may have fewer, or a hole there."""
    return index < len(gpu.mig) and bool(gpu.mig[index])


def node_entry(scenario: Scenario, node: str) -> NodeEntry | None:
    """The entry of a node as the node of this name has it: each of its processes has the index of one GPU, and
    each pattern that GPU's UUID. None: the node has no GPUs."""
    entry = scenario.entry(node)
    return None if entry is None else msgspec.structs.replace(entry, processes=list(_spelled_out(entry, node)))


def _spelled_out(entry: NodeEntry, node: str) -> Iterator[ProcessEntry]:
    gpus = gpus_of(entry)
    for process in entry.processes:
        for index in places(process, gpus):
            cmdline = process.cmdline
            if cmdline is not None:
                own = gpu_uuid(node, index) if process.mig is None else mig_uuid(node, index, process.mig)
                cmdline = cmdline.replace(UUID_PLACE, re.escape(own))
            yield msgspec.structs.replace(process, gpu=index, cmdline=cmdline)
