"""The CSV files that are open for appending: each with the length up to which it is whole.

A file may be deleted, replaced or appended to by somebody else at any time; that is found out before each append,
so that nothing is written where nobody looks, no row is glued to a line without an end, and nobody's bytes are cut
as a tail of ours.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gpumon.server.days import DayFile, FileNames
from gpumon.server.disk import append_fully, sync_file, sync_folder
from gpumon.server.journal import Journal
from gpumon.server.tables import Table

log = logging.getLogger(__name__)

_OPEN_FILES = 24
_TIMES = 256
"""Of writes to a file: more than there are between a look at it and the question whose its time is."""


@dataclass(slots=True)
class Part:
    """One open file. `size` is the length of what is whole; `unsynced` when some of it may not be on disk."""

    file: BinaryIO
    size: int
    unsynced: bool = False

    def sync(self) -> None:
        """Returns when all of it is on disk. Raises OSError."""
        sync_file(self.file)
        self.unsynced = False


class OpenParts:
    """Owned by the writer's thread; `take_replaced` and `wrote` may be called from elsewhere."""

    def __init__(self, folder: Path, names: FileNames, journal: Journal) -> None:
        self._folder = folder
        self._names = names
        self._journal = journal
        self._open: dict[DayFile, Part] = {}
        self._torn: dict[DayFile, int] = {}
        self._replaced: deque[str] = deque()
        self._written_at: dict[str, deque[int]] = {}

    def get(self, day_file: DayFile) -> Part:
        """The file, ready to be appended to at `size`; begun with the header when it is new. Raises OSError."""
        if self.has(day_file):
            part = self._open.pop(day_file)
            size = os.fstat(part.file.fileno()).st_size
            if size != part.size:
                part.size = _end_last_line(self._folder / self._name(day_file), part.file, size)
        else:
            part = self._begin(day_file)
        self._open[day_file] = part  # moved to the end: the least recently used are closed first
        return part

    def has(self, day_file: DayFile) -> bool:
        """Whether the file is open and still the one that has its name. One that was deleted, moved or replaced is
        let go of."""
        part = self._open.get(day_file)
        if part is None:
            return False
        try:
            if os.path.samestat(os.fstat(part.file.fileno()), (self._folder / self._name(day_file)).stat()):
                return True
        except FileNotFoundError:
            pass
        self._open.pop(day_file).file.close()
        self._journal.forget(self._name(day_file))
        self._replaced.append(self._name(day_file))
        return False

    def goes_on(self, day_file: DayFile) -> bool:
        """Whether the file is to be appended to without asking whose it is: it is open, or is to be cut first."""
        return self.has(day_file) or day_file in self._torn

    def size(self, day_file: DayFile) -> int:
        """How long a file is that was appended to in this run."""
        part = self._open.get(day_file)
        return part.size if part is not None else self._journal.sizes.get(self._name(day_file), 0)

    def undo(self, sizes: dict[DayFile, int]) -> None:
        """Cuts files back. One that can't be cut now is cut before it is appended to again."""
        for day_file, size in sizes.items():
            part = self._open[day_file]
            part.size = size
            try:
                part.file.truncate(size)
                self.note_written(day_file)
            except OSError as error:
                log.warning("csv_cut_back_later file=%s size=%d error=%s", self._name(day_file), size, error)
                self._torn[day_file] = size
                self._open.pop(day_file).file.close()

    def note_written(self, day_file: DayFile) -> None:
        """A file was just written to."""
        times = self._written_at.setdefault(self._name(day_file), deque(maxlen=_TIMES))
        times.append(os.fstat(self._open[day_file].file.fileno()).st_mtime_ns)

    def wrote(self, name: str, mtime_ns: int) -> bool:
        """Whether a file got its modification time by a write of this run, one of the last few; from any
        thread."""
        times = self._written_at.get(name)
        return times is not None and mtime_ns in times.copy()

    def sync(self) -> bool:
        """Puts on disk what is not; whether there was anything. Raises OSError."""
        waiting = [part for part in self._open.values() if part.unsynced]
        for part in waiting:
            part.sync()
        return bool(waiting)

    def close_idle(self) -> None:
        """Closes all but the few that were used last."""
        for day_file in list(self._open)[:-_OPEN_FILES]:
            self._close(day_file)

    def release(self, day_file: DayFile) -> None:
        """Closes a file that is to be moved or deleted."""
        self._close(day_file)
        self._torn.pop(day_file, None)

    def close(self) -> None:
        """Closes all."""
        for day_file in list(self._open):
            self._close(day_file)

    def take_replaced(self) -> set[str]:
        """The names, since the last call, of files that were deleted meanwhile and begun anew."""
        taken = set()
        while self._replaced:
            taken.add(self._replaced.popleft())
        return taken

    def _begin(self, day_file: DayFile) -> Part:
        name = self._name(day_file)
        path = self._folder / name
        if name in self._journal.sizes and not path.exists():  # deleted while it was closed
            self._journal.forget(name)
            self._replaced.append(name)
        size = path.stat().st_size if path.exists() else 0
        size = min(size, self._torn.get(day_file, size))
        if name not in self._journal.sizes:
            # Before the first byte: from here on a crash, and the store, can tell what is committed.
            self._journal.commit({name: size}, [])
        file = path.open("ab", buffering=0)
        try:
            if day_file in self._torn:
                file.truncate(size)
                del self._torn[day_file]
            if size == 0:
                append_fully(file, day_file.table.header, at=0)
                sync_folder(self._folder)
                size = len(day_file.table.header)
            else:
                size = _end_last_line(path, file, size)
        except OSError:
            file.close()
            raise
        return Part(file, size)

    def _close(self, day_file: DayFile) -> None:
        part = self._open.pop(day_file, None)
        if part is None:
            return
        try:
            if part.unsynced:
                part.sync()
        except OSError as error:  # its rows are acknowledged, by the terms of file_sync_interval
            log.error("csv_sync_failed file=%s error=%s", self._name(day_file), error)
        finally:
            part.file.close()

    def _name(self, day_file: DayFile) -> str:
        return self._names.of(day_file)


def _end_last_line(path: Path, file: BinaryIO, size: int) -> int:
    """Ends the last line of a file of `size` bytes, which is open for appending, where somebody left it without
    a line break; gives the size that it has then. Raises OSError."""
    with path.open("rb") as there:
        there.seek(max(0, size - 1))
        if there.read(1) in (b"", b"\n"):
            return size
    append_fully(file, b"\n", at=size)
    return size + 1


def is_ours(path: Path, table: Table) -> bool:
    """Whether gpumon wrote the file: by its header. Others are never touched."""
    with path.open("rb") as file:
        return file.read(len(table.header)) == table.header
