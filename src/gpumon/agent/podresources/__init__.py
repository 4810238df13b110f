"""The door to the kubelet: its PodResources API, asked by gRPC over a unix socket.

door           `KubeletPodResources`: what is asked, and what to do when there is no answer
channel        one gRPC call after the other over one kept connection, by httpx
wire           the answers: protobuf into the agent's own types
"""

from gpumon.agent.podresources.door import KubeletPodResources

__all__ = ["KubeletPodResources"]
