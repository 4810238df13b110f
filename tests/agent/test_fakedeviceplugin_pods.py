"""A node without any GPU, whole: the plugin offers simulated ones, pods are given them, and their processes use
them.

The device manager gives out what the plugin offers, and what a container finds in its environment is in its
process's command line. The agent asks a kubelet who holds what, and finds who uses it by command line and cgroup.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from gpumon.agent import run as agent
from gpumon.agent.fakedeviceplugin import Options, run
from gpumon.agent.settings import (
    AgentSettings,
    Attribution,
    Kubernetes,
    Monitoring,
    Network,
    Server,
    Spool,
    Status,
)
from tests.agent.devicemanager import DeviceManager
from tests.agent.doctornode import cgroup
from tests.agent.doors import PATIENCE_SECONDS, Receiver
from tests.agent.kubeapi import KubeApi, pod_json
from tests.agent.kubelet import Kubelet, holds
from tests.agent.proctree import ProcTree

GPU = "nvidia.com/gpu"
LOADS = (60, 30, 0)
UNSEEN = "allocation-only"
"""Of a container whose processes were not found yet, as just after its start."""
MOST_SAMPLES = 100
ENTRY = r"""
[[node.processes]]
gpu = "each"
cmdline = "^\\S*python[0-9.]* .* gpumon-sample --load=LOAD --gpu=\\S*{uuid}"
utilization = LOAD
"""
SCENARIO = '[[node]]\nmatch = "*"\n[[node.gpus]]\nmodel = "h100-sxm"\ncount = 3\n' + "".join(
    ENTRY.replace("LOAD", str(load)) for load in LOADS
)

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")


def uid(pod: str) -> str:
    """The UID of a pod."""
    return f"1d5c2c3e-7f54-4f0e-8a55-{pod.encode().hex():0>12}"


class Node:
    """The node, with the plugin and all that the agent asks. Its name is that of no other test run."""

    def __init__(self, folder: Path) -> None:
        self.name = f"node-{os.getpid()}-{folder.name}"
        self.folder = folder
        self.scenario = folder / "scenario.toml"
        self.scenario.write_text(SCENARIO)
        self.proc = ProcTree(folder / "proc")
        self.devices = DeviceManager(folder)
        self.kubelet = Kubelet(folder / "pod-resources.sock")
        self.api = KubeApi()
        self.receiver = Receiver()

    def start_pod(self, name: str, load: int, *gpus: str) -> subprocess.Popen[bytes]:
        """Gives GPUs to a pod and starts its process, in the cgroup of its container."""
        (environ,) = self.devices.allocate(GPU, gpus)
        program = f'exec {sys.executable} -c "import signal; signal.pause()"'
        process = subprocess.Popen(
            ["/bin/sh", "-c", f'{program} gpumon-sample --load={load} --gpu="$NVIDIA_VISIBLE_DEVICES"'],
            env=os.environ | environ,
        )
        self.proc.add(process.pid, cgroup=cgroup(uid(name)))
        self.api.put(pod_json(name, uid=uid(name), node=self.name))
        self.kubelet.containers = [*self.kubelet.containers, holds(name, GPU, *gpus)]
        return process

    def settings(self) -> AgentSettings:
        """The settings of its agent."""
        return AgentSettings(
            monitoring=Monitoring(interval_seconds=0.5),
            server=Server(server_host="http://127.0.0.1", server_port=self.receiver.port),
            network=Network(batch_size=3, shutdown_seconds=0.1),
            spool=Spool(directory=str(self.folder / "spool")),
            attribution=Attribution(proc_root=str(self.proc.root)),
            kubernetes=Kubernetes(
                kubelet_socket=str(self.kubelet.socket),
                kubeconfig=self.api.kubeconfig(self.folder / "kubeconfig"),
            ),
            status=Status(port=-1),
        )

    def samples(self) -> Iterator[dict[str, Any]]:
        """What the agent sends, as it comes."""
        while self.receiver.arrived.acquire(timeout=PATIENCE_SECONDS):
            yield from self.receiver.posts.pop(0).samples
        raise AssertionError("the agent sends nothing any more")


@contextmanager
def running(work: Any, *arguments: Any) -> Iterator[None]:
    """A program of ours in a thread; it is asked to stop at the end."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(*arguments, stop.is_set))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    with ExitStack() as doors:
        for door in (node.devices, node.kubelet, node.api, node.receiver):
            doors.enter_context(door)
        yield node


def test_who_was_given_a_simulated_gpu_and_who_uses_it_is_told_for_each_pod(node: Node) -> None:
    pods = []
    with running(run, Options(node.scenario, node.name, node.folder, replicas=2)):
        first, shared, second, _, third, _ = node.devices.wait(lambda: node.devices.ids(GPU))
        try:
            pods.append(node.start_pod("busy", 60, first))
            pods.append(node.start_pod("light", 30, shared))
            pods.append(node.start_pod("idle", 0, second))
            pods.append(node.start_pod("lone", 30, third))
            environ = {"NODE_NAME": node.name, "GPUMON_FAKE_NVML": str(node.scenario)}
            with running(lambda stop: agent.run(node.settings(), stop, environ)):
                found = parts(node)
        finally:
            for pod in pods:
                pod.kill()
                pod.wait()
    assert found == {
        (0, "busy", True, "process"): 60,
        (0, "light", True, "process"): 30,
        (1, "idle", True, "exclusive"): 0,
        (2, "lone", True, "exclusive"): 30,
    }


def parts(node: Node) -> dict[tuple[int, str, bool, str], int]:
    """(GPU, pod, whether it holds, method) → its part of the GPU in %, of the first samples by which all
    processes were seen and measured."""
    found: dict[int, list[dict[str, Any]]] = {}
    for sample in islice(node.samples(), MOST_SAMPLES):
        rows = sample.get("pods") or []
        if rows and all("utilization" in row and "pod" in row and row["method"] != UNSEEN for row in rows):
            found[sample["gpu_id"]] = rows
        if len(found) == 3 and sum(map(len, found.values())) == 4:
            break
    return {
        (gpu, row["pod"], row["held"], row["method"]): round(row["utilization"])
        for gpu, rows in found.items()
        for row in rows
    }
