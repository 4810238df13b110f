"""Answers of `accounts`, for documenting each number with its unit."""

from __future__ import annotations

from pydantic import BaseModel, Field

_WHO = (
    "pod; host: processes outside of pods; unresolved: users who could not be named; nobody: what no user can be "
    "charged with; other: the groups beyond the limit; null where the groups are GPUs."
)
_COVERAGE = "Of the wall time of the GPUs concerned, the share that samples cover, 0 to 1."
_CURRENCY = "In what cost is given; null where [COST] prices is empty."
_KEYS = "The group's keys by name; all null where the group is not one of users."


class Range(BaseModel):
    """The range that is answered for."""

    start: str = Field(description="Its first instant, UTC.", examples=["2026-11-23T17:33:23.123Z"])
    end: str = Field(
        description="Its end, not included, never after now, UTC.", examples=["2026-11-24T17:33:23.123Z"]
    )
    seconds: float = Field(description="Its length, s.", examples=[86400.0])


class UsageSums(BaseModel):
    """What adds up."""

    gpu_hours_allocated: float | None = Field(
        description="Share of GPUs held, times hours, GPU-h; null where it is not known who held them.",
        examples=[12.0],
    )
    gpu_hours_active: float | None = Field(
        description="Hours in which GPUs worked for the group, GPU-h; null where that could not be measured.",
        examples=[7.25],
    )
    gpu_hours_unmeasured: float = Field(
        description="Of the hours allocated, those of which it could not be measured whether GPUs worked, GPU-h.",
        examples=[0.0],
    )
    utilization_of_held: float | None = Field(
        description="Share of the measured hours held in which GPUs worked, %; null where nothing was held.",
        examples=[60.4],
    )
    memory_gib_hours: float | None = Field(description="GPU memory in use, times hours, GiB h.", examples=[480.0])
    energy_kwh: float | None = Field(description="Energy, kWh; null where it is not known.", examples=[5.1])
    cost: float | None = Field(
        description="Active, held idle, used without allocation and unmeasured hours at the GPU's price; of "
        "nobody, the rest, so that the groups add up to the price of all wall time. null where no price is set.",
        examples=[30.0],
    )
    gpus: int | None = Field(description="GPUs concerned; null of `other`.", examples=[2])
    pods: int | None = Field(description="Pods concerned; null of `other`.", examples=[3])


class UsageGroup(UsageSums):
    """One group."""

    group: dict[str, str | int | None] = Field(description=_KEYS, examples=[{"namespace": "research"}])
    who: str | None = Field(description=_WHO, examples=["pod"])
    utilization_mean: float | None = Field(
        description="Mean over the time that the group was on a GPU, % of a GPU: of what is together on one GPU, "
        "a container, pod, workload or namespace; of a label, or mixed groupings, of each pod by itself.",
        examples=[58.0],
    )
    utilization_max: float | None = Field(
        description="Most in one sample of a GPU, %, by the same.", examples=[100.0]
    )
    memory_gib_peak: float | None = Field(
        description="Most memory on one GPU in one sample, GiB, by the same.", examples=[71.2]
    )
    coverage: float = Field(description=_COVERAGE, examples=[0.9987])
    methods: dict[str, float] = Field(
        description="How the group's part was found: method, share of its time, 0 to 1. equal-split is no "
        "measurement.",
        examples=[{"exclusive": 0.8, "process": 0.2}],
    )
    first_seen: str | None = Field(
        description="From when on it counts, UTC.", examples=["2026-11-24T09:00:00.000Z"]
    )
    last_seen: str | None = Field(description="Until when it counts, UTC.", examples=["2026-11-24T17:33:20.000Z"])


class Usage(BaseModel):
    """GPU-hours of a range."""

    range: Range
    group_by: str = Field(description="The grouping.", examples=["namespace"])
    currency: str | None = Field(description=_CURRENCY, examples=["USD"])
    groups: list[UsageGroup] = Field(description="The largest first, by hours allocated and active.")
    total: UsageSums
    coverage: float = Field(description=_COVERAGE, examples=[0.9987])
    notes: list[str] = Field(
        description="What agents could not ask, and which GPUs have no price.",
        examples=[["the Kubernetes API could not be asked"]],
    )


class Parts(BaseModel):
    """The same parts in GPU-hours."""

    active: float = Field(description="A GPU worked for somebody who holds it, h.", examples=[7.25])
    held_idle: float = Field(description="Held, but not at work, h.", examples=[4.75])
    used_without_allocation: float = Field(description="A GPU worked for somebody who does not hold it, h.")
    free: float = Field(description="Nobody holds it and it could be given out, h.", examples=[12.0])
    unhealthy: float = Field(description="Lost, or can't be given to pods, h.", examples=[0.0])
    no_data: float = Field(description="Nothing is known, see no_data_reasons, h.", examples=[0.0])


class Reasons(BaseModel):
    """Seconds of no data by reason."""

    activity_unmeasured: float = Field(description="Held, or in use; it can't be measured whether it worked, s.")
    allocation_unknown: float = Field(description="It did not work; who holds it could not be asked, s.")
    not_readable: float = Field(description="The GPU's readings could not be had, s.")
    not_sampled: float = Field(description="No sample stands for this time, s.")


class LedgerSums(BaseModel):
    """The parts of the wall time."""

    wall_seconds: float | None = Field(
        description="Wall time of the GPUs, s: the six parts add up to it. null of a group of users.",
        examples=[86400.0],
    )
    active: float = Field(description="A GPU worked for somebody who holds it, s.", examples=[26100.0])
    held_idle: float = Field(description="Held, but not at work, s.", examples=[17100.0])
    used_without_allocation: float = Field(description="A GPU worked for somebody who does not hold it, s.")
    free: float = Field(description="Nobody holds it and it could be given out, s.", examples=[43200.0])
    unhealthy: float = Field(description="Lost, or can't be given to pods, s.", examples=[0.0])
    no_data: float = Field(description="Nothing is known, s.", examples=[0.0])
    no_data_reasons: Reasons
    gpu_hours: Parts


class LedgerGroup(LedgerSums):
    """One group's parts."""

    group: dict[str, str | int | None] = Field(description=_KEYS, examples=[{"node": "gpu-node-a"}])
    who: str | None = Field(description=_WHO, examples=[None])
    gpus: int = Field(description="GPUs concerned.", examples=[8])


class Ledger(BaseModel):
    """The wall time of a range, divided."""

    range: Range
    group_by: str = Field(description="The grouping.", examples=["node"])
    groups: list[LedgerGroup]
    total: LedgerSums
    gpus: int = Field(description="GPUs with wall time in the range.", examples=[8])
    coverage: float = Field(description=_COVERAGE, examples=[0.9987])


class Evidence(BaseModel):
    """What says that a holder is idle, since `since`."""

    samples: int = Field(description="Samples that tell its activity.", examples=[720])
    unmeasured_samples: int = Field(description="Samples that don't.", examples=[0])
    utilization_max: float | None = Field(description="Most use in one of them, % of a GPU.", examples=[0.0])
    utilization_mean: float | None = Field(description="Mean use, % of a GPU.", examples=[0.0])
    memory_used: float | None = Field(description="GPU memory it has now, MiB.", examples=[19000.5])
    process_count: int | None = Field(description="Processes it has on the GPU now.", examples=[1])
    energy_wh: float | None = Field(description="Energy it was charged with meanwhile, Wh.", examples=[60.2])
    method: str | None = Field(description="How its use is found.", examples=["exclusive"])
    coverage: float = Field(
        description="Share of the time since then that those samples cover, 0 to 1.", examples=[1.0]
    )


class Holder(BaseModel):
    """A container that holds a GPU, or a MIG instance."""

    gpu_uuid: str | None = Field(
        description="The GPU's identity.", examples=["GPU-8f0c1d3e-5b7a-4c1e-9d2f-3a6b8c0d1e2f"]
    )
    client_name: str = Field(examples=["gpu-node-a"])
    gpu_id: int = Field(examples=[0])
    gpu_name: str | None = Field(examples=["NVIDIA H100 80GB HBM3"])
    node: str = Field(examples=["gpu-node-a"])
    mig_uuid: str | None = Field(description="The MIG instance, where it is one.")
    namespace: str | None = Field(examples=["research"])
    pod: str | None = Field(examples=["notebook-7"])
    container: str | None = Field(examples=["jupyter"])
    pod_uid: str | None = Field(description="The pod's UID.")
    owner_kind: str | None = Field(examples=["StatefulSet"])
    owner_name: str | None = Field(examples=["notebook"])
    gpu_share: float = Field(description="Share of the GPU that it holds, 0 to 1.", examples=[1.0])
    since: str = Field(description="Since when it is idle, UTC.", examples=["2026-11-24T09:00:00.000Z"])
    since_at_least: bool = Field(
        description="True: maybe for longer. The range does not reach back to its last use, or the rows of that "
        "hour are deleted."
    )
    idle_seconds: float = Field(description="Measured idle time since then, s.", examples=[3600.0])
    gpu_hours_wasted: float = Field(description="The share held, times that time, GPU-h.", examples=[1.0])
    cost: float | None = Field(description="Those hours at the GPU's price.", examples=[2.5])
    evidence: Evidence


class IdleTotal(BaseModel):
    """All idle holders together."""

    holders: int = Field(description="Idle holders.", examples=[1])
    gpu_hours_wasted: float = Field(description="GPU-h.", examples=[1.0])
    cost: float | None = Field(description="Those hours at the GPUs' prices.", examples=[2.5])


class Idle(BaseModel):
    """Who holds GPUs now and does not use them."""

    range: Range
    currency: str | None = Field(description=_CURRENCY, examples=["USD"])
    idle: list[Holder] = Field(description="The largest waste first.")
    unmeasured: list[Holder] = Field(description="Holders whose activity can't be measured: perhaps busy.")
    total: IdleTotal


class Point(BaseModel):
    """A bucket."""

    t: str = Field(description="When it begins, UTC.", examples=["2026-11-24T17:00:00.000Z"])
    value: float | None = Field(description="null where there is no reading.", examples=[402.1])
    samples: int = Field(description="Samples that touch it.", examples=[60])


class Series(BaseModel):
    """A metric over time."""

    range: Range
    metric: str = Field(examples=["power_draw"])
    unit: str = Field(description="Of the values; of a counter, per second.", examples=["W"])
    aggregate: str = Field(examples=["mean"])
    step_seconds: float = Field(description="Length of a bucket, s.", examples=[300.0])
    points: list[Point] = Field(description="Every bucket, in order.")


class UsageAnswer(BaseModel):
    """Envelope."""

    success: bool = True
    data: Usage


class LedgerAnswer(BaseModel):
    """Envelope."""

    success: bool = True
    data: Ledger


class IdleAnswer(BaseModel):
    """Envelope."""

    success: bool = True
    data: Idle


class SeriesAnswer(BaseModel):
    """Envelope."""

    success: bool = True
    data: Series


class UtilizationGroup(BaseModel):
    """The readings of one group."""

    group: dict[str, str | int | None] = Field(description=_KEYS, examples=[{"node": "gpu-node-a"}])
    readings: int = Field(description="How many there are.", examples=[8640])
    mean: float = Field(description="Their mean, %.", examples=[61.5])
    min: float = Field(description="The lowest, %.", examples=[0.0])
    max: float = Field(description="The highest, %.", examples=[100.0])
    percentiles: dict[str, float] = Field(
        description="p50, p90, p95, p99: the least reading that so many percent of them do not exceed, %.",
        examples=[{"p50": 64.0, "p90": 97.0, "p95": 99.0, "p99": 100.0}],
    )


class UtilizationData(BaseModel):
    """Readings of a range."""

    range: Range
    group_by: str = Field(description="As asked.", examples=["node"])
    groups: list[UtilizationGroup] = Field(
        description="In the keys' order; a group without a reading is not in it."
    )


class UtilizationAnswer(BaseModel):
    """How hard GPUs worked."""

    success: bool = True
    data: UtilizationData
