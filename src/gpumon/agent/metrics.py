"""The agent's own metrics, made from the counts of its stages when they are asked for.

Labels are bounded: no pid, no path, no GPU. What is known of the GPUs is the server's to tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from gpumon import __version__
from gpumon.agent.counts import (
    READ_SECONDS_BOUNDS,
    AttributionCounts,
    BatcherCounts,
    DeliveryCounts,
    HoldersCounts,
    SamplerCounts,
    SpoolCounts,
)
from gpumon.model.fields import METHODS, STATES

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


@dataclass(frozen=True, slots=True)
class AgentCounts:
    """The counts of all stages, and whether the GPUs are simulated."""

    fake_nvml: bool = False
    sampler: SamplerCounts = field(default_factory=SamplerCounts)
    holders: HoldersCounts = field(default_factory=HoldersCounts)
    attribution: AttributionCounts = field(default_factory=AttributionCounts)
    batcher: BatcherCounts = field(default_factory=BatcherCounts)
    spool: SpoolCounts = field(default_factory=SpoolCounts)
    delivery: DeliveryCounts = field(default_factory=DeliveryCounts)


@dataclass(frozen=True, slots=True)
class _Number:
    """One metric without labels. A value None is no line."""

    name: str
    help: str
    value: Callable[[AgentCounts], float | None]
    counter: bool = True


_NUMBERS = (
    _Number("gpumon_agent_samples", "Samples taken.", lambda all_: all_.sampler.samples),
    _Number("gpumon_agent_skipped_ticks", "Ticks that came too late.", lambda all_: all_.sampler.skipped_ticks),
    _Number("gpumon_agent_late_reads", "Reads that hung.", lambda all_: all_.sampler.late_reads),
    _Number("gpumon_agent_failed_reads", "Reads that failed otherwise.", lambda all_: all_.sampler.failed_reads),
    _Number("gpumon_agent_nvml_opens", "Tries to open NVML.", lambda all_: all_.sampler.nvml_opens),
    _Number("gpumon_agent_kubelet_calls", "Questions to the kubelet.", lambda all_: all_.holders.calls),
    _Number(
        "gpumon_agent_kubelet_failures", "Questions that it did not answer.", lambda all_: all_.holders.failures
    ),
    _Number(
        "gpumon_agent_kubelet_up",
        "1 unless the kubelet did not answer the last question.",
        lambda all_: all_.holders.trouble is None,
        counter=False,
    ),
    _Number(
        "gpumon_agent_conflicts",
        "Rows of samples in which a GPU is used by somebody who was not given it.",
        lambda all_: all_.attribution.conflicts,
    ),
    _Number(
        "gpumon_agent_attribution_failures",
        "Samples that went out without their pods for a bug.",
        lambda all_: all_.attribution.failures,
    ),
    _Number("gpumon_agent_batches_sent", "Batches delivered.", lambda all_: all_.delivery.batches),
    _Number("gpumon_agent_samples_sent", "Samples delivered.", lambda all_: all_.delivery.samples),
    _Number("gpumon_agent_sent_bytes", "Bodies sent, as compressed.", lambda all_: all_.delivery.sent_bytes),
    _Number("gpumon_agent_retries", "Deliveries that failed.", lambda all_: all_.delivery.retries),
    _Number(
        "gpumon_agent_rejected_samples",
        "Samples of delivered batches that the server did not take.",
        lambda all_: all_.delivery.rejected_samples,
    ),
    _Number(
        "gpumon_agent_dropped_samples",
        "Samples lost.",
        lambda all_: all_.batcher.dropped_samples + all_.spool.dropped_samples,
    ),
    _Number(
        "gpumon_agent_dropped_batches",
        "Batches lost.",
        lambda all_: all_.batcher.dropped_batches + all_.spool.dropped_batches,
    ),
    _Number(
        "gpumon_agent_quarantined_batches",
        "Batches set aside: refused by the server, or torn.",
        lambda all_: all_.spool.quarantined_batches,
    ),
    _Number(
        "gpumon_agent_nvml_up",
        "1 while NVML is open and a GPU answers.",
        lambda all_: all_.sampler.nvml_trouble is None,
        counter=False,
    ),
    _Number(
        "gpumon_agent_spool_disk_up",
        "1 unless the spool's folder can't be written.",
        lambda all_: all_.spool.disk_trouble is None,
        counter=False,
    ),
    _Number("gpumon_fake_nvml", "1 when the GPUs are simulated.", lambda all_: all_.fake_nvml, counter=False),
    _Number(
        "gpumon_agent_last_delivery_timestamp_seconds",
        "When a batch was last delivered.",
        lambda all_: all_.delivery.delivered_at,
        counter=False,
    ),
)


class AgentMetrics(Collector):
    """Renders the counts. Has a registry of its own: two agents in one process don't meet."""

    def __init__(self, counts: AgentCounts) -> None:
        self._counts = counts
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """Prometheus text."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        counts = self._counts
        yield InfoMetricFamily("gpumon_agent_build", "The program.", value={"version": __version__})
        for number in _NUMBERS:
            value = number.value(counts)
            if value is not None:
                family = CounterMetricFamily if number.counter else GaugeMetricFamily
                yield family(number.name, number.help, value=value)
        spool = counts.spool
        yield _by_label(
            "gpumon_agent_spool_batches",
            "Batches that wait.",
            "place",
            {"memory": spool.memory_batches, "disk": spool.disk_batches},
        )
        yield _by_label(
            "gpumon_agent_spool_bytes",
            "What waits.",
            "place",
            {"memory": spool.memory_bytes, "disk": spool.disk_bytes},
        )
        rows = CounterMetricFamily(
            "gpumon_agent_pod_rows", "Rows of pods in samples, by method.", labels=["method"]
        )
        for method in METHODS:
            rows.add_metric([method], counts.attribution.rows.get(method, 0))
        yield rows
        states = counts.sampler.gpus_by_state
        if states:
            by_state = {state: states.get(state, 0) for state in STATES}
            yield _by_label("gpumon_agent_gpus", "GPUs at the last tick.", "state", by_state)
        yield self._read_seconds()

    def _read_seconds(self) -> Metric:
        durations = self._counts.sampler.read_seconds
        bounds = (*(str(bound) for bound in READ_SECONDS_BOUNDS), "+Inf")
        return HistogramMetricFamily(
            "gpumon_agent_read_seconds",
            "How long it took to read one GPU.",
            buckets=list(zip(bounds, accumulate(durations.buckets), strict=True)),
            sum_value=durations.sum_seconds,
        )


def _by_label(name: str, help_text: str, label: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=[label])
    for label_value, value in values.items():
        family.add_metric([label_value], value)
    return family
