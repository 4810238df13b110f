"""The kubelet's socket, the resources that it gives out, and the dialect of their device ids."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpumon import clock
from gpumon.agent.attribution.deviceids import Devices, dialect
from gpumon.agent.attribution.holdings import Holdings, holdings
from gpumon.agent.doctor.finding import BROKEN, NOT_NEEDED, OK, Finding, Site, after, counted, some
from gpumon.agent.doctor.gpuchecks import NVML
from gpumon.agent.doctor.gpus import SeenGpus
from gpumon.agent.ports import ContainerDevices, PodDirectory, PodResources
from gpumon.errors import KubeletUnavailable

KUBELET = "kubelet"
RESOURCES = "resources"
DEVICE_IDS = "device-ids"


@dataclass(frozen=True, slots=True)
class SeenKubelet:
    """What the kubelet said. `trouble` says why it said nothing, and `cause` is the error beneath. `socket` is the
    file with its rights, as far as they can be seen."""

    socket: str
    containers: Sequence[ContainerDevices] = ()
    allocatable: Mapping[str, frozenset[str]] | None = None
    milliseconds: float = 0.0
    trouble: str | None = None
    cause: BaseException | None = None


def see_kubelet(kubelet: PodResources, socket: Path | None) -> SeenKubelet:
    """Asks the kubelet once, and closes the connection. `socket` None: it is simulated."""
    shown = "a simulated kubelet" if socket is None else _rights(socket)
    try:
        allocatable = kubelet.list_allocatable()
        began = clock.monotonic()  # with a connection that is there, as the agent has one
        containers = kubelet.list_containers()
        return SeenKubelet(shown, containers, allocatable, (clock.monotonic() - began) * 1000)
    except KubeletUnavailable as error:
        return SeenKubelet(shown, trouble=str(error), cause=error.__cause__)
    finally:
        kubelet.close()


def check_kubelet(seen: SeenKubelet, site: Site) -> Finding:
    """Whether the kubelet says who holds devices."""
    if seen.trouble is not None:
        return Finding(KUBELET, BROKEN, f"{seen.trouble} Seen: {seen.socket}", _kubelet_fix(seen.cause, site))
    return Finding(
        KUBELET,
        OK,
        f"{seen.socket} answers in {seen.milliseconds:.1f} ms; {counted(len(seen.containers), 'container')} with "
        "devices",
    )


def held(seen: SeenKubelet, gpus: SeenGpus, pods: PodDirectory, resource_names: Sequence[str]) -> Holdings:
    """Who holds what of the GPUs that were seen."""
    devices = Devices(gpu.known for gpu in gpus.gpus)
    return holdings(seen.containers, seen.allocatable, devices, pods, resource_names)


def check_resources(seen: SeenKubelet, gpus: SeenGpus, found: Holdings, site: Site) -> Finding:
    """Whether what counts as a GPU by its name is one of this node's."""
    if seen.trouble is not None:
        return after(RESOURCES, KUBELET)
    if not gpus.gpus:
        return after(RESOURCES, NVML)
    strangers = _in_dialect(found, known=True)
    if strangers:
        return Finding(
            RESOURCES,
            BROKEN,
            f"{_ids(strangers)}: none of the {counted(len(gpus.gpus), 'GPU')} that NVML lists here",
            site.all_gpus
            + f"; if the resource is no GPU, leave it out of {site.setting('kubernetes', 'resource_names')}",
        )
    return Finding(RESOURCES, OK, _resources(seen, gpus, found))


def check_device_ids(seen: SeenKubelet, gpus: SeenGpus, found: Holdings, site: Site) -> Finding:
    """Whether the form of the device ids is understood."""
    if seen.trouble is not None:
        return after(DEVICE_IDS, KUBELET)
    if not gpus.gpus:
        return after(DEVICE_IDS, NVML)
    riddles = _in_dialect(found, known=False)
    if riddles:
        return Finding(
            DEVICE_IDS,
            BROKEN,
            f"{_ids(riddles)}: a form of device id that gpumon does not know",
            "report these ids to gpumon's authors, with the device plugin that made them; if the resource is no "
            f"GPU, leave it out of {site.setting('kubernetes', 'resource_names')}",
        )
    if not found.dialects:
        return Finding(DEVICE_IDS, NOT_NEEDED, "no container holds a GPU now")
    return Finding(DEVICE_IDS, OK, ", ".join(f"{count} {name}" for name, count in sorted(found.dialects.items())))


def _rights(socket: Path) -> str:
    try:
        found = socket.stat()
    except OSError as error:
        there = next((str(folder) for folder in socket.parents if folder.exists()), "nothing")
        return f"{socket} ({error.strerror}; of its path there is {there})"
    user = os.geteuid() if hasattr(os, "geteuid") else "?"
    return f"{socket} ({stat.filemode(found.st_mode)}, owner {found.st_uid}:{found.st_gid}, agent runs as {user})"


def _kubelet_fix(cause: BaseException | None, site: Site) -> str:
    if isinstance(cause, FileNotFoundError | NotADirectoryError):
        return site.either(
            "set the chart value agent.kubeletRootDir to the kubelet's --root-dir, or agent.platform to the "
            "node's (k0s, microk8s, …)",
            "set [KUBERNETES] kubelet_socket to <kubelet root>/pod-resources/kubelet.sock; empty, if this machine "
            "is no node of Kubernetes",
        )
    if isinstance(cause, PermissionError):
        return site.either(
            "set the chart value agent.securityContext.runAsUser to 0 (under SELinux also "
            "seLinuxOptions.type: spc_t)",
            "run the agent as root",
        )
    return (
        "see on the node whether the kubelet runs (systemctl status kubelet) and what its log says; a slow one "
        f"needs a longer {site.setting('kubernetes', 'kubelet_timeout')}"
    )


def _resources(seen: SeenKubelet, gpus: SeenGpus, found: Holdings) -> str:
    """Each resource that is GPUs, with how many there are and are held."""
    devices = Devices(gpu.known for gpu in gpus.gpus)
    offered = {
        resource: sum(devices.resolve(device_id) is not None for device_id in ids)
        for resource, ids in (seen.allocatable or {}).items()
    }
    names = sorted(found.resources.keys() | {name for name, number in offered.items() if number})
    if not names:
        return (
            "the kubelet has no GPU of this node to give out, and nobody holds one: no device plugin runs here, "
            "or its GPUs are given out by claim (DRA)"
        )
    return ", ".join(
        f"{name}: {found.resources.get(name, 0)} held" + (f" of {offered[name]}" if offered.get(name) else "")
        for name in names
    )


def _in_dialect(found: Holdings, *, known: bool) -> dict[str, list[str]]:
    """The ids that are no GPU of this node, by resource, in a form that is known, or is not."""
    chosen = {
        resource: [device_id for device_id in ids if (dialect(device_id) is not None) is known]
        for resource, ids in found.unknown.items()
    }
    return {resource: ids for resource, ids in chosen.items() if ids}


def _ids(by_resource: Mapping[str, Collection[str]]) -> str:
    return "; ".join(f"{resource}: {some(ids)}" for resource, ids in sorted(by_resource.items()))
