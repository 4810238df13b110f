"""A scene made real: its kubelet, its Kubernetes API, its /proc, and an agent that knows nothing but these.

    scene ──▶ scenario file (simulated NVML) ─┐
          ──▶ kubelet, gRPC on a unix socket ─┼──▶ agent, a process ──HTTP──▶ server
          ──▶ Kubernetes API, HTTP ───────────┤
          ──▶ /proc in a folder ──────────────┘

What changes in a scene is done by `actions` when its time has come.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from tests.agent.kubeapi import KubeApi, container_id, pod_json
from tests.agent.kubelet import Kubelet
from tests.agent.proctree import ProcTree

from bench.attribution.scene import HOST, Device, Key, Pod, Process, Scene
from gpumon.agent.fakenvml import FakeNvml
from gpumon.agent.ports import ContainerDevices

SAMPLE_SECONDS = 0.5
_NEVER = 4_000_000_000.0
"""An instant far away, in Unix seconds: what a range that has not begun is taken to begin at."""
_RESOURCE = "nvidia.com/gpu"
_PIDS_IN_A_NAMESPACE_OF_ITS_OWN = "900000 1"

_AGENT = """
import datetime, os, pathlib, sys
ahead = pathlib.Path(os.environ["BENCH_CLOCK_AHEAD"])
from gpumon import clock
def now():
    by = float(ahead.read_text()) if ahead.exists() else 0.0
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=by)
clock.now = now
sys.argv = ["gpumon", "agent", "--config", os.devnull]
from gpumon.__main__ import main
main()
"""
"""The agent with a wall clock that can be set: it is ahead by what a file says."""

Action = tuple[float, Callable[[], None]]
"""When, in seconds of the measured range, and what."""


class Node:
    """One scene's node. Runs inside its `with`; `begin` fixes when the measured range begins."""

    def __init__(self, name: str, scene: Scene, folder: Path, server_port: int) -> None:
        self.name = name
        self.scene = scene
        self.listings: list[tuple[float, list[ContainerDevices]]] = []
        self._folder = folder
        self._server_port = server_port
        folder.mkdir(parents=True)
        (folder / "pod-resources").mkdir()
        self._scenario = folder / "scenario.toml"
        self._ahead = folder / "clock-ahead"
        self._log = folder / "agent.log"
        gpus = FakeNvml.from_text(scene.toml(name, _NEVER), name).state.gpus
        self.uuids = [gpu.uuid for gpu in gpus]
        self._mig = [[instance.uuid if instance else "" for instance in gpu.instances] for gpu in gpus]
        self.shares = [
            [
                instance.profile.compute_slices / gpu.model.mig_max if instance else 0.0
                for instance in gpu.instances
            ]
            for gpu in gpus
        ]
        self.kubelet = Kubelet(folder / "pod-resources" / "kubelet.sock")
        self.api = KubeApi()
        self.proc = ProcTree(folder / "proc")
        self._agent: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Node:
        self.api.__enter__()
        self.api.nodes[self.name] = {"metadata": {"name": self.name, "labels": {}}, "spec": {}}
        self.kubelet.allocatable = {_RESOURCE: list(self._allocatable())}
        self._list(-math.inf)
        for pod in self._pods_at(-math.inf):
            self.api.put(self._json(pod))
        for process in self.scene.processes:
            if math.isinf(process.runs[0]):
                self._start(process)
        if not self.scene.host_pids:
            self.proc.agent(pids=_PIDS_IN_A_NAMESPACE_OF_ITS_OWN)
        self.kubelet.start()
        self.begin(_NEVER)
        self.start_agent()
        return self

    def __exit__(self, *_: object) -> None:
        self.end_agent(signal.SIGKILL)
        self.kubelet.stop()
        self.api.__exit__(None, None, None)

    def begin(self, at: float) -> None:
        """Tells the simulated library when the measured range begins, in Unix seconds."""
        new = self._scenario.with_suffix(".new")
        new.write_text(self.scene.toml(self.name, at))
        new.replace(self._scenario)

    def start_agent(self) -> None:
        """Starts the agent; returns at once."""
        section = "GPUMON_AGENT__{}__{}".format
        command = [sys.executable, "-m", "gpumon", "agent", "--config", os.devnull]
        if self.scene.clock_ahead is not None:
            command = [sys.executable, "-c", _AGENT]
        environment = {
            "NODE_NAME": self.name,
            "BENCH_CLOCK_AHEAD": str(self._ahead),
            "GPUMON_FAKE_NVML": str(self._scenario),
            section("SERVER", "SERVER_HOST"): "http://127.0.0.1",
            section("SERVER", "SERVER_PORT"): str(self._server_port),
            section("MONITORING", "INTERVAL_SECONDS"): str(SAMPLE_SECONDS),
            section("NETWORK", "BATCH_INTERVAL"): "2",
            section("SPOOL", "DIRECTORY"): str(self._folder / "spool"),
            section("STATUS", "PORT"): "-1",
            section("LOGGING", "LOG_FILE"): "",
            section("KUBERNETES", "KUBELET_SOCKET"): str(self.kubelet.socket),
            section("KUBERNETES", "KUBECONFIG"): self.api.kubeconfig(self._folder / "kubeconfig"),
            section("ATTRIBUTION", "PROC_ROOT"): str(self.proc.root),
        }
        with self._log.open("ab") as log:
            self._agent = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)

    def end_agent(self, how: signal.Signals) -> None:
        """Ends the agent, if it runs."""
        agent, self._agent = self._agent, None
        if agent is not None:
            agent.send_signal(how)
            agent.wait(30)

    @property
    def log(self) -> str:
        """What the agent has said."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def actions(self) -> Iterator[Action]:
        """All that changes within the range."""
        scene = self.scene
        for process in scene.processes:
            # A process is in /proc a moment before it is on a GPU, and leaves it a moment later.
            if not math.isinf(process.runs[0]):
                yield process.runs[0] - 0.02, lambda process=process: self._start(process)  # type: ignore[misc]
            if not math.isinf(process.runs[1]):
                yield process.runs[1] + 0.02, lambda process=process: self._end(process)  # type: ignore[misc]
        for at in sorted({edge for pod in scene.pods for edge in pod.listed if not math.isinf(edge)}):
            yield at, lambda at=at: self._change_pods(at)  # type: ignore[misc]
        if scene.kubelet_down is not None:
            yield scene.kubelet_down[0], self.kubelet.stop
            yield scene.kubelet_down[1], self.kubelet.start
        if scene.agent_down is not None:
            yield scene.agent_down[0], lambda: self.end_agent(signal.SIGKILL)
            yield scene.agent_down[1], self.start_agent
        if scene.clock_ahead is not None:
            yield scene.clock_ahead[0], lambda: self._set_ahead(scene.clock_ahead_seconds)
            yield scene.clock_ahead[1], lambda: self._set_ahead(0.0)

    def listed_at(self, second: float) -> list[ContainerDevices]:
        """What the kubelet listed at a second of the range."""
        return [listing for at, listing in self.listings if at <= second][-1]

    def gpu_of(self, device_id: str) -> int:
        """The index of the GPU that a device id names, or a part of which."""
        name = device_id.partition("::")[0]
        return next(n for n, uuid in enumerate(self.uuids) if name == uuid or name in self._mig[n])

    def keys(self) -> Collection[Key]:
        """All users of the scene."""
        return {pod.key(container) for pod in self.scene.pods for container in pod.containers} | {HOST}

    def _pods_at(self, second: float) -> list[Pod]:
        return [pod for pod in self.scene.pods if pod.listed[0] <= second < pod.listed[1]]

    def _list(self, second: float) -> None:
        containers = [
            ContainerDevices(pod.namespace, pod.name, name, {_RESOURCE: tuple(map(self._id, devices))})
            for pod in self._pods_at(second)
            for name, devices in pod.containers.items()
            if devices
        ]
        self.kubelet.containers = containers
        self.listings.append((second, containers))

    def _change_pods(self, second: float) -> None:
        self._list(second)
        now = {pod.uid for pod in self._pods_at(second)}
        for pod in self.scene.pods:
            if pod.listed[1] == second:
                self.api.delete(pod.uid)
            elif pod.listed[0] == second and pod.uid in now:
                self.api.put(self._json(pod))

    def _id(self, device: Device) -> str:
        name = self.uuids[device.gpu] if device.mig is None else self._mig[device.gpu][device.mig]
        return name if device.replica is None else f"{name}::{device.replica}"

    def _allocatable(self) -> Iterator[str]:
        for index, gpu in enumerate(self.scene.gpus):
            for name in self._mig[index] or [self.uuids[index]]:
                if gpu.replicas == 1:
                    yield name
                else:
                    yield from (f"{name}::{replica}" for replica in range(gpu.replicas))

    def _json(self, pod: Pod) -> dict[str, Any]:
        given = pod_json(
            pod.name,
            namespace=pod.namespace,
            uid=pod.uid,
            node=self.name,
            phase="Succeeded" if pod.finished else "Running",
            labels=pod.labels,
            annotations={name: text.format(gpu=self.uuids) for name, text in pod.annotations.items()},
            containers=pod.containers,
        )
        for status in given["status"]["containerStatuses"]:
            status["containerID"] = f"containerd://{container_id(pod.name, status['name'], pod.incarnation)}"
        return given

    def _start(self, process: Process) -> None:
        path = "/system.slice/ssh.service"
        if process.pod is not None:
            uid = process.pod.uid.replace("-", "_")
            container = container_id(process.pod.name, process.container, process.pod.incarnation)
            path = (
                "/kubepods.slice/kubepods-burstable.slice/"
                f"kubepods-burstable-pod{uid}.slice/cri-containerd-{container}.scope"
            )
        self.proc.add(
            process.pid, start=time.monotonic_ns() // 10_000_000, cgroup=f"0::{path}\n", comm=process.comm
        )

    def _end(self, process: Process) -> None:
        self.proc.remove(process.pid)

    def _set_ahead(self, seconds: float) -> None:
        new = self._ahead.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._ahead)
