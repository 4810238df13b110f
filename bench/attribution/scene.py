"""The language of scenes: one node, its pods and processes over time, and with them the truth.

A scene says what *is*: which pod holds what, which process works how hard for whom, and when. From it follow what
the driver, the kubelet, the Kubernetes API and /proc show (`node`), and what a right answer is (`truth`). Times
are seconds since the measured range begins; what has no start was there before, what has no end outlives it.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

_NAMES = uuid.uuid5(uuid.NAMESPACE_DNS, "attribution.bench.gpumon.invalid")

Key = tuple[str | None, str | None, str | None]
"""(namespace, pod, container) of a user, as answers name it."""

HOST: Key = (None, None, None)
"""Processes that belong to no pod."""

Window = tuple[float, float]
ALWAYS: Window = (-math.inf, math.inf)


@dataclass(frozen=True)
class Gpu:
    """`replicas` is into how many the device plugin shares it out, or each of its MIG instances."""

    model: str = "h100-sxm"
    mig: tuple[str, ...] = ()
    replicas: int = 1


@dataclass(frozen=True)
class Device:
    """What the kubelet gives a container: a GPU by index, a replica of it, or a MIG instance by index."""

    gpu: int = 0
    replica: int | None = None
    mig: int | None = None


@dataclass(frozen=True)
class Pod:
    """A pod, by container the devices that it has. `listed` is when the kubelet lists it and the API knows it;
    `incarnation` tells pods of one name apart. In `annotations`, {gpu[0]} stands for a GPU's UUID.

    `shares` is what it truly holds, by GPU, where that is not what its devices say."""

    name: str
    containers: Mapping[str, tuple[Device, ...]] = field(default_factory=lambda: {"main": ()})
    namespace: str = "ml"
    incarnation: int = 0
    finished: bool = False
    listed: Window = ALWAYS
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    shares: Mapping[int, float] | None = None

    @property
    def uid(self) -> str:
        """Its UID."""
        return str(uuid.uuid5(_NAMES, f"{self.namespace}/{self.name}/{self.incarnation}"))

    def key(self, container: str = "main") -> Key:
        """One of its containers, as answers name it."""
        return self.namespace, self.name, container


def pod(name: str, *devices: Device, **more: object) -> Pod:
    """A pod with one container."""
    return Pod(name, {"main": devices}, **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Process:
    """A process on a GPU, or in a MIG instance of it. `pod` None: the host's. `load` is in percent of the GPU or
    instance; with `then`, (from when, load), it changes. `works_for` is whose the work is where that is not the
    process's own pod, with each one's load: an MPS server's clients. `comm` is its command's name."""

    pid: int
    pod: Pod | None
    load: float = 0.0
    gpu: int = 0
    container: str = "main"
    then: tuple[tuple[float, float], ...] = ()
    runs: Window = ALWAYS
    mig: int | None = None
    kind: str = "compute"
    works_for: tuple[tuple[Pod, float], ...] = ()
    comm: str = "python3"

    @property
    def steps(self) -> list[tuple[Window, float]]:
        """Its loads, each with its time, without gaps."""
        starts = [self.runs[0], *(at for at, _ in self.then)]
        loads = [self.load, *(load for _, load in self.then)]
        return list(zip(zip(starts, [*starts[1:], self.runs[1]], strict=True), loads, strict=True))

    def key(self) -> Key:
        """Whose it is."""
        return HOST if self.pod is None else self.pod.key(self.container)


@dataclass(frozen=True)
class Scene:
    """One node. `remark` is what the driver's data do not allow here, in words for the table; `exact` is whether
    they allow an error below a percent.

    `kubelet_down` and `agent_down` are when either is away, `clock_ahead` is when the node's clock is
    `clock_ahead_seconds` ahead. Without `host_pids` the agent has a pid namespace of its own."""

    name: str
    gpus: tuple[Gpu, ...]
    pods: tuple[Pod, ...]
    processes: tuple[Process, ...]
    remark: str = ""
    exact: bool = True
    kubelet_down: Window | None = None
    agent_down: Window | None = None
    clock_ahead: Window | None = None
    clock_ahead_seconds: float = 0.0
    host_pids: bool = True
    missing_calls: tuple[str, ...] = ()

    def toml(self, node: str, begins_at: float) -> str:
        """The scenario of the simulated library; `begins_at` is when the measured range does, in Unix seconds."""
        lines = ["[[node]]", f'match = "{node}"', f"missing_calls = {_strings(self.missing_calls)}"]
        for gpu in self.gpus:
            lines += [
                "[[node.gpus]]",
                f'model = "{gpu.model}"',
                "utilization = 0",
                f"mig = {_strings(gpu.mig)}",
            ]
        for process in self.processes:
            for (start, end), load in process.steps:
                lines += [
                    "[[node.processes]]",
                    f"gpu = {process.gpu}",
                    f"pid = {process.pid}",
                    f'kind = "{process.kind}"',
                    "memory_mib = 1000",
                    f"utilization = {load}",
                ]
                lines += [] if process.mig is None else [f"mig = {process.mig}"]
                lines += [] if math.isinf(start) else [f"from = {_instant(begins_at + start)}"]
                lines += [] if math.isinf(end) else [f"to = {_instant(begins_at + end)}"]
        return "\n".join(lines) + "\n"


def _strings(values: tuple[str, ...]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"


def _instant(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
