"""The doors to Kubernetes for tests, in memory, and builders of what comes through them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gpumon.agent.ports import (
    ClaimedDevice,
    ContainerDevices,
    GpuProcess,
    NodeInfo,
    Occupant,
    Pod,
)
from gpumon.errors import KubeletUnavailable

GPU = "GPU-5a1cf0b2-0000-4000-8000-000000000001"
OTHER_GPU = "GPU-5a1cf0b2-0000-4000-8000-000000000002"
MIG = "MIG-5a1cf0b2-0000-4000-8000-00000000000a"
OTHER_MIG = "MIG-5a1cf0b2-0000-4000-8000-00000000000b"
MIB = 2**20


def pod(name: str, **fields: Any) -> Pod:
    """A pod of namespace ml with one container `main`; its UID is uid-<name>, the container's id cid-<name>."""
    given: dict[str, Any] = {
        "uid": f"uid-{name}",
        "namespace": "ml",
        "name": name,
        "containers": {f"cid-{name}": "main"},
        "container_names": ("main",),
    }
    return Pod(**(given | fields))


def occupant(name: str, container_id: str | None = None) -> Occupant:
    """A process in the pod of that name."""
    return Occupant("pod", f"uid-{name}", container_id or f"cid-{name}", "python")


def process(pid: int, sm_percent: float | None = 0.0, mib: float | None = 100, **fields: Any) -> GpuProcess:
    """A process by its id, use and memory."""
    return GpuProcess(pid, None if mib is None else int(mib * MIB), sm_percent=sm_percent, **fields)


def holding(name: str, *ids: str, container: str = "main", resource: str = "nvidia.com/gpu") -> ContainerDevices:
    """What the kubelet says of a container of pod ml/<name>."""
    return ContainerDevices("ml", name, container, {resource: ids})


class Pods:
    """A PodDirectory of these pods."""

    def __init__(
        self,
        *pods: Pod,
        trouble: str | None = None,
        claimed: Mapping[ClaimedDevice, str] | None = None,
        node: NodeInfo | None = None,
    ) -> None:
        self.pods = list(pods)
        self.trouble = trouble
        self.version = 1
        self.node = node
        self._claimed = claimed or {}

    def by_uid(self, uid: str) -> Pod | None:
        return next((pod for pod in self.pods if pod.uid == uid), None)

    def by_name(self, namespace: str, name: str) -> Pod | None:
        named = [pod for pod in self.pods if (pod.namespace, pod.name) == (namespace, name)]
        return min(named, key=lambda pod: pod.finished, default=None)

    def in_gpu_group(self, group: str) -> Sequence[Pod]:
        return [pod for pod in self.pods if pod.gpu_group == group and not pod.reserves and not pod.finished]

    def claimed_uuid(self, device: ClaimedDevice) -> str | None:
        return self._claimed.get(device)


class ProcessTable:
    """Processes by pid; one that is not in it has ended."""

    def __init__(self, occupants: Mapping[int, Occupant] | None = None, trouble: str | None = None) -> None:
        self.table = dict(occupants or {})
        self.trouble = trouble

    def occupants(self, pids: Collection[int]) -> Mapping[int, Occupant]:
        return {pid: self.table.get(pid, Occupant("unresolved")) for pid in pids}


class Kubelet:
    """A PodResources whose answer is set; counts how often it is asked."""

    def __init__(
        self, *containers: ContainerDevices, allocatable: Mapping[str, frozenset[str]] | None = None
    ) -> None:
        self.containers: Sequence[ContainerDevices] = containers
        self.allocatable = allocatable
        self.down = False
        self.asked = 0

    def list_containers(self) -> Sequence[ContainerDevices]:
        self.asked += 1
        if self.down:
            raise KubeletUnavailable("the kubelet does not answer at kubelet.sock: see whether it runs")
        return self.containers

    def list_allocatable(self) -> Mapping[str, frozenset[str]] | None:
        return self.allocatable

    def close(self) -> None:
        pass
