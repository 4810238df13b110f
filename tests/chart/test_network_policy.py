"""Who reaches whom with the chart's NetworkPolicies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.chart.reach import Peer, matches, reaches
from tests.chart.rendering import Helm

BOTH: Mapping[str, Any] = {
    "agent": {"networkPolicy": {"enabled": True, "allowedNamespaces": ["monitoring"]}},
    "server": {"networkPolicy": {"enabled": True, "allowedNamespaces": ["ingress-nginx", "monitoring"]}},
}
API = Peer("")
DNS = Peer("kube-system", {"k8s-app": "kube-dns"}, {"dns": 53})


class Cluster:
    """The pods of a release in the namespace gpu, and the policies over them."""

    def __init__(self, helm: Helm, values: Mapping[str, Any]) -> None:
        release = helm.render(values)
        self.policies = [an for an in release.objects if an["kind"] == "NetworkPolicy"]
        self.pods = {name: Peer.of("gpu", template) for name, template in release.pods.items()}

    def reach(self, source: str | Peer, target: str | Peer, port: int, protocol: str = "TCP") -> bool:
        found = (self.pods[peer] if isinstance(peer, str) else peer for peer in (source, target))
        return reaches(self.policies, *found, port, protocol)


@pytest.fixture
def cluster(helm: Helm) -> Cluster:
    return Cluster(helm, BOTH)


def test_agents_and_the_test_reach_the_server(cluster: Cluster) -> None:
    assert cluster.reach("agent", "server", 5000)
    assert cluster.reach("test", "server", 5000)


@pytest.mark.parametrize("namespace", ["ingress-nginx", "monitoring"])
def test_namespaces_that_are_named_reach_the_server(cluster: Cluster, namespace: str) -> None:
    assert cluster.reach(Peer(namespace, {"app": "any"}), "server", 5000)


def test_nobody_else_reaches_the_server(cluster: Cluster) -> None:
    assert not cluster.reach(Peer("default"), "server", 5000)
    assert not cluster.reach(Peer("gpu", {"app": "notebook"}), "server", 5000)
    assert not cluster.reach(Peer("default", cluster.pods["agent"].labels), "server", 5000)
    assert not cluster.reach(Peer(""), "server", 5000)


def test_the_test_reaches_the_server_where_nothing_else_is_let_out(cluster: Cluster) -> None:
    nothing = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    cluster.policies.append({"metadata": {"namespace": "gpu"}, "spec": nothing})
    assert cluster.reach("test", "server", 5000)
    assert cluster.reach("test", DNS, 53, "UDP")
    assert not cluster.reach("test", API, 443)


def test_agents_of_another_release_do_not_reach_the_server(helm: Helm, cluster: Cluster) -> None:
    other = Peer.of("gpu", helm.render(BOTH, release="other").pods["agent"])
    assert not cluster.reach(other, "server", 5000)


def test_no_other_port_of_the_server_is_reached(cluster: Cluster) -> None:
    assert not cluster.reach("agent", "server", 22)
    assert not cluster.reach(Peer("monitoring"), "server", 22)


def test_server_reaches_nothing(cluster: Cluster) -> None:
    assert not cluster.reach("server", DNS, 53, "UDP")
    assert not cluster.reach("server", API, 443)
    assert not cluster.reach("server", "agent", 9435)


def test_server_that_reviews_tokens_reaches_the_api_and_nothing_else(helm: Helm) -> None:
    cluster = Cluster(helm, {**BOTH, "auth": {"mode": "serviceAccount"}})
    assert cluster.reach("server", API, 443)
    assert cluster.reach("server", API, 6443)
    assert not cluster.reach("server", API, 80)
    assert not cluster.reach("server", "agent", 9435)


def test_agent_reaches_names_the_api_and_the_server_alone(cluster: Cluster) -> None:
    assert cluster.reach("agent", DNS, 53, "UDP")
    assert cluster.reach("agent", DNS, 53, "TCP")
    assert cluster.reach("agent", API, 443)
    assert cluster.reach("agent", API, 6443)
    assert not cluster.reach("agent", API, 80)
    assert not cluster.reach("agent", Peer("default", ports={"http": 5000}), 5000)
    assert not cluster.reach("agent", "agent", 9435)


def test_agent_reaches_the_server_by_its_port_alone_also_where_the_server_lets_all_in(helm: Helm) -> None:
    cluster = Cluster(helm, {"agent": BOTH["agent"]})
    assert cluster.reach("agent", "server", 5000)
    assert not cluster.reach("agent", "server", 22)


@pytest.mark.parametrize("port", [443, 6443, 8443, 16443])
def test_agent_reaches_the_api_by_the_port_behind_its_service(cluster: Cluster, port: int) -> None:
    assert cluster.reach("agent", API, port)


def test_agent_reaches_a_dns_that_listens_elsewhere_behind_its_service(cluster: Cluster) -> None:
    openshift = Peer("openshift-dns", ports={"dns": 5353})
    assert cluster.reach("agent", openshift, 5353, "UDP")
    assert cluster.reach("agent", openshift, 5353, "TCP")


def test_ports_are_numbers_for_some_networks_know_no_names(cluster: Cluster) -> None:
    rules = [
        rule
        for policy in cluster.policies
        for side in ("ingress", "egress")
        for rule in policy["spec"].get(side) or []
    ]
    assert rules
    assert all(isinstance(port["port"], int) for rule in rules for port in rule.get("ports", []))


def test_agent_without_pod_metadata_does_not_reach_the_api(helm: Helm) -> None:
    off = {**BOTH, "agent": {**BOTH["agent"], "podMetadata": {"enabled": False}}}
    assert not Cluster(helm, off).reach("agent", API, 443)
    assert Cluster(helm, off).reach("agent", "server", 5000)


def test_only_namespaces_that_are_named_scrape_the_agents(cluster: Cluster) -> None:
    assert cluster.reach(Peer("monitoring"), "agent", 9435)
    assert not cluster.reach(Peer("monitoring"), "agent", 22)
    assert not cluster.reach(Peer("ingress-nginx"), "agent", 9435)
    assert not cluster.reach(Peer("gpu"), "agent", 9435)


def test_without_namespaces_only_the_node_reaches_the_agents(helm: Helm) -> None:
    cluster = Cluster(helm, {"agent": {"networkPolicy": {"enabled": True}}})
    assert not cluster.reach(Peer("monitoring"), "agent", 9435)
    assert cluster.reach("agent", "server", 5000)


def test_policies_follow_the_ports_of_the_programs(helm: Helm) -> None:
    ports = {
        "agent": {**BOTH["agent"], "config": {"status": {"port": 9000}}},
        "server": {**BOTH["server"], "config": {"server": {"port": 6000}}, "service": {"port": 80}},
    }
    cluster = Cluster(helm, ports)
    assert cluster.reach("agent", "server", 6000)
    assert not cluster.reach("agent", "server", 5000)
    assert cluster.reach(Peer("monitoring"), "agent", 9000)


def test_further_rules_add_to_the_chart_s_own(helm: Helm) -> None:
    backup = {"podSelector": {"matchLabels": {"app": "backup"}}}
    policy = {"enabled": True, "extraIngress": [{"from": [backup]}], "extraEgress": [{"to": [backup]}]}
    cluster = Cluster(helm, {"server": {"networkPolicy": policy}, "agent": {"networkPolicy": policy}})
    peer = Peer("gpu", {"app": "backup"})
    for name, port in (("server", 5000), ("agent", 9435)):
        assert cluster.reach(peer, name, port)
        assert cluster.reach(name, peer, 1)
    assert cluster.reach("agent", "server", 5000)


def test_by_default_there_is_no_policy(helm: Helm) -> None:
    assert Cluster(helm, {}).policies == []


def test_selector_takes_expressions_as_kubernetes_does() -> None:
    def takes(operator: str, **labels: str) -> bool:
        return matches({"matchExpressions": [{"key": "k", "operator": operator, "values": ["a"]}]}, labels)

    assert takes("In", k="a") and not takes("In", k="b") and not takes("In")
    assert takes("NotIn", k="b") and takes("NotIn") and not takes("NotIn", k="a")
    assert takes("Exists", k="b") and not takes("Exists")
    assert takes("DoesNotExist") and not takes("DoesNotExist", k="a")
    assert matches({}, {})
