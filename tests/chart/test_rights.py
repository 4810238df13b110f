"""What agents and server may do, and by whose token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.chart.cases import CASES, EVERYTHING, SERVICE_ACCOUNTS
from tests.chart.programs import loaded
from tests.chart.rendering import Helm, Object, Release

PODS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
NODES = {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}
SLICES = {"apiGroups": ["resource.k8s.io"], "resources": ["resourceslices"], "verbs": ["get", "list"]}
REVIEWS = {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
WITHOUT_POD_METADATA: Mapping[str, Any] = {"agent": {"podMetadata": {"enabled": False}}}


@pytest.mark.parametrize(
    ("values", "rules"),
    [
        ({}, [PODS, NODES, SLICES]),
        ({"agent": {"podMetadata": {"dynamicResources": False}}}, [PODS, NODES]),
        (SERVICE_ACCOUNTS, [PODS, NODES, SLICES]),
    ],
    ids=["default", "without claims", "service accounts"],
)
def test_agent_may_read_pods_its_node_and_slices_of_devices(
    helm: Helm, values: Mapping[str, Any], rules: list[Object]
) -> None:
    release = helm.render(values)
    assert release.one("ClusterRole", "gpu:gpumon-agent")["rules"] == rules
    assert _bound(release) >= {"gpumon-agent"}
    assert release.pods["agent"]["spec"]["automountServiceAccountToken"] is True


def test_agent_without_pod_metadata_has_neither_rights_nor_a_token_of_the_api(helm: Helm) -> None:
    release = helm.render(WITHOUT_POD_METADATA)
    assert not [an for an in release.objects if "Role" in an["kind"]]
    assert release.pods["agent"]["spec"]["automountServiceAccountToken"] is False
    settings, _ = loaded(release, "agent")
    assert settings.kubernetes.pod_metadata == "off"


def test_server_may_nothing_but_review_tokens_where_it_must(helm: Helm) -> None:
    assert "gpumon-server" not in _bound(helm.render(EVERYTHING))
    assert helm.render().pods["server"]["spec"]["automountServiceAccountToken"] is False
    release = helm.render(SERVICE_ACCOUNTS)
    assert release.one("ClusterRole", "gpu:gpumon-server")["rules"] == [REVIEWS]
    assert _bound(release) == {"gpumon-agent", "gpumon-server"}
    assert release.pods["server"]["spec"]["automountServiceAccountToken"] is True


@pytest.mark.parametrize("name", CASES)
def test_only_agent_and_reviewing_server_get_a_token_of_the_api(helm: Helm, name: str) -> None:
    release = helm.render(CASES[name])
    with_token = {part for part, pod in release.pods.items() if pod["spec"]["automountServiceAccountToken"]}
    assert with_token <= {"agent", "server"}
    assert all(an["automountServiceAccountToken"] is False for an in _all(release, "ServiceAccount"))
    namespaced = [an for an in release.objects if an["kind"] in ("Role", "RoleBinding")]
    assert namespaced == []


def test_agents_send_a_token_that_the_server_takes(helm: Helm) -> None:
    release = helm.render(SERVICE_ACCOUNTS, "auth.audience=here", "agent.serviceAccount.name=watcher")
    server, _ = loaded(release, "server")
    (source,) = _volume(release.pods["agent"], "token")["projected"]["sources"]
    account = release.pods["agent"]["spec"]["serviceAccountName"]
    assert source["serviceAccountToken"]["audience"] == server.auth.audience == "here"
    assert server.auth.service_accounts.split(", ")[0] == f"gpu/{account}" == "gpu/watcher"
    token = helm.render()
    assert _volume(token.pods["agent"], "token") == _volume(token.pods["server"], "token")


def test_without_auth_no_token_is_anywhere(helm: Helm) -> None:
    release = helm.render({"auth": {"mode": "none"}})
    assert _all(release, "Secret") == []
    assert loaded(release, "server")[0].auth.mode == "none"
    assert loaded(release, "agent")[0].authentication.token_file == ""


def test_read_token_is_mounted_by_server_and_test_alone(helm: Helm) -> None:
    release = helm.render({"auth": {"read": {"enabled": True}}}, "agent.mockNvml.enabled=true")
    holders = {part for part, pod in release.pods.items() if "read-token" in str(pod["spec"].get("volumes"))}
    assert holders == {"server", "test"}
    of_server, of_test = (_volume(release.pods[part], "read-token") for part in ("server", "test"))
    assert of_server == of_test
    assert of_server["secret"]["items"] == [{"key": "read-token", "path": "token"}], "not the token for sending"


def _volume(pod: Object, name: str) -> Object:
    return next(volume for volume in pod["spec"]["volumes"] if volume["name"] == name)


def _all(release: Release, kind: str) -> list[Object]:
    return [an for an in release.objects if an["kind"] == kind]


def _bound(release: Release) -> set[str]:
    """Service accounts that have rights of the cluster."""
    return {subject["name"] for an in _all(release, "ClusterRoleBinding") for subject in an["subjects"]}
