"""THE catalogue: every field of a GPU sample, once.

It drives the wire format (`model.sample`), the CSV header and order, the SQL schema, the names in
`/metrics`, `gpumon fields` and the documentation. The first thirteen are the fields of NVIDIA GPU
Metrics Logger v2, in its order, because its CSV files and clients must keep working; new fields are
appended, never inserted, so that every older file stays readable.

A field that is absent is None, an empty CSV cell, NULL, no Prometheus line. It is never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["int", "float", "text", "instant"]
SQL_TYPES: Final[dict[Kind, str]] = {
    "int": "BIGINT",
    "float": "DOUBLE",
    "text": "VARCHAR",
    "instant": "TIMESTAMP",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """How a field appears in the server's `/metrics`: Prometheus base units, so `scale` converts."""

    name: str
    scale: float = 1.0
    counter: bool = False


@dataclass(frozen=True, slots=True)
class Field:
    """One field. `low` and `high` bound what is believable (both inclusive); outside is refused."""

    name: str
    kind: Kind
    unit: str
    help: str
    source: str
    low: float | None = None
    high: float | None = None
    required: bool = False
    choices: tuple[str, ...] = ()
    kubernetes_name: bool = False
    metric: Metric | None = None

    @property
    def sql_type(self) -> str:
        """The column's DuckDB type."""
        return SQL_TYPES[self.kind]


_MAX_COUNT = 2.0**62  # NVLinks of one GPU pass an exbibyte in a month; the column is signed 64 bits wide
_MAX_MIB = 2.0**24  # 16 TiB of memory on one GPU
STATES: Final = ("ok", "lost", "unknown")

FIELDS: Final[tuple[Field, ...]] = (
    # --- the thirteen of NVIDIA GPU Metrics Logger v2
    Field(
        "timestamp",
        "instant",
        "",
        "When it was read: YYYY-MM-DD HH:MM:SS in the server's zone, or ISO 8601 "
        "with an offset. The CSV holds whole seconds in the server's zone.",
        "agent's clock",
        required=True,
    ),
    Field(
        "gpu_id",
        "int",
        "",
        "Index of the GPU on its node. A position, not an identity: see gpu_uuid.",
        "nvmlDeviceGetIndex",
        0,
        65535,
        required=True,
    ),
    Field("gpu_name", "text", "", "Product name.", "nvmlDeviceGetName", required=True),
    Field(
        "utilization_gpu",
        "float",
        "%",
        "Share of the last second or less in which any kernel ran. Absent on a MIG-enabled GPU.",
        "nvmlDeviceGetUtilizationRates",
        0,
        100,
        metric=Metric("gpumon_gpu_utilization_ratio", 0.01),
    ),
    Field(
        "utilization_memory",
        "float",
        "%",
        "Share of the last second or less in which the memory controller "
        "was busy. Not the share of memory in use.",
        "nvmlDeviceGetUtilizationRates",
        0,
        100,
        metric=Metric("gpumon_gpu_memory_controller_utilization_ratio", 0.01),
    ),
    Field(
        "memory_total",
        "int",
        "MiB",
        "Memory of the GPU.",
        "nvmlDeviceGetMemoryInfo",
        0,
        _MAX_MIB,
        metric=Metric("gpumon_gpu_memory_total_bytes", 2**20),
    ),
    Field(
        "memory_used",
        "int",
        "MiB",
        "Memory in use by processes.",
        "nvmlDeviceGetMemoryInfo",
        0,
        _MAX_MIB,
        metric=Metric("gpumon_gpu_memory_used_bytes", 2**20),
    ),
    Field(
        "memory_free",
        "int",
        "MiB",
        "Memory not in use.",
        "nvmlDeviceGetMemoryInfo",
        0,
        _MAX_MIB,
        metric=Metric("gpumon_gpu_memory_free_bytes", 2**20),
    ),
    Field(
        "temperature",
        "int",
        "°C",
        "Temperature of the GPU's die.",
        "nvmlDeviceGetTemperatureV",
        -100,
        300,
        metric=Metric("gpumon_gpu_temperature_celsius"),
    ),
    Field(
        "power_draw",
        "float",
        "W",
        "Board power, averaged by the driver over about a second.",
        "nvmlDeviceGetPowerUsage",
        0,
        100_000,
        metric=Metric("gpumon_gpu_power_watts"),
    ),
    Field(
        "power_limit",
        "float",
        "W",
        "Power limit in force.",
        "nvmlDeviceGetEnforcedPowerLimit",
        0,
        100_000,
        metric=Metric("gpumon_gpu_power_limit_watts"),
    ),
    Field(
        "fan_speed",
        "int",
        "%",
        "Fan speed as a share of the maximum; may exceed 100. Absent without a fan.",
        "nvmlDeviceGetFanSpeed",
        0,
        1000,
        metric=Metric("gpumon_gpu_fan_speed_ratio", 0.01),
    ),
    Field(
        "client_name",
        "text",
        "",
        "Who sends: in Kubernetes the node's name.",
        "setting or NODE_NAME",
        required=True,
    ),
    # --- gpumon's own
    Field(
        "sampled_at",
        "instant",
        "",
        "The exact instant, RFC 3339 in UTC with milliseconds. Where it is absent, timestamp decides.",
        "agent's clock",
    ),
    Field(
        "interval_seconds",
        "float",
        "s",
        "Seconds this sample stands for.",
        "time since the last sample",
        0,
        86_400,
    ),
    Field("node", "text", "", "Kubernetes node. Absent outside Kubernetes.", "NODE_NAME", kubernetes_name=True),
    Field("gpu_uuid", "text", "", "The GPU's identity.", "nvmlDeviceGetUUID"),
    Field(
        "mig_uuid",
        "text",
        "",
        "The MIG instance's identity, where the sample is of one.",
        "nvmlDeviceGetUUID",
    ),
    Field("pci_bus_id", "text", "", "PCI address.", "nvmlDeviceGetPciInfo"),
    Field(
        "memory_reserved",
        "int",
        "MiB",
        "Memory the driver keeps for itself.",
        "nvmlDeviceGetMemoryInfo_v2",
        0,
        _MAX_MIB,
        metric=Metric("gpumon_gpu_memory_reserved_bytes", 2**20),
    ),
    Field(
        "temperature_memory",
        "int",
        "°C",
        "Temperature of the memory.",
        "NVML_FI_DEV_MEMORY_TEMP",
        -100,
        300,
        metric=Metric("gpumon_gpu_memory_temperature_celsius"),
    ),
    Field(
        "sm_clock",
        "int",
        "MHz",
        "Clock of the streaming multiprocessors.",
        "nvmlDeviceGetClockInfo",
        0,
        100_000,
        metric=Metric("gpumon_gpu_sm_clock_hertz", 1e6),
    ),
    Field(
        "memory_clock",
        "int",
        "MHz",
        "Clock of the memory.",
        "nvmlDeviceGetClockInfo",
        0,
        100_000,
        metric=Metric("gpumon_gpu_memory_clock_hertz", 1e6),
    ),
    Field(
        "energy_mj",
        "int",
        "mJ",
        "Energy used since the driver was loaded. A counter: resets with the driver.",
        "nvmlDeviceGetTotalEnergyConsumption",
        0,
        2.0**62,
        metric=Metric("gpumon_gpu_energy_joules_total", 0.001, counter=True),
    ),
    Field(
        "pcie_rx_kib",
        "int",
        "KiB",
        "Received over PCIe since the driver was loaded. A counter, may wrap.",
        "NVML_FI_DEV_PCIE_COUNT_RX_BYTES",
        0,
        _MAX_COUNT,
        metric=Metric("gpumon_gpu_pcie_received_bytes_total", 1024, counter=True),
    ),
    Field(
        "pcie_tx_kib",
        "int",
        "KiB",
        "Sent over PCIe since the driver was loaded. A counter, may wrap.",
        "NVML_FI_DEV_PCIE_COUNT_TX_BYTES",
        0,
        _MAX_COUNT,
        metric=Metric("gpumon_gpu_pcie_sent_bytes_total", 1024, counter=True),
    ),
    Field(
        "nvlink_rx_kib",
        "int",
        "KiB",
        "Received over all NVLinks, data only. A counter.",
        "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX",
        0,
        _MAX_COUNT,
        metric=Metric("gpumon_gpu_nvlink_received_bytes_total", 1024, counter=True),
    ),
    Field(
        "nvlink_tx_kib",
        "int",
        "KiB",
        "Sent over all NVLinks, data only. A counter.",
        "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX",
        0,
        _MAX_COUNT,
        metric=Metric("gpumon_gpu_nvlink_sent_bytes_total", 1024, counter=True),
    ),
    Field(
        "ecc_uncorrected",
        "int",
        "errors",
        "Uncorrected ECC errors since the driver was loaded.",
        "nvmlDeviceGetTotalEccErrors",
        0,
        2.0**53,
        metric=Metric("gpumon_gpu_ecc_uncorrected_errors_total", counter=True),
    ),
    Field(
        "clock_event_reasons",
        "int",
        "bits",
        "Why the clocks are not higher: 1 idle, 2 application clocks, "
        "4 power cap, 8 hardware slowdown, 0x10 sync boost, 0x20 software thermal, 0x40 hardware thermal, "
        "0x80 power brake.",
        "nvmlDeviceGetCurrentClocksEventReasons",
        0,
        2.0**62,
        metric=Metric("gpumon_gpu_clock_event_reasons"),
    ),
    Field(
        "pstate",
        "int",
        "",
        "Performance state, 0 (highest) to 15.",
        "nvmlDeviceGetPerformanceState",
        0,
        15,
        metric=Metric("gpumon_gpu_performance_state"),
    ),
    Field(
        "encoder_utilization",
        "float",
        "%",
        "Utilisation of the video encoder.",
        "nvmlDeviceGetEncoderUtilization",
        0,
        100,
        metric=Metric("gpumon_gpu_encoder_utilization_ratio", 0.01),
    ),
    Field(
        "decoder_utilization",
        "float",
        "%",
        "Utilisation of the video decoder.",
        "nvmlDeviceGetDecoderUtilization",
        0,
        100,
        metric=Metric("gpumon_gpu_decoder_utilization_ratio", 0.01),
    ),
    Field(
        "sm_active",
        "float",
        "%",
        "Mean share of the multiprocessors with work, since the last sample.",
        "GPM metric 2",
        0,
        100,
        metric=Metric("gpumon_gpu_sm_active_ratio", 0.01),
    ),
    Field(
        "sm_occupancy",
        "float",
        "%",
        "Resident warps as a share of the possible ones, since the last sample.",
        "GPM metric 3",
        0,
        100,
        metric=Metric("gpumon_gpu_sm_occupancy_ratio", 0.01),
    ),
    Field(
        "tensor_active",
        "float",
        "%",
        "Share of the time in which a tensor core was busy, since the last sample.",
        "GPM metric 5",
        0,
        100,
        metric=Metric("gpumon_gpu_tensor_active_ratio", 0.01),
    ),
    Field(
        "dram_active",
        "float",
        "%",
        "Share of the memory bandwidth in use, since the last sample.",
        "GPM metric 10",
        0,
        100,
        metric=Metric("gpumon_gpu_dram_active_ratio", 0.01),
    ),
    Field(
        "process_count",
        "int",
        "",
        "Processes with a context on the GPU.",
        "nvmlDeviceGet{Compute,Graphics,MPSCompute}RunningProcesses_v3",
        0,
        1_000_000,
        metric=Metric("gpumon_gpu_processes"),
    ),
    Field(
        "state",
        "text",
        "",
        "ok: readings are fresh. lost: the GPU does not answer NVML. unknown: a call "
        "hangs, readings could not be had.",
        "agent",
        choices=STATES,
    ),
    Field(
        "namespace",
        "text",
        "",
        "Namespace of the one pod that holds or uses the GPU.",
        "kubelet or cgroup",
        kubernetes_name=True,
    ),
    Field(
        "pod",
        "text",
        "",
        "The one pod that holds or uses the GPU.",
        "kubelet or cgroup",
        kubernetes_name=True,
    ),
    Field("container", "text", "", "Its container.", "kubelet or cgroup", kubernetes_name=True),
    Field("pod_uid", "text", "", "Its UID.", "cgroup or Kubernetes API", kubernetes_name=True),
    Field("owner_kind", "text", "", "Kind of the workload that owns the pod.", "Kubernetes API"),
    Field("owner_name", "text", "", "Name of that workload.", "Kubernetes API", kubernetes_name=True),
    Field(
        "source",
        "text",
        "",
        "fake_nvml where the GPU is simulated; absent where it is real.",
        "agent",
        choices=("fake_nvml",),
    ),
)

BY_NAME: Final = {field.name: field for field in FIELDS}
CSV_COLUMNS: Final = tuple(field.name for field in FIELDS)
SEED_COLUMNS: Final = CSV_COLUMNS[:13]
