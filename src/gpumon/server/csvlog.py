"""The daily CSV files: the truth that everything else is derived from.

A commit appends rows to the files of their days, syncs them, and journals it. Either all rows of a commit
are in the files or none is: when any write fails, every file is cut back to what it was, so nothing is torn
and nothing that was acknowledged is lost.

An existing file whose header is not gpumon's (one of the old program's thirteen columns) is never touched:
the day gets a further part beside it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import BinaryIO, Literal

from gpumon.errors import StorageError
from gpumon.model.fields import CSV_COLUMNS
from gpumon.model.sample import BatchId
from gpumon.server.accept import Row
from gpumon.server.days import DayFile, file_name, parse_file_name
from gpumon.server.disk import append_fully, cannot_write, sync_file, sync_folder
from gpumon.server.healing import finish_compressions, heal
from gpumon.server.journal import Journal

log = logging.getLogger(__name__)

HEADER = (",".join(CSV_COLUMNS) + "\n").encode()
_OPEN_FILES = 8
_PROBE_BYTES = 256 * 1024
"""More than a usual commit, so that a disk that takes the trial takes the next commit."""

DatedRow = tuple[date, int, Row]
SplitMode = Literal["daily", "size", "hourly"]


@dataclass(slots=True)
class _Part:
    file: BinaryIO
    size: int


class CsvLog:
    """Owned by the one writer thread. `committed` and `take_replaced` may be called from elsewhere."""

    def __init__(
        self,
        folder: Path,
        prefix: str,
        journal: Journal,
        *,
        split: SplitMode = "daily",
        max_file_bytes: int = 100 * 10**6,
        sync_each_commit: bool = True,
    ) -> None:
        self._folder = folder
        self._prefix = prefix
        self._journal = journal
        self._split = split
        self._max_file_bytes = max_file_bytes
        self._sync_each_commit = sync_each_commit
        self._parts: dict[DayFile, _Part] = {}
        self._current: dict[tuple[date, int], DayFile] = {}
        self._unsynced: set[DayFile] = set()
        self._torn: dict[DayFile, int] = {}
        self._replaced: deque[str] = deque()

    def open(self) -> None:
        """Heals what a crash left: bytes that no acknowledged batch owns and torn last lines are moved to
        `.gpumon/quarantine`. Raises StorageError when the folder can't be used."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / ".gpumon" / "quarantine").mkdir(parents=True, exist_ok=True)
            for left in (self._folder / ".gpumon").glob("*.new"):
                left.unlink()  # a file that was being written aside when the server was killed
            finish_compressions(self._folder, self._prefix)
            self._journal.open()
            for path in sorted(self._folder.iterdir()):
                known = parse_file_name(self._prefix, path.name)
                if known is not None and not known.compressed and path.is_file():
                    self._heal(path)
            for name in [name for name in self._journal.sizes if not (self._folder / name).exists()]:
                del self._journal.sizes[name]
            self._journal.begin()
        except OSError as error:
            raise StorageError(cannot_write(error)) from error

    def append(self, rows: Iterable[DatedRow], batches: list[BatchId]) -> None:
        """Stores rows and the ids of the batches they came in. Returns when they are on disk. Raises
        StorageError; then none of them is stored."""
        by_file: dict[DayFile, list[Row]] = {}
        touched: dict[DayFile, int] = {}
        try:
            for day, hour, row in rows:
                by_file.setdefault(self._file_for(day, hour), []).append(row)
            rendered = {day_file: render(of_file) for day_file, of_file in by_file.items()}
            for day_file, data in rendered.items():
                part = self._part(day_file)
                touched[day_file] = part.size
                append_fully(part.file, data, at=part.size)
                part.size += len(data)
                if self._sync_each_commit:
                    sync_file(part.file)
                else:
                    self._unsynced.add(day_file)
            self._journal.commit(
                {self._name(day_file): self._parts[day_file].size for day_file in touched},
                batches,
                sync=self._sync_each_commit,
            )
        except OSError as error:
            self._undo(touched)
            raise StorageError(cannot_write(error)) from error
        except BaseException:
            self._undo(touched)
            raise
        for day_file in list(self._parts)[:-_OPEN_FILES]:
            self._close_part(day_file)

    def sync(self) -> None:
        """Puts on disk what earlier appends left with the operating system (file_sync_interval > 0)."""
        if not self._unsynced:
            return
        for day_file in self._unsynced:
            if day_file in self._parts:
                sync_file(self._parts[day_file].file)
        self._unsynced.clear()
        self._journal.sync()

    def probe(self) -> None:
        """Raises StorageError when the folder takes no writes now."""
        trial = self._folder / ".gpumon" / "probe.new"
        try:
            trial.write_bytes(bytes(_PROBE_BYTES))
        except OSError as error:
            raise StorageError(cannot_write(error)) from error
        finally:
            with contextlib.suppress(OSError):
                trial.unlink(missing_ok=True)

    def committed(self, name: str) -> int | None:
        """How many bytes of a file are committed; None for a file that gpumon did not write."""
        return self._journal.sizes.get(name)

    def take_replaced(self) -> set[str]:
        """The names, since the last call, of files that were deleted under gpumon and begun anew."""
        taken = set()
        while self._replaced:
            taken.add(self._replaced.popleft())
        return taken

    def release(self, day_file: DayFile) -> None:
        """Lets go of a file that is to be deleted or compressed; later rows of its day get a new part."""
        self._close_part(day_file)
        self._torn.pop(day_file, None)
        self._current = {slot: of for slot, of in self._current.items() if of != day_file}
        self._journal.forget(self._name(day_file))

    def close(self) -> None:
        """Syncs, closes, and marks the stop as orderly."""
        self.sync()
        for day_file in list(self._parts):
            self._close_part(day_file)
        self._journal.close()

    def _file_for(self, day: date, hour: int) -> DayFile:
        slot = (day, hour if self._split == "hourly" else 0)
        current = self._current.get(slot)
        if current is None:
            current = self._current[slot] = self._usable(DayFile(day, slot[1]))
        elif self._split == "size" and self._size(current) >= self._max_file_bytes:
            current = self._current[slot] = self._usable(DayFile(day, current.part + 1))
        return current

    def _usable(self, wanted: DayFile) -> DayFile:
        """The first part from `wanted` on that gpumon may append to. With hours as parts, a further part of
        the same hour is numbered 24 higher."""
        step = 24 if self._split == "hourly" else 1
        while not self._may_append(wanted):
            wanted = DayFile(wanted.day, wanted.part + step)
        return wanted

    def _may_append(self, day_file: DayFile) -> bool:
        path = self._folder / self._name(day_file)
        if path.with_name(path.name + ".gz").exists():
            return False
        if not path.exists():
            return True
        if self._split == "size" and path.stat().st_size >= self._max_file_bytes:
            return False
        return path.is_file() and (path.stat().st_size == 0 or _is_ours(path))

    def _part(self, day_file: DayFile) -> _Part:
        part = self._parts.pop(day_file, None)
        if part is not None:
            now = os.fstat(part.file.fileno())
            if now.st_nlink == 0:  # somebody deleted it: what is written here would be seen by nobody
                part.file.close()
                self._journal.forget(self._name(day_file))
                self._replaced.append(self._name(day_file))
                part = None
            else:
                part.size = now.st_size  # somebody may have appended: their bytes are no tail of ours to cut
        if part is None:
            name = self._name(day_file)
            path = self._folder / name
            size = path.stat().st_size if path.exists() else 0
            size = min(size, self._torn.get(day_file, size))
            if name not in self._journal.sizes:
                # Before the first byte: from here on a crash, and the store, can tell what is committed.
                self._journal.commit({name: size}, [])
            file = path.open("ab", buffering=0)
            if day_file in self._torn:
                file.truncate(size)
                del self._torn[day_file]
            if size == 0:
                append_fully(file, HEADER, at=0)
                sync_folder(self._folder)
                size = len(HEADER)
            part = _Part(file, size)
        self._parts[day_file] = part  # moved to the end: the least recently used are closed first
        return part

    def _size(self, day_file: DayFile) -> int:
        return self._parts[day_file].size if day_file in self._parts else self.committed(self._name(day_file)) or 0

    def _close_part(self, day_file: DayFile) -> None:
        part = self._parts.pop(day_file, None)
        if part is not None:
            if day_file in self._unsynced:
                try:
                    sync_file(part.file)
                except OSError as error:  # its rows are acknowledged by file_sync_interval's terms
                    log.error("csv_sync_failed file=%s error=%s", self._name(day_file), error)
                self._unsynced.discard(day_file)
            part.file.close()

    def _undo(self, touched: dict[DayFile, int]) -> None:
        for day_file, size in touched.items():
            part = self._parts[day_file]
            part.size = size
            try:
                part.file.truncate(size)
            except OSError as error:
                log.warning("csv_cut_back_later file=%s size=%d error=%s", self._name(day_file), size, error)
                self._torn[day_file] = size
                self._parts.pop(day_file).file.close()

    def _name(self, day_file: DayFile) -> str:
        return file_name(self._prefix, day_file)

    def _heal(self, path: Path) -> None:
        committed = self._journal.sizes.get(path.name)
        if committed is None and not _is_ours(path):
            return
        unacknowledged_from = committed if not self._journal.clean else None
        kept = heal(path, unacknowledged_from, self._folder / ".gpumon" / "quarantine", worthless=HEADER)
        if committed is not None:
            self._journal.sizes[path.name] = kept


def _is_ours(path: Path) -> bool:
    """Whether gpumon wrote the file: by its header. Others are never touched."""
    with path.open("rb") as file:
        return file.read(len(HEADER)) == HEADER


def render(rows: list[Row]) -> bytes:
    """Rows as lines of CSV: comma, RFC 4180 quoting, UTF-8, LF; None is an empty cell."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
