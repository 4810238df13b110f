"""Answers of `inventory`, for documenting each number with its unit. Fields of the catalogue keep its words."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from gpumon.model.fields import BY_NAME
from gpumon.model.pod_fields import USE_BY_NAME

_STALE = "Whether the newest sample is older than [LIMITS] stale_after_seconds."


def _sample(name: str, **more: Any) -> Any:
    field = BY_NAME[name]
    return Field(description=f"{field.help}{f' Unit: {field.unit}.' if field.unit else ''}", **more)


def _use(name: str, **more: Any) -> Any:
    field = USE_BY_NAME[name]
    return Field(description=f"{field.help}{f' Unit: {field.unit}.' if field.unit else ''}", **more)


class Part(BaseModel):
    """What somebody has of a GPU."""

    mig_uuid: str | None = _use("mig_uuid")
    container: str | None = _use("container", examples=["main"])
    held: bool | None = _use("held", examples=[True])
    method: str | None = _use("method", examples=["exclusive"])
    gpu_share: float | None = _use("gpu_share", examples=[1.0])
    utilization: float | None = _use("utilization", examples=[71.0])
    memory_used: float | None = _use("memory_used", examples=[19000.5])
    process_count: int | None = _use("process_count", examples=[2])


class User(Part):
    """A container, a process of the host, or an unresolved user, of a GPU."""

    namespace: str | None = _use("namespace", examples=["research"])
    pod: str | None = _use("pod", examples=["train-0"])
    pod_uid: str | None = _use("pod_uid")
    owner_kind: str | None = _use("owner_kind", examples=["StatefulSet"])
    owner_name: str | None = _use("owner_name", examples=["train"])
    process_name: str | None = _use("process_name")


class Place(BaseModel):
    """Which GPU, and how recent its newest sample is."""

    gpu_uuid: str | None = _sample("gpu_uuid", examples=["GPU-8f0c1d3e-5b7a-4c1e-9d2f-3a6b8c0d1e2f"])
    node: str = Field(description="Kubernetes node; the client where there is none.", examples=["gpu-node-a"])
    client_name: str = _sample("client_name", examples=["gpu-node-a"])
    gpu_id: int = _sample("gpu_id", examples=[0])
    gpu_name: str | None = _sample("gpu_name", examples=["NVIDIA H100 80GB HBM3"])
    state: str = _sample("state", examples=["ok"])
    stale: bool = Field(description=_STALE, examples=[False])
    age_seconds: float = Field(description="Age of the newest sample, s.", examples=[3.2])


class GpuNow(Place):
    """A GPU and who is on it."""

    sampled_at: str = _sample("sampled_at", examples=["2026-11-24T17:33:23.123Z"])
    utilization_gpu: float | None = _sample("utilization_gpu", examples=[71.0])
    utilization_mean: float | None = _sample("utilization_mean", examples=[68.4])
    utilization_memory: float | None = _sample("utilization_memory", examples=[33.0])
    memory_total: int | None = _sample("memory_total", examples=[81559])
    memory_used: int | None = _sample("memory_used", examples=[61004])
    memory_free: int | None = _sample("memory_free", examples=[20555])
    temperature: int | None = _sample("temperature", examples=[61])
    power_draw: float | None = _sample("power_draw", examples=[512.4])
    power_limit: float | None = _sample("power_limit", examples=[700.0])
    sm_clock: int | None = _sample("sm_clock", examples=[1980])
    sm_active: float | None = _sample("sm_active")
    tensor_active: float | None = _sample("tensor_active")
    dram_active: float | None = _sample("dram_active")
    process_count: int | None = _sample("process_count", examples=[2])
    unhealthy: str | None = _sample("unhealthy")
    holder_count: int | None = _sample("holder_count", examples=[1])
    attribution: str | None = _sample("attribution", examples=["exclusive"])
    attribution_note: str | None = _sample("attribution_note")
    source: str | None = _sample("source")
    pods: list[User] = Field(description="Who holds or uses it.")


class PodPart(Part, Place):
    """What a pod's container has of one GPU."""


class PodNow(BaseModel):
    """A pod and its GPUs."""

    namespace: str | None = _use("namespace", examples=["research"])
    pod: str = _use("pod", examples=["train-0"])
    pod_uid: str | None = _use("pod_uid")
    owner_kind: str | None = _use("owner_kind", examples=["StatefulSet"])
    owner_name: str | None = _use("owner_name", examples=["train"])
    labels: dict[str, str | None] = Field(description="Its chosen labels.", examples=[{"team": "vision"}])
    gpu_share: float | None = Field(
        description="GPUs that it holds; shares of shared ones add up.", examples=[2.0]
    )
    utilization: float | None = Field(description="GPU time that it uses, % of one GPU.", examples=[142.0])
    memory_used: float | None = Field(description="GPU memory of its processes, MiB.", examples=[38001.0])
    stale: bool = Field(description="Whether the newest samples of all its GPUs are too old.", examples=[False])
    gpus: list[PodPart] = Field(description="Each of its containers on each GPU or MIG instance.")


class NodeNow(BaseModel):
    """A node and its GPUs, summed up."""

    node: str = Field(description="Kubernetes node; the client where there is none.", examples=["gpu-node-a"])
    client_names: list[str] = Field(description="The agents that report it.", examples=[["gpu-node-a"]])
    gpus: int = Field(description="Its GPUs.", examples=[8])
    gpus_by_state: dict[str, int] = Field(
        description="GPUs that are ok, lost, unknown (readings could not be had) or stale.",
        examples=[{"ok": 8, "lost": 0, "unknown": 0, "stale": 0}],
    )
    gpus_unhealthy: int = Field(description="GPUs that are lost or can't be given to pods.", examples=[0])
    models: list[str] = Field(description="Product names.", examples=[["NVIDIA H100 80GB HBM3"]])
    gpus_held: float | None = Field(
        description="GPUs held, in shares, of those of which it is known; null where it is of none.",
        examples=[6.5],
    )
    gpus_unknown: int = Field(
        description="GPUs, stale ones left out, of which it is not known who holds them: they are neither in "
        "`gpus_held` nor in `gpus_free`.",
        examples=[0],
    )
    gpus_active: float | None = Field(description="GPUs at work, in shares of their time.", examples=[4.1])
    gpus_free: float | None = Field(
        description="GPUs, in shares, that nobody holds and that could be given out, of those of which it is "
        "known; null where it is of none.",
        examples=[1.5],
    )
    power_draw: float | None = Field(description="Power of all, W.", examples=[3120.5])
    memory_used: int | None = Field(description="Memory in use, MiB.", examples=[391002])
    memory_total: int | None = Field(description="Memory, MiB.", examples=[652472])
    labels: dict[str, str | None] = Field(description="The node's chosen labels.")
    stale: bool = Field(description="Whether all its GPUs are stale.", examples=[False])
    last_seen: str = Field(description="Instant of the newest sample, UTC.", examples=["2026-11-24T17:33:23.123Z"])
    age_seconds: float = Field(description="Its age, s.", examples=[3.2])


class GpusAnswer(BaseModel):
    """Envelope."""

    success: bool = True
    data: list[GpuNow]


class PodsAnswer(BaseModel):
    """Envelope."""

    success: bool = True
    data: list[PodNow]


class NodesAnswer(BaseModel):
    """Envelope."""

    success: bool = True
    data: list[NodeNow]
