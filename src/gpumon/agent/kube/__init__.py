"""The door to the Kubernetes API: what the pods of this node are called, belong to and are labelled with. The only
importer of the `kubernetes` package, and that when it is started, not before."""

from gpumon.agent.kube.directory import KubeDirectory, NoPodDirectory

__all__ = ["KubeDirectory", "NoPodDirectory"]
