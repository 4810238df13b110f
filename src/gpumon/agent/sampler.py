"""Reads every GPU at a steady pace, and keeps at it whatever NVML does.

    tick ──ask──▶ one worker per GPU ──answers──▶ sample ──▶ emit

- Ticks come from a schedule, not from the end of the last one. One that is missed is skipped and counted.
- A sample is handed on as soon as its GPU answers. A tick waits for the slowest GPU at most `call_timeout`
  seconds, and never longer than the interval; a GPU that has not answered by then is `unknown`, without
  readings, and is asked nothing until its call returns. What that call brings is thrown away: it would be
  a reading of an instant that has already been reported.
- A GPU that is lost is `lost`, without readings; the others go on. Its handle is looked for every retry
  interval; while one stays lost for long, NVML is opened anew, at most every REOPEN_AFTER_SECONDS, and not
  while any call hangs, for shutting NVML down under a call can hang, too. A GPU that NVML then does not list
  any more stays `lost` until the agent is started anew.
- NVML as a whole gone: closed and opened again every retry interval. Meanwhile there are no samples at all,
  because no data is never 0, and the first one after it does not stand for the gap.

A sample's timestamp is the instant at which its tick asked, the same for all GPUs of the node, so that sums
over GPUs compare like with like.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable
from queue import Empty, SimpleQueue

from gpumon import clock
from gpumon.agent.counts import SamplerCounts
from gpumon.agent.gpuworker import Answer, GpuWorker
from gpumon.agent.ports import Gpu, GpuLibrary, Reading
from gpumon.clock import Monotonic, Now
from gpumon.errors import GpuLost, NvmlUnavailable
from gpumon.logs import Trouble
from gpumon.model.fields import BY_NAME

log = logging.getLogger(__name__)

REOPEN_AFTER_SECONDS = 300.0
_STOP_CHECK_SECONDS = 0.25
"""While a tick waits for a slow GPU it looks this often whether it shall stop."""
_LONGEST_INTERVAL_SECONDS = BY_NAME["interval_seconds"].high or 0.0


class Sampler:
    """Samples until stopped. `emit` gets each sample as catalogue field → value; what is absent is left out.
    `labels` are the fields that are the same in all samples of this agent."""

    def __init__(
        self,
        library: GpuLibrary,
        emit: Callable[[Reading], None],
        counts: SamplerCounts,
        *,
        labels: Reading,
        interval_seconds: float,
        call_timeout_seconds: float,
        nvml_retry_seconds: float,
        now: Now = clock.now,
        monotonic: Monotonic = clock.monotonic,
    ) -> None:
        self._library = library
        self._emit = emit
        self._counts = counts
        self._labels = {name: value for name, value in labels.items() if value is not None}
        self._interval = interval_seconds
        self._patience = min(call_timeout_seconds, interval_seconds)
        self._nvml_retry = nvml_retry_seconds
        self._now = now
        self._monotonic = monotonic
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        self._workers: dict[str, GpuWorker] = {}
        self._troubles: dict[str, Trouble] = {}
        self._opened = False
        self._open_tried_at: float | None = None
        self._tick = 0

    def run(self, stop: threading.Event) -> None:
        """Samples until `stop` is set; closes the library and ends the workers that are not in a call."""
        due = self._monotonic()
        try:
            while not stop.is_set():
                self._counts.turned_at = self._monotonic()
                if not self._opened:
                    stop.wait(self._until_open_may_be_tried())
                    if not stop.is_set():
                        self._open()
                    due = self._monotonic()
                    continue
                self._sample_all(stop)
                if self._opened and self._wants_reopening():
                    self._close()
                    self._open()
                due = self._next_due(due)
                stop.wait(max(0.0, due - self._monotonic()))
        finally:
            self._end()

    def _next_due(self, due: float) -> float:
        due += self._interval
        missed = int((self._monotonic() - due) / self._interval)
        if missed > 0:
            self._counts.skipped_ticks += missed
            due += missed * self._interval
        return due

    def _sample_all(self, stop: threading.Event) -> None:
        self._settle_late_answers()
        self._tick += 1
        at, timestamp = self._monotonic(), clock.to_wire(self._now())
        states: Counter[str] = Counter()

        def finish(worker: GpuWorker, state: str, reading: Reading | None = None) -> None:
            states[state] += 1
            self._finish(worker, at, timestamp, state, reading or {})

        waiting = set()
        for worker in self._workers.values():
            if worker.lost_since is not None:
                finish(worker, "lost")
                if not worker.busy and at >= worker.find_at:
                    worker.find_at = at + self._nvml_retry
                    worker.ask("find_again", self._tick)
            elif worker.busy:
                finish(worker, "unknown")
            else:
                worker.ask("read", self._tick)
                waiting.add(worker)
        for answer in self._answers_until(at + self._patience, waiting, stop):
            self._settle(answer, finish)
        if not stop.is_set():
            for worker in waiting:
                self._counts.late_reads += 1
                self._trouble(worker).occurred(
                    f"a call into NVML has not returned within {self._patience:g} s",
                    do="look for NVRM or Xid lines in the kernel's log",
                )
                finish(worker, "unknown")
            self._counts.gpus_by_state = dict(states)

    def _answers_until(self, deadline: float, waiting: set[GpuWorker], stop: threading.Event) -> list[Answer]:
        raise NotImplementedError

    def _finish(self, worker: GpuWorker, at: float, timestamp: str, state: str, reading: Reading) -> None:
        before, worker.sampled_at = worker.sampled_at, at
        interval = self._interval if before is None else min(at - before, _LONGEST_INTERVAL_SECONDS)
        gpu = worker.gpu
        sample: Reading = {
            "timestamp": timestamp,
            "sampled_at": timestamp,
            "interval_seconds": round(interval, 3),
            "gpu_id": gpu.index,
            "gpu_name": gpu.name,
            "gpu_uuid": gpu.uuid,
            "state": state,
            **self._labels,
        }
