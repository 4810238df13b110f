"""The Kubernetes API: this node's name, the right to its pods, and what devices by claim are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from gpumon import clock
from gpumon.agent.attribution.holdings import GPU_DRIVER
from gpumon.agent.doctor.finding import BROKEN, NOT_NEEDED, OK, Finding, Site, after, counted, some
from gpumon.agent.doctor.gpuchecks import NVML
from gpumon.agent.doctor.gpus import SeenGpus
from gpumon.agent.doctor.kubelet import KUBELET, SeenKubelet
from gpumon.agent.kube import KubeDirectory
from gpumon.agent.ports import ClaimedDevice, NodeInfo, PodDirectory

NODE = "node"
POD_API = "pod-api"
RESOURCE_SLICES = "resource-slices"

"""The driver whose claims are GPUs. Those of others, network cards among them, need not be known."""
FIRST_ANSWER_SECONDS = 5.0
SLICES_SECONDS = 2.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class SeenPods:
    """What is known from the API. `count` None: it is not asked. `trouble` says why pods are not known,
    `node_trouble` why the node is not; `node` is the node."""

    count: int | None = None
    trouble: str | None = None
    node_trouble: str | None = None
    node: NodeInfo | None = None


def see_pods(pods: PodDirectory) -> SeenPods:
    """Waits for the API's first answers, where they have not come yet."""
    if not isinstance(pods, KubeDirectory):
        return SeenPods(trouble=pods.trouble, node=pods.node)
    deadline = clock.monotonic() + FIRST_ANSWER_SECONDS
    while not pods.settled and clock.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    return SeenPods(pods.pod_count, pods.trouble, pods.node_trouble, pods.node)


def check_node(seen: SeenPods, node: str | None, site: Site) -> Finding:
    """Whether it is known which node this is, and whether there is such a node."""
    if node is None:
        where = "the container's environment by fieldRef spec.nodeName, as the chart does"
        return Finding(
            NODE,
            BROKEN if seen.count is not None else NOT_NEEDED,
            "the variable NODE_NAME is not set",
            f"set NODE_NAME: {site.either(where, 'the name that kubectl get nodes has for this machine')}"
            if seen.count is not None
            else "",
        )
    named = f"NODE_NAME is {node}"
    if seen.count is None:
        return Finding(NODE, OK, f"{named}; the API is not asked whether it has it")
    if seen.trouble is not None:
        return Finding(NODE, OK, f"{named}; the API can't be asked whether it has it")
    if seen.node_trouble is not None:
        return Finding(
            NODE,
            BROKEN,
            f"{named}; {seen.node_trouble}",
            "HTTP 404: set NODE_NAME to the node's name in Kubernetes. HTTP 403: the agent needs the right to get "
            "nodes; the chart grants it by agent.podMetadata.enabled: true",
        )
    labels = len(seen.node.labels) if seen.node is not None else 0
    cordoned = "; it is cordoned" if seen.node is not None and seen.node.unschedulable else ""
    return Finding(NODE, OK, f"{named}, which the API has; {counted(labels, 'label')} of it kept{cordoned}")


def check_pod_api(seen: SeenPods, node: str | None, site: Site, *, simulated: bool) -> Finding:
    """Whether the API tells of this node's pods."""
    if simulated:
        return Finding(POD_API, NOT_NEEDED, "pods are simulated")
    if seen.count is None:
        return Finding(
            POD_API, NOT_NEEDED, f"{seen.trouble}; pods are known by their names alone, from the kubelet"
        )
    if node is None:
        return after(POD_API, NODE)
    if seen.trouble is not None:
        return Finding(POD_API, BROKEN, seen.trouble, _api_fix(seen.trouble, site))
    return Finding(POD_API, OK, f"{counted(seen.count, 'pod')} of this node, kept by a watch")


def see_claims(pods: PodDirectory, kubelet: SeenKubelet) -> dict[ClaimedDevice, str | None]:
    """The GPUs that are held by claim, and the UUID of each; None for one that can't be told. Asking lets the API
    be asked, so it is waited for."""
    claimed = {device for held in kubelet.containers for device in held.claimed if device.driver == GPU_DRIVER}
    deadline = clock.monotonic() + SLICES_SECONDS
    while True:
        found = {device: pods.claimed_uuid(device) for device in claimed}
        done = all(found.values()) or not isinstance(pods, KubeDirectory) or pods.slices_trouble is not None
        if done or clock.monotonic() > deadline:
            return found
        time.sleep(_LOOK_SECONDS)


def check_resource_slices(
    claims: dict[ClaimedDevice, str | None], kubelet: SeenKubelet, gpus: SeenGpus, pods: PodDirectory, site: Site
) -> Finding:
    """Whether it is known which GPUs are held by claim (DRA)."""
    if kubelet.trouble is not None:
        return after(RESOURCE_SLICES, KUBELET)
    if not claims:
        return Finding(RESOURCE_SLICES, NOT_NEEDED, "no GPU is held by claim (DRA)")
    if not gpus.gpus:
        return after(RESOURCE_SLICES, NVML)
    if pods.trouble is not None:
        return after(RESOURCE_SLICES, POD_API)
    trouble = pods.slices_trouble if isinstance(pods, KubeDirectory) else None
    unknown = [f"{device.pool}/{device.device}" for device, uuid in claims.items() if uuid is None]
    if unknown:
        return Finding(
            RESOURCE_SLICES,
            BROKEN,
            trouble or f"{some(sorted(unknown))}: held by claim, but in no ResourceSlice of this node",
            f"{site.setting('kubernetes', 'dynamic_resources')} must be true, and the agent needs the right to "
            "list resourceslices of resource.k8s.io, which the chart grants with it",
        )
    strangers = _strangers(claims, gpus)
    if strangers:
        return Finding(
            RESOURCE_SLICES,
            BROKEN,
            f"{some(strangers)}: held by claim, and none of the GPUs that NVML lists here",
            site.all_gpus,
        )
    return Finding(RESOURCE_SLICES, OK, f"{counted(len(claims), 'GPU')} held by claim, each known")


def _api_fix(trouble: str, site: Site) -> str:
    if "HTTP 403" in trouble:
        fix = site.either(
            "the agent's service account needs a ClusterRole with get, list and watch of pods and get of nodes; "
            "the chart grants it by agent.podMetadata.enabled: true",
            "the user of [KUBERNETES] kubeconfig needs get, list and watch of pods and get of nodes",
        )
    elif "HTTP 401" in trouble:
        fix = site.either(
            "the token in the pod is not this cluster's, or has expired: restart the pod; the chart mounts a new "
            "one by agent.podMetadata.enabled: true",
            "renew the credentials in [KUBERNETES] kubeconfig",
        )
    else:
        fix = site.either(
            "the API must be reachable from this node: see agent.networkPolicy and the API server",
            "see [KUBERNETES] kubeconfig and the API server that it names",
        )
    without = site.either("the chart value agent.podMetadata.enabled to false", "[KUBERNETES] pod_metadata to off")
    return f"{fix}; to do without owners and labels, set {without}"


def _strangers(claims: dict[ClaimedDevice, str | None], gpus: SeenGpus) -> Sequence[str]:
    known = {gpu.uuid for gpu in gpus.gpus}
    known |= {instance.uuid for gpu in gpus.gpus for instance in gpu.known.instances}
    return sorted(uuid for uuid in claims.values() if uuid is not None and uuid not in known)
