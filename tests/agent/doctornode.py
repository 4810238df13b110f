"""A node for the doctor's tests, where all is well until a test breaks something: real doors on every side.

    node.kubelet.stop()
    report = node.examine()

Simulated NVML with one H100, a /proc, a kubelet and a Kubernetes API, and a server that answers what it is told.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gpumon import __version__, clock
from gpumon.agent.doctor import Finding, Report
from gpumon.agent.fakenvml import FakeNvml
from gpumon.agent.run import examine
from gpumon.agent.settings import (
    AgentSettings,
    Attribution,
    GpuMetrics,
    Kubernetes,
    Monitoring,
    Network,
    Server,
    Spool,
    Status,
)
from tests.agent.kubeapi import KubeApi, pod_json
from tests.agent.kubelet import Kubelet, holds
from tests.agent.proctree import ProcTree

POD_UID = "1d5c2c3e-7f54-4f0e-8a55-2f1f3f0a9b11"
PID = 4242
CONTAINER = "c" * 64
GPU_RESOURCE = "nvidia.com/gpu"


def cgroup(uid: str = POD_UID) -> str:
    """The cgroup of a process in a pod, as systemd and containerd write it."""
    slice_ = f"kubepods-burstable-pod{uid.replace('-', '_')}.slice"
    return f"0::/kubepods.slice/kubepods-burstable.slice/{slice_}/cri-containerd-{CONTAINER}.scope\n"


class AnsweringServer:
    """A server on the loopback. `answers` is (status, body) by method and path; what is not there is 404. Every
    request is in `requests`, with its body. Its clock is `ahead_seconds` ahead. While `hold` is not set, answers
    wait for it."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {
            "GET /": (200, {"message": "NVIDIA GPU Metrics API", "version": __version__, "docs_url": "/docs"}),
            "GET /health": (200, {"status": "healthy"}),
            "POST /api/receive-data": (422, {"success": False, "detail": "the list is empty"}),
        }
        self.requests: list[tuple[str, bytes]] = []
        self.ahead_seconds = 0.0
        self.hold = threading.Event()
        self.hold.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> AnsweringServer:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="server")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def speak_tls(self, context: ssl.SSLContext) -> None:
        """https from now on, no longer http."""
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client may turn away

    def stop(self) -> None:
        """Nobody listens any more. Harmless when done twice."""
        self.hold.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805  the handler is the inner self
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(b"")

            def do_POST(self) -> None:
                self._answer(self.rfile.read(int(self.headers["Content-Length"])))

            def _answer(self, body: bytes) -> None:
                asked = f"{self.command} {self.path}"
                server.requests.append((asked, body))
                server.hold.wait(20)
                status, answer = server.answers.get(asked, (404, {"detail": "not found"}))
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def date_time_string(self, timestamp: float | None = None) -> str:
                return super().date_time_string(clock.now().timestamp() + server.ahead_seconds)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


class DoctorNode:
    """The doors, in working order, and the settings that lead to them. `sections` change the settings; `environ`
    is what the agent's environment has; `top`, `gpus` and `rest` are TOML of the scenario: the
    node's keys, its GPUs, and what follows."""

    def __init__(self, folder: Path, kubelet: Kubelet, api: KubeApi, server: AnsweringServer) -> None:
        self.folder = folder
        self.kubelet = kubelet
        self.api = api
        self.server = server
        self.proc = ProcTree(folder / "proc")
        self.proc.add(PID, cgroup=cgroup())
        self.top = ""
        self.gpus = "model = 'h100-sxm'"
        self.rest = f"[[node.processes]]\ngpu = 0\npid = {PID}"
        self.environ = {"NODE_NAME": "node-1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
        self.spool = folder / "spool"
        self.fake: FakeNvml | None = None
        self.sections: dict[str, Any] = {}
        self.server_host = "http://127.0.0.1"
        self.ca_file = ""
        api.put(pod_json("train", uid=POD_UID))
        uuid = self.uuid()
        kubelet.containers = [holds("train", GPU_RESOURCE, uuid)]
        kubelet.allocatable = {GPU_RESOURCE: [uuid]}

    def uuid(self) -> str:
        """The UUID of the first GPU."""
        with self.simulated("") as fake:
            return fake.state.gpus[0].uuid

    @contextmanager
    def simulated(self, top: str | None = None) -> Iterator[FakeNvml]:
        """The simulated library under the binding. `top` are keys of the node."""
        text = f'[[node]]\nmatch = "*"\n{self.top if top is None else top}\n'
        gpus = f"[[node.gpus]]\n{self.gpus}\n" if self.gpus else ""
        fake = FakeNvml.from_text(f"{text}{gpus}{self.rest}", "node-1", sleep=self._pause, proc=self.proc.root)
        fake.install()
        try:
            yield fake
        finally:
            fake.uninstall()

    def _pause(self, _: float) -> None:
        """Simulated waits, as for Xids, are short."""
        threading.Event().wait(0.001)

    def settings(self) -> AgentSettings:
        """The settings that lead to all doors."""
        given: dict[str, Any] = {
            "monitoring": Monitoring(interval_seconds=0.1),
            "server": Server(server_host=self.server_host, server_port=self.server.port, ca_file=self.ca_file),
            "network": Network(batch_size=1, shutdown_seconds=0.1),
            "spool": Spool(directory=str(self.spool)),
            "gpu_metrics": GpuMetrics(),
            "attribution": Attribution(proc_root=str(self.proc.root)),
            "kubernetes": Kubernetes(
                kubelet_socket=str(self.kubelet.socket),
                kubelet_timeout=0.5,
                kubeconfig=self.api.kubeconfig(self.folder / "kubeconfig"),
            ),
            "status": Status(port=0),
        }
        return AgentSettings(**(given | self.sections))

    def examine(self) -> Report:
        """What a doctor beside the agent finds."""
        with self.simulated():
            return examine(self.settings(), self.environ, between_reads_seconds=0)

    def finding(self, name: str) -> Finding:
        """One of the findings."""
        return next(finding for finding in self.examine().findings if finding.name == name)


@contextmanager
def doctor_nodes(folder: Path) -> Iterator[DoctorNode]:
    """One node, with its doors open."""
    with Kubelet(folder / "kubelet.sock") as kubelet, KubeApi() as api, AnsweringServer() as server:
        yield DoctorNode(folder, kubelet, api, server)
