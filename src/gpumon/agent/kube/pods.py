"""A pod's JSON, decoded, becomes a `ports.Pod`: pure, and never an error for what a pod lacks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gpumon.agent.kube.labels import LabelChoice
from gpumon.agent.kube.objects import Metadata, PodObject, PodStatus
from gpumon.agent.kube.owners import workload
from gpumon.agent.ports import Pod

REMEMBERED_CONTAINERS = 32
"""Ids of a pod's containers that were started again since. Their processes may still be ending; a container
that crashes all the time gets a new id every few minutes, for days."""

_FINISHED = ("Succeeded", "Failed")

_STATIC_HASH = "kubernetes.io/config.hash"

_HAMI_ALLOCATED = "hami.io/vgpu-devices-allocated"
_HAMI_GPU = re.compile(r"\s*(GPU-[^,\[\s]+)")
"""`GPU-<uuid>,<type>,<MiB>,<cores>`; for a MIG instance, `[<template>-<position>]` follows the UUID."""

_GPU_GROUP = "runai-gpu-group"
_GPU_FRACTION = "gpu-fraction"
_RESERVED_FOR = "run.ai/reserve_for_gpu_index"
_RESERVATIONS = ("runai-reservation", "kai-resource-reservation")
"""Namespaces of reservation pods, and the values of their label `app`."""


@dataclass(frozen=True, slots=True)
class KnownPod:
    """A pod, and by what else it is found: the hash that a static pod has for a UID in its cgroup, and the GPU
    groups it is in (one with fractions of several GPUs is in several)."""

    pod: Pod
    static_hash: str | None
    gpu_groups: tuple[str, ...]


def known_pod(given: PodObject, choice: LabelChoice, before: KnownPod | None = None) -> KnownPod | None:
    """What is known of a pod now; `before` is what was known of it last. None where it has no UID or name."""
    metadata = given.metadata
    if not metadata.uid or not metadata.name:
        return None
    labels = metadata.labels or {}
    annotations = metadata.annotations or {}
    status = given.status or PodStatus()
    groups = _gpu_groups(labels)
    pod = Pod(
        uid=metadata.uid,
        namespace=metadata.namespace,
        name=metadata.name,
        finished=status.phase in _FINISHED,
        owner=workload(metadata),
        labels=choice.of(labels),
        containers=_with_earlier(dict(_containers(status)), before.pod.containers if before is not None else {}),
        container_names=tuple(c.name for c in (given.spec.containers if given.spec is not None else None) or ()),
        hami_gpus=_hami_gpus(annotations.get(_HAMI_ALLOCATED, "")),
        gpu_group=groups[0] if groups else None,
        gpu_fraction=_fraction(annotations.get(_GPU_FRACTION)),
        reserves=_reserves(metadata),
    )
    return KnownPod(pod, annotations.get(_STATIC_HASH), groups)


def _containers(status: PodStatus) -> Iterator[tuple[str, str]]:
    """Container id → name, of containers before their last start first."""
    everything = [
        *(status.init_container_statuses or ()),
        *(status.container_statuses or ()),
        *(status.ephemeral_container_statuses or ()),
    ]
    for container in everything:
        ended = container.last_state.terminated if container.last_state is not None else None
        if ended is not None and (container_id := _bare(ended.container_id)):
            yield container_id, container.name
    for container in everything:
        if container_id := _bare(container.container_id):
            yield container_id, container.name


def _bare(container_id: str | None) -> str:
    """Without the runtime's name before it."""
    return (container_id or "").rpartition("://")[2]


def _with_earlier(now: dict[str, str], earlier: Mapping[str, str]) -> dict[str, str]:
    gone = [(container_id, name) for container_id, name in earlier.items() if container_id not in now]
    return dict(gone[-REMEMBERED_CONTAINERS:]) | now


def _hami_gpus(text: str) -> tuple[tuple[str, ...], ...]:
    """HAMi's word on where it put a pod: containers end with ';', a container's devices with ':'."""
    containers = tuple(
        tuple(match[1] for device in container.split(":") if (match := _HAMI_GPU.match(device)))
        for container in text.strip().removesuffix(";").split(";")
    )
    return containers if any(containers) else ()


def _gpu_groups(labels: Mapping[str, str]) -> tuple[str, ...]:
    several = (labels[key] for key in sorted(labels) if key.startswith(f"{_GPU_GROUP}/"))
    return tuple(dict.fromkeys(group for group in (labels.get(_GPU_GROUP, ""), *several) if group))


def _fraction(text: str | None) -> float | None:
    """More than 0 and at most 1; None for anything else."""
    try:
        fraction = float(text or "")
    except ValueError:
        return None
    return fraction if math.isfinite(fraction) and 0 < fraction <= 1 else None


def _reserves(metadata: Metadata) -> bool:
    return (
        metadata.namespace in _RESERVATIONS
        or (metadata.labels or {}).get("app") in _RESERVATIONS
        or _RESERVED_FOR in (metadata.annotations or {})
    )
