"""Which resources and device ids a node's simulated GPUs are, by the rules of NVIDIA's device plugin; pure.

| GPU | resource | ids |
|---|---|---|
| whole | the plugin's, `nvidia.com/gpu` | `GPU-<uuid>`, or `GPU-<uuid>::<n>` where it is shared by replicas |
| split by MIG | one for each profile, `nvidia.com/mig-1g.10gb` | `MIG-<uuid>` of its instances with that profile |

A GPU that is lost is there and not healthy, and so are its instances.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gpumon.agent.fakenvml.simgpu import SimGpu


@dataclass(frozen=True, slots=True)
class Device:
    """One id that the kubelet can give out."""

    id: str
    healthy: bool


def resources(gpus: Iterable[SimGpu], t: float, *, whole: str, replicas: int) -> dict[str, tuple[Device, ...]]:
    """Resource name → its devices at an instant (Unix seconds), in the order of the GPUs. `whole` is the name of
    the resource for whole GPUs, each of which is that many replicas."""
    found: dict[str, list[Device]] = {}
    for gpu in gpus:
        for resource, device_id in _ids(gpu, whole, replicas):
            found.setdefault(resource, []).append(Device(device_id, healthy=not gpu.is_lost(t)))
    return {resource: tuple(devices) for resource, devices in found.items()}


def uuids(device_ids: Iterable[str]) -> tuple[str, ...]:
    """The UUIDs of GPUs and instances that ids name, each once: without the number of a replica."""
    return tuple(dict.fromkeys(device_id.partition("::")[0] for device_id in device_ids))


def preferred(available: Sequence[str], must: Sequence[str], size: int) -> tuple[str, ...]:
    """`size` of the ids, `must` among them: first those of GPUs that are given out least, then in their order, so
    that replicas are spread. Raises ValueError where so many can't be had."""
    if not len(must) <= size <= len({*available, *must}):
        raise ValueError(f"{size} devices of {len(available)} with {len(must)} that must be among them")
    chosen = list(must)
    free = [device_id for device_id in available if device_id not in must]
    while len(chosen) < size:
        left = Counter(uuid for device_id in free for uuid in uuids([device_id]))
        chosen.append(max(free, key=lambda device_id: left[uuids([device_id])[0]]))
        free.remove(chosen[-1])
    return tuple(chosen)


def _ids(gpu: SimGpu, whole: str, replicas: int) -> Iterator[tuple[str, str]]:
    """Resource and device id of all that a GPU is."""
    if gpu.mig_enabled:
        vendor = whole.partition("/")[0]
        for instance in gpu.instances:
            if instance is not None:
                yield f"{vendor}/mig-{instance.name}", instance.uuid
    elif replicas == 1:
        yield whole, gpu.uuid
    else:
        for number in range(replicas):
            yield whole, f"{gpu.uuid}::{number}"
