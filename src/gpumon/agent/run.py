"""Runs the agent: looks where it is, opens NVML or the simulation of it, and goes on until it shall stop."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import msgspec

from gpumon.agent.assembly import Agent, destination
from gpumon.agent.cluster import Cluster
from gpumon.agent.counts import HoldersCounts
from gpumon.agent.doctor import BETWEEN_READS_SECONDS, OPEN_SECONDS, READ_SECONDS, Doctor, OpenedGpus, Report
from gpumon.agent.nvml import Nvml
from gpumon.agent.settings import AgentSettings, GpuMetrics
from gpumon.agent.surroundings import Simulated, Surroundings

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25
_MOMENT_SECONDS = 1.0


def run(settings: AgentSettings, stop_asked: Callable[[], bool], environ: Mapping[str, str] = os.environ) -> None:
    """Runs the agent until a stop is asked for, which is looked at four times a second: a main thread that waits
    for a lock would hear no signal on Windows. Raises SettingsError for a setting that shows to be wrong only
    here; no other trouble ends it."""
    surroundings = Surroundings.look(settings, environ)
    with simulation(settings, surroundings, environ) as simulated:
        agent = Agent(settings, nvml(settings), surroundings, simulated)
        agent.start()
        try:
            while not stop_asked():
                time.sleep(_LOOK_SECONDS)
        finally:
            agent.stop()


def examine(
    settings: AgentSettings,
    environ: Mapping[str, str] = os.environ,
    *,
    between_reads_seconds: float = BETWEEN_READS_SECONDS,
) -> Report:
    """Examines what an agent with these settings would meet here, beside one that may be running: with NVML, a
    kubelet connection and a watch of its own, all given back. Raises SettingsError."""
    surroundings = Surroundings.look(settings, environ)
    with simulation(settings, surroundings, environ) as simulated:
        pods = None if simulated is None else simulated.cluster
        cluster = Cluster(settings, surroundings, HoldersCounts(), simulated=pods)
        gpus = OpenedGpus(nvml(settings), between_reads_seconds=between_reads_seconds)
        doctor = Doctor(
            settings,
            surroundings,
            cluster,
            destination(settings),
            gpus.see,
            gpus_seconds=OPEN_SECONDS + 2 * READ_SECONDS,
            simulated=simulated is not None,
        )
        if settings.attribution.enabled:
            cluster.start()
        try:
            return doctor.examine()
        finally:
            cluster.stop(_MOMENT_SECONDS)
            gpus.close()


def nvml(settings: AgentSettings) -> Nvml:
    """NVML with the groups of readings that are on; not opened."""
    return Nvml(_groups(settings.gpu_metrics))


@contextmanager
def simulation(
    settings: AgentSettings, surroundings: Surroundings, environ: Mapping[str, str]
) -> Iterator[Simulated | None]:
    """Simulated GPUs under the binding while it is entered, where a scenario is asked for; else nothing, and
    None."""
    scenario = settings.monitoring.fake_nvml or environ.get("GPUMON_FAKE_NVML", "")
    with (
        _simulated(scenario, surroundings.node or surroundings.client) if scenario else nullcontext() as simulated
    ):
        yield simulated


@contextmanager
def _simulated(scenario: str, node: str) -> Iterator[Simulated]:
    # Imported only where it is asked for: a node with GPUs has no use for it in memory.
    from gpumon.agent import fakenvml  # noqa: PLC0415
    from gpumon.agent.fakecluster import FakeCluster  # noqa: PLC0415

    fake = fakenvml.install(Path(scenario), node)
    log.warning("fake_nvml scenario=%s: the GPUs are simulated, no figure is real", scenario)
    try:
        entry = fake.state.entry
        yield Simulated(FakeCluster(fake) if entry is not None and entry.pods else None)
    finally:
        fake.uninstall()


def _groups(wanted: GpuMetrics) -> frozenset[str]:
    """The groups of readings that are on, by the names that the NVML door has for them."""
    return frozenset(name.removeprefix("include_") for name, on in msgspec.structs.asdict(wanted).items() if on)
