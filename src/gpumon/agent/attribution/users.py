"""From processes on a GPU to its users: containers of pods, processes of the host, and what can't be resolved;
pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gpumon.agent.attribution.holdings import Holder
from gpumon.agent.ports import GpuProcess, Occupant, Pod, PodDirectory

_MIB = 2**20
_MPS_SERVER = "nvidia-cuda-mps"
"""How the names of MPS's control daemon and server begin; the kernel keeps 15 characters."""
_UNRESOLVED = Occupant("unresolved")


@dataclass(frozen=True, slots=True)
class User:
    """The processes of one container, or of the host, or that can't be resolved, on a GPU or MIG instance.

    `kind` is `pod`; `unnamed`, a pod of which only `pod_uid` is known; `mps-server`, which works for others;
    `host`; `unresolved`. `container` is None where the pod is known and the container is not. `memory_mib` and
    `sm_percent` are sums; None where the driver can't tell one of them. `process_name` is of the process with
    most memory."""

    kind: Literal["pod", "unnamed", "mps-server", "host", "unresolved"]
    namespace: str | None = None
    pod: str | None = None
    container: str | None = None
    pod_uid: str | None = None
    process_name: str = ""
    processes: int = 0
    memory_mib: float | None = 0.0
    sm_percent: float | None = 0.0

    def is_held_by(self, holder: Holder) -> bool:
        """Whether the holder is this user. A container that is not known, on either side, is no difference."""
        same_pod = self.kind == "pod" and (self.namespace, self.pod) == (holder.namespace, holder.pod)
        return same_pod and (not self.container or not holder.container or self.container == holder.container)


def users_of(
    processes: Iterable[GpuProcess],
    occupants: Mapping[int, Occupant],
    pods: PodDirectory,
    holders: Sequence[Holder],
) -> list[User]:
    """The users, each once. Where the API does not tell what a pod is called, and there is one such pod and one
    pod of `holders` that is not seen otherwise, it is that one; else it stays `unnamed`."""
    found: dict[object, list[tuple[GpuProcess, User]]] = {}
    for process in processes:
        user = _identity(occupants.get(process.pid, _UNRESOLVED), pods)
        key = (user.kind, user.namespace, user.pod, user.container, user.pod_uid)
        found.setdefault(key, []).append((process, user))
    users = [_as_tenant(_together(members), holders) for members in found.values()]
    nameless = [holder for holder in holders if pods.by_name(holder.namespace, holder.pod) is None]
    if holders and not nameless:  # whoever has no name is none of the holders
        return [replace(user, kind="pod") if user.kind == "unnamed" else user for user in users]
    return _named_by_elimination(users, nameless)


def _identity(occupant: Occupant, pods: PodDirectory) -> User:
    is_mps = occupant.name.startswith(_MPS_SERVER)
    if occupant.kind == "unresolved":
        return User("unresolved")
    if occupant.kind == "host" or occupant.pod_uid is None:
        return User("mps-server" if is_mps else "host", process_name=occupant.name)
    pod = pods.by_uid(occupant.pod_uid)
    if pod is None:
        kind: Literal["mps-server", "unnamed"] = "mps-server" if is_mps else "unnamed"
        return User(kind, pod_uid=occupant.pod_uid, process_name=occupant.name)
    return User(
        "mps-server" if is_mps else "pod",
        pod.namespace,
        pod.name,
        _container(pod, occupant.container_id),
        pod.uid,
        occupant.name,
    )


def _container(pod: Pod, container_id: str | None) -> str | None:
    """The container's name. One that the kubelet never lists, as an init container works on what is its pod's:
    then it is the pod's only one, or None."""
    name = pod.containers.get(container_id or "")
    if name is not None and (name in pod.container_names or not pod.container_names):
        return name
    return pod.container_names[0] if len(pod.container_names) == 1 else None


def _as_tenant(user: User, holders: Sequence[Holder]) -> User:
    """A pod that holds the GPU works for itself, whatever its processes are called."""
    holds = any((user.namespace, user.pod) == (holder.namespace, holder.pod) for holder in holders)
    return replace(user, kind="pod") if user.kind == "mps-server" and holds else user


def _together(members: Sequence[tuple[GpuProcess, User]]) -> User:
    memory = [process.memory_bytes for process, _ in members]
    share = [process.sm_percent for process, _ in members]
    largest = max(members, key=lambda member: member[0].memory_bytes or 0)
    return replace(
        largest[1],
        processes=sum(process.memory_bytes != 0 for process, _ in members),
        memory_mib=None if None in memory else sum(size or 0 for size in memory) / _MIB,
        sm_percent=None if None in share else sum(percent or 0.0 for percent in share),
    )


def _named_by_elimination(users: list[User], holders: Sequence[Holder]) -> list[User]:
    unnamed = [user for user in users if user.kind == "unnamed"]
    seen = {(user.namespace, user.pod) for user in users if user.kind == "pod"}
    left = [holder for holder in holders if (holder.namespace, holder.pod) not in seen]
    if len(unnamed) != 1 or len({(holder.namespace, holder.pod) for holder in left}) != 1:
        return users
    holder = left[0]
    container = holder.container if len(left) == 1 else None
    named = replace(unnamed[0], kind="pod", namespace=holder.namespace, pod=holder.pod, container=container)
    return [named if user is unnamed[0] else user for user in users]
