"""The newest samples and their pods as Prometheus text; pure. Names, units and kinds come from the catalogues.

A reading that is absent has no line. Device-wide values appear once for each GPU, whoever shares it. The lines are
written here, not by prometheus_client, which makes the labels anew for each: a GPU has some forty lines, and a
scrape of 1,000 GPUs took it half a second, in which little else got on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from gpumon.model.fields import FIELDS, STATES
from gpumon.model.pod_fields import USE_FIELDS

_LABELS: Final = ("node", "gpu", "uuid", "name")
_POD_LABELS: Final = ("node", "gpu", "uuid", "namespace", "pod", "container", "method")
_ESCAPED: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def gpu_lines(samples: Iterable[dict[str, Any]]) -> Iterator[str]:
    """One family for each catalogue field that has a metric, and the GPUs' states."""
    labelled = [
        (_labels(_LABELS, (s["client_name"], s["gpu_id"], s["gpu_uuid"], s["gpu_name"])), s) for s in samples
    ]
    for field in FIELDS:
        if field.metric is None:
            continue
        yield _head(field.metric.name, field.help, counter=field.metric.counter)
        for labels, sample in labelled:
            if (value := sample[field.name]) is not None:
                yield f"{field.metric.name}{{{labels}}} {float(value * field.metric.scale)!r}\n"
    yield _head("gpumon_gpu_state", "1 for the state that the GPU is in.", counter=False)
    for labels, sample in labelled:
        for state in STATES if sample["state"] is not None else ():
            yield f'gpumon_gpu_state{{{labels},state="{state}"}} {float(sample["state"] == state)!r}\n'


def pod_lines(uses: Iterable[dict[str, Any]]) -> Iterator[str]:
    """One family for each field of a pod's use that has a metric. What has the same labels is added up: the
    parts of a container on several MIG instances, and the processes of the host, whose names are no labels."""
    told = ("client_name", "gpu_id", "gpu_uuid", "namespace", "pod", "container", "method")
    labelled = [(_labels(_POD_LABELS, [use[name] for name in told]), use) for use in uses]
    for field in USE_FIELDS:
        if field.metric is None:
            continue
        totals: dict[str, float] = {}
        for labels, use in labelled:
            if (value := use[field.name]) is not None:
                totals[labels] = totals.get(labels, 0.0) + value * field.metric.scale
        yield _head(field.metric.name, field.help, counter=False)
        for labels, total in totals.items():
            yield f"{field.metric.name}{{{labels}}} {total!r}\n"


def _head(name: str, text: str, *, counter: bool) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {'counter' if counter else 'gauge'}\n"


def _labels(names: Sequence[str], values: Sequence[str | int | None]) -> str:
    texts = ("" if value is None else str(value).translate(_ESCAPED) for value in values)
    return ",".join(f'{name}="{text}"' for name, text in zip(names, texts, strict=True))
