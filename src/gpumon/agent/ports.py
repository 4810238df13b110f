"""The agent's doors, as Protocols. Stages and doors know only this file and the model; `run` wires them.

    GpuLibrary ──readings──▶ sampler ──samples──▶ attribution ──▶ Spool ──batches──▶ BatchSink
                                                      ▲
                              PodResources, Processes, PodDirectory

Who *holds* a GPU the kubelet knows (PodResources), who *uses* it the process lists (GpuLibrary) and `/proc`
(Processes); what a pod is called, belongs to and is labelled with, the Kubernetes API (PodDirectory).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from gpumon.model.sample import BatchId

Reading = dict[str, Any]
"""Catalogue field → value, for one GPU at one instant. A reading that could not be had is left out. Under the key
USE it may hold a `GpuUse`, which attribution takes out: it never leaves the agent."""

USE = "use"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML enumerates it. `uuid` identifies; `index` is for people."""

    index: int
    uuid: str
    name: str
    pci_bus_id: str | None
    minor_number: int | None


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process with a context on a GPU or MIG instance, or that had one since the last sample.

    `pid` is the host's. `memory_bytes` is None where the driver can't tell, 0 where the process has ended.
    `sm_percent` is its mean share of the GPU's time since the last sample, 0 to 100; None where per-process use
    can't be asked. A pid on several lists is one process; `kind` is the first of them."""

    pid: int
    memory_bytes: int | None
    kind: Literal["compute", "graphics", "mps"] = "compute"
    sm_percent: float | None = None


@dataclass(frozen=True, slots=True)
class MigInstance:
    """A part of a GPU with memory and processes of its own. `share` is its part of the whole GPU's compute slices,
    0 to 1. `busy_percent` is its activity since the last sample as a share of the instance (GPM, Hopper or newer),
    `memory_used_mib` its memory in use; None where it can't be asked. `processes` None: could not be asked."""

    uuid: str
    gpu_instance: int
    compute_instance: int
    share: float
    memory_used_mib: float | None = None
    busy_percent: float | None = None
    processes: tuple[GpuProcess, ...] | None = None


@dataclass(frozen=True, slots=True)
class GpuUse:
    """Who uses a GPU now, as NVML tells it. `processes` None: could not be asked, and `why_not` says why. `mig`
    None: the GPU is not split; then `processes` are those of the whole GPU, else each instance has its own.
    `minor_number` is the GPU's: some device ids go by it."""

    processes: tuple[GpuProcess, ...] | None
    mig: tuple[MigInstance, ...] | None = None
    why_not: str = ""
    minor_number: int | None = None


class GpuLibrary(Protocol):
    """NVML, real or fake. Every method may block; `read` is called from one thread per GPU."""

    def open(self) -> Sequence[Gpu]:
        """Loads and initialises the library and gives its GPUs. Raises NvmlUnavailable with where the library
        was looked for. May be called again, also while the library is open: GPUs that answer are not
        disturbed by that."""

    @property
    def left_out(self) -> Sequence[int]:
        """The indices of the GPUs that the library counted when it was opened last, but that could not be
        addressed: they are there, but not among those that `open` gave."""

    def close(self) -> None:
        """Gives the library back. Harmless when it is not open."""

    def read(self, gpu: Gpu) -> Reading:
        """Takes one sample of one GPU, in as few calls as possible, with its GpuUse under the key USE. Raises
        GpuLost for this GPU alone, and NvmlUnavailable when the library as a whole has to be opened anew."""

    def find_again(self, gpu: Gpu) -> bool:
        """Tries to get a lost GPU's handle anew by its UUID. True when it answers again."""


@dataclass(frozen=True, slots=True)
class ClaimedDevice:
    """A device that a container has by Dynamic Resource Allocation, as its driver names it."""

    driver: str
    pool: str
    device: str


@dataclass(frozen=True, slots=True)
class ContainerDevices:
    """What the kubelet says one container holds: resource name → device ids, in the dialect of whoever issued
    them, and devices by claim."""

    namespace: str
    pod: str
    container: str
    device_ids: Mapping[str, tuple[str, ...]]
    claimed: tuple[ClaimedDevice, ...] = ()


class PodResources(Protocol):
    """The kubelet's PodResources API. Methods may block up to the door's timeout; one thread at a time."""

    def list_containers(self) -> Sequence[ContainerDevices]:
        """Every container of this node that holds a device; pods that have finished may be among them. Raises
        KubeletUnavailable with the socket, the reason and what to do."""

    def list_allocatable(self) -> Mapping[str, frozenset[str]] | None:
        """Resource name → ids of all devices the kubelet could give out, healthy ones only. None where the kubelet
        does not offer the call (before 1.21). Raises KubeletUnavailable."""

    def close(self) -> None:
        """Closes the connection. Harmless when there is none."""


@dataclass(frozen=True, slots=True)
class Occupant:
    """Whose a process is. `pod`: `pod_uid` and, where the path tells, `container_id` are set. `host`: it belongs
    to no pod. `unresolved`: it has ended, or could not be looked at. `name` is its command's name, "" where
    unknown."""

    kind: Literal["pod", "host", "unresolved"]
    pod_uid: str | None = None
    container_id: str | None = None
    name: str = ""


class Processes(Protocol):
    """`/proc` of this node."""

    @property
    def trouble(self) -> str | None:
        """Why processes can't be told apart by pod (no hostPID, not Linux); None when they can. While it is set,
        every occupant is `unresolved`: the pids that NVML gives would mean other processes here."""

    def occupants(self, pids: Collection[int]) -> Mapping[int, Occupant]:
        """Whose each process is, for every pid that was asked. Never raises for a process that is gone."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as the Kubernetes API describes it. `labels` are the chosen ones. `containers` is container id (64 hex
    digits) → name. `finished`: Succeeded or Failed. `owner` is (kind, name) of the workload it belongs to.

    Of schedulers that share GPUs: `hami_gpus` are the GPU UUIDs of each container in order (HAMi); `gpu_group` is
    the group that joins a reservation pod and the pods it reserves for, `gpu_fraction` the part of a GPU that
    such a pod asked for, `reserves` whether it is a reservation pod (KAI, Run:ai)."""

    uid: str
    namespace: str
    name: str
    finished: bool = False
    owner: tuple[str, str] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    containers: Mapping[str, str] = field(default_factory=dict)
    container_names: tuple[str, ...] = ()
    hami_gpus: tuple[tuple[str, ...], ...] = ()
    gpu_group: str | None = None
    gpu_fraction: float | None = None
    reserves: bool = False


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """This node as the API describes it: its chosen labels, and whether it takes no new pods (cordoned)."""

    labels: Mapping[str, str] = field(default_factory=dict)
    unschedulable: bool = False


class PodDirectory(Protocol):
    """The pods of this node. Answers come from memory, at once, from any thread."""

    @property
    def trouble(self) -> str | None:
        """Why nothing, or nothing new, is known of pods; None when all is known."""

    @property
    def version(self) -> int:
        """Changes whenever a pod of this node appears, changes or goes."""

    @property
    def node(self) -> NodeInfo | None:
        """This node; None while it is not known."""

    def by_uid(self, uid: str) -> Pod | None:
        """The pod with this UID; for a static pod also the 32 hex digits that its cgroup has in the UID's
        place."""

    def by_name(self, namespace: str, name: str) -> Pod | None:
        """The pod of this name that is there now; of two, the one that has not finished."""

    def in_gpu_group(self, group: str) -> Sequence[Pod]:
        """The pods of a GPU group that have not finished, reservation pods left out."""

    def claimed_uuid(self, device: ClaimedDevice) -> str | None:
        """The GPU's or MIG instance's UUID of a device by claim, from the node's ResourceSlices. None while it is
        not known; asking lets the directory look, in its own thread."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What is POSTed: a JSON list of samples, already encoded, with its id for ever."""

    id: BatchId
    samples: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a delivery: `delivered`, `retry` (keep it; not before `after_seconds` where the server
    said so), or `poison` (the server will never take it, `reason` says why)."""

    kind: Literal["delivered", "retry", "poison"]
    reason: str = ""
    after_seconds: float | None = None


class BatchSink(Protocol):
    """Where batches go."""

    def deliver(self, batch: Batch) -> Outcome:
        """Tries once. Never raises for trouble on the way: that is an Outcome."""

    def close(self) -> None:
        """Closes its connections."""
