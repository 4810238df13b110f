"""What a cluster is and what is to be done with it; pure.

| GPUs | a chart with simulated GPUs is there | the tests |
|---|---|---|
| of a real device plugin | | `real`: install the defaults beside all else |
| none | no | `mock`: install simulated GPUs in a namespace of the tests' own |
| | yes, as of `make kind-up` | `mock`, with that release: two device plugins would fight for one resource |

A release with real GPUs is never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

Json = Mapping[str, Any]

RESOURCE: Final = "nvidia.com/gpu"
PLUGIN: Final = "app.kubernetes.io/component=fake-device-plugin"
OWN_RELEASE: Final = "gpumon-e2e"
_INSTANCE = "app.kubernetes.io/instance"
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
GPU_LABELS: Final = {
    "nvidia.com/gpu.present": {"true"},
    "feature.node.kubernetes.io/pci-10de.present": {"true"},
    "feature.node.kubernetes.io/pci-0302_10de.present": {"true"},
    "feature.node.kubernetes.io/pci-0300_10de.present": {"true"},
    "cloud.google.com/gke-accelerator": None,
    "k8s.amazonaws.com/accelerator": None,
    "kubernetes.azure.com/accelerator": {"nvidia"},
    "karpenter.k8s.aws/instance-gpu-manufacturer": {"nvidia"},
    "eks.amazonaws.com/instance-gpu-manufacturer": {"nvidia"},
}
"""Labels by which the chart knows a GPU node, and their values; None is any."""


@dataclass(frozen=True)
class Plan:
    """Which release is tested. `adopted`: it was there before and stays."""

    mock: bool
    release: str
    namespace: str
    adopted: bool = False


class Unclear(Exception):
    """The cluster is in a state that the tests had better not touch; the text says why and what to do."""


def plan(nodes: Iterable[Json], plugins: Iterable[Json], own_namespace: str) -> Plan:
    """What to do in a cluster with these nodes and DaemonSets of simulated device plugins. Raises Unclear."""
    releases = sorted({(of["metadata"]["namespace"], of["metadata"]["labels"][_INSTANCE]) for of in plugins})
    others = [found for found in releases if found != (own_namespace, OWN_RELEASE)]
    if len(releases) > 1:
        raise Unclear(f"more than one release simulates GPUs here: {releases}; uninstall all but one")
    if others:
        [(namespace, release)] = others
        return Plan(mock=True, release=release, namespace=namespace, adopted=True)
    real = not releases and any(allocatable(node) for node in nodes)
    return Plan(mock=not real, release=OWN_RELEASE, namespace=own_namespace)


def allocatable(node: Json) -> int:
    """How many GPUs the kubelet of a node has to give out, taken or not."""
    return int(node.get("status", {}).get("allocatable", {}).get(RESOURCE, "0"))


def is_gpu_node(node: Json) -> bool:
    """Whether the chart runs an agent there by its defaults."""
    labels = node["metadata"].get("labels", {})
    return any(name in labels and (of is None or labels[name] in of) for name, of in GPU_LABELS.items())


def has_default_storage(classes: Iterable[Json]) -> bool:
    """Whether a claim without a storage class gets a volume."""
    return any(of["metadata"].get("annotations", {}).get(_DEFAULT_CLASS) == "true" for of in classes)


def mock_sets(nodes: Iterable[Json], classes: Iterable[Json]) -> list[str]:
    """What helm is told beside ci/kind-values.yaml, so that it works on the cluster as it is."""
    sets = storage_sets(classes)
    if not any(is_gpu_node(node) for node in nodes):
        sets.append('--set-json=agent.affinity={"nodeAffinity":{}}')
    return sets


def storage_sets(classes: Iterable[Json]) -> list[str]:
    """What helm is told of the server's volume: a small one, or none where nobody would make it."""
    persistence = "size=1Gi" if has_default_storage(classes) else "enabled=false"
    return [f"--set=server.persistence.{persistence}"]


def holds_gpus(pod: Json) -> bool:
    """Whether the kubelet has given GPUs of NVIDIA's to a pod: it asks for some, and runs."""
    return pod["status"].get("phase") == "Running" and any(
        name.startswith("nvidia.com/") and int(number)
        for container in pod["spec"]["containers"]
        for name, number in container.get("resources", {}).get("limits", {}).items()
    )
