"""From accepted batches to acknowledged ones: the queue in front of the disk, and its one writer.

Batches that wait are written as one group with one sync, then all are answered: under load a sync serves
many. The queue is bounded (`StorageBusy`, 429); when the disk takes nothing the whole group is refused
(`StorageError`, 503) and the agents keep their batches. A batch that was stored before is acknowledged and
not stored again; one that arrives twice at once waits for the first.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gpumon.errors import StorageBusy, StorageError
from gpumon.model.sample import BatchId
from gpumon.server.accept import Accepted
from gpumon.server.csvlog import CsvLog
from gpumon.server.journal import Journal
from gpumon.server.labels import Labels
from gpumon.server.tables import DatedRow
from gpumon.tasks import Task

log = logging.getLogger(__name__)

_MAX_WAITING_ROWS = 500_000
"""Bounds the memory of the queue (some 1 KiB a row), whatever the size of its batches."""
_PROBE_SECONDS = 10.0
"""How often the disk is tried while nothing is written, so that `/health` is true also then."""


@dataclass(slots=True, eq=False)
class _Waiting:
    accepted: Accepted
    batch: BatchId | None
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[bool]


class Ingest:
    """`submit` from the event loop; the rest happens in the writer's thread."""

    def __init__(
        self,
        csvlog: CsvLog,
        journal: Journal,
        *,
        group_rows: int,
        group_delay_seconds: float,
        max_batches: int,
        sync_interval_seconds: float = 0.0,
    ) -> None:
        self._csvlog = csvlog
        self._journal = journal
        self._group_rows = group_rows
        self._group_delay = group_delay_seconds
        self._max_batches = max_batches
        self._sync_interval = sync_interval_seconds
        self._next_sync = time.monotonic() + sync_interval_seconds
        self._next_probe = time.monotonic() + _PROBE_SECONDS
        self._queue: deque[_Waiting] = deque()
        self._waiting_rows = 0
        self._works: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._task = Task("csv-writer", self._run)
        self.trouble: str | None = None
        self.rows_stored = 0
        self.pod_rows_stored = 0
        self.groups = 0
        self.duplicates = 0

    def start(self) -> None:
        """Starts the writer."""
        self._task.start()

    def stop(self) -> None:
        """Writes all that waits, then ends."""
        with self._changed:
            self._task.stopping.set()
            self._changed.notify()
        self._task.stop(timeout_seconds=60)

    @property
    def waiting(self) -> tuple[int, int]:
        """(batches, rows) in front of the disk."""
        return len(self._queue), self._waiting_rows

    def between_writes(self, work: Callable[[], None]) -> None:
        """Has the writer's thread run `work` when no write is under way, and returns when it has; for whoever
        moves the files."""
        done = threading.Event()

        def then_tell() -> None:
            try:
                work()
            finally:
                done.set()

        with self._changed:
            if self._task.stopping.is_set():
                return
            self._works.append(then_tell)
            self._changed.notify()
        done.wait()

    async def submit(self, accepted: Accepted, batch: BatchId | None) -> bool:
        """Stores what was accepted of one batch. True when it is on disk now, False when the batch had been
        stored before. Raises StorageBusy or StorageError; then nothing of it is stored."""
        loop = asyncio.get_running_loop()
        item = _Waiting(accepted, batch, loop, loop.create_future())
        with self._changed:
            if self._task.stopping.is_set():
                raise StorageError("the server is stopping; send the batch again")
            full = len(self._queue) >= self._max_batches or self._waiting_rows > _MAX_WAITING_ROWS
            if full:
                raise StorageBusy("more batches wait for the disk than [PERFORMANCE] buffer_size; try again later")
            self._queue.append(item)
            before = self._waiting_rows
            self._waiting_rows += len(accepted.rows) + len(accepted.labels)
            if len(self._queue) == 1 or before < self._group_rows <= self._waiting_rows:
                self._changed.notify()  # else the writer waits for company or for the disk
        return await item.answer

    def _run(self, stopping: threading.Event) -> None:
        while True:
            group = self._next_group(stopping)
            if group:
                self._write(group)
            if self._works:
                self._work()  # one after each group: with many senders there is always a next one
            elif not group:
                if stopping.is_set():
                    return
                if time.monotonic() >= self._next_probe:
                    self._probe()
            self._sync_when_due()

    def _next_group(self, stopping: threading.Event) -> list[_Waiting]:
        """All that waits, after a short wait for company; empty when there is other work or at a stop."""
        with self._changed:
            if not self._queue and not self._works and not stopping.is_set():
                self._changed.wait(self._idle_seconds())
            if self._queue and self._group_delay and not stopping.is_set():
                deadline = time.monotonic() + self._group_delay
                while self._waiting_rows < self._group_rows and not stopping.is_set():
                    left = deadline - time.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
            group = list(self._queue)
            self._queue.clear()
            self._waiting_rows = 0
            return group

    def _work(self) -> None:
        work = self._works.popleft()
        try:
            work()
        except Exception:
            log.exception("work_between_writes_failed")

    def _idle_seconds(self) -> float:
        wake = min(self._next_probe, self._next_sync) if self._sync_interval else self._next_probe
        return max(0.01, wake - time.monotonic())

    def _write(self, group: list[_Waiting]) -> None:
        samples = 0
        rows: list[DatedRow] = []
        labels: list[Labels] = []
        fresh: dict[BatchId, None] = {}
        stored: list[bool] = []
        for item in group:
            known = item.batch is not None and (item.batch in fresh or item.batch in self._journal)
            stored.append(not known)
            if not known:
                samples += item.accepted.samples
                rows += item.accepted.rows
                labels += item.accepted.labels
                if item.batch is not None:
                    fresh[item.batch] = None
        error: StorageError | None = None
        try:
            if rows or fresh:
                self._csvlog.append(rows, list(fresh), labels)
                self._note_trouble(None)
                self._next_probe = time.monotonic() + _PROBE_SECONDS
        except StorageError as failure:
            error = failure
            self._note_trouble(str(failure))
        except Exception as failure:  # a bug here must answer the group, not hang its senders
            log.exception("csv_writer_failed rows=%d", len(rows))
            error = StorageError("the server failed to store the samples; its log says why")
            error.__cause__ = failure
        else:
            self.groups += 1
            self.rows_stored += samples
            self.pod_rows_stored += len(rows) - samples
            self.duplicates += stored.count(False)
            log.debug("committed batches=%d rows=%d", len(group), len(rows))
        _answer(group, stored, error)

    def _sync_when_due(self) -> None:
        if not self._sync_interval or time.monotonic() < self._next_sync:
            return
        self._next_sync = time.monotonic() + self._sync_interval
        try:
            self._csvlog.sync()
        except OSError as error:
            log.error("csv_sync_failed error=%s", error)

    def _probe(self) -> None:
        """Finds trouble before an agent does, and its end when no agent sends."""
        self._next_probe = time.monotonic() + _PROBE_SECONDS
        try:
            self._csvlog.probe()
            self._note_trouble(None)
        except StorageError as error:
            self._note_trouble(str(error))

    def _note_trouble(self, trouble: str | None) -> None:
        if trouble != self.trouble:
            log.log(logging.ERROR if trouble else logging.INFO, "storage %s", trouble or "works again")
            self.trouble = trouble


def _answer(group: list[_Waiting], stored: list[bool], error: StorageError | None) -> None:
    def resolve() -> None:
        for item, new in zip(group, stored, strict=True):
            if item.answer.done():
                continue
            if error is not None:
                item.answer.set_exception(error)
            else:
                item.answer.set_result(new)

    loop = group[0].loop  # one server, one loop
    try:
        loop.call_soon_threadsafe(resolve)
    except RuntimeError:
        log.warning("answers_lost batches=%d: the event loop has ended", len(group))
