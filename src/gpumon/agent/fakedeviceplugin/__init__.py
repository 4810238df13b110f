"""A device plugin that offers the simulated GPUs of a scenario to a real kubelet, for clusters without any GPU.

    scenario ──▶ devices ──▶ endpoint ──Register──▶ kubelet.sock
                                ▲
                                └── service ◀──ListAndWatch, Allocate── kubelet

run            the plugin as a whole, until it is asked to stop
endpoint       the socket of one resource: served, registered with the kubelet, and again after its restart
service        what is answered on it
devices        which resources and ids a node's simulated GPUs are; pure
messages       the kubelet's device plugin API v1beta1: protobuf by hand; pure

The kubelet then gives the ids out as those of any plugin: its PodResources API says who holds them, and a
container finds them in NVIDIA_VISIBLE_DEVICES. The agent, with the same scenario on the same node, has GPUs of the
same ids.
"""

from gpumon.agent.fakedeviceplugin.run import Options, run

__all__ = ["Options", "run"]
