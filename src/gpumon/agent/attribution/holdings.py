"""Who holds what: the kubelet's answer, told in GPUs of this node; pure.

A holder is a container. Its `share` is of the GPU or MIG instance it holds: replicas held, of all replicas there
are (time-slicing and MPS), so one that holds a whole GPU has 1. Where the kubelet does not tell how many there
are, the holders' own are all.

- Pods that have finished hold nothing, though older kubelets list them on.
- HAMi's device ids name a card that need not be the true one: the pod's annotation does.
- A reservation pod (KAI, Run:ai) holds a GPU for others: they are its holders, by the fractions they asked for.
  Where none of them is known, it is the holder itself.
- A device by claim (DRA) is what the node's ResourceSlices say.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from gpumon.agent.attribution.deviceids import Devices, Target, dialect
from gpumon.agent.ports import ContainerDevices, Pod, PodDirectory


@dataclass(frozen=True, slots=True)
class Holder:
    """A container that holds a GPU or, with `mig_uuid`, an instance of it; `share` of that, above 0 to 1."""

    namespace: str
    pod: str
    container: str
    share: float
    mig_uuid: str | None = None


@dataclass(frozen=True, slots=True)
class Holdings:
    """The holders of each GPU by UUID; a GPU that nobody holds is left out. `unknown` are device ids, by resource,
    that count as GPUs but are none of this node; `resources` and `dialects` are what was seen, for `doctor`.
    `incomplete`: something is held that may be a GPU of this node, and it can't be told which."""

    by_gpu: Mapping[str, tuple[Holder, ...]] = field(default_factory=dict)
    unknown: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    resources: Mapping[str, int] = field(default_factory=dict)
    dialects: Mapping[str, int] = field(default_factory=dict)
    incomplete: bool = False

    def of(self, gpu_uuid: str) -> tuple[Holder, ...] | None:
        """The holders of a GPU; None where it has none that is known, and may have one that is not."""
        holders = self.by_gpu.get(gpu_uuid, ())
        return None if self.incomplete and not holders else holders


GPU_DRIVER = "gpu.nvidia.com"
"""The driver whose claims (DRA) are of GPUs."""

_OF_ANOTHER_NODE = ("uuid", "uuid-replica")
"""Dialects in which an id that is none of this node's GPUs can be none of them."""

Place = tuple[str, str, str]
"""(namespace, pod, container)."""


def holdings(
    containers: Iterable[ContainerDevices],
    allocatable: Mapping[str, frozenset[str]] | None,
    devices: Devices,
    pods: PodDirectory,
    resource_names: Sequence[str],
) -> Holdings:
    """The holders of the GPUs in `devices`. `resource_names` are globs of the resources whose ids must be GPUs;
    ids of other resources count where they are."""
    held: dict[Target, Counter[Place]] = defaultdict(Counter)
    replicas = _replicas(allocatable or {}, devices)
    shared_out: dict[Target, dict[Place, float]] = {}
    unknown: dict[str, set[str]] = defaultdict(set)
    resources: Counter[str] = Counter()
    dialects: Counter[str] = Counter()
    incomplete = False
    for container in containers:
        pod = pods.by_name(container.namespace, container.pod)
        if pod is not None and pod.finished:
            continue
        place = (container.namespace, container.pod, container.container)
        told = [target for target in map(devices.resolve, _hami_gpus(container, pod)) if target is not None]
        incomplete |= any(of.driver == GPU_DRIVER and pods.claimed_uuid(of) is None for of in container.claimed)
        for resource, device_id in _ids(container, pods):
            target = devices.resolve(device_id)
            if target is None:
                if any(fnmatchcase(resource, glob) for glob in resource_names):
                    unknown[resource].add(device_id)
                    incomplete |= dialect(device_id) not in _OF_ANOTHER_NODE
                continue
            resources[resource] += 1
            dialects[dialect(device_id) or "other"] += 1
            replicas[target].add(device_id)
            if not told:
                held[target][place] += 1
            if pod is not None and pod.reserves and pod.gpu_group is not None:
                shared_out[target] = _fractions(pods.in_gpu_group(pod.gpu_group))
        for target in told:
            held[target][place] += 1
    by_gpu: dict[str, list[Holder]] = defaultdict(list)
    for target, places in held.items():
        shares = shared_out.get(target) or _shares(places, len(replicas[target]))
        by_gpu[target.gpu_uuid] += [Holder(*place, share, target.mig_uuid) for place, share in shares.items()]
    return Holdings(
        {uuid: tuple(holders) for uuid, holders in by_gpu.items()},
        {resource: tuple(sorted(ids)) for resource, ids in unknown.items()},
        dict(resources),
        dict(dialects),
        incomplete,
    )


def _replicas(allocatable: Mapping[str, frozenset[str]], devices: Devices) -> dict[Target, set[str]]:
    """The ids that name each GPU or instance, of all that the kubelet could give out."""
    replicas: dict[Target, set[str]] = defaultdict(set)
    for ids in allocatable.values():
        for device_id in ids:
            target = devices.resolve(device_id)
            if target is not None:
                replicas[target].add(device_id)
    return replicas


def _ids(container: ContainerDevices, pods: PodDirectory) -> Iterator[tuple[str, str]]:
    """(resource, device id) of all that a container holds; of a claim, the driver and the UUID that it stands
    for."""
    for resource, ids in container.device_ids.items():
        for device_id in dict.fromkeys(ids):
            yield resource, device_id
    for claimed in container.claimed:
        uuid = pods.claimed_uuid(claimed)
        if uuid is not None:
            yield claimed.driver, uuid


def _hami_gpus(container: ContainerDevices, pod: Pod | None) -> tuple[str, ...]:
    """The GPUs that HAMi's annotation gives to a container; empty where there is none."""
    if pod is None or not pod.hami_gpus or container.container not in pod.container_names:
        return ()
    place = pod.container_names.index(container.container)
    return tuple(dict.fromkeys(pod.hami_gpus[place])) if place < len(pod.hami_gpus) else ()


def _fractions(pods: Sequence[Pod]) -> dict[Place, float]:
    """What the pods of a GPU group hold: the fraction each asked for, else an equal part; together at most all."""
    asked = {
        (
            pod.namespace,
            pod.name,
            pod.container_names[0] if len(pod.container_names) == 1 else "",
        ): pod.gpu_fraction or 1 / len(pods)
        for pod in pods
    }
    return _at_most_one(asked)


def _shares(places: Counter[Place], replicas: int) -> dict[Place, float]:
    of = max(replicas, places.total())
    return {place: count / of for place, count in places.items()}


def _at_most_one(shares: dict[Place, float]) -> dict[Place, float]:
    whole = max(1.0, sum(shares.values()))
    return {place: share / whole for place, share in shares.items()}
