"""One thread per GPU: the only place where reading a GPU may hang without holding up anything else.

The sampler asks, the worker answers into a queue that all workers share. A worker has at most one question
at a time; while it is in a call it gets no other one. An answer carries its question's tick, so one that
comes late is known as such. All attributes belong to the sampler's thread; the worker's own thread touches
the two queues, the library, and the GPU it was asked about.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Literal

from gpumon.agent.ports import Gpu, GpuLibrary, Reading
from gpumon.clock import Monotonic
from gpumon.logs import Trouble

log = logging.getLogger(__name__)

Question = Literal["read", "find_again"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question: a reading, found or not, or the exception it ended in."""

    worker: GpuWorker
    question: Question
    tick: int
    result: Reading | bool | Exception
    seconds: float


class GpuWorker:
    """The thread of one GPU, and what the sampler knows of that GPU: `lost_since` and `find_at` (when to look
    for it next) while it is lost, `sampled_at` of its last sample; all monotonic."""

    def __init__(
        self, gpu: Gpu, library: GpuLibrary, answers: SimpleQueue[Answer], *, monotonic: Monotonic
    ) -> None:
        self.gpu = gpu
        self.busy = False
        self.lost_since: float | None = None
        self.find_at = 0.0
        self.sampled_at: float | None = None
        self.trouble = Trouble(log, f"gpu={gpu.index} uuid={gpu.uuid}", monotonic=monotonic)
        self._library = library
        self._answers = answers
        self._monotonic = monotonic
        self._questions: SimpleQueue[tuple[Question, int, Gpu] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"gpu-{gpu.index}", daemon=True)

    def start(self) -> GpuWorker:
        """Starts the thread; gives the worker itself back."""
        self._thread.start()
        return self

    def ask(self, question: Question, tick: int) -> None:
        """Hands the thread its next call. Not while it is busy."""
        self.busy = True
        self._questions.put((question, tick, self.gpu))

    def end(self) -> None:
        """Ends the thread after the call it is in; one that never returns dies with the process."""
        self._questions.put(None)

    def ended(self, timeout_seconds: float) -> bool:
        """Waits for the thread's end; False when it is still in a call then."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        calls: dict[Question, Callable[[Gpu], Reading | bool]] = {
            "read": self._library.read,
            "find_again": self._library.find_again,
        }
        result: Reading | bool | Exception
        while (asked := self._questions.get()) is not None:
            question, tick, gpu = asked
            began = self._monotonic()
            try:
                result = calls[question](gpu)
            except Exception as error:  # what it means is decided by the sampler; this thread lives on
                result = error
            self._answers.put(Answer(self, question, tick, result, self._monotonic() - began))
