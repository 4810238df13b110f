"""What the pods have, and have not: devices, mounts, ports, probes, and how they stop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import processes
from tests.chart import CHART
from tests.chart.cases import CASES, MOCK, PLATFORMS
from tests.chart.programs import loaded
from tests.chart.rendering import Helm, Object, containers
from tests.server.conftest import serving, settings_for

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


@pytest.mark.parametrize("name", CASES)
def test_no_pod_asks_for_a_gpu(helm: Helm, name: str) -> None:
    for pod in helm.render(CASES[name]).pods.values():
        assert "resourceClaims" not in pod["spec"]
        for container in containers(pod):
            asked = {resource for amounts in container["resources"].values() for resource in amounts}
            assert asked <= {"cpu", "memory"}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_agent_knows_its_node_and_sees_the_directory_of_the_kubelet_not_its_socket(
    helm: Helm, platform: str
) -> None:
    pod = helm.render({"agent": {"platform": platform}}).pods["agent"]
    (container,) = pod["spec"]["containers"]
    node = next(variable for variable in container["env"] if variable["name"] == "NODE_NAME")
    assert node["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
    assert pod["spec"]["hostPID"] is True
    mount = next(mount for mount in container["volumeMounts"] if mount["name"] == "pod-resources")
    assert mount == {
        "name": "pod-resources",
        "mountPath": "/var/lib/kubelet/pod-resources",
        "readOnly": True,
    }
    paths = {volume["hostPath"]["path"] for volume in pod["spec"]["volumes"] if "hostPath" in volume}
    assert not [path for path in paths if path.endswith(".sock")]


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({}, "/var/lib/kubelet/pod-resources"),
        ({"agent": {"platform": "k0s"}}, "/var/lib/k0s/kubelet/pod-resources"),
        ({"agent": {"platform": "microk8s"}}, "/var/snap/microk8s/common/var/lib/kubelet/pod-resources"),
        ({"agent": {"platform": "k0s", "kubeletRootDir": "/data/kubelet/"}}, "/data/kubelet/pod-resources"),
    ],
)
def test_directory_of_the_kubelet_is_the_platform_s_or_the_user_s(
    helm: Helm, values: Mapping[str, Any], path: str
) -> None:
    pod = helm.render(values).pods["agent"]
    assert _volume(pod, "pod-resources")["hostPath"] == {"path": path, "type": "DirectoryOrCreate"}


@pytest.mark.parametrize(
    ("platform", "runtime_class", "devices", "library"),
    [
        ("default", None, "all", None),
        ("gpu-operator", "nvidia", "all", None),
        ("k0s", None, "all", None),
        ("microk8s", None, "all", None),
        ("eks-bottlerocket", None, "/var/run/nvidia-container-devices", None),
        ("gke", None, "all", "/usr/local/nvidia/lib64"),
        ("kind", None, "all", None),
    ],
)
def test_library_of_the_driver_comes_as_the_platform_gives_it(
    helm: Helm, platform: str, runtime_class: str | None, devices: str, library: str | None
) -> None:
    pod = helm.render({"agent": {"platform": platform}}).pods["agent"]
    variables = _variables(pod)
    assert pod["spec"].get("runtimeClassName") == runtime_class
    assert variables["NVIDIA_VISIBLE_DEVICES"] == devices
    assert variables["NVIDIA_DRIVER_CAPABILITIES"] == "utility"
    assert variables.get("LD_LIBRARY_PATH") == library


def test_runtime_class_that_is_named_wins(helm: Helm) -> None:
    for platform in PLATFORMS:
        values = {"agent": {"platform": platform, "runtimeClassName": "nv"}}
        assert helm.render(values).pods["agent"]["spec"]["runtimeClassName"] == "nv"
    assert (
        "runtimeClassName"
        not in helm.render(None, "agent.platform=gpu-operator", "agent.runtimeClassName=").pods["agent"]["spec"]
    )


def test_simulated_gpus_need_no_runtime_and_get_no_device(helm: Helm) -> None:
    for values in (MOCK, {"agent": {"platform": "gpu-operator", **MOCK["agent"]}}):
        pod = helm.render(values).pods["agent"]
        assert "runtimeClassName" not in pod["spec"]
        assert _variables(pod)["NVIDIA_VISIBLE_DEVICES"] == "void"
        assert "NVIDIA_DRIVER_CAPABILITIES" not in _variables(pod)


def test_one_server_goes_before_the_next_comes(helm: Helm) -> None:
    deployment = helm.render().one("Deployment")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


@pytest.mark.parametrize("program", ["agent", "server"])
def test_kubernetes_waits_longer_than_the_program_takes_to_stop(helm: Helm, program: str) -> None:
    release = helm.render()
    settings, _ = loaded(release, program)
    own = settings.network if program == "agent" else settings.server
    assert release.pods[program]["spec"]["terminationGracePeriodSeconds"] >= own.shutdown_seconds + 15


@pytest.mark.parametrize(
    "values",
    [{}, {"agent": {"config": {"status": {"port": 9000}}}, "server": {"config": {"server": {"port": 6000}}}}],
    ids=["default", "other ports"],
)
def test_ports_of_the_pods_are_those_of_the_settings(helm: Helm, values: Mapping[str, Any]) -> None:
    release = helm.render(values)
    for program, name in (("agent", "status"), ("server", "http")):
        (container,) = release.pods[program]["spec"]["containers"]
        settings, _ = loaded(release, program)
        own = settings.status if program == "agent" else settings.server
        assert container["ports"] == [{"name": name, "containerPort": own.port}]
        assert own.host == "*", "the kubelet asks from outside of the pod"
        assert {_probe(container, probe)["port"] for probe in PROBES if probe in container} == {name}
    assert release.one("Service")["spec"]["ports"][0]["targetPort"] == "http"
    assert loaded(release, "agent")[0].server.server_port == release.one("Service")["spec"]["ports"][0]["port"]


def test_probes_of_the_server_are_answered_without_a_token(helm: Helm, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret-of-this-test\n", encoding="utf-8")
    (container,) = helm.render().pods["server"]["spec"]["containers"]
    asked = {probe: _probe(container, probe)["path"] for probe in PROBES}
    assert asked["livenessProbe"] != "/health", "a full disk is no reason to end the server"
    auth = {"mode": "token", "token_file": str(token), "read_token_file": str(token)}
    with serving(settings_for(tmp_path / "data", auth=auth)) as client:
        assert client.get("/api/gpus").status_code == 401, "the gate is there"
        assert {client.get(path).status_code for path in asked.values()} == {200}


def test_probes_of_the_agent_are_answered_with_the_chart_s_own_scenario(helm: Helm, tmp_path: Path) -> None:
    (container,) = helm.render(MOCK).pods["agent"]["spec"]["containers"]
    port = processes.free_port()
    scenario = CHART / "files" / "mock-scenario.toml"
    nobody = processes.free_port()
    with processes.agent(scenario, tmp_path, nobody, port) as agent:
        agent.start()
        for probe in ("livenessProbe", "readinessProbe"):
            answer = httpx.get(f"http://127.0.0.1:{port}{_probe(container, probe)['path']}", trust_env=False)
            assert answer.status_code in (200, 503)
            assert answer.json()["version"]


def test_probes_and_clients_speak_https_where_the_server_does(helm: Helm) -> None:
    release = helm.render(CASES["existing-secret"])
    (container,) = release.pods["server"]["spec"]["containers"]
    assert {_probe(container, probe)["scheme"] for probe in PROBES} == {"HTTPS"}
    assert loaded(release, "agent")[0].server.server_host == "https://gpumon-server.gpu.svc"
    assert _variables(release.pods["test"])["GPUMON_URL"] == "https://gpumon-server.gpu.svc:5000"
    (container,) = helm.render().pods["server"]["spec"]["containers"]
    assert {_probe(container, probe)["scheme"] for probe in PROBES} == {"HTTP"}


def test_fixing_permissions_gives_the_volume_to_the_user_of_the_server(helm: Helm) -> None:
    values = {
        "persistence": {"fixPermissions": True},
        "podSecurityContext": {"runAsUser": 1_000_660_000, "runAsGroup": 5},
    }
    pod = helm.render({"server": values}).pods["server"]
    (fixing,) = pod["spec"]["initContainers"]
    assert fixing["command"] == ["chown", "-R", "1000660000:5", "/data"]
    assert "initContainers" not in helm.render().pods["server"]["spec"]


def _probe(container: Object, name: str) -> Object:
    return dict(container[name]["httpGet"])


def _variables(pod: Object) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in pod["spec"]["containers"][0]["env"]}


def _volume(pod: Object, name: str) -> Object:
    return next(volume for volume in pod["spec"]["volumes"] if volume["name"] == name)


def test_a_variable_of_the_users_takes_the_place_of_the_charts(helm: Helm) -> None:
    own = [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "0"}, {"name": "MORE", "value": "1"}]
    config = [{"name": "GPUMON_CONFIG", "value": "/elsewhere"}]
    release = helm.render({"agent": {"extraEnv": own}, "server": {"extraEnv": config}})
    [agent], [server] = (release.pods[part]["spec"]["containers"] for part in ("agent", "server"))
    assert [entry for entry in agent["env"] if entry["name"] in ("NVIDIA_VISIBLE_DEVICES", "MORE")] == own
    assert {entry["name"] for entry in agent["env"]} >= {"GPUMON_CONFIG", "NODE_NAME"}
    assert server["env"] == config


def test_simulated_gpus_need_no_privilege_on_any_platform(helm: Helm) -> None:
    release = helm.render(None, "agent.platform=gke", "agent.mockNvml.enabled=true")
    [agent] = release.pods["agent"]["spec"]["containers"]
    assert "privileged" not in agent["securityContext"]
    assert "LD_LIBRARY_PATH" not in {entry["name"] for entry in agent["env"]}


def test_a_volume_of_no_class_can_be_asked_for(helm: Helm) -> None:
    claim = helm.render(None, "server.persistence.storageClassName=-").one("PersistentVolumeClaim")
    assert claim["spec"]["storageClassName"] == ""


def test_without_a_volume_the_node_lends_no_more_than_its_size(helm: Helm) -> None:
    release = helm.render(None, "server.persistence.enabled=false", "server.persistence.size=1Gi")
    volumes = {volume["name"]: volume for volume in release.pods["server"]["spec"]["volumes"]}
    assert volumes["data"]["emptyDir"] == {"sizeLimit": "1Gi"}
    assert loaded(release, "server")[0].storage.max_disk_mb == 966
