"""The newest samples as Prometheus families; pure. Names, units and kinds come from the catalogue.

A reading that is absent has no line. Device-wide values appear once for each GPU, whoever shares it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from gpumon.model.fields import FIELDS, STATES

LABELS = ("node", "gpu", "uuid", "name")


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
