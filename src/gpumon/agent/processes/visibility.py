"""Whether the processes seen in a /proc are those that NVML tells of, all of them.

To be in a pid namespace of our own proves nothing against it: so is all that runs in a sandbox, or on a node of
kind, where everything is as it should be. In a pod it is decided by pid 1. With hostPID that is the node's first
process: an init by its name or, as on k3d, anything that is in no pod. Without, it is our pod's own, in our
container's cgroup or in one beside it (shareProcessNamespace). Outside Kubernetes `docker run` without
`--pid=host` looks like any sandbox, so nothing is said; pids that are not found stay unresolved.

A /proc of the host that is mounted into a container with a pid namespace of its own does not help: NVIDIA's
drivers know pid namespaces by now (`osFindNsPid` in the open kernel modules). To a caller in one they give the
pids that processes have there, and leave out those that have none; in the host's /proc the same number is another
process.
"""

from __future__ import annotations

from pathlib import Path

from gpumon.agent.processes import cgroups
from gpumon.agent.processes.files import ProcFiles

_INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""Its inode is fixed in the kernel: PROC_PID_INIT_INO."""
_INITS = {b"systemd", b"init"}


def find_trouble(files: ProcFiles, *, in_cluster: bool) -> str | None:
    """Why the processes of this /proc can't be told apart by pod, as a sentence with what to do; None when they
    can. `in_cluster`: the agent runs in a pod."""
    try:
        status, own_place = files.read("self/status"), files.cgroup("self")
    except OSError:
        return (
            f"{files.root} is no /proc of Linux that lists this agent: name the right one in [ATTRIBUTION] "
            "proc_root; on other systems processes can't be told apart by pod"
        )
    try:
        first, place_of_first = files.stat(1), files.cgroup(1)
    except OSError:
        return (
            f"{files.root} hides the processes of other users, pid 1 among them: mount it without hidepid or give "
            "the agent the capability SYS_PTRACE; under SELinux, let it run as spc_t"
        )
    is_of_our_pod = place_of_first == own_place or cgroups.is_in_some_pod(place_of_first, in_cluster=True)
    is_a_nodes = first.comm in _INITS or not is_of_our_pod or _is_in_initial_namespace(files)
    if _is_nested(status) or (in_cluster and not is_a_nodes):
        return (
            "the agent is in a pid namespace of its own, where NVML does not tell of the processes of other pods: "
            "set agent.hostPID: true in the chart (hostPID: true in the pod, --pid=host for Docker) and "
            "[ATTRIBUTION] proc_root to /proc"
        )
    return None


def _is_nested(status: bytes) -> bool:
    """Whether the agent's pid namespace is one below that of the /proc it reads: then it has a pid in both, and so
    two after `NSpid:` (Linux 4.1)."""
    pids = next((line for line in status.splitlines() if line.startswith(b"NSpid:")), b"")
    return len(pids.split()) > 2


def _is_in_initial_namespace(files: ProcFiles) -> bool:
    try:
        return str(Path(files.root, "self/ns/pid").readlink()) == _INITIAL_PID_NAMESPACE
    except OSError:
        return False
