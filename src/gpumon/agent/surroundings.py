"""Where an agent runs: on which node, in a pod or not, with real GPUs or simulated ones."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpumon.agent.settings import AgentSettings

if TYPE_CHECKING:
    from gpumon.agent.fakecluster import FakeCluster  # at run time only where GPUs are simulated


@dataclass(frozen=True, slots=True)
class Surroundings:
    """`client` is the name as people see it, `node` that of the Kubernetes node, None outside. `in_pod`: in a pod
    of a cluster. `kubernetes`: on a node of one, in a pod or not."""

    client: str
    node: str | None = None
    in_pod: bool = False
    kubernetes: bool = False

    @classmethod
    def look(cls, settings: AgentSettings, environ: Mapping[str, str]) -> Surroundings:
        """The name is the setting, else NODE_NAME, else the host's. In a pod the API's address is in the
        environment; on a node the kubelet's folder is on disk."""
        node = environ.get("NODE_NAME", "").strip() or None
        wanted = settings.kubernetes
        in_pod = "KUBERNETES_SERVICE_HOST" in environ
        on_node = bool(wanted.kubelet_socket) and _is_there(Path(wanted.kubelet_socket).parent)
        told = bool(wanted.kubeconfig) or wanted.pod_metadata == "on"
        return cls(
            settings.authentication.client_name or node or socket.gethostname(),
            node,
            in_pod,
            in_pod or on_node or told,
        )


def _is_there(folder: Path) -> bool:
    """Whether there is such a folder, be it one that may not be looked into."""
    try:
        return folder.is_dir()
    except PermissionError:
        return True


@dataclass(frozen=True, slots=True)
class Simulated:
    """What is simulated: always the GPUs; with `cluster`, whose they are, too."""

    cluster: FakeCluster | None = None
