"""The agent: reads a node's GPUs, finds out whose they are, and ships samples to the server.

run            looks where it is, opens NVML or the simulation of it; assembly (all stages, wired)
ports          the doors as Protocols: what stages know of the outside world
sampling       the ticks
attribution    whose the use of a GPU is
shipping       batches, spool, delivery
nvml           the door to NVML; fakenvml (the library under it where there is no GPU)
podresources   the door to the kubelet; processes (to /proc); kube (to the Kubernetes API); cluster (the three,
               opened as settings and surroundings have them); fakecluster (simulated ones)
doctor         walks every door, names the step that is broken
status         the agent's own port; metrics and counts (what it says of itself)
"""
