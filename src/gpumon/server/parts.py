"""The CSV files that are open for appending: each with the length up to which it is whole.

A file may be deleted or appended to by somebody else at any time; that is found out before each append, so that
nothing is written where nobody looks, and nobody's bytes are cut as a tail of ours.
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
    """Owned by the writer's thread; `take_replaced` may be called from elsewhere."""

    def __init__(self, folder: Path, names: FileNames, journal: Journal) -> None:
        self._folder = folder
        self._names = names
        self._journal = journal
        self._open: dict[DayFile, Part] = {}
        self._torn: dict[DayFile, int] = {}
        self._replaced: deque[str] = deque()

    def get(self, day_file: DayFile) -> Part:
        """The file, ready to be appended to at `size`; begun with the header when it is new. Raises OSError."""
        part = self._open.pop(day_file, None)
        if part is not None:
            now = os.fstat(part.file.fileno())
            if now.st_nlink == 0:
                part.file.close()
                self._journal.forget(self._name(day_file))
                self._replaced.append(self._name(day_file))
                part = None
            else:
                part.size = now.st_size
        if part is None:
            part = self._begin(day_file)
        self._open[day_file] = part  # moved to the end: the least recently used are closed first
        return part

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
            except OSError as error:
                log.warning("csv_cut_back_later file=%s size=%d error=%s", self._name(day_file), size, error)
                self._torn[day_file] = size
                self._open.pop(day_file).file.close()

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


def is_ours(path: Path, table: Table) -> bool:
    """Whether gpumon wrote the file: by its header. Others are never touched."""
    with path.open("rb") as file:
        return file.read(len(table.header)) == table.header
