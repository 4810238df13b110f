"""Walks every door of the agent and finds, step by step, what holds and what is broken.

First everything is looked at, at the same time, each with a deadline; then what was seen is judged, in the order
in which the steps build on one another. Looking changes nothing: no sample is sent, no file stays, no port is
opened. `examine` never raises and never hangs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from gpumon import __version__, clock
from gpumon.agent.attribution.holdings import Holdings
from gpumon.agent.cluster import Cluster, names
from gpumon.agent.doctor import gpuchecks, kubelet, pods, processes, server, spool
from gpumon.agent.doctor.finding import BROKEN, NOT_NEEDED, Finding, Report, Site
from gpumon.agent.doctor.gpuchecks import NVML, PROCESS_USE, READINGS
from gpumon.agent.doctor.gpus import SeenGpus
from gpumon.agent.doctor.kubelet import DEVICE_IDS, KUBELET, RESOURCES
from gpumon.agent.doctor.looks import Look, Looks
from gpumon.agent.doctor.pods import NODE, POD_API, RESOURCE_SLICES
from gpumon.agent.doctor.processes import CGROUPS, HOST_PID, MATCHING
from gpumon.agent.doctor.server import AUTH, CLOCK, SERVER
from gpumon.agent.doctor.spool import SPOOL
from gpumon.agent.ports import ClaimedDevice
from gpumon.agent.settings import AgentSettings
from gpumon.agent.shipping.batcher import agent_name
from gpumon.agent.shipping.connection import Destination
from gpumon.agent.shipping.serverprobe import Probe, address_of, probe
from gpumon.agent.surroundings import Surroundings
from gpumon.errors import GpumonError

log = logging.getLogger(__name__)

LOOK_SECONDS = 6.0
"""A little more than the kubelet has for an answer by default, whose door tells more of what is wrong."""
_MOMENT_SECONDS = 1.0
"""At least so long is waited for what begins when the GPUs have been seen."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Seen:
    """All that was looked at."""

    gpus: SeenGpus
    kubelet: kubelet.SeenKubelet | None
    pods: pods.SeenPods
    processes: processes.SeenProcesses
    claims: dict[ClaimedDevice, str | None]
    server: Probe
    spool: spool.SeenSpool | None


class Doctor:
    """Examines one agent's doors. `gpus` looks at the GPUs, which are `simulated` or not, for `gpus_seconds` at
    most; `delivery_trouble` is what the running agent's last delivery met. Raises SettingsError for a destination
    that can't be one. `examine` may be called from any thread; one at a time is answered."""

    def __init__(
        self,
        settings: AgentSettings,
        surroundings: Surroundings,
        cluster: Cluster,
        to: Destination,
        gpus: Callable[[], SeenGpus],
        *,
        gpus_seconds: float = LOOK_SECONDS,
        simulated: bool = False,
        delivery_trouble: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._surroundings = surroundings
        self._cluster = cluster
        self._to = to
        self._gpus = gpus
        self._gpus_seconds = gpus_seconds
        self._simulated = simulated
        self._address = address_of(to)
        self._delivery_trouble = delivery_trouble
        self._site = Site(surroundings.in_pod)
        self._looks = Looks()
        self._examining = threading.Lock()

    def examine(self) -> Report:
        """Looks at everything, and judges it."""
        with self._examining:
            findings = list(self._findings(self._see()))
        return Report(__version__, self._surroundings.node or self._surroundings.client, findings)

    def _see(self) -> _Seen:
        """Begins with everything that waits for nothing else; the others need the GPUs' processes, or what the
        kubelet says is held."""
        begun_at, looks, cluster = clock.monotonic(), self._looks, self._cluster
        attributes = self._settings.attribution.enabled
        gpus_look = looks.begin("gpus", self._gpus)
        server_look = looks.begin("server", partial(probe, self._to))
        spool_look = looks.begin("spool", self._see_spool)
        pods_look = looks.begin("pods", partial(pods.see_pods, cluster.pods)) if attributes else None
        kubelet_look = self._begin_kubelet() if attributes else None
        gpus = _taken(gpus_look, begun_at + self._gpus_seconds, lambda why: SeenGpus(trouble=f"NVML: {why}"))
        processes_look = looks.begin("processes", partial(self._see_processes, gpus))
        deadline = max(begun_at + LOOK_SECONDS, clock.monotonic() + _MOMENT_SECONDS)
        seen_kubelet = None if kubelet_look is None else _taken(kubelet_look, deadline, self._unseen_kubelet)
        claims: dict[ClaimedDevice, str | None] = {}
        if seen_kubelet is not None:
            claims_look = looks.begin("claims", partial(pods.see_claims, cluster.pods, seen_kubelet))
            claims = _taken(claims_look, clock.monotonic() + LOOK_SECONDS, lambda _: {})
        return _Seen(
            gpus,
            seen_kubelet,
            _NO_PODS if pods_look is None else _taken(pods_look, deadline, _unseen_pods),
            _taken(processes_look, deadline, lambda why: processes.SeenProcesses(f"/proc: {why}")),
            claims,
            _taken(server_look, deadline, lambda why: Probe(self._address, trouble=why)),
            _taken(spool_look, deadline, self._unseen_spool),
        )

    def _begin_kubelet(self) -> Look[kubelet.SeenKubelet] | None:
        """None where the kubelet is not asked."""
        own = self._cluster.open_kubelet()
        if own is None:
            return None
        socket = None if self._cluster.simulated else Path(self._settings.kubernetes.kubelet_socket)
        return self._looks.begin("kubelet", partial(kubelet.see_kubelet, own, socket))

    def _unseen_kubelet(self, why: str) -> kubelet.SeenKubelet:
        socket = self._settings.kubernetes.kubelet_socket
        return kubelet.SeenKubelet(socket, trouble=f"{socket}: {why}.")

    def _see_processes(self, gpus: SeenGpus) -> processes.SeenProcesses:
        pids = {process.pid for gpu in gpus.gpus for process in gpu.processes}
        return processes.see_processes(self._cluster.processes, self._cluster.open_processes(), pids)

    def _see_spool(self) -> spool.SeenSpool | None:
        folder = self._spool_folder()
        return None if folder is None else spool.see_spool(folder)

    def _unseen_spool(self, why: str) -> spool.SeenSpool:
        folder = self._spool_folder() or Path()
        return spool.SeenSpool(folder, f"{folder}: {why}")

    def _spool_folder(self) -> Path | None:
        directory = self._settings.spool.directory
        return Path(directory) / agent_name(self._surroundings.client) if directory else None

    def _findings(self, seen: _Seen) -> Iterator[Finding]:
        settings, site = self._settings, self._site
        attributes = settings.attribution.enabled
        asks_processes = settings.gpu_metrics.include_processes
        yield _judged(NVML, lambda: gpuchecks.check_nvml(seen.gpus, site, simulated=self._simulated))
        yield _judged(READINGS, lambda: gpuchecks.check_readings(seen.gpus, site, attributes=attributes))
        yield _judged(PROCESS_USE, lambda: gpuchecks.check_process_use(seen.gpus, asked=asks_processes))
        if not attributes:
            yield from _not_needed("[ATTRIBUTION] enabled is false", *_PROCESS_STEPS, *_KUBERNETES_STEPS)
        else:
            if asks_processes:
                yield _judged(HOST_PID, lambda: processes.check_host_pid(seen.processes, site))
                yield _judged(CGROUPS, lambda: processes.check_cgroups(seen.processes))
            else:
                yield from _not_needed("[GPU_METRICS] include_processes is false", *_PROCESS_STEPS)
            yield from self._kubernetes(seen, asks_processes=asks_processes)
        trouble, compresses = self._delivery_trouble(), settings.network.compress
        yield _judged(SERVER, lambda: server.check_server(seen.server, trouble, site, compresses=compresses))
        yield _judged(AUTH, lambda: server.check_auth(seen.server, site))
        yield _judged(CLOCK, lambda: server.check_clock(seen.server, site))
        yield _judged(SPOOL, lambda: spool.check_spool(seen.spool, site, limit_bytes=settings.spool.disk_mb * 1e6))

    def _kubernetes(self, seen: _Seen, *, asks_processes: bool) -> Iterator[Finding]:
        if not self._cluster.kubernetes:
            yield from _not_needed("not in Kubernetes", *_KUBERNETES_STEPS)
            return
        site, directory, node = self._site, self._cluster.pods, self._surroundings.node
        told = seen.kubelet
        if told is None:
            yield from _not_needed(_NO_KUBELET, *_KUBELET_STEPS)
        else:
            yield _judged(KUBELET, lambda: kubelet.check_kubelet(told, site))
            yield _judged(RESOURCES, lambda: kubelet.check_resources(told, seen.gpus, self._held(seen), site))
            yield _judged(DEVICE_IDS, lambda: kubelet.check_device_ids(told, seen.gpus, self._held(seen), site))
        simulated = self._cluster.simulated
        yield _judged(NODE, lambda: pods.check_node(seen.pods, node, site))
        yield _judged(POD_API, lambda: pods.check_pod_api(seen.pods, node, site, simulated=simulated))
        if told is None:
            yield from _not_needed(_NO_KUBELET, RESOURCE_SLICES)
        else:
            yield _judged(
                RESOURCE_SLICES,
                lambda: pods.check_resource_slices(seen.claims, told, seen.gpus, directory, site),
            )
        if asks_processes:
            yield _judged(MATCHING, lambda: processes.check_matching(seen.processes, seen.pods, directory, site))
        else:
            yield from _not_needed("[GPU_METRICS] include_processes is false", MATCHING)

    def _held(self, seen: _Seen) -> Holdings:
        assert seen.kubelet is not None
        wanted = names(self._settings.kubernetes.resource_names)
        return kubelet.held(seen.kubelet, seen.gpus, self._cluster.pods, wanted)


_NO_PODS = pods.SeenPods()
_PROCESS_STEPS = (HOST_PID, CGROUPS)
_KUBELET_STEPS = (KUBELET, RESOURCES, DEVICE_IDS)
_KUBERNETES_STEPS = (*_KUBELET_STEPS, NODE, POD_API, RESOURCE_SLICES, MATCHING)
_NO_KUBELET = "[KUBERNETES] kubelet_socket is empty"


def _not_needed(why: str, *steps: str) -> Iterator[Finding]:
    for step in steps:
        yield Finding(step, NOT_NEEDED, why)


def _unseen_pods(why: str) -> pods.SeenPods:
    return pods.SeenPods(0, f"the Kubernetes API: {why}")


def _judged(step: str, check: Callable[[], Finding]) -> Finding:
    """What a check finds; one that fails itself does not take the others with it."""
    try:
        return check()
    except Exception as error:
        log.exception("doctor_check_failed step=%s", step)
        return Finding(step, BROKEN, f"the check itself failed: {error!r}", "report this as a bug of gpumon")


def _taken(look: Look[T], deadline: float, otherwise: Callable[[str], T]) -> T:
    """What was seen, or what stands for it where nothing was."""
    try:
        return look.result(deadline)
    except GpumonError as error:
        return otherwise(str(error))
