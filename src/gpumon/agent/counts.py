"""What the agent counts of itself. Each count has one writer; `status` reads them when it is asked.

Plain numbers rather than Prometheus objects in the stages: a tick costs a few additions, and the stages
do not know how they are shown.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

READ_SECONDS_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(slots=True)
class Durations:
    """A histogram of seconds over READ_SECONDS_BOUNDS; the last bucket is for all above."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(READ_SECONDS_BOUNDS) + 1))
    sum_seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Counts one duration."""
        self.buckets[bisect_left(READ_SECONDS_BOUNDS, seconds)] += 1
        self.sum_seconds += seconds


@dataclass(slots=True)
class SamplerCounts:
    """Written by the sampler's thread. `turned_at` is when its loop last turned, monotonic, None before the
    first time; `nvml_trouble` says why NVML is not open or that no GPU answers, None when all is well with it."""

    samples: int = 0
    skipped_ticks: int = 0
    late_reads: int = 0
    failed_reads: int = 0
    nvml_opens: int = 0
    nvml_trouble: str | None = "not opened yet"
    turned_at: float | None = None
    gpus_by_state: dict[str, int] = field(default_factory=dict)
    read_seconds: Durations = field(default_factory=Durations)


@dataclass(slots=True)
class HoldersCounts:
    """Written by the thread that asks the kubelet. `trouble` says why it could not be asked the last time."""

    calls: int = 0
    failures: int = 0
    trouble: str | None = None


@dataclass(slots=True)
class AttributionCounts:
    """Written by the sampler's thread: rows by method, how many of them used a GPU that was not theirs, and
    samples that could not be attributed for a bug."""

    rows: dict[str, int] = field(default_factory=dict)
    conflicts: int = 0
    failures: int = 0


@dataclass(slots=True)
class BatcherCounts:
    """Written under the batcher's lock: what was lost because the spool took nothing in, its disk hanging."""

    dropped_batches: int = 0
    dropped_samples: int = 0


@dataclass(slots=True)
class SpoolCounts:
    """Written under the spool's lock."""

    memory_batches: int = 0
    memory_bytes: int = 0
    disk_batches: int = 0
    disk_bytes: int = 0
    dropped_batches: int = 0
    dropped_samples: int = 0
    quarantined_batches: int = 0
    disk_trouble: str | None = None


@dataclass(slots=True)
class DeliveryCounts:
    """Written by the delivery's thread. `trouble` says why the last try failed, None when it did not or
    there was none; `delivered_at` is Unix seconds."""

    batches: int = 0
    samples: int = 0
    sent_bytes: int = 0
    retries: int = 0
    rejected_samples: int = 0
    trouble: str | None = None
    delivered_at: float | None = None
