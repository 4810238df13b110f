"""Reads every GPU at a steady pace, and keeps at it whatever NVML does.

    tick ──ask──▶ one worker per GPU ──answers──▶ sample ──▶ emit

- Ticks come from a schedule, not from the end of the last one. One that is late is skipped and counted.
- A sample is handed on as soon as its GPU answers. A tick waits for the slowest GPU at most `call_timeout`
  seconds, and less than the interval; a GPU that has not answered by then is `unknown`, without
  readings, and is asked nothing until its call returns. What that call brings is thrown away: the instant
  it belongs to has been reported already.
- A GPU that is lost is `lost`, without readings, and looked for every retry interval; the others go on.
- GPUs that don't answer are unknown or lost, and where none of all answers, that is trouble with NVML.
- NVML as a whole gone: closed, and opened again every retry interval. Meanwhile there are no samples at all,
  because no data is never 0, and the first one afterwards does not stand for the gap.

A sample's timestamp is the instant at which its tick asked, the same for all GPUs of the node, so that sums
over GPUs add up what belongs together.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from queue import Empty

from gpumon import clock
from gpumon.agent.counts import SamplerCounts
from gpumon.agent.ports import GpuLibrary, Reading
from gpumon.agent.sampling.gpuset import GpuSet
from gpumon.agent.sampling.gpuworker import Answer, GpuWorker
from gpumon.clock import Monotonic, Now
from gpumon.errors import GpuLost, NvmlUnavailable

_STOP_CHECK_SECONDS = 0.25
"""While a tick waits for a slow GPU, it looks this often whether it shall stop."""
_PATIENT_PART = 0.9
"""Of the interval a tick waits for answers: a GPU that hangs must not make the next tick late for the others."""
_LONGEST_INTERVAL_SECONDS = 86_400.0
"""The most that the catalogue takes for `interval_seconds`, should the process have been suspended."""


class Sampler:
    """Samples until stopped. `emit` gets each sample as catalogue field → value; what is absent is left out.
    `labels` are the fields that are the same in all samples of this agent; `tick_over` is called after each tick's
    samples."""

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
        tick_over: Callable[[], None] = lambda: None,
        now: Now = clock.now,
        monotonic: Monotonic = clock.monotonic,
    ) -> None:
        self._emit = emit
        self._counts = counts
        self._labels = labels
        self._tick_over = tick_over
        self._interval = interval_seconds
        self._call_timeout = call_timeout_seconds
        self._patience = min(call_timeout_seconds, _PATIENT_PART * interval_seconds)
        self._now = now
        self._monotonic = monotonic
        self._gpus = GpuSet(library, counts, retry_seconds=nvml_retry_seconds, monotonic=monotonic)
        self._tick = 0
        self._gone: NvmlUnavailable | None = None

    def run(self, stop: threading.Event) -> None:
        """Samples until `stop` is set; then closes the library and ends the workers."""
        due = self._monotonic()
        try:
            while not stop.is_set():
                self._counts.turned_at = self._monotonic()
                if not self._gpus.opened:
                    if not stop.wait(self._gpus.seconds_until_try()):
                        self._gpus.open(stop, self._call_timeout)
                    due = self._monotonic()
                    continue
                self._settle_late_answers()
                try:
                    self._take_samples(stop)
                except NvmlUnavailable as error:
                    self._gpus.give_up(error)
                    continue
                self._gpus.reopen_if_gpus_are_missing(stop, self._patience)
                due = self._next_due(due)
                stop.wait(max(0.0, due - self._monotonic()))
        finally:
            self._gpus.end()

    def _next_due(self, due: float) -> float:
        """The first tick of the schedule that is not over already."""
        due += self._interval
        missed = max(0, math.ceil((self._monotonic() - due) / self._interval))
        self._counts.skipped_ticks += missed
        return due + missed * self._interval

    def _take_samples(self, stop: threading.Event) -> None:
        """One tick. Raises NvmlUnavailable, after the samples of the GPUs that did answer."""
        tick = _Tick(self._monotonic(), clock.to_wire(self._now()))
        self._tick += 1
        waiting = self._ask(tick)
        for answer in self._answers(waiting, tick.at + self._patience, stop):
            self._settle(answer, tick)
        if not stop.is_set():
            for worker in waiting:
                self._counts.late_reads += 1
                worker.trouble.occurred(
                    f"a call into NVML has not returned within {self._patience:g} s",
                    do="look for NVRM and Xid lines in the kernel's log",
                )
                self._finish(worker, tick, "unknown")
            self._note_states(tick.states)
        self._tick_over()
        gone, self._gone = self._gone, None
        if gone is not None:
            raise gone

    def _note_states(self, states: Counter[str]) -> None:
        left_out = self._gpus.left_out
        by_state = dict(states)
        if left_out:
            by_state["lost"] = by_state.get("lost", 0) + left_out
        self._counts.gpus_by_state = by_state
        if self._gone is not None:
            return
        if by_state.get("ok") or not by_state:
            self._gpus.works()
        else:
            self._gpus.is_silent()

    def _ask(self, tick: _Tick) -> set[GpuWorker]:
        """Asks every GPU that can be asked, and finishes the others. Gives those that now are to answer."""
        waiting = set()
        for worker in self._gpus.workers.values():
            if worker.lost_since is not None:
                self._gpus.look_for_lost(worker, self._tick)
                self._finish(worker, tick, "lost")
            elif worker.busy:
                self._finish(worker, tick, "unknown")
            else:
                worker.ask("read", self._tick)
                waiting.add(worker)
        return waiting

    def _answers(self, waiting: set[GpuWorker], deadline: float, stop: threading.Event) -> Iterator[Answer]:
        """This tick's answers as they come, until all have come, the deadline, or the stop."""
        while waiting and not stop.is_set():
            remaining = deadline - self._monotonic()
            try:
                answer = self._gpus.answers.get(timeout=max(0.0, min(remaining, _STOP_CHECK_SECONDS)))
            except Empty:
                if remaining <= _STOP_CHECK_SECONDS:
                    return
                continue
            if answer.question == "read" and answer.tick == self._tick:
                answer.worker.busy = False
                waiting.remove(answer.worker)
                yield answer
            else:
                self._settle_late(answer)

    def _settle(self, answer: Answer, tick: _Tick) -> None:
        worker, result = answer.worker, answer.result
        self._counts.read_seconds.add(answer.seconds)
        if isinstance(result, dict):
            worker.trouble.ended()
            self._finish(worker, tick, "ok", result)
        elif isinstance(result, GpuLost):
            self._gpus.lose(worker, str(result))
            self._finish(worker, tick, "lost")
        elif isinstance(result, NvmlUnavailable):
            self._gone = result
        else:
            self._counts.failed_reads += 1
            worker.trouble.occurred(f"reading it failed: {result!r}", do="report this as a bug of gpumon")
            self._finish(worker, tick, "unknown")

    def _settle_late_answers(self) -> None:
        while not self._gpus.answers.empty():
            self._settle_late(self._gpus.answers.get())

    def _settle_late(self, answer: Answer) -> None:
        """Takes note of a call's end whose tick is over, or that looked for a lost GPU."""
        answer.worker.busy = False
        if answer.question == "read":
            self._counts.read_seconds.add(answer.seconds)
        elif isinstance(answer.result, NvmlUnavailable):
            self._gone = answer.result
        elif answer.result is True:
            answer.worker.lost_since = None

    def _finish(self, worker: GpuWorker, tick: _Tick, state: str, reading: Reading | None = None) -> None:
        before, worker.sampled_at = worker.sampled_at, tick.at
        interval = self._interval if before is None else min(tick.at - before, _LONGEST_INTERVAL_SECONDS)
        gpu = worker.gpu
        sample = {
            "timestamp": tick.timestamp,
            "sampled_at": tick.timestamp,
            "interval_seconds": round(interval, 3),
            "gpu_id": gpu.index,
            "gpu_name": gpu.name,
            "gpu_uuid": gpu.uuid,
            "pci_bus_id": gpu.pci_bus_id,
            **self._labels,
            "state": state,
            **(reading or {}),
        }
        tick.states[state] += 1
        self._counts.samples += 1
        self._emit({name: value for name, value in sample.items() if value is not None})


class _Tick:
    """One instant at which all GPUs are asked, on both clocks, and the states they turned out to be in."""

    __slots__ = ("at", "states", "timestamp")

    def __init__(self, at: float, timestamp: str) -> None:
        self.at = at
        self.timestamp = timestamp
        self.states: Counter[str] = Counter()
