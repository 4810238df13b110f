"""The doors to Kubernetes, as the settings and the surroundings have them: which there are, opened and closed.

On a plain host there are none: nobody holds anything, processes are the host's, and nothing of it is trouble. In a
cluster each may be missing or broken, and the samples say so. A simulated node may bring its own.
"""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from gpumon.agent.attribution.holders import Holders
from gpumon.agent.counts import HoldersCounts
from gpumon.agent.kube import KubeDirectory, NoPodDirectory
from gpumon.agent.podresources import KubeletPodResources
from gpumon.agent.ports import PodDirectory, PodResources, Processes
from gpumon.agent.processes import ProcProcesses
from gpumon.agent.settings import AgentSettings, Kubernetes
from gpumon.agent.surroundings import Surroundings
from gpumon.tasks import Task

if TYPE_CHECKING:
    from gpumon.agent.fakecluster import FakeCluster  # at run time only where GPUs are simulated

_PROCESS_MEMORY_INTERVALS = 2
_SETTLE_SECONDS = 3.0
_LOOK_SECONDS = 0.05


def names(text: str) -> tuple[str, ...]:
    """The names in a setting that lists them, separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


class Cluster:
    """The doors of one agent. `kubelet` and `holders` are None where the kubelet is not asked."""

    def __init__(
        self,
        settings: AgentSettings,
        surroundings: Surroundings,
        counts: HoldersCounts,
        *,
        simulated: FakeCluster | None = None,
    ) -> None:
        self.kubernetes = surroundings.kubernetes or simulated is not None
        self.simulated = simulated is not None
        self._settings = settings
        self._surroundings = surroundings
        self._fake = simulated
        self._directory: KubeDirectory | None = None
        self.kubelet = self.open_kubelet()
        self.processes = self.open_processes()
        if simulated is not None:
            self.pods: PodDirectory = simulated
        else:
            self._directory = _directory(settings.kubernetes, surroundings)
            self.pods = self._directory or _no_directory(settings.kubernetes, surroundings)
        self.holders: Holders | None = None
        if self.kubelet is not None:
            self.holders = Holders(
                self.kubelet,
                self.pods,
                counts,
                resource_names=names(settings.kubernetes.resource_names),
                interval_seconds=settings.kubernetes.holders_interval,
            )
        self._holding = None if self.holders is None else Task("holders", self.holders.run)

    def open_kubelet(self) -> PodResources | None:
        """A connection to the kubelet, for one thread; None where it is not asked."""
        if self._fake is not None:
            return self._fake
        wanted = self._settings.kubernetes
        if not self._surroundings.kubernetes or not wanted.kubelet_socket or not hasattr(socket, "AF_UNIX"):
            return None
        return KubeletPodResources(Path(wanted.kubelet_socket), timeout_seconds=wanted.kubelet_timeout)

    def open_processes(self) -> Processes:
        """A view of the node's processes, for one thread."""
        if self._fake is not None:
            return self._fake
        return ProcProcesses(
            Path(self._settings.attribution.proc_root),
            in_cluster=self._surroundings.in_pod,
            memory_seconds=_PROCESS_MEMORY_INTERVALS * self._settings.monitoring.interval_seconds,
        )

    def start(self) -> None:
        """Starts to keep up with kubelet and API; returns at once."""
        if self._directory is not None:
            self._directory.start()
        if self._holding is not None:
            self._holding.start()

    def settle(self, stop: threading.Event) -> None:
        """Waits until both have answered or refused for the first time, a few seconds at most: a sample that is
        taken before could name nobody."""
        waits = 0.0
        while waits < _SETTLE_SECONDS and not (self._is_settled() or stop.wait(_LOOK_SECONDS)):
            waits += _LOOK_SECONDS

    def _is_settled(self) -> bool:
        holders, directory = self.holders, self._directory
        return (holders is None or holders.tried.is_set()) and (directory is None or directory.settled)

    def stop(self, timeout_seconds: float) -> None:
        """Stops both."""
        if self._holding is not None and self.holders is not None:
            self._holding.stopping.set()
            self.holders.wake()
            self._holding.stop(timeout_seconds)
        if self._directory is not None:
            self._directory.stop(timeout_seconds)


def _directory(wanted: Kubernetes, surroundings: Surroundings) -> KubeDirectory | None:
    asked = wanted.pod_metadata == "on" or (
        wanted.pod_metadata == "auto" and (surroundings.in_pod or bool(wanted.kubeconfig))
    )
    if not asked:
        return None
    return KubeDirectory(
        surroundings.node or "",
        kubeconfig=wanted.kubeconfig,
        pod_labels=names(wanted.pod_labels),
        node_labels=names(wanted.node_labels),
        dynamic_resources=wanted.dynamic_resources,
    )


def _no_directory(wanted: Kubernetes, surroundings: Surroundings) -> NoPodDirectory:
    if not surroundings.kubernetes:
        return NoPodDirectory(None)
    return NoPodDirectory(f"[KUBERNETES] pod_metadata is {wanted.pod_metadata}, so the API is not asked")
