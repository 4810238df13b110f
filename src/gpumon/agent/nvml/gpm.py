"""Activity by unit and traffic over PCIe, from Hopper on: GPM, which gives means between two samples that we keep.

It takes no profiler lock. The first sample of a GPU has none of it, because there is nothing to compare.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import pynvml

from gpumon import clock
from gpumon.agent.ports import Reading
from gpumon.clock import Monotonic

NAME = "nvmlGpmMetricsGet"
METRICS = {
    pynvml.NVML_GPM_METRIC_SM_UTIL: "sm_active",
    pynvml.NVML_GPM_METRIC_SM_OCCUPANCY: "sm_occupancy",
    pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL: "tensor_active",
    pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL: "dram_active",
}
TRAFFIC = {
    pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC: "pcie_tx_kib",
    pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC: "pcie_rx_kib",
}
"""MiB a second, which become counters here: the driver's own of PCIe wrap within a moment."""

_ROUNDING = 1.0
"""Percent by which a ratio of two counters may overshoot; further out it is junk."""


class Gpm:
    """GPM of one GPU, or of one of its GPU instances where `gpu_instance` is its id: two sample buffers in turn,
    given back by `forget`. `metrics` is metric id → the name that its value gets; those of TRAFFIC are counted up
    from 0, also across `forget`, and None where the traffic of an interval could not be had."""

    def __init__(
        self,
        handle: Any,
        metrics: Mapping[int, str] = METRICS,
        *,
        gpu_instance: int | None = None,
        monotonic: Monotonic = clock.monotonic,
    ) -> None:
        self._handle = handle
        self._metrics = metrics
        self._gpu_instance = gpu_instance
        self._monotonic = monotonic
        self._taken_at = 0.0
        self._kib: dict[str, float] = {}
        self._buffers: list[Any] = []  # the older sample first, once `_taken`
        self._taken = False
        self._request: Any = None

    def read(self) -> Reading:
        """Means since the last sample, in percent, and traffic, in KiB; empty the first time. Raises NVMLError."""
        if len(self._buffers) < 2:
            self._open()
        older, newer = self._buffers
        if self._gpu_instance is None:
            pynvml.nvmlGpmSampleGet(self._handle, newer)
        else:
            pynvml.nvmlGpmMigSampleGet(self._handle, self._gpu_instance, newer)
        self._buffers = [newer, older]
        before, self._taken_at = self._taken_at, self._monotonic()
        if not self._taken:
            self._taken = True
            return {}
        self._request.sample1, self._request.sample2 = older, newer
        pynvml.nvmlGpmMetricsGet(self._request)
        return {
            name: self._counted(name, metric, self._taken_at - before) if number in TRAFFIC else _percent(metric)
            for (number, name), metric in zip(self._metrics.items(), self._request.metrics, strict=False)
        }

    def _counted(self, name: str, metric: Any, seconds: float) -> int | None:
        if metric.nvmlReturn != pynvml.NVML_SUCCESS or not 0 <= metric.value < math.inf:
            return None
        self._kib[name] = self._kib.get(name, 0.0) + metric.value * 1024 * seconds
        return int(self._kib[name])

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
