"""The stage between sampler and batcher: adds to each sample whose the GPU's use is.

    sampler ──sample──▶ attributor ──sample with pods──▶ batcher
                  │          ▲
             (ask soon)      │ holders (kubelet), occupants (/proc), pods (Kubernetes API)
                  └──▶ Holders

Works in the sampler's thread and asks nobody who may hang: holders and pods come from memory, `/proc` is the
kernel's. Each source may be missing; the sample then says so. Samples without readings pass as they are, since
nothing is known of the GPU, its use included.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from gpumon import clock
from gpumon.agent.attribution.attribute import Facts, attribute
from gpumon.agent.attribution.deviceids import KnownGpu, KnownInstance
from gpumon.agent.attribution.energy import EnergyMeter
from gpumon.agent.attribution.holders import Holders, Told
from gpumon.agent.attribution.holdings import Holder
from gpumon.agent.counts import AttributionCounts
from gpumon.agent.ports import USE, GpuProcess, GpuUse, Occupant, PodDirectory, Processes, Reading
from gpumon.clock import Monotonic
from gpumon.logs import Trouble

log = logging.getLogger(__name__)

LABELS_EVERY_SECONDS = 300.0
"""Labels change seldom and the server remembers them: each is sent when it is new, and now and then again, so that
no lost batch hides them for long."""
CORDONED = "cordoned"


@dataclass(slots=True)
class _OfGpu:
    """What is kept of one GPU from sample to sample. `appeared` is when each pod was first seen without a
    holder."""

    meter: EnergyMeter
    known: KnownGpu
    appeared: dict[str, float] = field(default_factory=dict)


class Attributor:
    """`take` each sample; `emit` gets it with `pods`. `holders` None: the kubelet is not asked, so nobody knows
    who holds what, or, outside Kubernetes, nobody holds anything. `rest_watts` and `rest_to_holders` as in
    `energy`."""

    def __init__(
        self,
        emit: Callable[[Reading], None],
        holders: Holders | None,
        processes: Processes,
        pods: PodDirectory,
        counts: AttributionCounts,
        *,
        in_kubernetes: bool,
        rest_watts: float,
        rest_to_holders: bool,
        monotonic: Monotonic = clock.monotonic,
    ) -> None:
        self._emit = emit
        self._holders = holders
        self._processes = processes
        self._pods = pods
        self._counts = counts
        self._in_kubernetes = in_kubernetes
        self._rest_watts = rest_watts
        self._rest_to_holders = rest_to_holders
        self._monotonic = monotonic
        self._gpus: dict[str, _OfGpu] = {}
        self._pods_version = -1
        self._trouble = Trouble(log, "attribution", monotonic=monotonic)
        self._labels_sent: dict[str, tuple[float, Mapping[str, str]]] = {}

    def take(self, sample: Reading) -> None:
        """Hands the sample on, attributed where there is something to attribute."""
        use: GpuUse | None = sample.pop(USE, None)
        node = self._pods.node
        if node is not None and node.unschedulable and "unhealthy" not in sample:
            sample["unhealthy"] = CORDONED
        gpu = self._gpus.get(sample["gpu_uuid"])
        if sample.get("state") != "ok":
            if gpu is not None:
                gpu.meter.forget()
            self._emit(sample)
            return
        if gpu is None:
            gpu = _OfGpu(EnergyMeter(self._rest_watts), KnownGpu(sample["gpu_uuid"], None))
            self._gpus[sample["gpu_uuid"]] = gpu
        try:
            self._note_gpu(gpu, use)
            sample.update(attribute(sample, self._facts(sample, gpu, use)))
            self._count(sample["pods"])
            self._add_labels(sample)
            self._trouble.ended()
        except Exception as error:  # the GPU's own readings are worth having, and the other GPUs' samples, too
            self._counts.failures += 1
            self._trouble.occurred(f"attribution failed: {error!r}", do="report this as a bug of gpumon")
            sample["attribution_note"] = "attribution failed, see the agent's log"
        self._emit(sample)

    def _facts(self, sample: Reading, gpu: _OfGpu, use: GpuUse | None) -> Facts:
        told = self._holders.told if self._holders is not None else None
        holders = self._holders_of(gpu, told)
        trouble = self._processes.trouble
        pids = [] if trouble else [process.pid for process in processes_of(use)]
        occupants = self._processes.occupants(pids) if pids else {}
        return Facts(
            holders=holders,
            use=use,
            occupants=occupants,
            processes_trouble=trouble,
            pods=self._pods,
            energy_mj=gpu.meter.interval_mj(sample),
            rest_mj=gpu.meter.rest_mj(sample),
            rest_to_holders=self._rest_to_holders,
            unsettled=self._unsettled(gpu, holders, told, occupants),
        )

    def _holders_of(self, gpu: _OfGpu, told: Told | None) -> tuple[Holder, ...] | None:
        if self._holders is None:
            return None if self._in_kubernetes else ()
        if told is None:
            return None
        return self._holders.holdings(told, tuple(of.known for of in self._gpus.values())).of(gpu.known.uuid)

    def _unsettled(
        self,
        gpu: _OfGpu,
        holders: tuple[Holder, ...] | None,
        told: Told | None,
        occupants: Mapping[int, Occupant],
    ) -> set[str]:
        """The pods on the GPU that hold nothing of it, as far as is known, and have come after the kubelet was
        asked: whether they were given it is not known yet. Has the kubelet asked when one is new. A pod that has
        finished and whose processes are still ending was given it, too."""
        if self._holders is None or holders is None or told is None:
            return set()
        held = {(holder.namespace, holder.pod) for holder in holders}
        strangers, ending = set(), set()
        for occupant in occupants.values():
            pod = self._pods.by_uid(occupant.pod_uid) if occupant.pod_uid else None
            if occupant.pod_uid and (pod is None or (pod.namespace, pod.name) not in held):
                strangers.add(pod.uid if pod is not None else occupant.pod_uid)
                if pod is not None and pod.finished:
                    ending.add(pod.uid)
        now = self._monotonic()
        if strangers - gpu.appeared.keys():
            self._holders.ask_soon()
        gpu.appeared = {uid: gpu.appeared.get(uid, now) for uid in strangers}
        return ending | {uid for uid, at in gpu.appeared.items() if at >= told.asked_at}

    def _note_gpu(self, gpu: _OfGpu, use: GpuUse | None) -> None:
        """Takes note of how the GPU is split. Has the kubelet asked when pods have changed."""
        if use is not None:
            known = known_gpu(gpu.known.uuid, use)
            unread = use.mig is None and use.processes is None
            gpu.known = replace(known, instances=gpu.known.instances) if unread else known
            for other in [of for of in self._gpus.values() if of is not gpu and of.known.has_place_of(gpu.known)]:
                del self._gpus[other.known.uuid]  # it was replaced: its minor number names this one now
        if self._holders is None:
            return
        version = self._pods.version
        if version != self._pods_version:
            self._pods_version = version
            self._holders.ask_soon()

    def _count(self, pods: list[Reading]) -> None:
        for row in pods:
            method = row["method"]
            self._counts.rows[method] = self._counts.rows.get(method, 0) + 1
            self._counts.conflicts += row.get("held") is False

    def _add_labels(self, sample: Reading) -> None:
        for row in sample["pods"]:
            pod = self._pods.by_uid(row["pod_uid"]) if "pod_uid" in row else None
            if pod is not None and pod.labels and self._is_due(pod.uid, pod.labels):
                row["labels"] = dict(pod.labels)
        node = self._pods.node
        if node is not None and node.labels and self._is_due("node", node.labels):
            sample["node_labels"] = dict(node.labels)

    def _is_due(self, whose: str, labels: Mapping[str, str]) -> bool:
        now = self._monotonic()
        sent_at, sent = self._labels_sent.get(whose, (None, None))
        if sent_at is not None and sent == labels and now - sent_at < LABELS_EVERY_SECONDS:
            return False
        for old in [uid for uid, (at, _) in self._labels_sent.items() if now - at > 2 * LABELS_EVERY_SECONDS]:
            del self._labels_sent[old]
        self._labels_sent[whose] = (now, labels)
        return True


def known_gpu(uuid: str, use: GpuUse | None) -> KnownGpu:
    """A GPU and its instances, as device ids may name them; without `use`, by its UUID alone."""
    if use is None:
        return KnownGpu(uuid, None)
    instances = tuple(KnownInstance(of.uuid, of.gpu_instance, of.compute_instance) for of in use.mig or ())
    return KnownGpu(uuid, use.minor_number, instances)


def processes_of(use: GpuUse | None) -> list[GpuProcess]:
    """The processes on a GPU, those of its instances among them; empty where they could not be asked."""
    if use is None:
        return []
    parts = [use.processes] if use.mig is None else [instance.processes for instance in use.mig]
    return [process for processes in parts for process in processes or ()]
