"""The node's processes: whether they can be seen, their cgroup paths are understood, and their pods are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from gpumon.agent.doctor.finding import BROKEN, NOT_NEEDED, OK, Finding, Site, after, counted, some
from gpumon.agent.doctor.pods import NODE, POD_API, SeenPods
from gpumon.agent.ports import Occupant, PodDirectory, Processes
from gpumon.agent.processes import NO_POD, NOT_UNDERSTOOD, Form, ProcProcesses

HOST_PID = "host-pid"
CGROUPS = "cgroups"
MATCHING = "matching"


@dataclass(frozen=True, slots=True)
class SeenProcesses:
    """`occupants` are those of all processes on GPUs. `forms` are the ways in which cgroup paths are written,
    `own_form` that of the agent's; `simulated` pods have none."""

    trouble: str | None = None
    occupants: Mapping[int, Occupant] = field(default_factory=dict)
    forms: Mapping[str, Form] = field(default_factory=dict)
    own_form: str | None = None
    simulated: bool = False


def see_processes(agents: Processes, own: Processes, pids: Collection[int]) -> SeenProcesses:
    """Looks up the processes by a view of the doctor's `own`; what the agent's has seen since its start counts,
    too."""
    if agents.trouble is not None:
        return SeenProcesses(agents.trouble)
    occupants = own.occupants(pids)
    if not isinstance(agents, ProcProcesses) or not isinstance(own, ProcProcesses):
        return SeenProcesses(None, occupants, simulated=True)
    return SeenProcesses(None, occupants, {**agents.forms, **own.forms}, agents.own_form)


def check_host_pid(seen: SeenProcesses, site: Site) -> Finding:
    """Whether the processes that NVML tells of are those of this /proc."""
    if seen.trouble is not None:
        return Finding(
            HOST_PID,
            BROKEN,
            seen.trouble,
            site.either(
                "set the chart value agent.hostPID to true; where the namespace forbids that, only allocation can "
                f"be told: say so by {site.setting('gpu_metrics', 'include_processes')} = false",
                "run the agent in the host's pid namespace (--pid=host) and set [ATTRIBUTION] proc_root",
            ),
        )
    where = f"; the agent itself is in a pod: {seen.own_form}" if seen.own_form else ""
    return Finding(HOST_PID, OK, f"the node's processes can be seen{where}")


def check_cgroups(seen: SeenProcesses) -> Finding:
    """Whether it is understood in which pod a process is."""
    if seen.trouble is not None:
        return after(CGROUPS, HOST_PID)
    riddle = seen.forms.get(NOT_UNDERSTOOD)
    if riddle is not None:
        return Finding(
            CGROUPS,
            BROKEN,
            f"{counted(riddle.processes, 'process', 'processes')} in a pod that can't be told by the path "
            f"{riddle.example!r}",
            "report this path to gpumon's authors, with the container runtime and the kubelet's cgroup driver; "
            "until then what these processes use is shown as unresolved",
        )
    if not seen.forms:
        none = (
            "none of the processes on GPUs could be looked up" if seen.occupants else "no process is on a GPU now"
        )
        return Finding(CGROUPS, NOT_NEEDED, "pods are simulated" if seen.simulated else none)
    told = [
        f"{form}: {counted(seen.forms[form].processes, 'process', 'processes')}"
        for form in sorted(seen.forms, key=lambda form: (form == NO_POD, form))
    ]
    return Finding(CGROUPS, OK, ", ".join(told))


def check_matching(seen: SeenProcesses, pods: SeenPods, directory: PodDirectory, site: Site) -> Finding:
    """Whether the pods of processes on GPUs are known."""
    if seen.trouble is not None:
        return after(MATCHING, HOST_PID)
    if NOT_UNDERSTOOD in seen.forms:
        return after(MATCHING, CGROUPS)
    if not seen.occupants:
        return Finding(MATCHING, NOT_NEEDED, "no process is on a GPU now")
    kinds = Counter(occupant.kind for occupant in seen.occupants.values())
    total = counted(len(seen.occupants), "process", "processes")
    if kinds["unresolved"] == len(seen.occupants):
        return Finding(
            MATCHING,
            BROKEN,
            f"none of the {total} that NVML tells of is in this /proc",
            site.either(
                "set the chart value agent.hostPID to true",
                "run the agent in the host's pid namespace (--pid=host), and set [ATTRIBUTION] proc_root to /proc",
            ),
        )
    uids = [occupant.pod_uid for occupant in seen.occupants.values() if occupant.pod_uid is not None]
    rest = "".join(f", {kinds[kind]} {name}" for kind, name in _REST.items() if kinds[kind])
    if pods.trouble is not None and pods.count is not None:
        return after(MATCHING, POD_API)
    if pods.count is None and pods.trouble is not None:
        return Finding(MATCHING, NOT_NEEDED, f"{total}: {len(uids)} in pods, known by UID alone{rest}")
    strangers = sorted({uid for uid in uids if directory.by_uid(uid) is None})
    matched = sum(uid not in strangers for uid in uids)
    evidence = f"{total}: {matched} in pods that are known{rest}"
    if strangers:
        return Finding(
            MATCHING,
            BROKEN,
            f"{evidence}, {len(uids) - matched} in pods that the API does not have here: {some(strangers)}",
            f"see whether NODE_NAME (above: {NODE}) is the node that these pods run on; pods that were deleted by "
            "force leave such processes, too",
        )
    return Finding(MATCHING, OK, evidence)


_REST: Mapping[Literal["host", "unresolved"], str] = {
    "host": "of the node itself",
    "unresolved": "not to be found (ended meanwhile)",
}
