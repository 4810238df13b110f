"""The agent as a whole: the only place that knows all stages and their order.

    sampler ──▶ attributor ──samples──▶ batcher ──batches──▶ spool ──▶ delivery ──POST──▶ server
       │            ▲                                          │           │
       │         cluster (kubelet, /proc, Kubernetes API)      │           │
       └──────────────────────── counts ───────────────────────┴───────────┴──▶ status

Start goes from the server's end to the GPUs', so that nothing is made that has no place to go; stop goes the
other way, with one deadline over all: no more samples, the open batch closed, the spool emptied into the
server as far as `shutdown_seconds` allow, the rest to disk. A thread that hangs (in NVML, in a request) is a
daemon and is left behind: it does not hold up the stop.
"""

from __future__ import annotations

import logging
import re
import threading
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gpumon import __version__, clock
from gpumon.agent.attribution.attributor import Attributor
from gpumon.agent.cluster import Cluster
from gpumon.agent.counts import SpoolCounts
from gpumon.agent.doctor import Doctor, LastSamples, LiveGpus, render_json
from gpumon.agent.metrics import CONTENT_TYPE, AgentCounts, AgentMetrics
from gpumon.agent.ports import USE, GpuLibrary, Reading
from gpumon.agent.sampling.sampler import Sampler
from gpumon.agent.settings import AgentSettings
from gpumon.agent.shipping.batcher import Batcher, agent_name
from gpumon.agent.shipping.batchfiles import BatchFiles
from gpumon.agent.shipping.connection import Destination
from gpumon.agent.shipping.delivery import Delivery
from gpumon.agent.shipping.sender import HttpSink
from gpumon.agent.shipping.spool import Spool
from gpumon.agent.shipping.spooldisk import SpoolDisk
from gpumon.agent.status import JSON, Health, Page, StatusServer, one_at_a_time
from gpumon.agent.surroundings import Simulated, Surroundings
from gpumon.errors import SettingsError
from gpumon.tasks import Task

log = logging.getLogger(__name__)

_MB = 1e6
_SLACK_SECONDS = 60.0
"""How much later than its longest wait the sampler may turn before the agent is called dead: opening NVML
takes up to 3 s per GPU without persistence mode."""
_SAMPLER_STOP_SECONDS = 2.0
_MOMENT_SECONDS = 1.0
_SCHEME_AND_HOST = re.compile(r"https?://([^/?#\s]*@)?(\[[0-9A-Fa-f:.]+\]|[^/?#@:\[\]\s]+)")
"""A name and password before the host are allowed; an IPv6 address has brackets."""


class Agent:
    """All stages, wired. `start` once, `stop` once. `library` is NVML, real or simulated."""

    def __init__(
        self,
        settings: AgentSettings,
        library: GpuLibrary,
        surroundings: Surroundings,
        simulated: Simulated | None = None,
    ) -> None:
        monitoring, network = settings.monitoring, settings.network
        self._surroundings = surroundings
        self._interval_seconds = monitoring.interval_seconds
        self._attributes = settings.attribution.enabled
        self._shutdown_seconds = network.shutdown_seconds
        self.counts = AgentCounts(fake_nvml=simulated is not None)
        agent, boot = agent_name(surroundings.client), uuid.uuid4().hex
        self._spool = _spool(settings, agent, self.counts.spool)
        self._sink = HttpSink(
            destination(settings),
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
        pods = None if simulated is None else simulated.cluster
        self._cluster = Cluster(settings, surroundings, self.counts.holders, simulated=pods)
        attribute = (
            self._attributor(settings).take if settings.attribution.enabled else _without_use(self._batcher.add)
        )
        samples = LastSamples(attribute)
        self._doctor = Doctor(
            settings,
            surroundings,
            self._cluster,
            destination(settings),
            LiveGpus(library, samples, self.counts.sampler).see,
            simulated=simulated is not None,
            delivery_trouble=lambda: self.counts.delivery.trouble,
        )
        sampler = Sampler(
            library,
            samples.take,
            self.counts.sampler,
            labels={
                "client_name": surroundings.client,
                "node": surroundings.node,
                "source": "fake_nvml" if simulated is not None else None,
            },
            interval_seconds=monitoring.interval_seconds,
            call_timeout_seconds=monitoring.call_timeout,
            nvml_retry_seconds=monitoring.nvml_retry_interval,
            tick_over=self._batcher.tick_over,
        )
        self.status = StatusServer(
            _pages(settings, self.counts, self._doctor), host=settings.status.host, port=settings.status.port
        )
        self._delivering = Task("delivery", self._deliver)
        self._batching = Task("batcher", self._batcher.run)
        self._sampling = Task("sampler", partial(self._sample, sampler))

    def start(self) -> None:
        """Starts all stages; returns at once."""
        log.info(
            "agent_started version=%s client=%s node=%s interval=%gs",
            __version__,
            self._surroundings.client,
            self._surroundings.node,
            self._interval_seconds,
        )
        self._spool.open()
        if self._attributes:
            self._cluster.start()
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
        if self._attributes:
            self._cluster.stop(_MOMENT_SECONDS)
        self._delivering.stop(max(0.0, deadline - clock.monotonic()))
        self._spool.close()
        self.status.stop(_MOMENT_SECONDS)
        log.info(
            "agent_stopped samples_sent=%d samples_spooled=%d samples_dropped=%d",
            self.counts.delivery.samples,
            self._spool.waiting_samples(),
            self.counts.batcher.dropped_samples + self.counts.spool.dropped_samples,
        )

    def _attributor(self, settings: AgentSettings) -> Attributor:
        return Attributor(
            self._batcher.add,
            self._cluster.holders,
            self._cluster.processes,
            self._cluster.pods,
            self.counts.attribution,
            in_kubernetes=self._cluster.kubernetes,
            rest_watts=settings.attribution.idle_power_watts,
            rest_to_holders=settings.attribution.idle_energy == "holders",
        )

    def _sample(self, sampler: Sampler, stop: threading.Event) -> None:
        if self._attributes:
            self._cluster.settle(stop)
        sampler.run(stop)

    def _deliver(self, stop: threading.Event) -> None:
        """Closes the connection in the thread that uses it, for that may be later than the stop."""
        self._delivery.run(stop)
        self._sink.close()


def _without_use(emit: Callable[[Reading], None]) -> Callable[[Reading], None]:
    """Passes samples on without what is for attribution alone."""

    def emit_plain(sample: Reading) -> None:
        sample.pop(USE, None)
        emit(sample)

    return emit_plain


def _spool(settings: AgentSettings, agent: str, counts: SpoolCounts) -> Spool:
    """The spool, in a folder of this agent's own: two agents on one directory don't meet."""
    wanted = settings.spool
    files = BatchFiles(Path(wanted.directory) / agent) if wanted.directory else None
    disk = SpoolDisk(files, counts, limit_bytes=round(wanted.disk_mb * _MB))
    return Spool(disk, counts, memory_bytes=round(wanted.memory_mb * _MB))


def destination(settings: AgentSettings) -> Destination:
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
    url = f"{host}:{server.server_port}{server.api_endpoint}"
    return Destination(url, token_file=settings.authentication.token_file, ca_file=server.ca_file)


def _pages(settings: AgentSettings, counts: AgentCounts, doctor: Doctor) -> dict[str, Callable[[], Page]]:
    monitoring = settings.monitoring
    longest_wait = monitoring.interval_seconds + monitoring.call_timeout + monitoring.nvml_retry_interval
    health = Health(counts.sampler, counts.delivery, turns_within_seconds=longest_wait + _SLACK_SECONDS)
    metrics = AgentMetrics(counts)
    return {
        "/healthz": health.healthz,
        "/readyz": health.readyz,
        "/metrics": lambda: Page(200, CONTENT_TYPE, metrics.render()),
        "/doctor": one_at_a_time(
            partial(_examined, doctor), "an examination is under way; ask again in some seconds"
        ),
    }


def _examined(doctor: Doctor) -> Page:
    report = doctor.examine()
    return Page(200 if report.ok else 503, JSON, render_json(report))
