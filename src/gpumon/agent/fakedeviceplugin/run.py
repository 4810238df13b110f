"""The fake device plugin as a whole: the scenario's GPUs, offered for as long as it runs.

Nothing ends it but being asked to: without a kubelet it waits for one, without GPUs for an edited scenario. A
resource that has lost all its devices stays registered, with none. It can't know whether a real plugin offers the
same resource, but sees its socket, and warns.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpumon import clock
from gpumon.agent.fakedeviceplugin.devices import resources
from gpumon.agent.fakedeviceplugin.endpoint import Endpoint, SocketId
from gpumon.agent.fakenvml import CALLS, scenario_file
from gpumon.agent.fakenvml.state import State
from gpumon.errors import SettingsError
from gpumon.logs import Trouble

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25
_RESOURCE = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_FOREIGN = "nvidia*.sock"
"""Sockets of real plugins: nvidia-gpu.sock and nvidia-mig-….sock are NVIDIA's, nvidiaGPU-….sock is GKE's."""


@dataclass(frozen=True, slots=True)
class Options:
    """`directory` is the kubelet's for device plugins, `resource` the name under which whole GPUs are offered,
    each as that many `replicas`."""

    scenario: Path
    node: str
    directory: Path
    resource: str = "nvidia.com/gpu"
    replicas: int = 1


def run(options: Options, stop_asked: Callable[[], bool]) -> None:
    """Offers the GPUs until a stop is asked for, which is looked at four times a second. Raises SettingsError for
    a scenario or a resource name that is wrong; a scenario that is edited and wrong is logged, and the last one
    stays."""
    if not _RESOURCE.fullmatch(options.resource):
        raise SettingsError(f"--resource {options.resource} is no resource name; write one like nvidia.com/gpu")
    state = State(
        scenario_file.load(options.scenario, CALLS),
        options.scenario,
        options.node,
        CALLS,
        clock=lambda: clock.now().timestamp(),
        sleep=time.sleep,
        proc=Path("/proc"),
    )
    log.warning(
        "fake_device_plugin scenario=%s node=%s: the GPUs that pods get are simulated",
        options.scenario,
        options.node,
    )
    asyncio.run(_Plugin(options, state).run(stop_asked))
    log.info("fake_device_plugin_stopped")


class _Plugin:
    def __init__(self, options: Options, state: State) -> None:
        self._options = options
        self._state = state
        self._kubelet = options.directory / "kubelet.sock"
        self._endpoints: dict[str, Endpoint] = {}
        self._no_gpus = Trouble(log, "gpus")
        self._no_kubelet = Trouble(log, "kubelet")
        self._foreign = Trouble(log, "foreign_plugin")

    async def run(self, stop_asked: Callable[[], bool]) -> None:
        try:
            while not stop_asked():
                await self._offer()
                self._look_for_others()
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            await asyncio.gather(*(endpoint.close() for endpoint in self._endpoints.values()))

    async def _offer(self) -> None:
        t = self._state.clock()
        self._state.refresh(t)
        wanted = self._options
        offered = resources(self._state.gpus, t, whole=wanted.resource, replicas=wanted.replicas)
        for resource in offered:
            if resource not in self._endpoints:
                self._endpoints[resource] = Endpoint(resource, self._kubelet)
        if offered:
            self._no_gpus.ended()
        else:
            self._no_gpus.occurred(
                f"the scenario has no GPUs for node {wanted.node}", do="add a [[node]] whose match fits this name"
            )
        kubelet = self._find_kubelet()
        if kubelet is not None:
            for resource, endpoint in self._endpoints.items():
                await endpoint.keep(offered.get(resource, ()), kubelet)

    def _find_kubelet(self) -> SocketId | None:
        try:
            found = self._kubelet.stat()
        except OSError as error:
            self._no_kubelet.occurred(
                f"{self._kubelet}: {error.strerror}",
                do="see whether the kubelet runs; mount <kubelet root>/device-plugins there, and run as uid 0",
            )
            return None
        self._no_kubelet.ended()
        return found.st_dev, found.st_ino, found.st_ctime_ns

    def _look_for_others(self) -> None:
        others = sorted(path.name for path in self._options.directory.glob(_FOREIGN))
        if others:
            self._foreign.occurred(
                f"a device plugin for real GPUs has a socket here: {', '.join(others)}",
                do="run the fake one on nodes without GPUs only, or give it another --resource",
            )
        else:
            self._foreign.ended()
