"""What the agent costs on a full node: 200 processes of 100 pods on eight GPUs that are time-sliced.

    python -m bench.agent_pods [--seconds 60]

As `bench.agent`, with all that attribution asks: a real kubelet (gRPC on a unix socket), the Kubernetes API (HTTP,
one list and one watch), and a /proc in a folder. They run in this process, so that CPU and memory are the agent's
own. The simulated library's time is in the CPU time; it is measured apart, too. At the end, pods change ten times
a second, to see that the kubelet is not asked as often.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import ExitStack
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.agent.kubeapi import LIST, NODE, WATCH, KubeApi, container_id, pod_json
from tests.agent.kubelet import Kubelet, holds
from tests.agent.proctree import ProcTree

from bench.agent import WARM_UP_SECONDS, Sink, cpu_seconds, resident_mib
from bench.nvml_calls import GPUS, Bench
from gpumon.agent.fakenvml import FakeNvml

PODS = 100
PROCESSES_PER_POD = 2
NODE_NAME = "bench"
_CHURN_SECONDS = 15
_CHANGES_PER_SECOND = 10
_LIBRARY_SAMPLES = 60
_RESOURCE = "nvidia.com/gpu"
_REPLICAS = -(-PODS // GPUS)
_AGENT = """
import os, pathlib, signal, sys
sys.modules["rich"] = None
from gpumon.agent import fakenvml
from gpumon.agent.fakenvml import FakeNvml
install = FakeNvml.install
def noted(fake):
    install(fake)
    told = pathlib.Path(os.environ["BENCH_CALLS"])
    def tell(*_):
        new = told.with_suffix(".new")
        new.write_text(str(fake.calls.total()))
        new.replace(told)
    signal.signal(signal.SIGUSR1, tell)
FakeNvml.install = noted
sys.argv = ["gpumon", "agent", "--config", os.devnull]
from gpumon.__main__ import main
main()
"""
"""The agent, without what development tools brought; it tells its NVML calls when it gets SIGUSR1."""


def scenario() -> str:
    """The GPUs and processes."""
    lines = [f'[[node]]\nmatch = "*"\n[[node.gpus]]\nmodel = "h100-sxm"\ncount = {GPUS}\nutilization = 0\n']
    for pod in range(PODS):
        for process in range(PROCESSES_PER_POD):
            pid = 1000 + PROCESSES_PER_POD * pod + process
            lines.append(
                f"[[node.processes]]\ngpu = {pod % GPUS}\npid = {pid}\nmemory_mib = 500\nutilization = 3\n"
            )
    return "".join(lines)


class FullNode:
    """The node's kubelet, API and /proc, with every pod on them."""

    def __init__(self, folder: Path) -> None:
        uuids = [gpu.uuid for gpu in FakeNvml.from_text(scenario(), NODE_NAME).state.gpus]
        (folder / "pod-resources").mkdir()
        self.kubelet = Kubelet(folder / "pod-resources" / "kubelet.sock")
        self.api = KubeApi()
        self.api.nodes[NODE_NAME] = {"metadata": {"name": NODE_NAME, "labels": {}}, "spec": {}}
        self.proc = ProcTree(folder / "proc")
        names = [f"worker-{number}" for number in range(PODS)]
        self.pods = [self._pod(name) for name in names]
        self.kubelet.containers = [
            holds(name, _RESOURCE, f"{uuids[number % GPUS]}::{number // GPUS}")
            for number, name in enumerate(names)
        ]
        self.kubelet.allocatable = {
            _RESOURCE: [f"{gpu}::{replica}" for gpu in uuids for replica in range(_REPLICAS)]
        }
        for number, pod in enumerate(self.pods):
            uid = pod["metadata"]["uid"].replace("-", "_")
            path = (
                f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice/"
                f"cri-containerd-{container_id(names[number])}.scope"
            )
            for process in range(PROCESSES_PER_POD):
                self.proc.add(1000 + PROCESSES_PER_POD * number + process, cgroup=f"0::{path}\n")
        self.api.put(*self.pods)

    def _pod(self, name: str) -> dict[str, Any]:
        uid = str(uuid.uuid5(uuid.NAMESPACE_DNS, name))
        return pod_json(
            name,
            uid=uid,
            node=NODE_NAME,
            labels={"app": name, "team": "ml"},
            owner=("ReplicaSet", f"{name}-7f9c4"),
        )

    def change(self, number: int) -> None:
        """One pod changes, in a way that the agent takes note of."""
        pod = self.pods[number % PODS]
        pod["metadata"]["labels"]["team"] = f"team-{number}"
        self.api.put(pod)


def library_seconds() -> float:
    """CPU time that the simulated library itself takes for one sample of the node."""
    bench = Bench()
    bench.fake = FakeNvml.from_text(scenario(), NODE_NAME, now=bench.now)
    bench.time_the_library()
    bench.cpu_seconds(_LIBRARY_SAMPLES)
    return bench.library_seconds / _LIBRARY_SAMPLES


def nvml_calls(agent: subprocess.Popen[bytes], told: Path) -> int:
    """How many NVML calls the agent has made."""
    told.unlink(missing_ok=True)
    agent.send_signal(signal.SIGUSR1)
    while not told.exists():
        time.sleep(0.05)
    return int(told.read_text())


def main() -> None:
    """Runs it and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    seconds = parser.parse_args().seconds
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "scenario.toml").write_text(scenario())
        node = FullNode(folder)
        stack.enter_context(node.kubelet)
        stack.enter_context(node.api)
        agent = subprocess.Popen(
            [sys.executable, "-c", _AGENT],
            env=os.environ
            | {
                "NODE_NAME": NODE_NAME,
                "BENCH_CALLS": str(folder / "calls"),
                "GPUMON_FAKE_NVML": str(folder / "scenario.toml"),
                "GPUMON_AGENT__SERVER__SERVER_HOST": "http://127.0.0.1",
                "GPUMON_AGENT__SERVER__SERVER_PORT": str(server.server_port),
                "GPUMON_AGENT__MONITORING__INTERVAL_SECONDS": "1",
                "GPUMON_AGENT__KUBERNETES__KUBELET_SOCKET": str(node.kubelet.socket),
                "GPUMON_AGENT__KUBERNETES__KUBECONFIG": node.api.kubeconfig(folder / "kubeconfig"),
                "GPUMON_AGENT__ATTRIBUTION__PROC_ROOT": str(node.proc.root),
                "GPUMON_AGENT__SPOOL__DIRECTORY": f"{folder}/spool",
                "GPUMON_AGENT__STATUS__PORT": "0",
                "GPUMON_AGENT__LOGGING__LOG_FILE": "",
                "GPUMON_AGENT__LOGGING__CONSOLE_OUTPUT": "false",
            },
        )
        try:
            measure(agent, node, folder / "calls", seconds)
        finally:
            agent.terminate()
            agent.wait(20)
            server.shutdown()
            server.server_close()


def measure(agent: subprocess.Popen[bytes], node: FullNode, told: Path, seconds: int) -> None:
    """Watches the agent for so long and prints what it cost."""
    time.sleep(WARM_UP_SECONDS)
    cpu, received = cpu_seconds(agent.pid), Sink.received
    calls, asked = nvml_calls(agent, told), node.kubelet.calls.total()
    time.sleep(seconds)
    cpu = (cpu_seconds(agent.pid) - cpu) / seconds
    print(f"{GPUS} H100, {PODS} pods, {PODS * PROCESSES_PER_POD} processes, one sample a second for {seconds} s")
    print(f"  {cpu * 1000:6.2f} ms CPU per sample of the node ({cpu:.2%} of a core), of which")
    print(f"  {library_seconds() * 1000:6.2f} ms are the simulated library's own")
    now, highest = resident_mib(agent.pid, "VmRSS"), resident_mib(agent.pid, "VmHWM")
    print(f"  {now:6.1f} MiB resident, {highest:.1f} highest")
    print(f"  {(nvml_calls(agent, told) - calls) / seconds:6.1f} NVML calls per sample of the node")
    print(f"  {(Sink.received - received) / seconds:6.0f} bytes a second sent")
    print(f"  {(node.kubelet.calls.total() - asked) * 60 / seconds:6.1f} calls of the kubelet a minute")
    requests = ", ".join(f"{node.api.count(kind)} {kind}" for kind in (LIST, WATCH, NODE))
    print(f"         requests to the Kubernetes API since the start: {requests}")
    asked = node.kubelet.calls.total()
    for number in range(_CHURN_SECONDS * _CHANGES_PER_SECOND):
        node.change(number)
        time.sleep(1 / _CHANGES_PER_SECOND)
    print(
        f"  {(node.kubelet.calls.total() - asked) * 60 / _CHURN_SECONDS:6.1f} calls of the kubelet a minute while "
        f"{_CHANGES_PER_SECOND * 60} pods a minute change; {node.api.count(LIST)} list of pods"
    )


if __name__ == "__main__":
    main()
