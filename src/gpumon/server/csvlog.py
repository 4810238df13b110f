"""The daily CSV files: the truth that everything else is derived from.

A commit appends rows to the files of their tables and days, syncs them, and journals it. Either all rows of a
commit are in the files or none is: when any write fails, every file is cut back to what it was, so nothing is
torn and nothing that was acknowledged is lost.

An existing file whose header is not gpumon's (one of the old program's thirteen columns) is never touched:
the day gets a further part beside it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
from collections.abc import Iterable, Sequence
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Literal

import msgspec

from gpumon.errors import StorageError
from gpumon.model.sample import BatchId
from gpumon.server.days import DayFile, FileNames
from gpumon.server.disk import append_fully, cannot_write
from gpumon.server.healing import finish_compressions, heal
from gpumon.server.journal import Journal
from gpumon.server.labels import KnownLabels, Labels
from gpumon.server.parts import OpenParts, is_ours
from gpumon.server.tables import POD_LABELS, DatedRow, Row, Table

log = logging.getLogger(__name__)

_json = msgspec.json.Encoder().encode
_PROBE_BYTES = 256 * 1024
"""More than a usual commit, so that a disk that takes the trial takes the next commit."""

SplitMode = Literal["daily", "size", "hourly"]


class CsvLog:
    """Owned by the one writer thread. `committed`, `committed_sizes`, `wrote` and `take_replaced` may be called
    from elsewhere."""

    def __init__(
        self,
        folder: Path,
        names: FileNames,
        journal: Journal,
        *,
        split: SplitMode = "daily",
        max_file_bytes: int = 100 * 10**6,
        sync_each_commit: bool = True,
    ) -> None:
        self._folder = folder
        self._names = names
        self._journal = journal
        self._split = split
        self._max_file_bytes = max_file_bytes
        self._sync_each_commit = sync_each_commit
        self._parts = OpenParts(folder, names, journal)
        self._labels = KnownLabels()
        self._current: dict[tuple[Table, date, int], DayFile] = {}

    def open(self) -> None:
        """Heals what a crash left: bytes that no acknowledged batch owns and torn last lines are moved to
        `.gpumon/quarantine`. Raises StorageError when the folder can't be used."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / ".gpumon" / "quarantine").mkdir(parents=True, exist_ok=True)
            state = self._folder / ".gpumon"
            for left in (*state.glob("*.new"), *(state / "quarantine").glob("*.new")):
                left.unlink()  # a file that was being written aside when the server was killed
            finish_compressions(self._folder, self._names)
            self._journal.open()
            for path in sorted(self._folder.iterdir()):
                known = self._names.parse(path.name)
                if known is not None and not known.compressed and path.is_file():
                    self._heal(path, known.table)
            for name in [name for name in self._journal.sizes if not (self._folder / name).exists()]:
                del self._journal.sizes[name]
            self._journal.begin()
        except OSError as error:
            raise StorageError(cannot_write(error, self._folder)) from error

    def append(self, rows: Iterable[DatedRow], batches: list[BatchId], labels: Sequence[Labels] = ()) -> None:
        """Stores rows, the labels that do not stand in the files yet, and the ids of the batches they came in.
        Returns when they are on disk. Raises StorageError; then none of them is stored."""
        touched: dict[DayFile, int] = {}
        try:
            label_rows, news = self._labels.fresh(labels)
            by_file = self._by_file(chain(rows, label_rows))
            rendered = {day_file: render(of_file) for day_file, of_file in by_file.items()}
            for day_file, data in rendered.items():
                part = self._parts.get(day_file)
                touched[day_file] = part.size
                append_fully(part.file, data, at=part.size)
                part.size += len(data)
                part.unsynced = True
                self._parts.note_written(day_file)
            if self._sync_each_commit:
                self._parts.sync()  # when all is written, so that one turn of the disk may serve several
            self._journal.commit(
                {self._name(day_file): self._parts.size(day_file) for day_file in touched},
                batches,
                sync=self._sync_each_commit,
            )
            self._labels.remember(
                news, ((file.day, self._folder / self._name(file)) for file in touched if file.table is POD_LABELS)
            )
        except OSError as error:
            self._parts.undo(touched)
            raise StorageError(cannot_write(error, self._folder)) from error
        except BaseException:
            self._parts.undo(touched)
            raise
        self._parts.close_idle()

    def sync(self) -> None:
        """Puts on disk what earlier appends left with the operating system (file_sync_interval > 0)."""
        if self._parts.sync():
            self._journal.sync()

    def probe(self) -> None:
        """Raises StorageError when the folder takes no writes now."""
        trial = self._folder / ".gpumon" / "probe.new"
        try:
            trial.write_bytes(bytes(_PROBE_BYTES))
        except OSError as error:
            raise StorageError(cannot_write(error, self._folder)) from error
        finally:
            with contextlib.suppress(OSError):
                trial.unlink(missing_ok=True)

    def committed(self, name: str) -> int | None:
        """How many bytes of a file are committed; None for a file that gpumon did not write."""
        return self._journal.sizes.get(name)

    def committed_sizes(self) -> dict[str, int]:
        """How many bytes of each file are committed, all at one moment between commits: of a commit that went to
        several files either all of it is counted or nothing. Files that gpumon did not write are not in it."""
        return dict(self._journal.sizes)

    def wrote(self, name: str, mtime_ns: int) -> bool:
        """Whether a file got its modification time by a write of this run, one of the last few."""
        return self._parts.wrote(name, mtime_ns)

    def take_replaced(self) -> set[str]:
        """The names, since the last call, of files that were deleted under gpumon and begun anew."""
        return self._parts.take_replaced()

    def release(self, day_file: DayFile) -> None:
        """Lets go of a file that is to be deleted or compressed; later rows of its day get a new part."""
        self._parts.release(day_file)
        self._current = {slot: of for slot, of in self._current.items() if of != day_file}
        self._journal.forget(self._name(day_file))

    def close(self) -> None:
        """Syncs, closes, and marks the stop as orderly."""
        self.sync()
        self._parts.close()
        self._journal.close()

    def _by_file(self, rows: Iterable[DatedRow]) -> dict[DayFile, list[Row]]:
        """The rows of each file, in the order they came. The file is looked for once an hour of rows, not once a
        row."""
        by_file: dict[DayFile, list[Row]] = {}
        by_hour: dict[tuple[Table, date, int], list[Row]] = {}
        last: tuple[Table, date, int] | None = None
        for table, day, hour, row in rows:
            if last is None or table is not last[0] or day is not last[1] or hour != last[2]:
                last = (table, day, hour)
                if last not in by_hour:
                    by_hour[last] = by_file.setdefault(self._file_for(table, day, hour), [])
                of_file = by_hour[last]
            of_file.append(row)
        return by_file

    def _file_for(self, table: Table, day: date, hour: int) -> DayFile:
        slot = (table, day, hour if self._split == "hourly" else 0)
        current = self._current.get(slot)
        if current is None or not self._parts.goes_on(current):
            current = self._current[slot] = self._usable(current or DayFile(table, day, slot[2]))
        elif self._split == "size" and self._parts.size(current) >= self._max_file_bytes:
            current = self._current[slot] = self._usable(DayFile(table, day, current.part + 1))
        return current

    def _usable(self, wanted: DayFile) -> DayFile:
        """The first part from `wanted` on that gpumon may append to. With hours as parts, a further part of
        the same hour is numbered 24 higher."""
        step = 24 if self._split == "hourly" else 1
        while not self._may_append(wanted):
            wanted = DayFile(wanted.table, wanted.day, wanted.part + step)
        return wanted

    def _may_append(self, day_file: DayFile) -> bool:
        path = self._folder / self._name(day_file)
        if path.with_name(path.name + ".gz").exists():
            return False
        if not path.exists():
            return True
        if self._split == "size" and path.stat().st_size >= self._max_file_bytes:
            return False
        try:
            return path.is_file() and (path.stat().st_size == 0 or is_ours(path, day_file.table))
        except OSError as error:
            log.warning("csv_file_not_looked_at file=%s error=%s", path.name, error)
            return False

    def _name(self, day_file: DayFile) -> str:
        return self._names.of(day_file)

    def _heal(self, path: Path, table: Table) -> None:
        committed = self._journal.sizes.get(path.name)
        try:
            if committed is None and not is_ours(path, table):
                return
        except OSError as error:
            log.warning("csv_file_not_looked_at file=%s error=%s", path.name, error)
            return
        unacknowledged_from = committed if not self._journal.clean else None
        kept = heal(path, unacknowledged_from, self._folder / ".gpumon" / "quarantine", worthless=table.header)
        if committed is not None:
            self._journal.sizes[path.name] = kept


def render(rows: list[Row]) -> bytes:
    """Rows of one table as lines of CSV: comma, RFC 4180 quoting, UTF-8, LF; None is an empty cell.

    Where no cell needs quotes, as nearly always, they go the way of JSON in a third of the CPU time: without a
    comma, a quote or a line break in any cell, the CSV is what is left when brackets, quotes and nulls are taken
    away. (The first cell, the time, is never None.)"""
    if not rows:
        return b""
    text = _json(rows)
    if b"\\" in text or text.count(b",") != len(rows) * len(rows[0]) - 1:
        quoted = io.StringIO(newline="")
        csv.writer(quoted, lineterminator="\n").writerows(rows)
        return quoted.getvalue().encode()
    return text[2:-2].replace(b"],[", b"\n").replace(b",null", b",").replace(b'"', b"") + b"\n"
