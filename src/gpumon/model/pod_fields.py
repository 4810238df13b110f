"""The catalogue of one user's part of one GPU, a row of `pod_usage_YYYYMMDD.csv`, and of chosen labels, a row of
`pods_YYYYMMDD.csv`. Device rows and pod rows are never mixed, so that no statistic of a GPU counts it twice.

A row is a container of a pod, a process of the host (no pod), or what could not be resolved (method `unresolved`).
Over the rows of one GPU at one instant `gpu_share`, `utilization` and `memory_used` add up to no more than the GPU
has; what is missing to the device's own value is known to belong to somebody, but not to whom.
"""

from __future__ import annotations

from typing import Final

from gpumon.model.field import Field, Metric
from gpumon.model.fields import BY_NAME, METHODS

_SAMPLE = (
    "timestamp",
    "gpu_id",
    "gpu_name",
    "client_name",
    "sampled_at",
    "interval_seconds",
    "node",
    "gpu_uuid",
)
"""What a row takes over from its sample: it names the GPU and the instant."""

USE_FIELDS: Final[tuple[Field, ...]] = (
    Field("mig_uuid", "text", "", "The MIG instance, where the part is one.", "nvmlDeviceGetUUID"),
    Field("namespace", "text", "", "Namespace of the pod.", "kubelet or API", kubernetes_name=True),
    Field(
        "pod",
        "text",
        "",
        "The pod. Absent for a process of the host, and for what could not be resolved.",
        "kubelet or API",
        kubernetes_name=True,
    ),
    Field("container", "text", "", "The container.", "kubelet or API", kubernetes_name=True),
    Field("pod_uid", "text", "", "The pod's UID.", "cgroup or API", kubernetes_name=True),
    Field("owner_kind", "text", "", "Kind of the workload that the pod belongs to.", "Kubernetes API"),
    Field("owner_name", "text", "", "Name of that workload.", "Kubernetes API", kubernetes_name=True),
    Field(
        "process_name",
        "text",
        "",
        "Command of a process that belongs to no pod; of several, the one with most memory.",
        "/proc/<pid>/comm",
    ),
    Field(
        "held",
        "bool",
        "",
        "Whether the kubelet has given the GPU to the container. false: used without being given. Absent: could "
        "not be asked.",
        "kubelet's PodResources",
    ),
    Field(
        "method",
        "text",
        "",
        "How the part was found. exclusive: the only holder, so all of the GPU's values are its own. process: by "
        "what the driver says of each process. mig-instance: the values of its MIG instance. equal-split: the "
        "GPU's use divided equally, because it can't be told apart; don't take it for a measurement. "
        "allocation-only: held, not used. unresolved: used by somebody who could not be named.",
        "agent",
        choices=METHODS,
    ),
    Field(
        "gpu_share",
        "float",
        "",
        "Share of the GPU that is held, 0 to 1: of a shared GPU its replicas of all, of a MIG instance its "
        "slices.",
        "kubelet's PodResources",
        0,
        1,
        metric=Metric("gpumon_pod_gpu_share"),
    ),
    Field(
        "utilization",
        "float",
        "%",
        "Share of the whole GPU's time in which it worked for this container. Absent where it can't be measured.",
        "nvmlDeviceGetProcessesUtilizationInfo, nvmlDeviceGetUtilizationRates or GPM",
        0,
        100,
        metric=Metric("gpumon_pod_gpu_utilization_ratio", 0.01),
    ),
    Field(
        "memory_used",
        "float",
        "MiB",
        "GPU memory of its processes. Absent where it can't be told.",
        "nvmlDeviceGetComputeRunningProcesses",
        0,
        2.0**24,
        metric=Metric("gpumon_pod_gpu_memory_used_bytes", 2**20),
    ),
    Field(
        "energy_mj",
        "float",
        "mJ",
        "Its part of the GPU's energy in the seconds the row stands for. Not a counter.",
        "interval_energy_mj, divided",
        0,
        1e15,
    ),
    Field(
        "process_count",
        "int",
        "",
        "Its processes on the GPU. Absent where processes can't be told apart.",
        "NVML's process lists and /proc",
        0,
        1_000_000,
        metric=Metric("gpumon_pod_gpu_processes"),
    ),
)
"""What an agent sends of each part, beside its labels."""

POD_FIELDS: Final[tuple[Field, ...]] = (
    *(BY_NAME[name] for name in _SAMPLE),
    *USE_FIELDS,
    Field(
        "gpu_utilization",
        "float",
        "%",
        "What the whole GPU did, to compare: its utilization_mean, else its utilization_gpu.",
        "nvmlDeviceGetSamples or nvmlDeviceGetUtilizationRates",
        0,
        100,
    ),
)
"""The columns of `pod_usage_YYYYMMDD.csv`."""

LABEL_FIELDS: Final[tuple[Field, ...]] = (
    BY_NAME["timestamp"],
    BY_NAME["client_name"],
    BY_NAME["sampled_at"],
    BY_NAME["node"],
    Field(
        "namespace", "text", "", "Namespace of the pod; absent where the label is the node's.", "Kubernetes API"
    ),
    Field("pod", "text", "", "The pod; absent where the label is the node's.", "Kubernetes API"),
    Field("pod_uid", "text", "", "The pod's UID; absent where the label is the node's.", "Kubernetes API"),
    Field("label", "text", "", "Key of a chosen label.", "Kubernetes API"),
    Field("value", "text", "", "Its value.", "Kubernetes API"),
)
"""The columns of `pods_YYYYMMDD.csv`: a row for each chosen label, when it is first seen on a day or has
changed."""

USE_BY_NAME: Final = {field.name: field for field in USE_FIELDS}
