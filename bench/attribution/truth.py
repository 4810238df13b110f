"""What a right answer is, and what two other ways to answer would have said; pure.

Truth and baselines are taken over the seconds that the stored samples stand for, within the measured range: what
nobody has sampled nobody can know, and the ledger has to call it no data. A sample stands for its interval, and
never reaches back beyond the sample before it.

The baselines divide the same samples by the same listings of the kubelet: `cloned` gives the GPU's value to every
container that shares it, `last` to the one that is listed last.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bench.attribution.node import Node
from bench.attribution.scene import Key, Pod, Process, Window

Seconds = Mapping[Key, float]
"""GPU-seconds of each user."""


@dataclass(frozen=True)
class Sampled:
    """Seconds of the range that one sample of a GPU stands for. `busy` is the share of it that the GPU said was in
    use, None where it said nothing."""

    gpu: int
    begins: float
    ends: float
    busy: float | None

    def overlap(self, window: Window) -> float:
        """Seconds that lie within a window."""
        return max(0.0, min(self.ends, window[1]) - max(self.begins, window[0]))


def sampled(folder: Path, node: Node, begins_at: float, seconds: float) -> list[Sampled]:
    """What a node's samples stand for, from the server's CSV files."""
    by_gpu: dict[int, list[tuple[float, float, float | None]]] = defaultdict(list)
    for path in sorted(folder.glob("gpu_metrics_*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["client_name"] == node.name:
                    at = datetime.fromisoformat(row["sampled_at"]).timestamp() - begins_at
                    busy = float(row["utilization_gpu"]) / 100 if row["utilization_gpu"] else None
                    by_gpu[int(row["gpu_id"])].append((at, float(row["interval_seconds"]), busy))
    found = []
    for gpu, rows in by_gpu.items():
        rows.sort(key=lambda row: row[0])
        befores = [float("-inf"), *(at for at, *_ in rows)]
        for before, (at, interval, busy) in zip(befores, rows, strict=False):
            begins, ends = max(0.0, at - interval, before), min(at, seconds)
            if ends > begins:
                found.append(Sampled(gpu, begins, ends, busy))
    return found


def active(node: Node, samples: Iterable[Sampled]) -> Seconds:
    """The GPU-seconds in which the GPUs worked for each user."""
    worked: dict[Key, float] = defaultdict(float)
    for key, _, seconds in _work(node, samples):
        worked[key] += seconds
    return worked


def unallocated(node: Node, samples: Iterable[Sampled]) -> float:
    """The GPU-seconds in which GPUs worked for users that do not hold them."""
    held = {(key, gpu) for pod in node.scene.pods for key, gpu, _ in _holdings(node, pod)}
    return sum(seconds for key, gpu, seconds in _work(node, samples) if (key, gpu) not in held)


def _work(node: Node, samples: Iterable[Sampled]) -> Iterator[tuple[Key, int, float]]:
    """Whose work, on which GPU, in GPU-seconds."""
    by_gpu = _by_gpu(samples)
    for process in node.scene.processes:
        part = _part(node, process.gpu, process.mig)
        for window, load in process.steps:
            covered = sum(sample.overlap(window) for sample in by_gpu[process.gpu])
            for key, percent in _workers(process, load):
                yield key, process.gpu, covered * part * percent / 100


def _workers(process: Process, load: float) -> list[tuple[Key, float]]:
    if process.works_for:
        return [(pod.key(), percent) for pod, percent in process.works_for]
    return [(process.key(), load)]


def allocated(node: Node, samples: Iterable[Sampled]) -> Seconds:
    """The GPU-seconds that each container truly holds."""
    holds: dict[Key, float] = defaultdict(float)
    by_gpu = _by_gpu(samples)
    for pod in node.scene.pods:
        for key, gpu, share in _holdings(node, pod):
            holds[key] += share * sum(sample.overlap(pod.listed) for sample in by_gpu[gpu])
    return holds


def _holdings(node: Node, pod: Pod) -> list[tuple[Key, int, float]]:
    if pod.shares is not None:
        return [(pod.key(), gpu, share) for gpu, share in pod.shares.items()]
    return [
        (
            pod.key(container),
            device.gpu,
            _part(node, device.gpu, device.mig) / node.scene.gpus[device.gpu].replicas,
        )
        for container, devices in pod.containers.items()
        for device in devices
    ]


def _part(node: Node, gpu: int, mig: int | None) -> float:
    """What a MIG instance is of its GPU, 0 to 1."""
    return 1.0 if mig is None else node.shares[gpu][mig]


def cloned(node: Node, samples: Iterable[Sampled]) -> Seconds | None:
    """The GPU's value for every container that is listed on it. None where the GPUs have none."""
    return _by_listing(node, samples, last_only=False)


def last(node: Node, samples: Iterable[Sampled]) -> Seconds | None:
    """The GPU's value for the container that is listed last on it. None where the GPUs have none."""
    return _by_listing(node, samples, last_only=True)


def _by_listing(node: Node, samples: Iterable[Sampled], *, last_only: bool) -> Seconds | None:
    given: dict[Key, float] = defaultdict(float)
    told = [(sample, sample.busy) for sample in samples if sample.busy is not None]
    if {sample.gpu for sample, _ in told} != set(range(len(node.scene.gpus))):
        return None
    for sample, busy in told:
        listed = [
            (each.namespace, each.pod, each.container)
            for each in node.listed_at(sample.ends)
            if any(node.gpu_of(device) == sample.gpu for ids in each.device_ids.values() for device in ids)
        ]
        for key in listed[-1:] if last_only else listed:
            given[key] += busy * (sample.ends - sample.begins)
    return given


def error(of: Seconds, truth: Seconds) -> float:
    """GPU-seconds that are with the wrong user, or with none: the sum of all differences."""
    return sum(abs(of.get(key, 0.0) - truth.get(key, 0.0)) for key in {*of, *truth})


def _by_gpu(samples: Iterable[Sampled]) -> Mapping[int, list[Sampled]]:
    by_gpu: dict[int, list[Sampled]] = defaultdict(list)
    for sample in samples:
        by_gpu[sample.gpu].append(sample)
    return by_gpu
