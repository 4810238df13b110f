"""Which pod reaches which by NetworkPolicies, as their specification says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Policy = Mapping[str, Any]


@dataclass(frozen=True)
class Peer:
    """A pod, or with an empty namespace something outside of the cluster."""

    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, namespace: str, template: Mapping[str, Any]) -> Peer:
        """A pod of a template."""
        ports = {
            port["name"]: port["containerPort"]
            for container in template["spec"]["containers"]
            for port in container.get("ports", [])
        }
        return cls(namespace, template["metadata"]["labels"], ports)


def reaches(policies: Sequence[Policy], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether `source` may open a connection to a port of `target`: both sides must allow it."""
    return _lets(policies, "Egress", source, target, target, port, protocol) and _lets(
        policies, "Ingress", target, source, target, port, protocol
    )


def _lets(
    policies: Sequence[Policy], side: str, own: Peer, other: Peer, target: Peer, port: int, protocol: str
) -> bool:
    mine = [
        policy
        for policy in policies
        if side in policy["spec"]["policyTypes"]
        and policy["metadata"]["namespace"] == own.namespace
        and matches(policy["spec"]["podSelector"], own.labels)
    ]
    if not mine:
        return True
    return any(
        _is_peer(rule.get("from" if side == "Ingress" else "to"), other, policy["metadata"]["namespace"])
        and _is_port(rule.get("ports"), target, port, protocol)
        for policy in mine
        for rule in policy["spec"].get(side.lower()) or []
    )


def _is_peer(peers: Sequence[Mapping[str, Any]] | None, other: Peer, namespace: str) -> bool:
    if not peers:  # anything
        return True
    return any(_is_one(peer, other, namespace) for peer in peers)


def _is_one(peer: Mapping[str, Any], other: Peer, namespace: str) -> bool:
    if "ipBlock" in peer or not other.namespace:
        return False  # no test has addresses
    names = {"kubernetes.io/metadata.name": other.namespace}
    in_namespace = (
        matches(peer["namespaceSelector"], names) if "namespaceSelector" in peer else other.namespace == namespace
    )
    return in_namespace and matches(peer.get("podSelector", {}), other.labels)


def _is_port(ports: Sequence[Mapping[str, Any]] | None, target: Peer, port: int, protocol: str) -> bool:
    if not ports:
        return True
    return any(
        rule.get("protocol", "TCP") == protocol
        and (target.ports.get(rule["port"]) if isinstance(rule["port"], str) else rule["port"]) == port
        for rule in ports
    )


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector takes these labels."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(_meets(term, labels.get(term["key"])) for term in selector.get("matchExpressions", []))


def _meets(term: Mapping[str, Any], value: str | None) -> bool:
    match term["operator"]:
        case "In":
            return value in term["values"]
        case "NotIn":
            return value not in term["values"]
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    raise AssertionError(f"no operator: {term['operator']}")
