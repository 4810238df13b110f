"""The doors to Kubernetes of a simulated node: who holds and uses its GPUs is what the scenario's pods say.

For `gpumon demo` and for trying things out on a machine without Kubernetes. It stands at the doors, so what lies
behind them (holdings, attribution, all of the server) is the real thing; what lies in them is tested against a
real kubelet, API and `/proc` elsewhere.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence

from gpumon.agent.fakenvml import FakeNvml
from gpumon.agent.fakenvml.scenario import PodEntry
from gpumon.agent.fakenvml.simgpu import SimGpu
from gpumon.agent.ports import ClaimedDevice, ContainerDevices, NodeInfo, Occupant, Pod

_NAMES = uuid.uuid5(uuid.NAMESPACE_DNS, "fakecluster.gpumon.invalid")


class FakeCluster:
    """PodResources, Processes and PodDirectory of one simulated node. What the scenario says is looked up at each
    question, so that an edited file and a pod's end show at once."""

    trouble: str | None = None

    def __init__(self, fake: FakeNvml) -> None:
        self._state = fake.state

    @property
    def version(self) -> int:
        """Changes with the pods that are there."""
        return hash(tuple(pod.uid for pod in map(self._pod, self._entries())))

    @property
    def node(self) -> NodeInfo | None:
        """The node with its labels."""
        return None if self._state.entry is None else NodeInfo(self._state.entry.labels)

    def by_uid(self, uid: str) -> Pod | None:
        """See the port."""
        return next((pod for pod in map(self._pod, self._entries()) if pod.uid == uid), None)

    def by_name(self, namespace: str, name: str) -> Pod | None:
        """See the port."""
        named = (entry for entry in self._entries() if (entry.namespace, entry.name) == (namespace, name))
        return next(map(self._pod, named), None)

    def in_gpu_group(self, group: str) -> Sequence[Pod]:
        """There are no groups."""
        return ()

    def claimed_uuid(self, device: ClaimedDevice) -> str | None:
        """There are no claims."""
        return None

    def list_containers(self) -> Sequence[ContainerDevices]:
        """See the port."""
        return [
            ContainerDevices(entry.namespace, entry.name, entry.container, {"nvidia.com/gpu": ids})
            for entry, ids in self._held()
        ]

    def list_allocatable(self) -> Mapping[str, frozenset[str]] | None:
        """See the port."""
        ids = {
            _replica(device, n, entry.replicas) for entry, device in self._devices() for n in range(entry.replicas)
        }
        return {"nvidia.com/gpu": frozenset(ids)}

    def close(self) -> None:
        """See the port."""

    def occupants(self, pids: Collection[int]) -> Mapping[int, Occupant]:
        """See the port. A pid that no pod has is the host's."""
        pods = {pid: self._pod(entry).uid for entry in self._entries() for pid in entry.pids}
        host = Occupant("host", name="simulated")
        return {pid: Occupant("pod", pods[pid]) if pid in pods else host for pid in pids}

    def _entries(self) -> list[PodEntry]:
        entry, started, t = self._state.entry, self._state.started, self._state.clock()
        return [pod for pod in entry.pods if pod.holds(t, started)] if entry is not None else []

    def _devices(self) -> Iterator[tuple[PodEntry, str]]:
        gpus: Sequence[SimGpu] = self._state.gpus
        for entry in self._entries():
            for index in entry.gpus:
                if index >= len(gpus):
                    continue
                instance = gpus[index].instances[entry.mig] if entry.mig is not None else None
                yield entry, gpus[index].uuid if instance is None else instance.uuid

    def _held(self) -> Iterator[tuple[PodEntry, tuple[str, ...]]]:
        """Each pod with the ids that it holds: of a GPU that is shared out, the next replica that is free."""
        taken: dict[str, int] = {}
        held: dict[int, tuple[PodEntry, list[str]]] = {}
        for entry, device in self._devices():
            taken[device] = taken.get(device, -1) + 1
            held.setdefault(id(entry), (entry, []))[1].append(_replica(device, taken[device], entry.replicas))
        for entry, ids in held.values():
            yield entry, tuple(ids)

    def _pod(self, entry: PodEntry) -> Pod:
        kind, _, name = (entry.owner or "").partition("/")
        return Pod(
            uid=str(uuid.uuid5(_NAMES, f"{self._state.node}/{entry.namespace}/{entry.name}")),
            namespace=entry.namespace,
            name=entry.name,
            owner=(kind, name) if entry.owner else None,
            labels=entry.labels,
            container_names=(entry.container,),
        )


def _replica(device: str, number: int, of: int) -> str:
    return device if of == 1 else f"{device}::{number}"
