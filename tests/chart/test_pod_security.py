"""The level of the Pod Security Standards that each pod needs, and for what."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.cases import CASES, EVERYTHING, MOCK
from tests.chart.podsecurity import BASELINE, RESTRICTED, level, violations
from tests.chart.rendering import Helm, Object, containers

AS_ROOT = {"container agent: runAsNonRoot", "container agent: runAsUser 0"}


@pytest.mark.parametrize("name", CASES)
def test_server_and_test_need_no_more_than_restricted(helm: Helm, name: str) -> None:
    pods = helm.render(CASES[name]).pods
    fixes = "initContainers" in pods["server"]["spec"]
    assert level(pods["server"]) == (BASELINE if fixes else RESTRICTED)
    assert level(pods["test"]) == RESTRICTED


def test_init_container_that_fixes_permissions_is_all_that_lifts_the_server_to_baseline(helm: Helm) -> None:
    pod = helm.render({"server": {"persistence": {"fixPermissions": True}}}).pods["server"]
    assert violations(pod) == {
        BASELINE: set(),
        RESTRICTED: {
            "container fix-permissions: runAsNonRoot",
            "container fix-permissions: runAsUser 0",
            "container fix-permissions: capability CHOWN",
            "container fix-permissions: capability DAC_OVERRIDE",
        },
    }


def test_agent_needs_privileged_for_a_directory_of_the_node_and_its_processes_alone(helm: Helm) -> None:
    assert violations(helm.render().pods["agent"]) == {
        BASELINE: {"pod: hostPID", "volume pod-resources: hostPath"},
        RESTRICTED: {"volume pod-resources: hostPath", *AS_ROOT},
    }


def test_without_host_pid_the_directory_alone_is_left(helm: Helm) -> None:
    pod = helm.render(CASES["no-host-pid"]).pods["agent"]
    assert violations(pod)[BASELINE] == {"volume pod-resources: hostPath"}


@pytest.mark.parametrize(
    ("platform", "more"),
    [
        ("gpu-operator", set()),
        ("k0s", set()),
        ("microk8s", set()),
        ("kind", set()),
        ("eks-bottlerocket", {"volume all-devices: hostPath"}),
        ("gke", {"volume driver: hostPath", "container agent: privileged"}),
    ],
)
def test_platform_adds_what_its_driver_needs(helm: Helm, platform: str, more: set[str]) -> None:
    base = violations(helm.render().pods["agent"])[BASELINE]
    assert violations(helm.render({"agent": {"platform": platform}}).pods["agent"])[BASELINE] == base | more


def test_spool_on_the_node_is_one_more_directory(helm: Helm) -> None:
    base = violations(helm.render().pods["agent"])[BASELINE]
    pod = helm.render({"agent": {"spool": {"hostPath": "/var/lib/gpumon"}}}).pods["agent"]
    assert violations(pod)[BASELINE] == base | {"volume spool: hostPath"}


def test_simulated_gpus_need_no_privilege_and_their_plugin_only_its_directory(helm: Helm) -> None:
    pods = helm.render(MOCK).pods
    assert violations(pods["agent"]) == violations(helm.render().pods["agent"])
    assert violations(pods["fake-device-plugin"])[BASELINE] == {"volume device-plugins: hostPath"}


@pytest.mark.parametrize("values", [{}, EVERYTHING, MOCK], ids=["default", "everything", "mock"])
def test_no_container_writes_its_root_or_can_gain_rights(helm: Helm, values: Any) -> None:
    for pod in helm.render(values).pods.values():
        for container in containers(pod):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"]["drop"] == ["ALL"]


def pod(spec: Object | None = None, container: Object | None = None, **context: Any) -> Object:
    """A restricted pod, but for what is given."""
    safe = {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        "capabilities": {"drop": ["ALL"]},
    }
    one = {"name": "c", "securityContext": safe | context} | (container or {})
    return {"metadata": {}, "spec": {"containers": [one]} | (spec or {})}


@pytest.mark.parametrize(
    ("broken", "needed"),
    [
        (pod(), "restricted"),
        (pod(allowPrivilegeEscalation=None), "baseline"),
        (pod(runAsNonRoot=None), "baseline"),
        (pod(runAsUser=0), "baseline"),
        (pod(seccompProfile=None), "baseline"),
        (pod(capabilities={"drop": ["CHOWN"]}), "baseline"),
        (pod(capabilities={"drop": ["ALL"], "add": ["CHOWN"]}), "baseline"),
        (pod(capabilities={"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}), "restricted"),
        (pod({"volumes": [{"name": "v", "nfs": {}}]}), "baseline"),
        (pod({"volumes": [{"name": "v", "emptyDir": {}}]}), "restricted"),
        (pod(capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]}), "privileged"),
        (pod(privileged=True), "privileged"),
        (pod(procMount="Unmasked"), "privileged"),
        (pod(seccompProfile={"type": "Unconfined"}), "privileged"),
        (pod(appArmorProfile={"type": "Unconfined"}), "privileged"),
        (pod(seLinuxOptions={"type": "spc_t"}), "privileged"),
        (pod(windowsOptions={"hostProcess": True}), "privileged"),
        (pod(container={"ports": [{"hostPort": 80}]}), "privileged"),
        (pod(container={"livenessProbe": {"httpGet": {"host": "10.0.0.1"}}}), "privileged"),
        (pod({"hostNetwork": True}), "privileged"),
        (pod({"hostIPC": True}), "privileged"),
        (pod({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}), "privileged"),
        (pod({"volumes": [{"name": "v", "hostPath": {}}]}), "privileged"),
        (pod({"initContainers": [{"name": "i"}]}), "baseline"),
    ],
)
def test_checker_knows_the_level_of(broken: Object, needed: str) -> None:
    assert level(broken) == needed
