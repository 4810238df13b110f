"""Where batches wait to be delivered: one queue, in memory first, then on disk; the oldest goes when both
are full.

- One order over both places. What earlier runs left on disk comes first, in its order and with its ids, so
  that the server can tell what it has already.
- While the server takes batches they pass through memory and cost no disk; once memory is full, new ones go
  to disk. As soon as a delivery fails, everything that waits is written to disk, and so is every new batch
  until none is left there: while the server catches up, too, for that may take hours. So a run that is killed
  loses of an outage nothing but the batch that is still being filled, and else at most what memory holds.
- The batch in delivery stays until its outcome is known; it is never the one to be dropped.
- Full: the oldest is dropped and counted. Trouble with the disk never raises here: see `spooldisk`.

Batches come from the sampler and the batcher, and go to the delivery. `close` may come from any thread; after
it nothing is given out any more, and an outcome that comes too late changes nothing on disk.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass

from gpumon import clock
from gpumon.agent.counts import SpoolCounts
from gpumon.agent.ports import Batch
from gpumon.agent.shipping.batchfiles import StoredBatch, file_name
from gpumon.agent.shipping.spooldisk import SpoolDisk
from gpumon.clock import Monotonic
from gpumon.logs import Trouble

log = logging.getLogger(__name__)

_WAIT_SECONDS = 5.0
_DROPPING_OVER_SECONDS = 60.0
"""Dropping counts as over when nothing was dropped for so long; a full spool does not drop with every put."""


@dataclass(slots=True, eq=False)
class _Entry:
    """One batch that waits: itself while it is in memory, its file while it is on disk."""

    order: int
    samples: int
    place: Batch | StoredBatch


class Spool:
    """The queue, holding at most `memory_bytes` of bodies beside what `disk` holds."""

    def __init__(
        self,
        disk: SpoolDisk,
        counts: SpoolCounts,
        *,
        memory_bytes: int,
        monotonic: Monotonic = clock.monotonic,
    ) -> None:
        self._disk = disk
        self._counts = counts
        self._memory_limit = memory_bytes
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._entries: deque[_Entry] = deque()
        self._in_delivery: tuple[_Entry, Batch] | None = None
        self._server_away = False
        self._closed = False
        self._next_order = 1
        self._dropped_at = 0.0
        self._full = Trouble(log, "spool", monotonic=monotonic)

    def open(self) -> None:
        """Takes up what earlier runs left on disk."""
        with self._changed:
            for stored in self._disk.open():
                self._entries.append(_Entry(stored.order, stored.samples, stored))
            if self._entries:
                self._next_order = self._entries[-1].order + 1
                log.info("spool_taken_up batches=%d bytes=%d", self._counts.disk_batches, self._counts.disk_bytes)
            while self._disk.overfull and self._drop_oldest(on_disk_too=True):
                pass

    def put(self, batch: Batch) -> None:
        """Takes a batch in, dropping the oldest where there is no room."""
        with self._changed:
            place = None if self._closed else self._find_place(batch, self._next_order)
            if place is None:
                self._count_dropped(batch.samples)
                return
            if self._monotonic() - self._dropped_at > _DROPPING_OVER_SECONDS:
                self._full.ended()
            self._entries.append(_Entry(self._next_order, batch.samples, place))
            self._next_order += 1
            self._changed.notify()

    def head(self, stop: threading.Event) -> Batch | None:
        """The oldest batch, in delivery from now on until `delivered`, `refused` or `not_delivered`. Waits for
        one until `stop` is set; None when there is none even so, or the spool is closed."""
        with self._changed:
            while not self._closed:
                if self._entries:
                    entry = self._entries[0]
                    batch = entry.place if isinstance(entry.place, Batch) else self._disk.load(entry.place)
                    if batch is not None:
                        self._in_delivery = entry, batch
                        return batch
                    self._remove(entry)
                elif stop.is_set():
                    break
                else:
                    self._changed.wait(_WAIT_SECONDS)
            return None

    def wake(self) -> None:
        """Lets `head` look at its stop event."""
        with self._changed:
            self._changed.notify_all()

    def delivered(self) -> None:
        """The batch in delivery is the server's now."""
        with self._changed:
            self._settle()

    def refused(self, reason: str) -> None:
        """The server will never take the batch in delivery: it is set aside."""
        with self._changed:
            if self._in_delivery is not None:
                entry, batch = self._in_delivery
                self._disk.set_aside(file_name(batch, entry.order), reason, batch.samples, batch)
            self._settle()

    def not_delivered(self) -> None:
        """The server is away: the batch in delivery stays first, and all that waits goes to disk."""
        with self._changed:
            self._in_delivery = None
            if not self._server_away and not self._closed:
                self._server_away = True
                self._save()

    def close(self) -> None:
        """Writes to disk what is in memory, dropping the oldest where the disk is full. What can't be written
        is dropped and counted, too."""
        with self._changed:
            self._in_delivery = None
            self._save()
            while self._counts.memory_batches and self._disk.usable() and self._drop_oldest(on_disk_too=True):
                self._save()
            while self._drop_oldest(on_disk_too=False):
                pass
            self._closed = True
            self._changed.notify_all()

    def waiting_samples(self) -> int:
        """Samples that wait, in memory and on disk."""
        with self._changed:
            return sum(entry.samples for entry in self._entries)

    def _find_place(self, batch: Batch, order: int) -> Batch | StoredBatch | None:
        """Puts the batch in memory or on disk, dropping older ones until it fits; None when it can't fit."""
        if len(batch.body) > self._memory_limit and not self._disk.could_hold(batch):
            return None
        while True:
            if self._server_away or self._counts.disk_batches:
                place = self._disk.store(batch, order) or self._keep(batch)
            else:
                place = self._keep(batch) or self._disk.store(batch, order)
            # While the disk can't be written, dropping what is on it would make no room.
            if place is not None or not self._drop_oldest(on_disk_too=self._disk.usable()):
                return place

    def _keep(self, batch: Batch) -> Batch | None:
        if self._counts.memory_bytes + len(batch.body) > self._memory_limit:
            return None
        self._counts.memory_batches += 1
        self._counts.memory_bytes += len(batch.body)
        return batch

    def _save(self) -> None:
        """Writes what is in memory to disk, oldest first, as far as there is room."""
        for entry in self._entries:
            if isinstance(entry.place, Batch):
                stored = self._disk.store(entry.place, entry.order)
                if stored is None:
                    return
                self._forget(entry.place)
                entry.place = stored

    def _drop_oldest(self, *, on_disk_too: bool) -> bool:
        """Drops the oldest batch that is not in delivery; False when there is none."""
        busy = None if self._in_delivery is None else self._in_delivery[0]
        for entry in self._entries:
            if entry is not busy and (on_disk_too or isinstance(entry.place, Batch)):
                self._remove(entry)
                self._count_dropped(entry.samples)
                return True
        return False

    def _count_dropped(self, samples: int) -> None:
        self._counts.dropped_batches += 1
        self._counts.dropped_samples += samples
        if not self._closed:
            self._dropped_at = self._monotonic()
            self._full.occurred("no room, the oldest samples are dropped", do="see why the server takes none")

    def _settle(self) -> None:
        self._server_away = False
        if self._in_delivery is not None:
            self._remove(self._in_delivery[0])
        self._in_delivery = None

    def _remove(self, entry: _Entry) -> None:
        if isinstance(entry.place, Batch):
            self._forget(entry.place)
        else:
            self._disk.remove(entry.place)
        self._entries.remove(entry)

    def _forget(self, batch: Batch) -> None:
        self._counts.memory_batches -= 1
        self._counts.memory_bytes -= len(batch.body)
