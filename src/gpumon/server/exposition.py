"""The newest samples and their pods as Prometheus families; pure. Names, units and kinds come from the catalogues.

A reading that is absent has no line. Device-wide values appear once for each GPU, whoever shares it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from gpumon.model.fields import FIELDS, STATES
from gpumon.model.pod_fields import USE_FIELDS

LABELS = ("node", "gpu", "uuid", "name")
POD_LABELS = ("node", "gpu", "uuid", "namespace", "pod", "container", "method")


def families(samples: Iterable[dict[str, Any]]) -> Iterator[Metric]:
    """One family for each catalogue field that has a metric, and the GPUs' states."""
    labelled = [
        (
            [s["client_name"], str(s["gpu_id"]), s["gpu_uuid"] or "", s["gpu_name"] or ""],
            s,
        )
        for s in samples
    ]
    for field in FIELDS:
        if field.metric is None:
            continue
        kind = CounterMetricFamily if field.metric.counter else GaugeMetricFamily
        family = kind(field.metric.name, field.help, labels=LABELS)
        for labels, sample in labelled:
            if sample[field.name] is not None:
                family.add_metric(labels, sample[field.name] * field.metric.scale)
        yield family
    states = GaugeMetricFamily(
        "gpumon_gpu_state", "1 for the state that the GPU is in.", labels=(*LABELS, "state")
    )
    for labels, sample in labelled:
        for state in STATES if sample["state"] is not None else ():
            states.add_metric([*labels, state], float(sample["state"] == state))
    yield states


def pod_families(uses: Iterable[dict[str, Any]]) -> Iterator[Metric]:
    """One family for each field of a pod's use that has a metric. What has the same labels is added up: the
    parts of a container on several MIG instances, and the processes of the host, whose names are no labels."""
    labelled = [
        (
            (
                use["client_name"],
                str(use["gpu_id"]),
                *(use[name] or "" for name in ("gpu_uuid", "namespace", "pod", "container", "method")),
            ),
            use,
        )
        for use in uses
    ]
    for field in USE_FIELDS:
        if field.metric is None:
            continue
        totals: dict[tuple[str, ...], float] = {}
        for labels, use in labelled:
            if use[field.name] is not None:
                totals[labels] = totals.get(labels, 0) + use[field.name] * field.metric.scale
        family = GaugeMetricFamily(field.metric.name, field.help, labels=POD_LABELS)
        for labels, total in totals.items():
            family.add_metric(labels, total)
        yield family
