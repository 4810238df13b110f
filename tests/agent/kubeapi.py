"""A Kubernetes API for tests: real HTTP on the loopback, with lists by pages, watches, expiry and refusals.

    with KubeApi() as api:
        api.put(pod_json("train"))
        directory = KubeDirectory("node-1", kubeconfig=api.kubeconfig(tmp_path / "config"), …)

It knows pods, nodes and ResourceSlices. Every change of a pod gets a version and is told to the watches of its
node; every request is in `requests`, and `wait_for` waits until there are so many of a kind.
"""

from __future__ import annotations

import contextlib
import copy
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.agent.doors import PATIENCE_SECONDS

LIST, WATCH, NODE, SLICES = "list", "watch", "node", "slices"

Json = dict[str, Any]


def container_id(pod: str, container: str = "main", start: int = 0) -> str:
    """The 64 digits of a container's id; each start has another."""
    return sha256(f"{pod}/{container}/{start}".encode()).hexdigest()


def pod_json(
    name: str = "train",
    *,
    namespace: str = "default",
    uid: str = "",
    node: str = "node-1",
    phase: str = "Running",
    owner: tuple[str, str] | None = None,
    api_version: str = "apps/v1",
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    containers: Iterable[str] = ("main",),
    created: str = "2026-11-24T12:00:00Z",
) -> Json:
    """A pod as the API gives it. Its UID is uid-<name> where none is given, `owner` (kind, name) its controller,
    and its containers run, with the ids of `container_id`."""
    controller = {"apiVersion": api_version, "controller": True, "uid": "uid-of-owner"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid or f"uid-{name}",
            "creationTimestamp": created,
            "labels": dict(labels or {}),
            "annotations": dict(annotations or {}),
            "ownerReferences": [controller | {"kind": owner[0], "name": owner[1]}] if owner else [],
            "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsV1": {"f:status": {}}}],
        },
        "spec": {"nodeName": node, "containers": [{"name": c, "image": "cuda"} for c in containers]},
        "status": {
            "phase": phase,
            "containerStatuses": [
                {"name": c, "ready": True, "containerID": f"containerd://{container_id(name, c)}"}
                for c in containers
            ],
        },
    }


def slice_json(
    uuids: Mapping[str, str],
    *,
    driver: str = "gpu.nvidia.com",
    pool: str = "node-1",
    generation: int = 1,
    node: str = "node-1",
    basic: bool = False,
) -> Json:
    """A ResourceSlice with devices by name; `basic` as v1beta1 has it."""

    def device(name: str, uuid: str) -> Json:
        attributes = {"attributes": {"uuid": {"string": uuid}, "type": {"string": "gpu"}, "index": {"int": 0}}}
        return {"name": name} | ({"basic": attributes} if basic else attributes)

    return {
        "metadata": {"name": f"{node}-{driver}-{generation}"},
        "spec": {
            "driver": driver,
            "nodeName": node,
            "pool": {"name": pool, "generation": generation, "resourceSliceCount": 1},
            "devices": [device(name, uuid) for name, uuid in uuids.items()],
        },
    }


@dataclass(frozen=True)
class Request:
    """One that was made."""

    kind: str
    path: str
    query: Mapping[str, str]
    token: str | None
    agent: str | None


@dataclass(frozen=True)
class _Change:
    version: int
    type: str
    pod: Json


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes in the middle of an answer is what these tests are about."""


class KubeApi:
    """The API server. Runs inside its `with`; what it says, it is told by its attributes, at any time.

    `refusals` has the status that requests of a kind are answered instead; `token` is the only one it takes
    (None: everyone may ask). `nodes` are nodes by name. `slices` are ResourceSlices by version of resource.k8s.io:
    a version that is not there is not served. While `mute` is true, watches get nothing and don't end; while
    `end_at_once` is, they end as soon as they have told what there is. `on_page` is called before each page of a
    list is sent. With `certificate`, a file with certificate and key, it speaks TLS."""

    def __init__(self, *, certificate: Path | None = None) -> None:
        self.requests: list[Request] = []
        self.refusals: dict[str, int] = {}
        self.token: str | None = None
        self.nodes: dict[str, Json] = {"node-1": {"metadata": {"name": "node-1", "labels": {}}, "spec": {}}}
        self.slices: dict[str, list[Json]] = {}
        self.mute = False
        self.end_at_once = False
        self.expire_in_stream = False
        self.on_page: Callable[[], None] = lambda: None
        self._certificate = certificate
        self._pods: dict[str, Json] = {}
        self._pages: dict[str, list[Json]] = {}
        self._changes: list[_Change] = []
        self._version = 1000
        self._forgotten = 0
        self._ended = 0
        self._broken = 0
        self._bookmarks = 0
        self._changed = threading.Condition()

    def __enter__(self) -> KubeApi:
        self._server = _Server(("127.0.0.1", 0), self._handler())
        scheme = "http"
        if self._certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.port = int(self._server.server_address[1])
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="kubeapi")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end_watches()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def kubeconfig(self, path: Path, *, token: str = "", **user: Any) -> str:
        """Writes a kubeconfig that leads here, with a token or what else a user may have; gives its name."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "agent"}}],
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "agent", "user": ({"token": token} if token else {}) | user}],
        }
        path.write_text(json.dumps(config))
        return str(path)

    def put(self, *pods: Json) -> None:
        """Pods appear or, with a UID that is there already, change."""
        with self._changed:
            for pod in pods:
                uid = pod["metadata"]["uid"]
                self._change("MODIFIED" if uid in self._pods else "ADDED", pod)

    def delete(self, uid: str) -> None:
        """A pod goes."""
        with self._changed:
            self._change("DELETED", self._pods[uid])

    def bookmark(self) -> None:
        """Every watch is told the present version."""
        with self._changed:
            self._bookmarks += 1
            self._changed.notify_all()

    def pass_versions(self, count: int) -> None:
        """Versions go by with changes elsewhere in the cluster."""
        with self._changed:
            self._version += count

    def forget(self) -> None:
        """Changes up to now are forgotten: to watch from an earlier version is answered 410, by HTTP status, or
        with `expire_in_stream` by an event. Pages of lists are forgotten, too."""
        with self._changed:
            self._forgotten = self._version
            self._changes.clear()
            self._pages.clear()

    def restore(self, version: int) -> None:
        """The store is set back to an earlier version, with the pods that are there now."""
        with self._changed:
            self._version = version
            self.forget()

    def end_watches(self) -> None:
        """Watches end, as after their timeout."""
        with self._changed:
            self._ended += 1
            self._changed.notify_all()

    def break_watches(self) -> None:
        """The connections of watches break in the middle."""
        with self._changed:
            self._broken += 1
            self._changed.notify_all()

    def count(self, kind: str) -> int:
        """How many requests of a kind there were."""
        with self._changed:
            return sum(request.kind == kind for request in self.requests)

    def wait_for(self, kind: str, count: int) -> Request:
        """Waits until there were so many requests of a kind; gives the last of them."""
        with self._changed:
            found = self._changed.wait_for(lambda: len(self._of(kind)) >= count, PATIENCE_SECONDS)
            assert found, (kind, count, self.requests)
            return self._of(kind)[count - 1]

    def _of(self, kind: str) -> list[Request]:
        return [request for request in self.requests if request.kind == kind]

    def _change(self, type_: str, pod: Json) -> None:
        self._version += 1
        pod = copy.deepcopy(pod)
        pod["metadata"]["resourceVersion"] = str(self._version)
        if type_ == "DELETED":
            del self._pods[pod["metadata"]["uid"]]
        else:
            self._pods[pod["metadata"]["uid"]] = pod
        self._changes.append(_Change(self._version, type_, pod))
        self._changed.notify_all()

    def _note(self, request: Request) -> int | None:
        """Gives the status by which it is refused."""
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
            if self.token is not None and request.token != self.token:
                return 401
            return self.refusals.get(request.kind)

    def _list(self, query: Mapping[str, str]) -> tuple[int, Json]:
        with self._changed:
            if "continue" in query:
                if "resourceVersion" in query:
                    return 400, _status(400, "specifying resource version is not allowed when using continue")
                if query["continue"] not in self._pages:
                    return 410, _status(410, "The provided continue parameter is too old")
                items = self._pages.pop(query["continue"])
            else:
                if int(query.get("resourceVersion") or 0) > self._version:
                    return 504, _status(504, "Too large resource version")
                items = [pod for pod in self._pods.values() if _is_chosen(pod, query)]
            limit = int(query.get("limit", "0")) or len(items)
            metadata = {"resourceVersion": str(self._version)}
            if items[limit:]:
                metadata["continue"] = f"page-{self._version}-{len(items)}"
                self._pages[metadata["continue"]] = items[limit:]
            page = {"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items[:limit]}
        self.on_page()
        return 200, page

    def _handler(api) -> type[BaseHTTPRequestHandler]:  # noqa: N805  the handler is the inner self
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                address = urlsplit(self.path)
                query = dict(parse_qsl(address.query))
                kind = _kind(address.path, query)
                request = Request(
                    kind,
                    address.path,
                    query,
                    _token(self.headers.get("Authorization")),
                    self.headers.get("User-Agent"),
                )
                refused = api._note(request)
                if refused is not None:
                    self._answer(refused, _status(refused, f"{kind} is forbidden for the agent of these tests"))
                elif kind == LIST:
                    self._answer(*api._list(query))
                elif kind == WATCH:
                    self._watch(query)
                elif kind == NODE and (node := api.nodes.get(address.path.rpartition("/")[2])) is not None:
                    self._answer(200, node)
                elif kind == SLICES and (slices := api.slices.get(address.path.split("/")[3])) is not None:
                    chosen = [a_slice for a_slice in slices if _is_chosen(a_slice, query)]
                    self._answer(200, {"metadata": {"resourceVersion": "1"}, "items": chosen})
                else:
                    self._answer(404, _status(404, "the server could not find the requested resource"))

            def _answer(self, status: int, answer: Json) -> None:
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _watch(self, query: Mapping[str, str]) -> None:
                seen = int(query["resourceVersion"])
                deadline = time.monotonic() + float(query["timeoutSeconds"])
                with api._changed:
                    expired = seen < api._forgotten or seen > api._version
                    ended, broken, bookmarks = api._ended, api._broken, api._bookmarks
                if expired and not api.expire_in_stream:
                    self._answer(410, _status(410, "too old resource version"))
                    return
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                if expired:
                    self._chunk([{"type": "ERROR", "object": _status(410, "too old resource version")}])
                    self._end()
                    return
                while True:
                    with api._changed:
                        events: list[Json] = []
                        if not api.mute:
                            events = [
                                {"type": change.type, "object": change.pod}
                                for change in api._changes
                                if change.version > seen and _is_chosen(change.pod, query)
                            ]
                            if bookmarks != api._bookmarks and query.get("allowWatchBookmarks") == "true":
                                at = {"resourceVersion": str(api._version)}
                                events.append({"type": "BOOKMARK", "object": {"kind": "Pod", "metadata": at}})
                            seen, bookmarks = api._version, api._bookmarks
                        if not events:
                            if api._broken != broken:
                                break
                            left = deadline - time.monotonic()
                            if api.end_at_once or api._ended != ended or (left <= 0 and not api.mute):
                                self._end()
                                return
                            api._changed.wait(max(left, 0.05))
                            continue
                    if not self._chunk(events):
                        return
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)

            def _chunk(self, events: list[Json]) -> bool:
                """Events in two chunks, cut in the middle of a line. False where the client is gone."""
                data = b"".join(json.dumps(event).encode() + b"\n" for event in events)
                try:
                    for part in (data[: len(data) // 3], data[len(data) // 3 :]):
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                        self.wfile.flush()
                except OSError:
                    self.close_connection = True
                    return False
                return True

            def _end(self) -> None:
                with contextlib.suppress(OSError):
                    self.wfile.write(b"0\r\n\r\n")

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def _kind(path: str, query: Mapping[str, str]) -> str:
    if path == "/api/v1/pods":
        return WATCH if query.get("watch") == "true" else LIST
    if path.startswith("/api/v1/nodes/"):
        return NODE
    return SLICES if path.startswith("/apis/resource.k8s.io/") else path


def _token(authorization: str | None) -> str | None:
    """The scheme may be written in any case."""
    scheme, _, token = (authorization or "").partition(" ")
    return token if scheme.lower() == "bearer" else None


def _is_chosen(given: Json, query: Mapping[str, str]) -> bool:
    field, _, value = query.get("fieldSelector", "").partition("=")
    return not field or (field == "spec.nodeName" and given["spec"].get("nodeName") == value)


def _status(code: int, message: str) -> Json:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
