"""The agent as a whole: the only place that knows all stages and their order.

    sampler ──samples──▶ batcher ──batches──▶ spool ──▶ delivery ──POST──▶ server
       │                                        │           │
       └───────────────── counts ───────────────┴───────────┴──▶ status

Start goes from the server's end to the GPUs', so that nothing is made that has no place to go; stop goes the
other way, with one deadline over all: no more samples, the open batch closed, the spool emptied into the
server as far as `shutdown_seconds` allow, the rest to disk. A thread that hangs (in NVML, in a request) is a
daemon and is left behind: it does not hold up the stop.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gpumon import __version__, clock
from gpumon.agent.batcher import Batcher, agent_name
from gpumon.agent.batchfiles import BatchFiles
from gpumon.agent.counts import BatcherCounts, DeliveryCounts, SamplerCounts, SpoolCounts
from gpumon.agent.delivery import Delivery
from gpumon.agent.metrics import CONTENT_TYPE, AgentCounts, AgentMetrics
from gpumon.agent.nvml import Nvml
from gpumon.agent.ports import GpuLibrary
from gpumon.agent.sampler import Sampler
from gpumon.agent.sender import HttpSink
from gpumon.agent.settings import AgentSettings, GpuMetrics
from gpumon.agent.spool import Spool
from gpumon.agent.spooldisk import SpoolDisk
from gpumon.agent.status import Health, Page, StatusServer
from gpumon.errors import SettingsError
from gpumon.tasks import Task

log = logging.getLogger(__name__)

_MB = 1e6
_SLACK_SECONDS = 60.0
"""How much later than its longest wait the sampler may turn before the agent is called dead: opening NVML
takes up to 3 s per GPU without persistence mode."""
_SAMPLER_STOP_SECONDS = 2.0
_MOMENT_SECONDS = 1.0
_LOOK_SECONDS = 0.25
_SCHEME_AND_HOST = re.compile(r"https?://([^/?#\s]*@)?(\[[0-9A-Fa-f:.]+\]|[^/?#@:\[\]\s]+)")
"""A name and password before the host are allowed; an IPv6 address has brackets."""


@dataclass(frozen=True, slots=True)
class Names:
    """Who sends: `client` as people see it, `node` in Kubernetes only."""

    client: str
    node: str | None

    @classmethod
    def find(cls, settings: AgentSettings, environ: Mapping[str, str]) -> Names:
        """From the setting, else NODE_NAME, else the host's name."""
        node = environ.get("NODE_NAME", "").strip() or None
        return cls(settings.authentication.client_name or node or socket.gethostname(), node)


class Agent:
    """All stages, wired. `start` once, `stop` once. `library` is NVML, real or simulated."""

    def __init__(
        self, settings: AgentSettings, library: GpuLibrary, names: Names, *, fake_nvml: bool = False
    ) -> None:
        monitoring, network = settings.monitoring, settings.network
        self._names = names
        self._interval_seconds = monitoring.interval_seconds
        self._shutdown_seconds = network.shutdown_seconds
        self.counts = AgentCounts(SamplerCounts(), BatcherCounts(), SpoolCounts(), DeliveryCounts(), fake_nvml)
        agent, boot = agent_name(names.client), uuid.uuid4().hex
        self._spool = _spool(settings, agent, self.counts.spool)
        self._sink = HttpSink(
            _url(settings),
            self.counts.delivery,
            connect_timeout_seconds=settings.server.connection_timeout,
            read_timeout_seconds=settings.server.read_timeout,
            compress=network.compress,
        )
        self._delivery = Delivery(
            self._spool,
            self._sink,
            self.counts.delivery,
            delay_seconds=network.retry_delay,
            backoff=network.retry_backoff,
            growths=network.max_retries,
        )
        self._batcher = Batcher(
            self._spool.put,
            self.counts.batcher,
            agent=agent,
            boot=boot,
            size=network.batch_size,
            max_age_seconds=network.batch_interval,
            waiting_bytes=round(settings.spool.memory_mb * _MB),
        )
        sampler = Sampler(
            library,
            self._batcher.add,
            self.counts.sampler,
            labels={
                "client_name": names.client,
                "node": names.node,
                "source": "fake_nvml" if fake_nvml else None,
            },
            interval_seconds=monitoring.interval_seconds,
            call_timeout_seconds=monitoring.call_timeout,
            nvml_retry_seconds=monitoring.nvml_retry_interval,
        )
        self.status = StatusServer(
            _pages(settings, self.counts), host=settings.status.host, port=settings.status.port
        )
        self._delivering = Task("delivery", self._deliver)
        self._batching = Task("batcher", self._batcher.run)
        self._sampling = Task("sampler", sampler.run)

    def start(self) -> None:
        """Starts all stages; returns at once."""
        log.info(
            "agent_started version=%s client=%s node=%s interval=%gs",
            __version__,
            self._names.client,
            self._names.node,
            self._interval_seconds,
        )
        self._spool.open()
        self._delivering.start()
        self._batching.start()
        self.status.start()
        self._sampling.start()

    def stop(self) -> None:
        """Stops all stages, within `shutdown_seconds` and a moment, whatever hangs."""
        deadline = clock.monotonic() + self._shutdown_seconds
        self._sampling.stop(_SAMPLER_STOP_SECONDS)
        self._batching.stopping.set()
        self._batcher.wake()
        self._batching.stop(_MOMENT_SECONDS)
        self._batcher.flush()
        self._delivering.stopping.set()
        self._spool.wake()
        self._delivering.stop(max(0.0, deadline - clock.monotonic()))
        self._spool.close()
        self.status.stop(_MOMENT_SECONDS)
        log.info(
            "agent_stopped samples_sent=%d samples_spooled=%d samples_dropped=%d",
            self.counts.delivery.samples,
            self._spool.waiting_samples(),
            self.counts.batcher.dropped_samples + self.counts.spool.dropped_samples,
        )

    def _deliver(self, stop: threading.Event) -> None:
        """Closes the connection in the thread that uses it, for that may be later than the stop."""
        self._delivery.run(stop)
        self._sink.close()


def run(settings: AgentSettings, stop_asked: Callable[[], bool], environ: Mapping[str, str] = os.environ) -> None:
    """Runs the agent until a stop is asked for, which is looked at four times a second: a main thread that waits
    for a lock would hear no signal on Windows. Raises SettingsError for a setting that shows to be wrong only
    here; no other trouble ends it."""
    names = Names.find(settings, environ)
    scenario = settings.monitoring.fake_nvml or environ.get("GPUMON_FAKE_NVML", "")
    with _simulated(scenario, names.node or names.client) if scenario else nullcontext():
        agent = Agent(settings, Nvml(_groups(settings.gpu_metrics)), names, fake_nvml=bool(scenario))
        agent.start()
        try:
            while not stop_asked():
                time.sleep(_LOOK_SECONDS)
        finally:
            agent.stop()


@contextmanager
def _simulated(scenario: str, node: str) -> Iterator[None]:
    # Imported only where it is asked for: a node with GPUs has no use for it in memory.
    from gpumon.agent import fakenvml  # noqa: PLC0415

    fake = fakenvml.install(Path(scenario), node)
    log.warning("fake_nvml scenario=%s: the GPUs are simulated, no figure is real", scenario)
    try:
        yield
    finally:
        fake.uninstall()


def _spool(settings: AgentSettings, agent: str, counts: SpoolCounts) -> Spool:
    """The spool, in a folder of this agent's own: two agents on one directory don't meet."""
    wanted = settings.spool
    files = BatchFiles(Path(wanted.directory) / agent) if wanted.directory else None
    disk = SpoolDisk(files, counts, limit_bytes=round(wanted.disk_mb * _MB))
    return Spool(disk, counts, memory_bytes=round(wanted.memory_mb * _MB))


def _url(settings: AgentSettings) -> str:
    """Where samples go. Raises SettingsError where more than scheme and host stands in `server_host`: with a
    port, a path or a query there, what is put together from the three settings would be another address.
    The message does not repeat the setting, which may have a password."""
    server = settings.server
    host = server.server_host.rstrip("/")
    if not _SCHEME_AND_HOST.fullmatch(host):
        raise SettingsError(
            "[SERVER] server_host must be scheme and host only, such as http://gpumon or http://[2001:db8::1]; "
            "write the port to server_port and the path to api_endpoint"
        )
    return f"{host}:{server.server_port}{server.api_endpoint}"


def _pages(settings: AgentSettings, counts: AgentCounts) -> dict[str, Callable[[], Page]]:
    monitoring = settings.monitoring
    longest_wait = monitoring.interval_seconds + monitoring.call_timeout + monitoring.nvml_retry_interval
    health = Health(counts.sampler, counts.delivery, turns_within_seconds=longest_wait + _SLACK_SECONDS)
    metrics = AgentMetrics(counts)
    return {
        "/healthz": health.healthz,
        "/readyz": health.readyz,
        "/metrics": lambda: Page(200, CONTENT_TYPE, metrics.render()),
    }


def _groups(wanted: GpuMetrics) -> frozenset[str]:
    """The groups of readings that are on, by the names that the NVML door has for them."""
    return frozenset(name.removeprefix("include_") for name, on in msgspec.structs.asdict(wanted).items() if on)
