"""A scenario: simulated GPUs, what runs on them and what goes wrong, as typed values.

They are written in TOML and read by `scenario_file`:

    [[node]]
    match = "gpumon-worker*"                      # the first entry whose glob matches the node's name counts

      [[node.gpus]]
      model = "h100-sxm"                          # a file of gpumon/agent/fakenvml/models
      count = 2
      utilization = { shape = "wave", mean = 60, swing = 30 }

      [[node.processes]]
      gpu = 0
      cmdline = "train\\.py"                      # real processes of this node; or pid = 4242
      utilization = 40                            # its own load: a GPU is as busy as its processes together
      from = 60                                   # it runs from then on, until `to`; left out: always

      [[node.processes]]
      gpu = "each"                                # as if it stood here once for each GPU of the node
      cmdline = "^python3 .* sample --gpu=\\S*{uuid}"   # of processes that tell their GPU: the kubelet gave it
      utilization = 80

      [[node.pods]]
      name = "train-7f9c4-x2x5k"
      owner = "Deployment/train"
      gpus = [0]
      pids = [4242]

      [[node.events]]
      gpu = 1
      at = 300                                    # seconds after the start, or a TOML date-time with Z
      xid = 79                                    # 79: the GPU is lost from then on

      [[node.faults]]
      call = "nvmlDeviceGetPowerUsage"
      error = "Unknown"
      every = 3

`cmdline` is searched in the words of a command line, joined by spaces. `{uuid}` in it stands for the UUID of the
entry's GPU or, with `mig`, of its instance. In a pod, the variable NVIDIA_VISIBLE_DEVICES has the UUIDs of what
the kubelet gave to it, separated by commas; so it has to be a word of the command line. A shell that stays has in
its own command line what it runs, and may count as a second process. So let it give way to the program by exec,
and begin the pattern with ^ and the program's name:

    command: [sh, -c, 'exec python3 -c "import signal; signal.pause()" sample --gpu=$NVIDIA_VISIBLE_DEVICES']

Seconds count from the start of whoever reads the scenario; where several do, write date-times.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from gpumon.agent.fakenvml.loadcurve import Bursts, Load, Percent, Period, Steady, Wave

EACH: Final = "each"
UUID_PLACE: Final = "{uuid}"
"""What stands for the UUID in a pattern."""

Moment = float | datetime
Index = Annotated[int, Meta(ge=0)]
Pid = Annotated[int, Meta(gt=0, lt=2**32)]
Seconds = Annotated[float, Meta(ge=0)]
Mib = Annotated[float, Meta(ge=0)]


def instant(moment: Moment, started: float) -> float:
    """A moment of a scenario as Unix seconds; `started` is when the simulation began."""
    return moment.timestamp() if isinstance(moment, datetime) else started + moment


class MigProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One size of MIG instance."""

    compute_slices: int
    memory_mib: int


class GpuModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a product tells, and what it does not."""

    name: str
    compute_capability: tuple[int, int]
    memory_mib: int
    memory_reserved_mib: int = 0
    memory_idle_mib: int
    idle_watts: float
    limit_watts: float
    idle_celsius: float
    hot_celsius: float
    sm_clock_mhz: tuple[int, int]
    memory_clock_mhz: int | None = None
    serial: bool = False
    gpm: bool = False
    nvlinks: int = 0
    mig_max: int = 0
    mig_profiles: dict[str, MigProfile] = {}
    pcie_gib_per_second: float
    nvlink_gib_per_second: float = 0
    unsupported_calls: frozenset[str] = frozenset()
    unsupported_fields: frozenset[int] = frozenset()


class Window(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A time with an optional start and end."""

    from_: Annotated[
        Moment | None, Meta(description="seconds after the start, or a date-time with Z; left out: always before")
    ] = msgspec.field(default=None, name="from")
    to: Annotated[
        Moment | None, Meta(description="seconds after the start, or a date-time with Z; left out: for ever")
    ] = None

    def span(self, started: float) -> tuple[float, float]:
        """Start and end in Unix seconds, infinite where it has none; `started` is when the simulation began."""
        return (
            -math.inf if self.from_ is None else instant(self.from_, started),
            math.inf if self.to is None else instant(self.to, started),
        )

    def holds(self, t: float, started: float) -> bool:
        """Whether an instant (Unix seconds) lies within; `started` is when the simulation began."""
        start, end = self.span(started)
        return start <= t < end


class GpuEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One or several like GPUs."""

    model: Annotated[str, Meta(description="a GPU model")]
    count: Annotated[int, Meta(ge=1, le=64, description="how many of them")] = 1
    utilization: Annotated[
        Percent | Wave | Bursts | None,
        Meta(
            description='a number in %, or { shape = "wave", mean, swing, period_seconds }, or { shape = '
            '"bursts", busy, idle, period_seconds, duty }; left out: a wave of its own for each GPU'
        ),
    ] = None
    power_watts: Annotated[Seconds | None, Meta(description="fixed power instead of the simulated one")] = None
    temperature_celsius: Annotated[float | None, Meta(description="fixed temperature")] = None
    fan_percent: Annotated[Percent | None, Meta(description="fixed fan speed")] = None
    memory_used_mib: Annotated[Mib | None, Meta(description="memory in use")] = None
    memory_activity_percent: Annotated[
        Percent | None, Meta(description="fixed utilisation of the memory controller")
    ] = None
    clock_event_reasons: Annotated[Index | None, Meta(description="fixed bit mask")] = None
    ecc_corrected: Annotated[Index, Meta(description="ECC errors corrected")] = 0
    ecc_uncorrected: Annotated[Index, Meta(description="ECC errors not corrected")] = 0
    remapped_rows: Annotated[Index, Meta(description="rows remapped after uncorrectable errors")] = 0
    retired_pages: Annotated[Index, Meta(description="pages retired after double bit errors")] = 0
    pcie_replays: Annotated[Index, Meta(description="PCIe replays")] = 0
    mig: Annotated[
        list[str], Meta(description='MIG profiles of the model, one an instance; "" leaves a hole')
    ] = []
    lost: Annotated[
        bool | Window, Meta(description="true, or { from, to }: the GPU does not answer in that time")
    ] = False
    junk_rows: Annotated[
        bool, Meta(description="per-process utilisation also has the rows of nonsense that drivers give")
    ] = False

    def load(self, phase: float) -> Load:
        """The GPU's load; left out in the file, it is a wave whose height comes from the GPU's identity."""
        if self.utilization is None:
            mean = 15 + 70 * phase
            return Wave(mean=mean, swing=min(mean, 100 - mean) * 0.9, period_seconds=300 + 600 * phase)
        return _load(self.utilization)


def _load(utilization: float | Wave | Bursts) -> Load:
    return utilization if isinstance(utilization, Wave | Bursts) else Steady(percent=utilization)


class ProcessEntry(Window, frozen=True, kw_only=True):
    """A process with a context on a GPU, or several that a pattern finds; with a time, only then."""

    gpu: Annotated[
        Index | Literal["each"],
        Meta(
            description='index of the GPU on its node, or "each": one such entry for each GPU that is not split '
            "or, with mig, that has the instance"
        ),
    ] = 0
    pid: Annotated[Pid | None, Meta(description="process id; this or cmdline")] = None
    cmdline: Annotated[
        str | None,
        Meta(
            description="regular expression, searched in the command lines of real processes; {uuid} stands for "
            "the UUID of the GPU or, with mig, of the instance"
        ),
    ] = None
    kind: Annotated[Literal["compute", "graphics", "mps"], Meta(description='"compute", "graphics" or "mps"')] = (
        "compute"
    )
    memory_mib: Annotated[
        Mib | None, Meta(description="its memory in MiB; left out: a share of what the GPU has in use")
    ] = None
    memory_known: Annotated[bool, Meta(description="false: the driver can't tell its memory")] = True
    share: Annotated[float, Meta(ge=0, description="its weight in the GPU's utilisation")] = 1
    utilization: Annotated[
        Percent | Wave | Bursts | None,
        Meta(
            description="its own load, in % of the GPU or of the MIG instance it runs in: a number, or the shape "
            '"wave" or "bursts" as of a GPU. A GPU is then as busy as its processes together; where peaks pass '
            "100, all are scaled down"
        ),
    ] = None
    mig: Annotated[Index | None, Meta(description="index of the MIG instance it runs in")] = None

    def load(self) -> Load | None:
        """Its own load; None where it has a share of the GPU's."""
        return None if self.utilization is None else _load(self.utilization)


class PodEntry(Window, frozen=True, kw_only=True):
    """A pod that holds GPUs, for machines without Kubernetes: where a node has one, the agent asks neither kubelet
    nor API, and takes the pids of its processes for those of the pod."""

    name: Annotated[str, Meta(min_length=1, description="name of the pod")]
    namespace: Annotated[str, Meta(min_length=1, description="its namespace")] = "default"
    container: Annotated[str, Meta(min_length=1, description="its one container")] = "main"
    owner: Annotated[
        Annotated[str, Meta(pattern="^[^/]+/[^/]+$")] | None,
        Meta(description='the workload it belongs to, as "Deployment/name"'),
    ] = None
    labels: Annotated[dict[str, str], Meta(description="its labels")] = {}
    gpus: Annotated[list[Index], Meta(description="indices of the GPUs that it holds")] = []
    replicas: Annotated[
        int, Meta(ge=1, le=100, description="into so many replicas its GPUs are shared out; it holds one of each")
    ] = 1
    mig: Annotated[Index | None, Meta(description="index of the MIG instance that it holds of its GPUs")] = None
    pids: Annotated[list[Pid], Meta(description="its processes")] = []


class EventEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An Xid error."""

    gpu: Annotated[Index, Meta(description="index of the GPU on its node")] = 0
    at: Annotated[Moment, Meta(description="seconds after the start, or a date-time with Z")]
    xid: Annotated[int, Meta(gt=0, description="number of the Xid; after 79 the GPU is lost")]
    every_seconds: Annotated[Period | None, Meta(description="comes again after this time")] = None


class FaultEntry(Window, frozen=True, kw_only=True):
    """A call that fails or is slow."""

    call: Annotated[str, Meta(description="name of an NVML function, or a glob of names")]
    error: Annotated[str | None, Meta(description="what it returns instead")] = None
    delay_seconds: Annotated[Seconds, Meta(description="how long it blocks first")] = 0
    every: Annotated[int, Meta(ge=1, description="only every n-th matching call")] = 1
    gpu: Annotated[Index | None, Meta(description="only this GPU; left out: all")] = None


class NodeEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The GPUs of every node whose name matches."""

    match: Annotated[str, Meta(min_length=1, description="glob of node names")]
    gpus: Annotated[list[GpuEntry], Meta(description="the GPUs, in the order of their indices")] = []
    processes: Annotated[list[ProcessEntry], Meta(description="what runs on them")] = []
    pods: Annotated[list[PodEntry], Meta(description="pods that hold the GPUs")] = []
    labels: Annotated[dict[str, str], Meta(description="labels of the node")] = {}
    events: Annotated[list[EventEntry], Meta(description="Xid errors")] = []
    faults: Annotated[list[FaultEntry], Meta(description="calls that fail or are slow")] = []
    init_error: Annotated[str | None, Meta(description="what nvmlInit returns instead of success")] = None
    driver: Annotated[str, Meta(description="driver version")] = "580.95.05"
    cuda: Annotated[int, Meta(description="CUDA version as NVML writes it: 13000 is 13.0")] = 13000
    driver_loaded_at: Annotated[datetime, Meta(description="since when counters count")] = datetime(
        2024, 1, 1, tzinfo=UTC
    )
    missing_calls: Annotated[
        list[str], Meta(description="functions that this driver's library does not have, or globs of them")
    ] = []


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole file."""

    node: Annotated[list[NodeEntry], Meta(min_length=1, description="at least one [[node]]")]

    def entry(self, node: str) -> NodeEntry | None:
        """The entry of a node: the first whose glob matches its name. None: the node has no GPUs."""
        return next((entry for entry in self.node if fnmatchcase(node, entry.match)), None)
