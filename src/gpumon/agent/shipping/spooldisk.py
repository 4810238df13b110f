"""The spool's place on disk: bounded, and never in the way.

Nothing here raises for trouble with the disk. A folder that can't be written is logged once, with what to do,
is left alone for DISK_RETRY_SECONDS, and meanwhile has no room. A file that is torn or can't be read is set
aside with the reason. Used under the spool's lock only.
"""

from __future__ import annotations

import errno
import logging

from gpumon import clock
from gpumon.agent.counts import SpoolCounts
from gpumon.agent.ports import Batch
from gpumon.agent.shipping.batchfiles import FIRST_LINE_BYTES, BatchFiles, StoredBatch, Torn
from gpumon.clock import Monotonic
from gpumon.logs import Trouble

log = logging.getLogger(__name__)

DISK_RETRY_SECONDS = 60.0
_ADVICE = {
    errno.ENOSPC: "free some space, or set a smaller [SPOOL] disk_mb",
    errno.EACCES: "make the folder writable for the agent's user, or set [SPOOL] directory",
    errno.EROFS: "mount it writable, or set [SPOOL] directory",
}


class SpoolDisk:
    """Room for `limit_bytes` of batches. `files` None is no disk at all."""

    def __init__(
        self,
        files: BatchFiles | None,
        counts: SpoolCounts,
        *,
        limit_bytes: int,
        monotonic: Monotonic = clock.monotonic,
    ) -> None:
        self._files = files
        self._counts = counts
        self._limit_bytes = limit_bytes
        self._monotonic = monotonic
        self._retry_at: float | None = None
        self._trouble = Trouble(log, "spool_disk", monotonic=monotonic)

    def open(self) -> list[StoredBatch]:
        """What is on disk already, in its order."""
        if self._files is None:
            return []
        try:
            self._files.make_folder()
            found = self._files.list_stored()
        except OSError as error:
            self._failed(error)
            return []
        self._counts.disk_batches = len(found)
        self._counts.disk_bytes = sum(stored.size_bytes for stored in found)
        return found

    @property
    def overfull(self) -> bool:
        """Whether more is there than may be: the limit was larger once."""
        return self._counts.disk_bytes > self._limit_bytes

    def usable(self) -> bool:
        """Whether a write may be tried. Makes the folder anew when it is time to try again."""
        if self._files is None or self._limit_bytes <= 0:
            return False
        if self._retry_at is None:
            return True
        if self._monotonic() < self._retry_at:
            return False
        try:
            self._files.make_folder()
        except OSError as error:
            self._failed(error)
            return False
        self._retry_at = None
        return True

    def could_hold(self, batch: Batch) -> bool:
        """Whether the batch would fit if nothing else were there."""
        return self.usable() and _file_bytes(batch) <= self._limit_bytes

    def store(self, batch: Batch, order: int) -> StoredBatch | None:
        """Writes the batch; None when there is no room or it can't be written."""
        if self._files is None or not self.usable():
            return None
        if self._counts.disk_bytes + _file_bytes(batch) > self._limit_bytes:
            return None
        try:
            stored = self._files.write(batch, order)
        except OSError as error:
            self._failed(error)
            return None
        self._counts.disk_batches += 1
        self._counts.disk_bytes += stored.size_bytes
        self._counts.disk_trouble = None
        self._trouble.ended()
        return stored

    def load(self, stored: StoredBatch) -> Batch | None:
        """The batch in the file. None when it has none that can be read; then it has been set aside, and its
        place is to be given up by `remove`."""
        if self._files is None:
            return None
        try:
            return self._files.read(stored)
        except FileNotFoundError:
            log.warning("spool_file_gone file=%s reason='another agent or a person removed it'", stored.name)
        except (Torn, OSError) as error:
            self.set_aside(stored.name, f"can't be read from the spool: {error}", stored.samples, None)
        return None

    def remove(self, stored: StoredBatch) -> None:
        """Gives up the file's place. Where the file itself can't be removed it will be delivered once more
        after the next start, and the server knows its id."""
        self._counts.disk_batches -= 1
        self._counts.disk_bytes -= stored.size_bytes
        try:
            if self._files is not None:
                self._files.remove(stored)
        except OSError as error:
            self._failed(error)

    def set_aside(self, name: str, reason: str, samples: int, batch: Batch | None) -> None:
        """Counts, logs and keeps for people what can't be delivered. `batch` None: the file of that name."""
        self._counts.quarantined_batches += 1
        log.error("batch_set_aside file=%s samples=%d reason=%r", name, samples, reason)
        if self._files is None:
            return
        try:
            self._files.quarantine(name, reason, batch)
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        self._retry_at = self._monotonic() + DISK_RETRY_SECONDS
        folder = "" if self._files is None else self._files.folder
        reason = f"{folder}: {error.strerror or error}"
        self._counts.disk_trouble = reason
        self._trouble.occurred(
            reason, do=_ADVICE.get(error.errno or 0, "check the disk; till then batches wait in memory only")
        )


def _file_bytes(batch: Batch) -> int:
    return FIRST_LINE_BYTES + len(batch.body)
