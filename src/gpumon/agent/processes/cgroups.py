"""Which pod and container a process belongs to, by the text of its `/proc/<pid>/cgroup`. Pure.

Rather no pod than a wrong one. A pod's name counts only where the kubelet puts it: right below `kubepods` or its
QoS level (cgroupfs driver), in a slice whose name says kubepods itself (systemd driver), or right below the `..`
of a path that is relative to the agent's own container (private cgroup namespace). Whatever else is called pod… is
no pod.

Nested things. The outermost pod counts, whatever runs in it: Docker in a pod, or a whole cluster of kind. It is
the one that this machine's kubelet knows and gave a GPU to. If its UID can't be read, a pod further in is not
taken for it. The container is what stands right below the pod, not the last id of the path: ids further down are
of containers that this container made for itself. An id above the pod, as kind's node has in
`/docker/<id>/kubelet/kubepods/…`, is none of the pod's containers either.

CRI-O runs a monitor beside each container, in `crio-conmon-<id>` of the same pod. It is a process of that pod, so
the pod is told; but it is outside the container whose id it bears, so no container is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_HEX = "[0-9a-f]"
_UID = re.compile(
    r"[0-9a-f]{8}(?P<mark>[-_])[0-9a-f]{4}(?P=mark)[0-9a-f]{4}(?P=mark)[0-9a-f]{4}(?P=mark)[0-9a-f]{12}"
    r"|[0-9a-f]{32}",
    re.IGNORECASE | re.ASCII,
)
_SLICE = re.compile(
    r"(?P<root>[^:]+?-)??kubepods(-burstable|-besteffort)?-pod(?P<uid>[^:]+)\.slice(:(?P<colon>.*))?"
)
"""The systemd driver's name of a pod. `root` is the kubelet's cgroup root; `colon` is what containerd, where it is
not told of systemd, writes behind it."""
_SLICE_ABOVE = re.compile(r"([^:]+-)?kubepods(-burstable|-besteffort)?\.slice")
_CONTAINER_ID = f"(?P<id>{_HEX}{{64}})"
_SCOPE = re.compile(rf"(?P<runtime>[A-Za-z0-9._-]+)-{_CONTAINER_ID}\.scope")
_COLON = re.compile(rf"(?P<runtime>[A-Za-z0-9._-]+):{_CONTAINER_ID}")
_FOLDER = re.compile(rf"((?P<runtime>crio)-)?{_CONTAINER_ID}")
_RUNTIMES = {"cri-containerd": "containerd", "crio": "cri-o", "docker": "docker"}
_QOS = ("burstable", "besteffort")
_DELETED = " (deleted)"
"""What the kernel writes behind the path of a process that is a zombie when its cgroup goes."""


@dataclass(frozen=True, slots=True)
class Place:
    """A pod, and where the path tells, the container in it.

    `pod_uid` is the UID in small letters with dashes; of a static pod, whose cgroup bears the hash of its
    manifest, those 32 hex digits as they are, for they are no UID. `container_id` is 64 hex digits. `form` says
    for people how the path was written."""

    pod_uid: str
    container_id: str | None
    form: str


def parse(text: str) -> Place | None:
    """The pod of a process. `text` may have a line for each controller (v1), one in all (v2), or both, where `0::`
    is often `/`; the first line that names a pod counts. None where none does, or the pod's UID can't be read."""
    for path in _paths(text):
        place = _place(path)
        if place is not None:
            return place
    return None


def is_in_some_pod(text: str, *, in_cluster: bool) -> bool:
    """Whether a process is in a pod, be it one that `parse` can't tell: below kubepods in a way it does not know;
    or, if the agent is in a pod itself (`in_cluster`), beside its container, in `/../<container>`: a private
    cgroup namespace hides the name of the agent's own pod."""
    paths = _paths(text)
    return any("kubepods" in part for parts in paths for part in parts) or (
        in_cluster and any(len(parts) > 1 and parts[0] == ".." and _names_container(parts[1]) for parts in paths)
    )


def _paths(text: str) -> list[list[str]]:
    """The path of each line, divided at its slashes. What is no line of a cgroup file is left out."""
    lines = (line.split(":", 2) for line in text.split("\n"))
    return [
        line[2].removesuffix(_DELETED).removeprefix("/").split("/")
        for line in lines
        if len(line) == 3 and line[2].startswith("/")
    ]


def _place(parts: Sequence[str]) -> Place | None:
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    relative = ", private namespace" if ups else ""
    if ups >= 2:  # the container, its pod: the next name may be of the pods beside it
        place = _below_kubepods(parts[ups:], relative)
        if place is not None:
            return place
    above = ""  # the slice of kubepods or of a QoS level; systemd's slices bear the name of the one they are in
    for index in range(ups, len(parts)):
        part = parts[index]
        if part == ".." or not part.startswith(above):
            return None
        if part == "kubepods":
            root = ", kubelet root" if index > ups else ""
            return _below_kubepods(parts[index + 1 :], root + relative)
        if match := _SLICE.fullmatch(part):
            root = ", kubelet root" if match["root"] else ""
            return _in_slice(match, parts[index + 1 :], root + relative)
        is_above_pods = _SLICE_ABOVE.fullmatch(part) is not None
        if above and not is_above_pods:
            return None
        above = part.removesuffix(".slice") + "-" if is_above_pods else ""
    return None


def _below_kubepods(parts: Sequence[str], more: str) -> Place | None:
    """cgroupfs driver: [QoS level], pod, container."""
    parts = parts[1:] if parts and parts[0] in _QOS else parts
    uid = _uid(parts[0].removeprefix("pod")) if parts and parts[0].startswith("pod") else None
    if uid is None:
        return None
    match = _FOLDER.fullmatch(parts[1]) if len(parts) > 1 else None
    return Place(uid, match["id"] if match else None, f"cgroupfs{more}")


def _in_slice(pod: re.Match[str], below: Sequence[str], more: str) -> Place | None:
    """systemd driver: the container is the scope in the slice, or stands behind the slice's name."""
    uid = _uid(pod["uid"])
    if uid is None:
        return None
    colon = pod["colon"] is not None
    match = _COLON.fullmatch(pod["colon"]) if colon else _SCOPE.fullmatch(below[0]) if below else None
    runtime = match["runtime"] if match else ""
    is_monitor = runtime.endswith("conmon")
    name = _RUNTIMES.get(runtime.removesuffix("-conmon"), "unknown runtime")
    form = f"{name} colon" if colon else f"systemd {name}"
    return Place(uid, match["id"] if match and not is_monitor else None, form + more)


def _uid(name: str) -> str | None:
    return name.lower().replace("_", "-") if _UID.fullmatch(name) else None


def _names_container(part: str) -> bool:
    return any(pattern.fullmatch(part) for pattern in (_SCOPE, _FOLDER))
