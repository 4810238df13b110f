"""Which GPU, or MIG instance, a device id names; pure. One id, one GPU of this node or none: never a guess.

| dialect | form | issuer |
|---|---|---|
| uuid | `GPU-<uuid>` | NVIDIA's device plugin |
| uuid-replica | `GPU-<uuid>::<n>` | the same, time-slicing and MPS; HAMi, where it need not be the true card |
| mig-uuid, mig-uuid-replica | `MIG-<uuid>`, `MIG-<uuid>::<n>` | the same, drivers from R470 on |
| mig-parent, mig-parent-replica | `MIG-GPU-<uuid>/<gi>/<ci>`, also with `::<n>` | the same, older drivers |
| gke, gke-shared | `nvidia<i>`, `nvidia<i>/vgpu<n>` | GKE's device plugin |
| gke-mig, gke-mig-shared | `nvidia<i>/gi<k>`, `nvidia<i>/gi<k>/vgpu<n>` | the same |

GKE counts GPUs by minor number, as in /dev/nvidia<i>: not NVML's index. Of a GPU instance it gives out compute
instance 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_HEX = "[0-9a-fA-F]"
_UUID = f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}"
_NUMBER = "0|[1-9][0-9]{0,8}"
_NVIDIA = re.compile(
    rf"(?:(?P<uuid>GPU-{_UUID})|(?P<mig>MIG-{_UUID})|MIG-(?P<parent>GPU-{_UUID})/(?P<gi>{_NUMBER})/(?P<ci>{_NUMBER}))"
    rf"(?P<replica>::(?:{_NUMBER}))?"
)
_REPLICA = re.compile(_NUMBER)
_GKE = re.compile(rf"nvidia(?P<minor>{_NUMBER})(?:/gi(?P<gi>{_NUMBER}))?(?P<shared>/vgpu(?:{_NUMBER}))?")


@dataclass(frozen=True, slots=True)
class KnownInstance:
    """A MIG instance of this node, as NVML names it."""

    uuid: str
    gpu_instance: int
    compute_instance: int


@dataclass(frozen=True, slots=True)
class KnownGpu:
    """A GPU of this node. `minor_number` None: not known, and so not to be found by GKE's ids."""

    uuid: str
    minor_number: int | None
    instances: tuple[KnownInstance, ...] = ()

    def has_place_of(self, other: KnownGpu) -> bool:
        """Whether both have one minor number, as a GPU and the one that took its place."""
        return self.minor_number is not None and self.minor_number == other.minor_number


@dataclass(frozen=True, slots=True)
class Target:
    """What a device id names: a GPU or, with `mig_uuid`, an instance of it. UUIDs are spelled as NVML does."""

    gpu_uuid: str
    mig_uuid: str | None = None


class Devices:
    """The GPUs and MIG instances of this node, by all that an id may call them."""

    def __init__(self, gpus: Iterable[KnownGpu]) -> None:
        self._by_uuid: dict[str, Target] = {}
        self._by_minor: dict[int, Target | None] = {}
        self._instances: dict[tuple[Target, int, int], Target] = {}
        for gpu in gpus:
            whole = Target(gpu.uuid)
            self._by_uuid[_spelled(gpu.uuid)] = whole
            if gpu.minor_number is not None:
                # Two GPUs of one number would be a guess.
                self._by_minor[gpu.minor_number] = None if gpu.minor_number in self._by_minor else whole
            for instance in gpu.instances:
                target = Target(gpu.uuid, instance.uuid)
                self._by_uuid[_spelled(instance.uuid)] = target
                self._instances[whole, instance.gpu_instance, instance.compute_instance] = target

    def resolve(self, device_id: str) -> Target | None:
        """What the id names. None where that is no GPU or instance of this node, or the id has no known form.
        Replicas of one device are one target. An id that begins with what NVML itself calls a GPU or instance
        needs no known form: simulated GPUs and future ones have UUIDs of their own."""
        base, _, replica = device_id.partition("::")
        if _spelled(base) in self._by_uuid and (device_id == base or _REPLICA.fullmatch(replica)):
            return self._by_uuid[_spelled(base)]
        if named := _NVIDIA.fullmatch(device_id):
            if named["parent"] is None:
                return None
            return self._instance(self._by_uuid.get(_spelled(named["parent"])), named["gi"], named["ci"])
        if named := _GKE.fullmatch(device_id):
            gpu = self._by_minor.get(int(named["minor"]))
            return gpu if named["gi"] is None else self._instance(gpu, named["gi"], "0")
        return None

    def _instance(self, gpu: Target | None, gpu_instance: str, compute_instance: str) -> Target | None:
        return None if gpu is None else self._instances.get((gpu, int(gpu_instance), int(compute_instance)))


def dialect(device_id: str) -> str | None:
    """Whose way of naming devices an id follows, as in the table above, whether or not this node has the device.
    None where it is no known form."""
    if named := _NVIDIA.fullmatch(device_id):
        form = "uuid" if named["uuid"] else "mig-uuid" if named["mig"] else "mig-parent"
        return f"{form}-replica" if named["replica"] else form
    if named := _GKE.fullmatch(device_id):
        return "gke" + ("-mig" if named["gi"] else "") + ("-shared" if named["shared"] else "")
    return None


def _spelled(uuid: str) -> str:
    """A UUID in one spelling: hex digits are the same in upper and lower case, the prefix is not."""
    return uuid[:4] + uuid[4:].lower()
