"""What is tested and where: the release, its namespace, the sample pods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tests.cluster import samples
from tests.cluster.cluster import Cluster, Json, NotYet, until
from tests.cluster.plan import Plan
from tests.cluster.release import Release

LEVELS: Final = {f"pod-security.kubernetes.io/{of}": "privileged" for of in ("enforce", "warn", "audit")}
"""Labels of the release's namespace: agents see the node's processes and mount the kubelet's directory."""
_MADE_BY = {"app.kubernetes.io/created-by": "gpumon-e2e"}
_NAMESPACE_SECONDS = 180


@dataclass(frozen=True)
class Site:
    """What is tested: the plan for this cluster, the release, where its sample pods are and their image."""

    cluster: Cluster
    plan: Plan
    release: Release
    samples: str

    def image(self) -> tuple[str, list[Json]]:
        """The image of the release's server, which has python3, and the secrets to pull it: sample pods need no
        other."""
        name = f"{self.release.fullname}-server"
        deployment = self.cluster.find("deployment", name, namespace=self.release.namespace)
        assert deployment is not None, f"no Deployment {name}"
        spec = deployment["spec"]["template"]["spec"]
        return spec["containers"][0]["image"], spec.get("imagePullSecrets", [])

    def apply_samples(self) -> None:
        """All sample pods of tests/kind."""
        self.cluster.apply(samples.manifests(*self.image()), namespace=self.samples)

    def delete_samples(self) -> None:
        """Returns when no sample pod is left."""
        self.cluster.delete("deployments,jobs,pods", namespace=self.samples, selector=samples.SELECTOR)


def make_namespace(cluster: Cluster, name: str, labels: Mapping[str, str]) -> bool:
    """Makes a namespace; gives whether it is the tests' own, to be deleted again. One that was there is used as it
    is."""

    def look() -> Json | None:
        found = cluster.find("namespace", name)
        if found is not None and "deletionTimestamp" in found["metadata"]:
            raise NotYet(f"namespace {name} is still being deleted")
        return found

    there = until(look, _NAMESPACE_SECONDS)
    if there is not None:
        return _MADE_BY.items() <= there["metadata"].get("labels", {}).items()
    metadata = {"name": name, "labels": {**_MADE_BY, **labels}}
    cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}])
    return True


def remove_namespace(cluster: Cluster, name: str) -> None:
    """Deletes a namespace; returns when it is gone."""
    cluster.kubectl("delete", "namespace", name, "--ignore-not-found", "--timeout=300s")


def take_away(cluster: Cluster, release: Release) -> None:
    """The release and all that the tests made beside it; whatever of it is gone already."""
    cluster.delete("deployments,jobs,pods", namespace=release.namespace, selector=samples.SELECTOR)
    if release.is_installed():
        release.uninstall()
    cluster.delete("persistentvolumeclaims,jobs", namespace=release.namespace, selector=release.selector())
