"""A Kubernetes API that keeps any object and runs nothing, for `helm install` and its lookups: HTTP on loopback.

    with ClusterApi() as api:
        api.put(node("gpu-1", {"nvidia.com/gpu": "8"}))
        helm("install", "gpumon", chart, "--kubeconfig", api.kubeconfig(folder))
        api.names("Secret")

It takes objects by POST, PUT and every kind of PATCH (server-side apply among them, as if one manager owned all
fields), gives them back, lists and deletes them, and tells by discovery what kinds there are. Nothing is
scheduled, defaulted or validated.
"""

from __future__ import annotations

import base64
import copy
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Json = dict[str, Any]

NAMESPACED: Mapping[str, Mapping[str, str]] = {
    "v1": {
        "secrets": "Secret",
        "configmaps": "ConfigMap",
        "services": "Service",
        "serviceaccounts": "ServiceAccount",
        "persistentvolumeclaims": "PersistentVolumeClaim",
        "pods": "Pod",
    },
    "apps/v1": {"deployments": "Deployment", "daemonsets": "DaemonSet", "replicasets": "ReplicaSet"},
    "batch/v1": {"jobs": "Job"},
    "networking.k8s.io/v1": {"ingresses": "Ingress", "networkpolicies": "NetworkPolicy"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "monitoring.coreos.com/v1": {
        "podmonitors": "PodMonitor",
        "servicemonitors": "ServiceMonitor",
        "prometheusrules": "PrometheusRule",
    },
}
CLUSTER_WIDE: Mapping[str, Mapping[str, str]] = {
    "v1": {"nodes": "Node", "namespaces": "Namespace"},
    "rbac.authorization.k8s.io/v1": {
        "clusterroles": "ClusterRole",
        "clusterrolebindings": "ClusterRoleBinding",
    },
    "node.k8s.io/v1": {"runtimeclasses": "RuntimeClass"},
    "storage.k8s.io/v1": {"storageclasses": "StorageClass"},
}
_PATH = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+/[^/]+))"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/[^/]))?/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?"
)


def node(name: str, allocatable: Mapping[str, str] | None = None, labels: Mapping[str, str] | None = None) -> Json:
    """A node with what it has to give."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": dict(labels or {})},
        "status": {"allocatable": dict(allocatable or {})},
    }


class ClusterApi:
    """The API server; runs inside its `with`. Objects are kept by (apiVersion, plural, namespace, name)."""

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str, str, str], Json] = {}
        self._lock = threading.Lock()
        self._version = 0
        api = self

        class Handler(_Handler):
            owner = api

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="cluster-api", daemon=True)

    def __enter__(self) -> ClusterApi:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def kubeconfig(self, folder: Path) -> str:
        """A kubeconfig file for it."""
        path = folder / "kubeconfig"
        server = f"http://127.0.0.1:{self._server.server_port}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
            "clusters": [{"name": "fake", "cluster": {"server": server}}],
            "users": [{"name": "fake", "user": {}}],
        }
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return str(path)

    def put(self, thing: Json) -> None:
        """Keeps an object, as if somebody had made it before."""
        for kinds in (NAMESPACED, CLUSTER_WIDE):
            for plural, kind in kinds.get(thing["apiVersion"], {}).items():
                if kind == thing["kind"]:
                    namespace = thing["metadata"].get("namespace", "")
                    self.keep((thing["apiVersion"], plural, namespace, thing["metadata"]["name"]), thing)
                    return
        raise LookupError(f"no such kind: {thing['apiVersion']} {thing['kind']}")

    def objects(self, kind: str | None = None) -> list[Json]:
        """What is kept, all of it or of one kind, but for Helm's own records of releases."""
        with self._lock:
            kept = [copy.deepcopy(thing) for thing in self._objects.values()]
        return [
            thing
            for thing in kept
            if (kind is None or thing["kind"] == kind) and not thing.get("type", "").startswith("helm.sh/release")
        ]

    def names(self, kind: str | None = None) -> list[str]:
        """Kind/name of what is kept."""
        return sorted(f"{thing['kind']}/{thing['metadata']['name']}" for thing in self.objects(kind))

    def keep(self, key: tuple[str, str, str, str], thing: Json) -> Json:
        """Keeps an object under its key; gives it with its version."""
        with self._lock:
            self._version += 1
            metadata = thing.setdefault("metadata", {})
            before = self._objects.get(key, {}).get("metadata", {})
            metadata["uid"] = before.get("uid", f"uid-{self._version}")
            metadata["resourceVersion"] = str(self._version)
            metadata.setdefault("creationTimestamp", "2026-11-26T00:00:00Z")
            self._objects[key] = thing
            return copy.deepcopy(thing)

    def get(self, key: tuple[str, str, str, str]) -> Json | None:
        """The object under a key."""
        with self._lock:
            return copy.deepcopy(self._objects.get(key))

    def listed(self, version: str, plural: str, namespace: str | None, selector: str) -> list[Json]:
        """The objects of a kind, of one namespace or all, that a label selector of equalities takes."""
        wanted = [term.split("=") for term in selector.split(",") if "=" in term]
        with self._lock:
            return [
                copy.deepcopy(thing)
                for (its_version, its_plural, its_namespace, _), thing in self._objects.items()
                if (its_version, its_plural) == (version, plural)
                and namespace in (None, its_namespace)
                and all(thing["metadata"].get("labels", {}).get(k) == v for k, v in wanted)
            ]

    def remove(self, key: tuple[str, str, str, str]) -> Json | None:
        """Takes an object away."""
        with self._lock:
            return self._objects.pop(key, None)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: ClusterApi

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if (found := _discovery(path)) is not None:
            self._answer(200, found)
            return
        match = _PATH.fullmatch(path)
        if match is None:
            self._missing(path)
        elif match["name"] is None:
            version = match["core"] or match["group"]
            selector = parse_qs(urlsplit(self.path).query).get("labelSelector", [""])[0]
            items = self.owner.listed(version, match["plural"], match["namespace"], selector)
            kind = _kind(version, match["plural"])
            self._answer(200, {"apiVersion": version, "kind": f"{kind}List", "metadata": {}, "items": items})
        elif (thing := self.owner.get(_key(match))) is not None:
            self._answer(200, thing)
        else:
            self._missing(path)

    def do_POST(self) -> None:
        self._write(201)

    def do_PUT(self) -> None:
        self._write(200)

    def do_PATCH(self) -> None:
        self._write(200)

    def do_DELETE(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match = _PATH.fullmatch(urlsplit(self.path).path)
        gone = self.owner.remove(_key(match)) if match is not None else None
        if gone is None:
            self._missing(self.path)
        else:
            self._answer(200, {"apiVersion": "v1", "kind": "Status", "status": "Success"})

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def _write(self, status: int) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match = _PATH.fullmatch(urlsplit(self.path).path)
        if match is None:
            self._missing(self.path)
            return
        thing = _secret(body) if body.startswith(_PROTOBUF) else yaml.safe_load(body)
        key = _key(match, thing.get("metadata", {}).get("name"))
        kept = self.owner.get(key)
        if self.command == "POST" and kept is not None:
            self._answer(409, _status(409, "AlreadyExists", f'"{key[3]}" already exists'))
            return
        if self.command == "PATCH" and "apply" not in self.headers.get("Content-Type", ""):
            thing = _merged(kept or {}, thing)
        if "dryRun" in parse_qs(urlsplit(self.path).query):
            self._answer(status, thing)
            return
        self._answer(status, self.owner.keep(key, thing))

    def _missing(self, path: str) -> None:
        self._answer(404, _status(404, "NotFound", f"{path} not found"))

    def _answer(self, status: int, thing: Json) -> None:
        body = json.dumps(thing).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _key(match: re.Match[str], name: str | None = None) -> tuple[str, str, str, str]:
    version = match["core"] or match["group"]
    return version, match["plural"], match["namespace"] or "", match["name"] or name or ""


def _kind(version: str, plural: str) -> str:
    return (NAMESPACED.get(version, {}) | CLUSTER_WIDE.get(version, {})).get(plural, "Unknown")


_PROTOBUF = b"k8s\0"


def _secret(body: bytes) -> Json:
    """A Secret in Kubernetes' protobuf, as Helm writes its records of releases."""
    secret = _fields(_fields(body[len(_PROTOBUF) :])[2][0])
    metadata = _fields(secret[1][0])
    labels = [_fields(entry) for entry in metadata.get(11, [])]
    data = [_fields(entry) for entry in secret.get(2, [])]
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": metadata[1][0].decode(),
            "namespace": metadata[3][0].decode(),
            "labels": {entry[1][0].decode(): entry[2][0].decode() for entry in labels},
        },
        "data": {entry[1][0].decode(): base64.b64encode(entry[2][0]).decode() for entry in data},
        "type": secret[3][0].decode(),
    }


def _fields(message: bytes) -> dict[int, list[bytes]]:
    """The fields of a protobuf message that have a length; the others are numbers, which nobody asks for here."""
    found: dict[int, list[bytes]] = {}
    at = 0
    while at < len(message):
        tag, at = _number(message, at)
        length, at = _number(message, at)
        if tag & 7 == 2:
            found.setdefault(tag >> 3, []).append(message[at : at + length])
            at += length
    return found


def _number(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _merged(old: Any, new: Any) -> Any:
    """A JSON merge patch."""
    if not isinstance(new, dict) or not isinstance(old, dict):
        return new
    merged = {key: value for key, value in old.items() if key not in new or new[key] is not None}
    return merged | {key: _merged(old.get(key), value) for key, value in new.items() if value is not None}


def _status(code: int, reason: str, message: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }


def _discovery(path: str) -> Json | None:
    versions = sorted({*NAMESPACED, *CLUSTER_WIDE})
    if path == "/version":
        return {"major": "1", "minor": "36", "gitVersion": "v1.36.0", "platform": "linux/amd64"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [
            {
                "name": version.partition("/")[0],
                "versions": [{"groupVersion": version, "version": version.partition("/")[2]}],
                "preferredVersion": {"groupVersion": version, "version": version.partition("/")[2]},
            }
            for version in versions
            if "/" in version
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path == "/openapi/v3":
        return {"paths": {root(v).strip("/"): {"serverRelativeURL": f"/openapi/v3{root(v)}"} for v in versions}}
    if path.startswith("/openapi/v3/"):
        return _openapi(next(v for v in versions if path == f"/openapi/v3{root(v)}"))
    for version in versions:
        if path == root(version):
            resources = [
                {"name": plural, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": _VERBS}
                for kinds, namespaced in ((NAMESPACED, True), (CLUSTER_WIDE, False))
                for plural, kind in kinds.get(version, {}).items()
            ]
            return {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": version,
                "resources": resources,
            }
    return None


def root(version: str) -> str:
    """Where a group's version is."""
    return "/api/v1" if version == "v1" else f"/apis/{version}"


def _openapi(version: str) -> Json:
    """As much as tells a client that the server checks fields itself, so that it need not."""
    group, _, number = version.rpartition("/")
    paths = {
        f"{root(version)}/{plural}/{{name}}": {
            "patch": {
                "x-kubernetes-group-version-kind": {"group": group, "version": number, "kind": kind},
                "parameters": [
                    {"name": name, "in": "query", "schema": {"type": "string"}}
                    for name in ("fieldValidation", "dryRun")
                ],
                "responses": {},
            }
        }
        for kinds in (NAMESPACED, CLUSTER_WIDE)
        for plural, kind in kinds.get(version, {}).items()
    }
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.36.0"}, "paths": paths}


_VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
