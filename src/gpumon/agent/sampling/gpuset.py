"""NVML as a whole: opened, closed, opened again; and the workers of the GPUs it has.

Opening is tried at once and then every retry interval, as long as it takes. A try that hangs is waited for.

While a GPU stays lost for long, was left out when NVML was opened, or there is none at all, NVML is opened
anew: at most every REOPEN_AFTER_SECONDS while any GPU works. As long as one works, NVML is not closed for that
but initialised once more, which leaves those that work alone; else it is closed first, and so begins anew.
Neither is begun while any call hangs: shutting NVML down under a call can hang, too.

A GPU that NVML does not list any more stays, as lost, until the agent is started anew: it disappeared, and that
is to be seen. It goes where a GPU that was not known before has taken its place.

Used by the sampler's thread only.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from queue import SimpleQueue

from gpumon.agent.counts import SamplerCounts
from gpumon.agent.ports import Gpu, GpuLibrary
from gpumon.agent.sampling.gpuworker import Answer, GpuWorker
from gpumon.agent.sampling.opening import Opening
from gpumon.clock import Monotonic
from gpumon.errors import NvmlUnavailable
from gpumon.logs import Trouble

log = logging.getLogger(__name__)

REOPEN_AFTER_SECONDS = 300.0
_END_SECONDS = 1.0


class GpuSet:
    """The GPUs of this node. `workers` has one for each, by UUID; `answers` is where they answer; `left_out`
    is how many more there are, of which nothing but that is known."""

    def __init__(
        self, library: GpuLibrary, counts: SamplerCounts, *, retry_seconds: float, monotonic: Monotonic
    ) -> None:
        self.opened = False
        self.workers: dict[str, GpuWorker] = {}
        self.answers: SimpleQueue[Answer] = SimpleQueue()
        self.left_out = 0
        self._library = library
        self._counts = counts
        self._retry_seconds = retry_seconds
        self._monotonic = monotonic
        self._opening: Opening | None = None
        self._left_open = False  # while `opened` is false: NVML is still to be closed
        self._tried_at: float | None = None
        self._listed: list[Gpu] | None = None
        self._trouble = Trouble(log, "nvml", monotonic=monotonic)

    def seconds_until_try(self) -> float:
        """How long to wait before NVML may be opened (again)."""
        if self._tried_at is None:
            return 0.0
        return max(0.0, self._tried_at + self._retry_seconds - self._monotonic())

    def open(self, stop: threading.Event, timeout_seconds: float) -> None:
        """Tries to open NVML, and brings the workers in line with the GPUs it lists. A try that has not come
        to an end by the timeout is trouble; the next call goes on waiting for it."""
        self._tried_at = self._monotonic()
        if self._opening is None:
            self._counts.nvml_opens += 1
            close_first = self._left_open and not self._any_busy()
            self._opening = Opening(self._library, close_first=close_first).start()
        if self._opening.ended(timeout_seconds, stop):
            self._settle(self._opening)
        elif not stop.is_set():
            self._not_opened(f"opening NVML has not returned within {timeout_seconds:g} s")

    def works(self) -> None:
        """A GPU has just answered, or there is none that could: trouble, if there was any, is over."""
        self._counts.nvml_trouble = None
        self._trouble.ended()

    def is_silent(self) -> None:
        """There are GPUs, and none has answered."""
        self._in_trouble("no GPU answers, each is lost or hangs", do="see whether nvidia-smi answers")

    def give_up(self, error: NvmlUnavailable) -> None:
        """Closes NVML after it has failed as a whole; under a call that hangs it is left open, to be initialised
        once more or closed later. No GPU is known to be in any state then."""
        self._in_trouble(str(error))
        self._begin_anew()
        if self._opening is None and not self._any_busy():
            self._left_open = False
            self._library.close()

    def lose(self, worker: GpuWorker, reason: str) -> None:
        """Marks a GPU as lost, to be looked for after the retry interval."""
        at = self._monotonic()
        if worker.lost_since is None:
            worker.lost_since = at
        worker.find_at = at + self._retry_seconds
        worker.trouble.occurred(reason)

    def look_for_lost(self, worker: GpuWorker, tick: int) -> None:
        """Lets a lost GPU's worker look for it, where it is time to."""
        at = self._monotonic()
        if not worker.busy and at >= worker.find_at:
            worker.find_at = at + self._retry_seconds
            worker.ask("find_again", tick)

    def reopen_if_gpus_are_missing(self, stop: threading.Event, timeout_seconds: float) -> None:
        """Opens NVML anew where that may bring a GPU back that its handle doesn't."""
        if self._opening is not None:
            if self._opening.ended(0.0, stop):
                self._settle(self._opening)
            return
        works = any(worker.lost_since is None for worker in self.workers.values())
        pause = self._retry_seconds if self.left_out and not works else REOPEN_AFTER_SECONDS
        long_ago = self._monotonic() - pause
        missing = not self.workers or any(
            worker.lost_since is not None and worker.lost_since <= long_ago for worker in self.workers.values()
        )
        tried_long_ago = self._tried_at is not None and self._tried_at <= long_ago
        if (missing or self.left_out) and tried_long_ago and not self._any_busy():
            if not works:
                self._begin_anew()
            self.open(stop, timeout_seconds)

    def end(self) -> None:
        """Ends the workers and closes NVML; leaves it open where a call hangs, for closing could hang, too."""
        workers, self.workers = list(self.workers.values()), {}
        self._begin_anew()
        if _all_ended(workers, self._monotonic) and self._opening is None:
            self._library.close()
        else:
            log.warning("nvml_left_open reason='a call into NVML has not returned'")

    def _settle(self, opening: Opening) -> None:
        """Takes the result of the opening that has ended."""
        self._opening = None
        try:
            listed = list(opening.result())
        except NvmlUnavailable as error:
            self._not_opened(str(error))
            return
        self.opened, self._left_open = True, False
        if listed != self._listed:
            self._listed = listed
            log.info("nvml_opened gpus=%d names=%s", len(listed), sorted({gpu.name for gpu in listed}))
        self._drop_replaced(listed)
        for gpu in listed:
            self._listed_again(gpu)
        for gone in self.workers.keys() - {gpu.uuid for gpu in listed}:
            self.lose(self.workers[gone], "NVML does not list it any more")
        known = {worker.gpu.index for worker in self.workers.values()}
        self.left_out = sum(index not in known for index in self._library.left_out)

    def _drop_replaced(self, listed: Sequence[Gpu]) -> None:
        """Ends the workers whose place a GPU has taken that was not known. One in a call stays until the next
        time: while it is there, NVML is not closed under it."""
        uuids = {gpu.uuid for gpu in listed}
        taken = {gpu.index: gpu.uuid for gpu in listed if gpu.uuid not in self.workers}
        for uuid, worker in list(self.workers.items()):
            if uuid not in uuids and worker.gpu.index in taken and not worker.busy:
                log.warning("gpu_replaced index=%d uuid=%s by=%s", worker.gpu.index, uuid, taken[worker.gpu.index])
                self.workers.pop(uuid).end()

    def _listed_again(self, gpu: Gpu) -> None:
        worker = self.workers.get(gpu.uuid)
        if worker is None:
            worker = GpuWorker(gpu, self._library, self.answers, monotonic=self._monotonic)
            self.workers[gpu.uuid] = worker.start()
        worker.gpu = gpu
        worker.lost_since = None

    def _not_opened(self, reason: str) -> None:
        if self.opened:  # the GPUs that work still do
            log.warning("nvml_not_opened_anew reason=%r", reason)
        else:
            self._in_trouble(reason)

    def _in_trouble(self, reason: str, *, do: str = "") -> None:
        self._counts.nvml_trouble = reason
        self._trouble.occurred(reason, do=do)

    def _any_busy(self) -> bool:
        return any(worker.busy for worker in self.workers.values())

    def _begin_anew(self) -> None:
        """What comes after this has nothing to do with what was before."""
        self._left_open = self._left_open or self.opened
        self.opened = False
        self._counts.gpus_by_state = {}
        for worker in self.workers.values():
            worker.sampled_at = None


def _all_ended(workers: Sequence[GpuWorker], monotonic: Monotonic) -> bool:
    deadline = monotonic() + _END_SECONDS
    for worker in workers:
        worker.end()
    return all(worker.ended(max(0.0, deadline - monotonic())) for worker in workers)
