"""The MIG instances of a GPU that is split: who they are, what part of the GPU they have, what runs in them.

Whether a GPU is split, and into what, changes by a hand: it is looked up slowly, and at once when an instance
that has answered before does not answer. Memory and activity (GPM) are those of GPU instances: where several
compute instances share one, theirs can't be told apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml

from gpumon.agent.nvml.errors import meaning
from gpumon.agent.nvml.gpm import Gpm
from gpumon.agent.nvml.handles import address
from gpumon.agent.nvml.processes import MPS, ProcessLists
from gpumon.agent.nvml.readings import NoReading, Refusals, Verdict
from gpumon.agent.ports import MigInstance

MODE = "nvmlDeviceGetMigMode"
_PROCESSES = "processes of instances"
_MEMORY_V2, _MEMORY_V1 = "memory of instances, version 2", "memory of instances, version 1"
_GPM = "GPM of instances"
_ACTIVITY = {pynvml.NVML_GPM_METRIC_GRAPHICS_UTIL: "busy"}
"""The share of time in which anything ran, like utilization_gpu of a whole GPU; not the share of
multiprocessors."""
_MIB = 2**20
_SLICES, _SLICES_OF_A30 = 7, 4
_PROFILE = re.compile(r"MIG (?:(\d+)c\.)?(\d+)g\.")
"""The profile in an instance's name: its slices of the GPU, and before that of its own where it has not all."""
T = TypeVar("T")


@dataclass(slots=True)
class _Instance:
    """One instance and what is kept of it. `alone`: its GPU instance has no other compute instance. `answers`
    while its handle has not failed."""

    handle: Any
    uuid: str
    gpu_instance: int
    compute_instance: int
    share: float
    lists: ProcessLists
    gpm: Gpm
    alone: bool = True
    answers: bool = False


class MigInstances:
    """The instances of one GPU; `split` says whether it is split."""

    def __init__(self, handle: Any, refusals: Refusals) -> None:
        self._handle = handle
        self._refusals = refusals
        self._worked: set[str] = set()
        self._instances: dict[str, _Instance] = {}
        self._whole = 1.0  # what the instances' shares add up to, where that is more than one GPU
        self.split = False
        self._listed = False

    def refresh(self) -> None:
        """Looks up whether the GPU is split, and its instances. Raises NVMLError; then what was known stays. A
        GPU that is split is so also where its instances can't be listed."""
        self.split = bool(pynvml.nvmlDeviceGetMigMode(self._handle)[0])
        if self.split:
            self._list()
        else:
            self._keep([])
        self._listed = self.split

    def read(self) -> tuple[MigInstance, ...] | None:
        """The instances as they are now. None where the GPU turns out not to be split any more. Raises NVMLError
        where they have to be looked up and can't be; GpuLost, NvmlUnavailable."""
        read = {instance.uuid: self._read(instance) for instance in self._instances.values()}
        if None in read.values() or not self._listed:
            self.refresh()
            for instance in self._instances.values():
                if read.get(instance.uuid) is None:
                    read[instance.uuid] = self._read(instance)
        if not self.split:
            return None
        found = (read[uuid] for uuid in self._instances)
        return tuple(instance for instance in found if instance is not None)

    def forget(self) -> None:
        """Frees what is kept in the library."""
        for instance in self._instances.values():
            instance.gpm.forget()

    def _read(self, instance: _Instance) -> MigInstance | None:
        """None where the handle has died since it answered last."""
        answered_before, instance.answers = instance.answers, True
        processes = self._ask(instance, _PROCESSES, instance.lists.read)
        memory = busy = None
        if instance.alone:
            memory = self._memory(instance)
            busy = self._ask(instance, _GPM, instance.gpm.read)
        if answered_before and not instance.answers:
            return None
        return MigInstance(
            uuid=instance.uuid,
            gpu_instance=instance.gpu_instance,
            compute_instance=instance.compute_instance,
            share=instance.share / self._whole,
            memory_used_mib=None if memory is None else memory.used / _MIB,
            busy_percent=None if busy is None else busy.get("busy"),
            processes=processes,
        )

    def _memory(self, instance: _Instance) -> Any:
        def version_2() -> Any:
            return pynvml.nvmlDeviceGetMemoryInfo(instance.handle, pynvml.nvmlMemory_v2)

        memory = self._ask(instance, _MEMORY_V2, version_2)
        if _MEMORY_V2 not in self._refusals.reasons:
            return memory
        return self._ask(instance, _MEMORY_V1, lambda: pynvml.nvmlDeviceGetMemoryInfo(instance.handle))

    def _ask(self, instance: _Instance, name: str, read: Callable[[], T]) -> T | None:
        """An instance's answer; None where it has none, this time or ever. Raises GpuLost, NvmlUnavailable."""
        if name in self._refusals.reasons:
            return None
        try:
            answer = read()
        except pynvml.NVMLError as error:
            reason = meaning(error)
            if not isinstance(reason, NoReading):
                raise reason from error
            if not self._refusals.note(name, reason, worked=name in self._worked):
                instance.answers = False
            return None
        self._worked.add(name)
        return answer

    def _list(self) -> None:
        """Looks the instances up. One that is known, under the handle it has, keeps what is kept of it."""
        found = []
        for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(self._handle)):
            try:
                handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(self._handle, index)
            except pynvml.NVMLError_NotFound:
                continue  # a hole, as an instance leaves that was destroyed
            uuid = str(pynvml.nvmlDeviceGetUUID(handle))
            known = self._instances.get(uuid)
            same = known is not None and address(known.handle) == address(handle)
            found.append(known if known is not None and same else self._instance(handle, uuid))
        for instance in found:
            if MPS not in self._refusals.reasons:
                self._ask(instance, MPS, lambda lists=instance.lists: lists.refresh(MPS))  # type: ignore[misc]
        self._keep(found)

    def _instance(self, handle: Any, uuid: str) -> _Instance:
        gpu_instance = pynvml.nvmlDeviceGetGpuInstanceId(handle)
        return _Instance(
            handle=handle,
            uuid=uuid,
            gpu_instance=gpu_instance,
            compute_instance=pynvml.nvmlDeviceGetComputeInstanceId(handle),
            share=_share(self._handle, handle),
            lists=ProcessLists(handle),
            gpm=Gpm(self._handle, _ACTIVITY, gpu_instance=gpu_instance),
        )

    def _keep(self, instances: Collection[_Instance]) -> None:
        in_gpu_instance = Counter(instance.gpu_instance for instance in instances)
        self._whole = max(1.0, sum(instance.share for instance in instances))
        before, self._instances = self._instances, {instance.uuid: instance for instance in instances}
        for instance in instances:
            instance.alone = in_gpu_instance[instance.gpu_instance] == 1
        for uuid, instance in before.items():
            if self._instances.get(uuid) is not instance:
                instance.gpm.forget()


def _share(gpu: Any, instance: Any) -> float:
    """An instance's part of the compute slices of its GPU, else of its memory. Raises NVMLError."""
    slices = _slices(instance)
    if slices:
        return slices / _slices_of_gpu(gpu)
    of_instance, of_gpu = (pynvml.nvmlDeviceGetMemoryInfo(handle).total for handle in (instance, gpu))
    return float(of_instance / of_gpu)


def _slices(instance: Any) -> int:
    """Compute slices of an instance; 0 where neither its attributes nor its name tell."""
    attributes = _if_told(lambda: pynvml.nvmlDeviceGetAttributes(instance))
    if attributes is not None and attributes.gpuInstanceSliceCount:
        counts = (attributes.gpuInstanceSliceCount, attributes.computeInstanceSliceCount)
        return int(min(count for count in counts if count))
    profile = _PROFILE.search(_if_told(lambda: pynvml.nvmlDeviceGetName(instance)) or "")
    return 0 if profile is None else int(profile[1] or profile[2])


def _slices_of_gpu(gpu: Any) -> int:
    """How many of the smallest instance a GPU has room for."""
    for version in (2, 1):
        profile = _if_told(
            lambda version=version: pynvml.nvmlDeviceGetGpuInstanceProfileInfo(  # type: ignore[misc]
                gpu, pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE, version
            )
        )
        if profile is not None and profile.instanceCount:
            return int(profile.instanceCount)
    return _SLICES_OF_A30 if "A30" in (_if_told(lambda: pynvml.nvmlDeviceGetName(gpu)) or "") else _SLICES


def _if_told(ask: Callable[[], T]) -> T | None:
    """An answer; None where it is not supported. Raises NVMLError for all else."""
    try:
        return ask()
    except pynvml.NVMLError as error:
        reason = meaning(error)
        if isinstance(reason, NoReading) and reason.verdict is not Verdict.MISSED:
            return None
        raise
