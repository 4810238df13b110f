"""The server's own figures, kept per app so that several servers fit in one process."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gpumon import __version__
from gpumon.server.engine import Engine
from gpumon.server.exposition import gpu_lines, pod_lines

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class ServerMetrics:
    """Counts what the endpoints report, and asks the engine for the rest when it is scraped."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._registry = CollectorRegistry()
        self.rows_refused = Counter(
            "gpumon_server_rows_refused", "Samples refused as bad, by any sender.", registry=self._registry
        )
        self.entries_left_out = Counter(
            "gpumon_server_entries_left_out",
            "Entries of pods and labels left out as bad; their samples are stored.",
            registry=self._registry,
        )
        self.auth_refusals = Counter(
            "gpumon_server_auth_refusals",
            "Requests refused for their token, by what they needed and why.",
            ["right", "reason"],
            registry=self._registry,
        )
        self.request_seconds = Histogram(
            "gpumon_server_request_seconds",
            "Time to answer, by route, method and status.",
            ["route", "method", "status"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(_EngineFigures(engine))

    def render(self) -> tuple[bytes, str]:
        """(text, media type) of a scrape."""
        text = generate_latest(self._registry)
        if self._engine.not_ready_because is None:
            reader = self._engine.reader
            text += "".join((*gpu_lines(reader.latest()), *pod_lines(reader.latest_pods()))).encode()
        return text, CONTENT_TYPE_LATEST


class _EngineFigures(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterator[Metric]:
        """Nothing is asked at registration; the engine may not be open yet."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        engine = self._engine
        yield InfoMetricFamily("gpumon_server_build", "Version.", value={"version": __version__})
        yield GaugeMetricFamily(
            "gpumon_server_storage_ok", "1 while samples can be stored.", value=float(engine.trouble is None)
        )
        counts = engine.counts()
        for name, help_text, value in (
            ("gpumon_server_rows_stored", "Samples on disk since the start.", counts.rows_stored),
            ("gpumon_server_pod_rows_stored", "Rows of pods on disk since the start.", counts.pod_rows_stored),
            ("gpumon_server_commits", "Groups written and synced since the start.", counts.groups),
            ("gpumon_server_batches_duplicate", "Batches that had been stored before.", counts.duplicates),
            ("gpumon_server_csv_lines_damaged", "Lines of CSV files left out as damaged.", counts.damaged_lines),
            ("gpumon_server_sealing_failures", "Days that could not be sealed.", counts.sealing_failures),
            ("gpumon_server_sealed_days_damaged", "Sealed days that were damaged.", counts.damaged_days),
        ):
            yield CounterMetricFamily(name, help_text, value=value)
        for name, help_text, value in (
            ("gpumon_server_queue_batches", "Batches that wait for the disk.", counts.waiting_batches),
            ("gpumon_server_queue_rows", "Samples that wait for the disk.", counts.waiting_rows),
            ("gpumon_server_csv_files_unreadable", "CSV files left out as unreadable.", counts.unreadable_files),
            ("gpumon_server_days_sealed", "Days that are sealed.", counts.sealed_days),
            (
                "gpumon_server_days_being_sealed",
                "Days of which something is still to be sealed.",
                counts.unsealed_days,
            ),
            ("gpumon_server_store_behind", "1 while queries lack rows that are on disk.", int(counts.behind)),
        ):
            yield GaugeMetricFamily(name, help_text, value=value)
