"""The release under test: installed, changed, rolled back, taken away."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.cluster import Cluster, CommandFailed, Json, NotYet, until

CHART = Path(__file__).parents[2] / "charts" / "gpumon"
_WAIT = ("--wait", "--timeout=6m")
_ROLLOUT_SECONDS = 300
_GONE_SECONDS = 180
_COMPONENT = "app.kubernetes.io/component"
_PASSING = {"events", "events.events.k8s.io"}
"""What is said of objects stays for an hour after they are gone."""


@dataclass(frozen=True)
class Release:
    """A release of the chart."""

    cluster: Cluster
    name: str
    namespace: str

    @property
    def fullname(self) -> str:
        """What the names of its objects begin with: as the chart makes it of these names."""
        return self.name if "gpumon" in self.name else f"{self.name}-gpumon"

    def selector(self, component: str | None = None) -> str:
        """The labels of its objects, or of those of one component."""
        instance = f"app.kubernetes.io/instance={self.name}"
        return instance if component is None else f"{instance},{_COMPONENT}={component}"

    def install(self, *arguments: str) -> str:
        """Installs it, or begins anew with these values where it is there; gives what helm says."""
        return self._helm("upgrade", self.name, str(CHART), "--install", *_WAIT, *arguments)

    def upgrade(self, *arguments: str) -> str:
        """Changes values, and keeps the others; gives what helm says."""
        return self._helm("upgrade", self.name, str(CHART), "--reset-then-reuse-values", *_WAIT, *arguments)

    def rollback(self, revision: int) -> None:
        """Back to an earlier revision."""
        self._helm("rollback", self.name, str(revision), *_WAIT)

    @contextlib.contextmanager
    def changed(self, *arguments: str) -> Iterator[None]:
        """With other values, all its pods renewed; afterwards it is as before."""
        before = self.revision()
        try:
            self.upgrade(*arguments)
            self.roll_out()
            yield
        finally:
            self.rollback(before)
            self.roll_out()

    def revision(self) -> int:
        """The number of its newest revision."""
        listed = json.loads(self._helm("history", self.name, "--max=1", "--output=json"))
        return int(listed[-1]["revision"])

    def workloads(self) -> list[Json]:
        """Its DaemonSets and Deployments."""
        return self.cluster.get("daemonsets,deployments", namespace=self.namespace, selector=self.selector())

    def roll_out(self) -> list[str]:
        """Waits until all its pods are of the newest revision and ready; gives the names of its workloads."""
        names = [f"{thing['kind'].lower()}/{thing['metadata']['name']}" for thing in self.workloads()]
        for name in names:
            timeout = f"--timeout={_ROLLOUT_SECONDS}s"
            self.cluster.kubectl("rollout", "status", name, timeout, namespace=self.namespace)
        return sorted(names)

    def pods(self, component: str) -> list[Json]:
        """The pods of a component that are not on their way out."""
        found = self.cluster.get("pods", namespace=self.namespace, selector=self.selector(component))
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def is_installed(self) -> bool:
        """Whether helm knows it."""
        listed = self._helm(
            "list", "--deployed", "--failed", "--pending", "--uninstalling", "--short", f"--filter=^{self.name}$"
        )
        return bool(listed.split())

    def uninstall(self) -> None:
        """Takes it away, but for what the chart keeps."""
        self._helm("uninstall", self.name, "--wait", "--timeout=5m")

    def remains(self) -> set[str]:
        """What is there of it, as `kind/name`: by its labels, by its names, and Helm's own records of it."""
        return {
            f"{kind}/{name}"
            for namespaced in (True, False)
            for kind in self._kinds(namespaced=namespaced)
            for name in self._named(kind, namespaced=namespaced)
        }

    def remains_only(self, wanted: set[str]) -> None:
        """Waits until nothing else is left; what belongs to deleted objects goes a moment after them."""

        def look() -> None:
            left = self.remains()
            if left != wanted:
                raise NotYet(f"left: {sorted(left)}, wanted: {sorted(wanted)}")

        until(look, _GONE_SECONDS)

    def _kinds(self, *, namespaced: bool) -> list[str]:
        which = f"--namespaced={str(namespaced).lower()}"
        kinds = self.cluster.kubectl("api-resources", "--verbs=list", which, "--output=name").split()
        return [kind for kind in kinds if kind not in _PASSING]

    def _named(self, kind: str, *, namespaced: bool) -> Iterator[str]:
        instance = r"{.metadata.labels.app\.kubernetes\.io/instance}"
        template = "{range .items[*]}{.metadata.name} " + instance + '{"\\n"}{end}'
        where = self.namespace if namespaced else None
        try:
            text = self.cluster.kubectl("get", kind, f"--output=jsonpath={template}", namespace=where)
        except CommandFailed:  # a kind that may not be listed, or whose API is down
            return
        for line in text.splitlines():
            name, _, instance = line.partition(" ")
            if instance == self.name or name.startswith(self._beginnings(namespaced=namespaced)):
                yield name

    def _beginnings(self, *, namespaced: bool) -> tuple[str, ...]:
        if namespaced:
            return f"{self.fullname}-", f"sh.helm.release.v1.{self.name}."
        return (f"{self.namespace}:{self.fullname}-",)

    def _helm(self, *arguments: str) -> str:
        return self.cluster.helm(*arguments, namespace=self.namespace)


def ready_pods(pods: Sequence[Json], number: int) -> Sequence[Json]:
    """So many pods that are ready. Raises NotYet."""
    ready = [
        pod
        for pod in pods
        if any(of["type"] == "Ready" and of["status"] == "True" for of in pod["status"].get("conditions", []))
    ]
    if len(ready) != number:
        raise NotYet(f"{len(ready)} of {number} pods are ready: {[pod['metadata']['name'] for pod in pods]}")
    return ready
