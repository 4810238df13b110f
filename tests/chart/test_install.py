"""Install, upgrade, rollback and uninstall by the real helm, against an API that keeps what it is given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chart import CHART
from tests.chart.clusterapi import ClusterApi, Json, node
from tests.chart.rendering import Helm

_NAMESPACE = "gpu"
_GPUS = {"nvidia.com/gpu": "8"}
_RUNTIME_CLASS: Json = {
    "apiVersion": "node.k8s.io/v1",
    "kind": "RuntimeClass",
    "metadata": {"name": "nvidia"},
    "handler": "nvidia",
}
_STORAGE_CLASS: Json = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "provisioner": "local",
}


class Site:
    """A cluster and helm's way to it."""

    def __init__(self, api: ClusterApi, helm: Helm, folder: Path) -> None:
        self.api = api
        self._helm = helm
        self._where = ["--namespace", _NAMESPACE, "--kubeconfig", api.kubeconfig(folder)]

    def helm(self, *arguments: str) -> str:
        """What helm says."""
        return self._helm(*arguments, *self._where).stdout

    def install(self, *sets: str) -> str:
        """Installs, gives the notes."""
        settings = [argument for text in sets for argument in ("--set", text)]
        return self.helm("install", "gpumon", str(CHART), *settings)

    def upgrade(self, *sets: str) -> str:
        """Upgrades, gives the notes."""
        settings = [argument for text in sets for argument in ("--set", text)]
        return self.helm("upgrade", "gpumon", str(CHART), *settings)

    def one(self, kind: str, name: str) -> Json:
        """An object that must be there."""
        return next(thing for thing in self.api.objects(kind) if thing["metadata"]["name"] == name)

    @property
    def agent(self) -> Any:
        """The agent's pod."""
        return self.one("DaemonSet", "gpumon-agent")["spec"]["template"]["spec"]

    @property
    def agent_nodes(self) -> list[str]:
        """Nodes that the agent's pods name one by one."""
        affinity = self.agent["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        return [
            name
            for term in affinity["nodeSelectorTerms"]
            for field in term.get("matchFields", [])
            for name in field["values"]
        ]


@pytest.fixture
def site(helm: Helm, tmp_path: Path) -> Iterator[Site]:
    with ClusterApi() as api:
        for namespace in ("kube-system", _NAMESPACE):
            api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        yield Site(api, helm, tmp_path)


def test_an_uninstall_leaves_the_history_and_nothing_else(site: Site) -> None:
    before = site.api.names()
    site.install("auth.mode=serviceAccount", "auth.read.enabled=true", "agent.mockNvml.enabled=true")
    assert len(site.api.names()) > len(before) + 10
    said = site.helm("uninstall", "gpumon")
    assert set(site.api.names()) - set(before) == {"PersistentVolumeClaim/gpumon-server"}
    assert "gpumon-server" in said


def test_an_install_of_the_same_name_finds_its_volume_again(site: Site) -> None:
    site.install()
    volume = site.one("PersistentVolumeClaim", "gpumon-server")["metadata"]["uid"]
    site.helm("uninstall", "gpumon")
    site.install()
    assert site.one("PersistentVolumeClaim", "gpumon-server")["metadata"]["uid"] == volume


def test_an_upgrade_keeps_both_tokens_and_also_what_was_put_there_by_hand(site: Site) -> None:
    site.install("auth.read.enabled=true")
    secret = site.one("Secret", "gpumon-auth")
    assert secret["data"]["token"] != secret["data"]["read-token"]
    site.upgrade("auth.read.enabled=true", "agent.hostPID=false")
    assert site.one("Secret", "gpumon-auth")["data"] == secret["data"]
    rotated = secret | {"data": secret["data"] | {"token": "bmV3Cm9sZA=="}}
    site.api.put(rotated)
    site.upgrade("auth.read.enabled=true")
    assert site.one("Secret", "gpumon-auth")["data"]["token"] == "bmV3Cm9sZA=="


def test_a_rollback_brings_the_settings_of_before(site: Site) -> None:
    site.install("agent.config.monitoring.interval_seconds=7")
    site.upgrade("agent.config.monitoring.interval_seconds=3")
    assert "interval_seconds = 3\n" in site.one("ConfigMap", "gpumon-agent")["data"]["client_config.ini"]
    site.helm("rollback", "gpumon", "1")
    assert "interval_seconds = 7\n" in site.one("ConfigMap", "gpumon-agent")["data"]["client_config.ini"]


def test_two_releases_live_in_one_cluster(helm: Helm, site: Site, tmp_path: Path) -> None:
    site.install()
    site.api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "lab"}})
    helm("install", "gpumon", CHART, "--namespace", "lab", "--kubeconfig", site.api.kubeconfig(tmp_path))
    roles = [thing["metadata"]["name"] for thing in site.api.objects("ClusterRole")]
    assert sorted(roles) == ["gpu:gpumon-agent", "lab:gpumon-agent"]


def test_the_runtime_class_is_nvidia_where_the_cluster_has_it(site: Site) -> None:
    notes = site.install()
    assert "runtimeClassName" not in site.agent
    assert "no RuntimeClass nvidia" in notes
    site.api.put(_RUNTIME_CLASS)
    notes = site.upgrade()
    assert site.agent["runtimeClassName"] == "nvidia"
    assert "no RuntimeClass nvidia" not in notes


@pytest.mark.parametrize(
    "choice", ["agent.runtimeClassName=", "agent.platform=gke", "agent.mockNvml.enabled=true"]
)
def test_a_cluster_with_the_runtime_class_does_not_impose_it(site: Site, choice: str) -> None:
    site.api.put(_RUNTIME_CLASS)
    site.install(choice)
    assert "runtimeClassName" not in site.agent


def test_a_gpu_node_without_a_label_gets_an_agent_and_is_named(site: Site) -> None:
    site.api.put(node("bare", _GPUS))
    site.api.put(node("labelled", _GPUS, {"nvidia.com/gpu.present": "true"}))
    site.api.put(node("cpu", {"cpu": "64"}))
    notes = site.install()
    assert site.agent_nodes == ["bare"]
    assert "kubectl label node bare nvidia.com/gpu.present=true" in notes
    assert "label node labelled" not in notes
    assert "label node cpu" not in notes


def test_a_node_whose_device_plugin_has_gone_is_no_gpu_node(site: Site) -> None:
    site.api.put(node("was", {"nvidia.com/gpu": "0"}))
    notes = site.install()
    assert site.agent_nodes == []
    assert "there are no agents" in notes


@pytest.mark.parametrize(
    "labels", [{"nvidia.com/gpu.present": "true"}, {"cloud.google.com/gke-accelerator": "t4"}]
)
def test_the_notes_say_that_there_are_no_agents_only_where_no_node_fits(
    site: Site, labels: dict[str, str]
) -> None:
    site.api.put(node("labelled", {}, labels))
    assert "there are no agents" not in site.install()


def test_gpu_operator_is_looked_at_and_believed_where_nothing_can_be_seen(helm: Helm, site: Site) -> None:
    site.install("agent.platform=gpu-operator")
    assert "runtimeClassName" not in site.agent
    site.api.put(_RUNTIME_CLASS)
    site.upgrade("agent.platform=gpu-operator")
    assert site.agent["runtimeClassName"] == "nvidia"
    blind = helm.render(None, "agent.platform=gpu-operator").pods["agent"]["spec"]
    assert blind["runtimeClassName"] == "nvidia"


def test_who_may_not_make_a_cluster_role_is_not_made_to_list_nodes(site: Site) -> None:
    site.api.put(node("bare", _GPUS))
    site.api.put(_RUNTIME_CLASS)
    site.install("agent.podMetadata.enabled=false")
    assert site.agent_nodes == []
    assert "runtimeClassName" not in site.agent


def test_the_notes_say_that_no_volume_will_come_where_there_is_no_storage_class(site: Site) -> None:
    assert "no default StorageClass" in site.install()
    site.helm("uninstall", "gpumon")
    site.api.put(_STORAGE_CLASS)
    assert "no default StorageClass" not in site.install()
