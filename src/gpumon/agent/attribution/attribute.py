"""A sample's `pods` and what it says of itself about them: rules and energy over the GPU's parts; pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gpumon.agent.attribution.energy import divide_energy
from gpumon.agent.attribution.holdings import Holder
from gpumon.agent.attribution.rules import Part, Use, divide
from gpumon.agent.attribution.users import users_of
from gpumon.agent.ports import GpuUse, MigInstance, Occupant, Pod, PodDirectory, Reading

_SURENESS = ("equal-split", "process", "mig-instance", "exclusive", "unresolved", "allocation-only")
"""A GPU's method is the first of these that one of its rows has: the least sure, then what says most."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known when a GPU was sampled. `holders` None: could not be asked. `processes_trouble`: why NVML's
    pids mean nothing here, None when they do. `energy_mj` and `rest_mj` as in `energy`; None where it can't be
    told."""

    holders: tuple[Holder, ...] | None
    use: GpuUse | None
    occupants: Mapping[int, Occupant]
    processes_trouble: str | None
    pods: PodDirectory
    energy_mj: float | None = None
    rest_mj: float = 0.0
    rest_to_holders: bool = False
    unsettled: Collection[str] = ()


def attribute(sample: Reading, facts: Facts) -> Reading:
    """The fields to add to a sample of state ok: `pods`, each without what can't be told, and those of the
    catalogue that sum them up."""
    busy = busy_percent(sample)
    rows = [row for part, of in _parts(sample, facts) for row in _of_gpu(divide(part), of)]
    pods = [_wire(use, mig_uuid, facts.pods) for use, mig_uuid in rows]
    if facts.energy_mj is not None:
        only = len(rows) == 1 and rows[0][0].held and rows[0][1] is None
        parts = (
            [facts.energy_mj]
            if only
            else divide_energy(
                facts.energy_mj,
                facts.rest_mj,
                busy,
                [use.utilization for use, _ in rows],
                [use.share or 0.0 for use, _ in rows],
                rest_to_holders=facts.rest_to_holders,
            )
        )
        for pod, part_mj in zip(pods, parts, strict=True):
            if part_mj is not None:
                pod["energy_mj"] = round(part_mj, 1)
    more: Reading = {"pods": pods, **_single_pod(pods)}
    if facts.energy_mj is not None:
        more["interval_energy_mj"] = round(facts.energy_mj, 1)
    if facts.holders is not None:
        more["holder_count"] = len(facts.holders)
    methods = {use.method for use, _ in rows}
    if methods:
        more["attribution"] = next(method for method in _SURENESS if method in methods)
    notes = list(_notes(facts))
    if notes:
        more["attribution_note"] = "; ".join(notes)
    return more


def busy_percent(sample: Reading) -> float | None:
    """How busy the GPU was in the seconds the sample stands for: the mean where the driver keeps it, else the last
    second. None where it can't be read."""
    mean: float | None = sample.get("utilization_mean")
    return sample.get("utilization_gpu") if mean is None else mean


def _parts(sample: Reading, facts: Facts) -> Iterator[tuple[Part, tuple[str | None, float | None]]]:
    """The GPU, or its instances, each with (its MIG UUID, its share of the GPU). What is held of a GPU beside its
    parts, as while it is being split, is a part of which nothing can be read."""
    use = facts.use
    if use is None or use.mig is None:
        whole = _part(busy_percent(sample), sample.get("memory_used"), None, use, facts)
        parts: dict[str | None, Part] = {None: whole}
        shares: dict[str | None, float] = {None: 1.0}
    else:
        parts = {of.uuid: _part(of.busy_percent, of.memory_used_mib, of.uuid, of, facts) for of in use.mig}
        shares = {of.uuid: of.share for of in use.mig}
    for mig_uuid, part in parts.items():
        yield part, (mig_uuid, shares[mig_uuid])
    for holder in facts.holders or ():
        if holder.mig_uuid not in parts:
            yield Part(None, None, (holder,), None), (holder.mig_uuid, None)


def _part(
    busy: float | None,
    memory: float | None,
    mig_uuid: str | None,
    of: GpuUse | MigInstance | None,
    facts: Facts,
) -> Part:
    holders = facts.holders and tuple(holder for holder in facts.holders if holder.mig_uuid == mig_uuid)
    processes = None if of is None or facts.processes_trouble is not None else of.processes
    users = None if processes is None else users_of(processes, facts.occupants, facts.pods, holders or ())
    return Part(busy, memory, holders, users, facts.unsettled)


def _of_gpu(uses: list[Use], of: tuple[str | None, float | None]) -> Iterator[tuple[Use, str | None]]:
    """Rows of a part as rows of the GPU: shares and utilization scaled from the one to the other."""
    mig_uuid, share = of
    for use in uses:
        if mig_uuid is None:
            yield use, None
            continue
        yield (
            Use(
                method="mig-instance" if use.method in {"exclusive", "process"} else use.method,
                held=use.held,
                share=None if use.share is None or share is None else use.share * share,
                utilization=None if use.utilization is None or share is None else use.utilization * share,
                memory_mib=use.memory_mib,
                processes=use.processes,
                namespace=use.namespace,
                pod=use.pod,
                container=use.container,
                pod_uid=use.pod_uid,
                process_name=use.process_name,
            ),
            mig_uuid,
        )


def _wire(use: Use, mig_uuid: str | None, pods: PodDirectory) -> dict[str, Any]:
    pod = _described(use, pods)
    owner = pod.owner if pod is not None else None
    row = {
        "mig_uuid": mig_uuid,
        "namespace": use.namespace,
        "pod": use.pod,
        "container": use.container,
        "pod_uid": pod.uid if pod is not None else use.pod_uid,
        "owner_kind": owner[0] if owner else None,
        "owner_name": owner[1] if owner else None,
        "process_name": _harmless(use.process_name) or None,
        "held": use.held,
        "method": use.method,
        "gpu_share": None if use.share is None else round(use.share, 9),
        "utilization": None if use.utilization is None else round(use.utilization, 4),
        "memory_used": None if use.memory_mib is None else round(use.memory_mib, 3),
        "process_count": use.processes,
    }
    return {name: value for name, value in row.items() if value is not None}


def _harmless(name: str) -> str:
    """A command's name as the server takes it: a process may call itself what a spreadsheet would run."""
    return f"?{name[1:]}" if name.startswith(("=", "+", "-", "@")) else name


def _described(use: Use, pods: PodDirectory) -> Pod | None:
    if use.pod_uid is not None:
        return pods.by_uid(use.pod_uid)
    return pods.by_name(use.namespace, use.pod) if use.namespace and use.pod else None


def _single_pod(pods: list[dict[str, Any]]) -> Reading:
    """The pod of a GPU that has exactly one."""
    named = {(row.get("namespace"), row["pod"]) for row in pods if "pod" in row}
    if len(named) != 1 or any("pod" not in row for row in pods):
        return {}
    fields = ("namespace", "pod", "pod_uid", "owner_kind", "owner_name")
    told = {name: pods[0][name] for name in fields if name in pods[0]}
    containers = {row.get("container") for row in pods}
    return told | ({"container": pods[0]["container"]} if len(containers) == 1 and None not in containers else {})


def _notes(facts: Facts) -> Iterator[str]:
    if facts.holders is None:
        yield "the kubelet could not be asked"
    if facts.processes_trouble is not None:
        yield "no view of the host's processes"
    elif facts.use is None:
        yield "processes are not read"
    elif facts.use.mig is None and facts.use.processes is None:
        yield f"processes can't be read: {facts.use.why_not}"[:150]
    elif (
        any(process.sm_percent is None for process in facts.use.processes or ())
        and len(facts.use.processes or ()) > 1
    ):
        yield "the driver does not tell per-process use"
    if facts.pods.trouble is not None:
        yield "the Kubernetes API could not be asked"
