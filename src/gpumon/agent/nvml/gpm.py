"""Activity by unit from Hopper on: GPM, which gives the mean between two samples that we keep.

It takes no profiler lock. The first sample of a GPU has no activity, because there is nothing to compare.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import pynvml

from gpumon.agent.ports import Reading

NAME = "nvmlGpmMetricsGet"
METRICS = {
    pynvml.NVML_GPM_METRIC_SM_UTIL: "sm_active",
    pynvml.NVML_GPM_METRIC_SM_OCCUPANCY: "sm_occupancy",
    pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL: "tensor_active",
    pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL: "dram_active",
}
_ROUNDING = 1.0
"""Percent by which a ratio of two counters may overshoot; further out it is junk."""


class Gpm:
    """GPM of one GPU, or of one of its GPU instances where `gpu_instance` is its id: two sample buffers in turn,
    given back by `forget`. `metrics` is metric id → the name that its value gets."""

    def __init__(
        self, handle: Any, metrics: Mapping[int, str] = METRICS, *, gpu_instance: int | None = None
    ) -> None:
        self._handle = handle
        self._metrics = metrics
        self._gpu_instance = gpu_instance
        self._buffers: list[Any] = []  # the older sample first, once `_taken`
        self._taken = False
        self._request: Any = None

    def read(self) -> Reading:
        """Means since the last sample, in percent; empty the first time. Raises NVMLError."""
        if len(self._buffers) < 2:
            self._open()
        older, newer = self._buffers
        if self._gpu_instance is None:
            pynvml.nvmlGpmSampleGet(self._handle, newer)
        else:
            pynvml.nvmlGpmMigSampleGet(self._handle, self._gpu_instance, newer)
        self._buffers = [newer, older]
        if not self._taken:
            self._taken = True
            return {}
        self._request.sample1, self._request.sample2 = older, newer
        pynvml.nvmlGpmMetricsGet(self._request)
        names = self._metrics.values()
        return {name: _percent(metric) for name, metric in zip(names, self._request.metrics, strict=False)}

    def forget(self) -> None:
        """Frees both samples. The next reading is a first one again."""
        for buffer in self._buffers:
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlGpmSampleFree(buffer)
        self._buffers, self._taken = [], False

    def _open(self) -> None:
        if not pynvml.nvmlGpmQueryDeviceSupport(self._handle).isSupportedDevice:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        while len(self._buffers) < 2:
            self._buffers.append(pynvml.nvmlGpmSampleAlloc())
        self._request = pynvml.c_nvmlGpmMetricsGet_t()
        self._request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        self._request.numMetrics = len(self._metrics)
        for metric, number in zip(self._request.metrics, self._metrics, strict=False):
            metric.metricId = number


def _percent(metric: Any) -> float | None:
    value: float = metric.value
    if metric.nvmlReturn != pynvml.NVML_SUCCESS or not math.isfinite(value):
        return None
    # The counters are no finer; further digits are noise that costs 15 bytes a sample wherever it is kept.
    return round(min(max(value, 0.0), 100.0), 2) if -_ROUNDING <= value <= 100 + _ROUNDING else None
