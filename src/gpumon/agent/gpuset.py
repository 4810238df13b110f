"""NVML as a whole: opened, closed, opened again; and the workers of the GPUs it has.

Opening is tried at once and then every retry interval, as long as it takes. While a GPU stays lost for long,
or there is none at all, NVML is opened anew, at most every REOPEN_AFTER_SECONDS, and not while any call hangs:
shutting NVML down under a call can hang, too. A GPU that NVML does not list any more stays, as lost, until the
agent is started anew: it disappeared, and that is to be seen.

Used by the sampler's thread only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from queue import SimpleQueue

from gpumon.agent.counts import SamplerCounts
from gpumon.agent.gpuworker import Answer, GpuWorker
from gpumon.agent.ports import Gpu, GpuLibrary
from gpumon.clock import Monotonic
from gpumon.errors import NvmlUnavailable
from gpumon.logs import Trouble

log = logging.getLogger(__name__)

REOPEN_AFTER_SECONDS = 300.0
_END_SECONDS = 1.0


class GpuSet:
    """The GPUs of this node. `workers` has one for each, by UUID; `answers` is where they answer."""

    def __init__(
        self, library: GpuLibrary, counts: SamplerCounts, *, retry_seconds: float, monotonic: Monotonic
    ) -> None:
        self.opened = False
        self.workers: dict[str, GpuWorker] = {}
        self.answers: SimpleQueue[Answer] = SimpleQueue()
        self._library = library
        self._counts = counts
        self._retry_seconds = retry_seconds
        self._monotonic = monotonic
        self._tried_at: float | None = None
        self._listed: list[Gpu] | None = None
        self._trouble = Trouble(log, "nvml", monotonic=monotonic)

    def seconds_until_try(self) -> float:
        """How long to wait before NVML may be opened (again)."""
        if self._tried_at is None:
            return 0.0
        return max(0.0, self._tried_at + self._retry_seconds - self._monotonic())

    def open(self) -> None:
        """Tries to open NVML, and brings the workers in line with the GPUs it lists."""
        self._tried_at = self._monotonic()
        self._counts.nvml_opens += 1
        try:
            listed = list(self._library.open())
        except NvmlUnavailable as error:
            self._failed(error)
            return
        self.opened = True
        if listed != self._listed:
            self._listed = listed
            log.info("nvml_opened gpus=%d names=%s", len(listed), sorted({gpu.name for gpu in listed}))
        for gpu in listed:
            self._listed_again(gpu)
        for gone in self.workers.keys() - {gpu.uuid for gpu in listed}:
            self.lose(self.workers[gone], "NVML does not list it any more")

    def works(self) -> None:
        """NVML has just answered: trouble with it, if there was any, is over."""
        self._counts.nvml_trouble = None
        self._trouble.ended()

    def give_up(self, error: NvmlUnavailable) -> None:
        """Closes NVML after it has failed as a whole. No GPU is known to be in any state then."""
        self._failed(error)
        self._close()

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

    def reopen_if_gpus_stay_lost(self) -> None:
        """Opens NVML anew where that may bring a GPU back that its handle doesn't."""
        long_ago = self._monotonic() - REOPEN_AFTER_SECONDS
        missing = not self.workers or any(
            worker.lost_since is not None and worker.lost_since <= long_ago for worker in self.workers.values()
        )
        tried_long_ago = self._tried_at is not None and self._tried_at <= long_ago
        if missing and tried_long_ago and not any(worker.busy for worker in self.workers.values()):
            self._close()
            self.open()

    def end(self) -> None:
        """Ends the workers and closes NVML; leaves it open where a call hangs, for closing could hang, too."""
        workers, self.workers = list(self.workers.values()), {}
        if _all_ended(workers, self._monotonic):
            self._close()
        else:
            log.warning("nvml_left_open reason='a call into NVML has not returned'")

    def _listed_again(self, gpu: Gpu) -> None:
        worker = self.workers.get(gpu.uuid)
        if worker is None:
            worker = GpuWorker(gpu, self._library, self.answers, monotonic=self._monotonic)
            self.workers[gpu.uuid] = worker.start()
        worker.gpu = gpu
        worker.lost_since = None

    def _failed(self, error: NvmlUnavailable) -> None:
        self._counts.nvml_trouble = str(error)
        self._trouble.occurred(str(error))

    def _close(self) -> None:
        self.opened = False
        self._counts.gpus_by_state = {}
        for worker in self.workers.values():
            worker.sampled_at = None
        self._library.close()


def _all_ended(workers: Sequence[GpuWorker], monotonic: Monotonic) -> bool:
    deadline = monotonic() + _END_SECONDS
    for worker in workers:
        worker.end()
    return all(worker.ended(max(0.0, deadline - monotonic())) for worker in workers)
