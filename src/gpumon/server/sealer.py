"""Seals days in the background: decides which, has a process of its own do it, puts the result on the shelf.

A day is sealed when it has been over, and its files unchanged, for [PERFORMANCE] seal_after_minutes; again when
later rows came; and at once when it is over and either so large that loading it into the hot tables first would be
of no use, as at the first start on a month of CSV files, or about to lose its rows to the retention. Sealing has
two steps: the rows, then the cells of the accounts, which need the rows around the day. Whatever happens in
between, the CSV files are the truth and nothing is lost."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from gpumon.clock import Now
from gpumon.errors import StorageError
from gpumon.server import manifest
from gpumon.server.accounts.cells import HOUR
from gpumon.server.arrivals import Stretch
from gpumon.server.days import FileNames
from gpumon.server.disk import seen
from gpumon.server.manifest import CellsManifest, RawManifest
from gpumon.server.relations import SEALABLE, Window, quoted
from gpumon.server.sealing.process import SealingFailed, run_job
from gpumon.server.shelf import Shelf
from gpumon.server.sources import UNREADABLE
from gpumon.server.store import Store
from gpumon.server.touched import Touched

log = logging.getLogger(__name__)

_AGAIN_SECONDS: Final = 600.0
"""After a failure a day waits so long."""
_READERS_SECONDS: Final = 60.0
_OVER: Final = timedelta(minutes=1)
_DAY: Final = timedelta(days=1)


class Sealer:
    """Called from one thread of its own; `exclusively` keeps others from store and folder for moments."""

    def __init__(
        self,
        store: Store,
        shelf: Shelf,
        touched: Touched,
        *,
        folder: Path,
        names: FileNames,
        zone: ZoneInfo,
        committed_sizes: Callable[[], dict[str, int]],
        exclusively: Callable[[], AbstractContextManager[object]],
        now: Now,
        seal_after: timedelta,
        memory_mb: int,
        stale_after: timedelta,
    ) -> None:
        self._store = store
        self._shelf = shelf
        self._touched = touched
        self._folder = folder
        self._names = names
        self._zone = zone
        self._committed_sizes = committed_sizes
        self._exclusively = exclusively
        self._now = now
        self._seal_after = seal_after
        self._memory_mb = memory_mb
        self._stale_after = stale_after
        self._not_before: dict[date, float] = {}
        self.failures = 0

    def seal_due(self, stopping: threading.Event, tell: Callable[[str], None] = log.info) -> int:
        """Seals what is due, day by day: rows, the oldest first, then accounts, the newest first. `tell` hears of
        each. Gives the number of days and accounts that were sealed."""
        done = 0
        for step, due in ((self.seal_rows, self._rows_due()), (self.seal_cells, self._cells_due())):
            for day in due:
                if stopping.is_set():
                    return done
                if time.monotonic() < self._not_before.get(day, 0.0):
                    continue
                try:
                    tell(step(day, stopping))
                    done += 1
                except (SealingFailed, StorageError, OSError, *UNREADABLE) as error:
                    if stopping.is_set():
                        return done
                    self.failures += 1
                    self._not_before[day] = time.monotonic() + _AGAIN_SECONDS
                    self._shelf.deferred.discard(day)  # it is loaded in the usual way
                    log.error("sealing_failed day=%s error=%s retry_in=%gs", day, error, _AGAIN_SECONDS)
        self._shelf.delete_retired(_READERS_SECONDS)
        return done

    def may_defer(self, day: date) -> bool:
        """Whether a day is over, so that it can be sealed without being loaded first."""
        over = self._is_over(day, self._now())
        return over and day not in self._not_before and not self._is_without_rows(day)

    def _is_without_rows(self, day: date) -> bool:
        """Whether only rollups are left of a day, which rows that come late add to: sealed, they would replace
        them."""
        raw = self._shelf.days.get(day)
        return raw is not None and not raw.has_rows

    def awaited(self, hour: datetime) -> bool:
        """Whether the cells of an hour (naive UTC) are to come with those of its day. Of a day that has some,
        which late rows spoiled, that may be a while."""
        days = [day for day in self._shelf.without_cells() if day not in self._shelf.spoiled]
        return any(of <= hour < to for of, to in map(self._shelf.bounds, days))

    def _rows_due(self) -> list[date]:
        now = self._now()
        with self._exclusively():
            unsealed: dict[date, bool] = {}
            for name, known in self._shelf.files.items():
                day_file = self._names.parse(name)
                if day_file is None or day_file.table not in SEALABLE or self._is_without_rows(day_file.day):
                    continue
                if not known.sealed or self._shelf.sealed_bytes(name) != known.size:
                    day = day_file.day
                    unsealed[day] = unsealed.get(day, True) and self._is_quiet(day, known.mtime_ns, now)
            due = {day for day, quiet in unsealed.items() if quiet or day in self._shelf.urgent}
            return sorted({day for day in due if self._is_over(day, now)} | self._shelf.deferred)

    def _is_over(self, day: date, now: datetime) -> bool:
        return now - self._shelf.bounds(day)[1].replace(tzinfo=UTC) >= _OVER

    def _is_quiet(self, day: date, mtime_ns: int, now: datetime) -> bool:
        over = self._shelf.bounds(day)[1].replace(tzinfo=UTC)
        return (
            now - over >= self._seal_after and now.timestamp() - mtime_ns / 1e9 >= self._seal_after.total_seconds()
        )

    def seal_rows(self, day: date, stopping: threading.Event) -> str:
        """Seals the rows of a day as they are now; says what came of it. Raises SealingFailed, StorageError or
        OSError; then nothing has changed."""
        shelf = self._shelf
        with self._exclusively():
            if self._is_without_rows(day):  # retention was faster
                return f"sealing_in_vain day={day} reason=its rows are gone"
            files = self._files_of(day)
        job = {
            "do": "raw",
            "day": day.isoformat(),
            "data": str(self._folder),
            "files": files,
            "prefix": self._names.samples_prefix,
            "root": str(shelf.root),
            "stamp": shelf.stamps.rows,
            "readings_stamp": shelf.stamps.readings,
            "zone": self._zone.key,
            "memory_mb": self._memory_mb,
        }
        try:
            answer = run_job(job, stopping)
        except SealingFailed:
            if self._files_of(day) == files or stopping.is_set():
                raise
            return f"sealing_in_vain day={day} reason=its files were changed meanwhile"
        folder = Path(answer["folder"])
        raw = manifest.read(folder, RawManifest)
        with self._exclusively():
            try:
                misfit = shelf.misfit(raw, self._committed_sizes())
                if misfit is not None:
                    return f"sealing_in_vain day={day} reason={misfit}"
                shelf.put_in(day, folder, raw, list(self._tails(raw)), known=self._is_known(raw))
            finally:
                if shelf.folders.get(day) != folder:
                    shutil.rmtree(folder, ignore_errors=True)
        rows = " ".join(f"{name}={count}" for name, count in raw.rows.items())
        return f"day_sealed day={day} {rows} damaged={raw.damaged} seconds={answer['seconds']}"

    def _is_known(self, raw: RawManifest) -> bool:
        """Whether just these rows of the day have been in the store, so that the rollups know of each change."""
        files, committed = self._shelf.files, self._committed_sizes()
        for file in raw.files:
            known = files.get(file.name)
            if known is None or known.size < file.bytes:
                return False
            if file.name not in committed and known.mtime_ns != file.mtime_ns:
                return False
        before = self._shelf.days.get(raw.day)
        return before is None or {file.name for file in before.files} <= {file.name for file in raw.files}

    def _files_of(self, day: date) -> list[dict[str, Any]]:
        committed = self._committed_sizes()
        files = []
        for path in sorted(self._folder.iterdir()):
            day_file = self._names.parse(path.name)
            there = None if day_file is None else seen(path)
            if day_file is None or there is None or day_file.day != day or day_file.table not in SEALABLE:
                continue
            size, mtime_ns = there
            length = committed.get(path.name, size)
            files.append({"name": path.name, "bytes": length, "mtime_ns": mtime_ns})
        return files

    def _tails(self, raw: RawManifest) -> Iterator[Stretch]:
        """What was appended while the day was being sealed."""
        committed = self._committed_sizes()
        for file in raw.files:
            day_file, length = self._names.parse(file.name), committed.get(file.name, file.bytes)
            there = seen(self._folder / file.name)
            if day_file is not None and there is not None and length > file.bytes:
                yield Stretch(file.name, day_file, file.bytes, length, there[1], file.lines, sealed=True)

    def _cells_due(self) -> list[date]:
        """Those that retention waits for, then the newest first: where all have to be made anew, as with another
        `stale_after_seconds`, most questions are about the last days."""
        now = self._now().astimezone(UTC).replace(tzinfo=None)
        with self._exclusively():
            waiting, urgent = self._shelf.deferred, self._shelf.urgent
            return [
                day
                for day in sorted(self._shelf.without_cells(), key=lambda day: (day in urgent, day), reverse=True)
                if not {day - _DAY, day, day + _DAY} & waiting
                and (day not in self._shelf.spoiled or day in urgent or self._is_quiet_again(day))
                and now >= self._shelf.bounds(day)[1] + self._touched.reach
            ]

    def _is_quiet_again(self, day: date) -> bool:
        """Whether no late rows came for a while: each would spoil what is made."""
        begin, end = self._shelf.bounds(day)
        hours = [begin + number * HOUR for number in range(-1, (end - begin) // HOUR + 2)]
        quiet = (self._touched.quiet_seconds(hour.replace(minute=0)) for hour in hours)
        return min(quiet) >= self._seal_after.total_seconds()

    def seal_cells(self, day: date, stopping: threading.Event) -> str:
        """Seals the accounts of a day whose rows are sealed; says what came of it. Raises as `seal_rows` does."""
        shelf, touched = self._shelf, self._touched
        begin, end = shelf.bounds(day)
        folder = manifest.new_folder(shelf.root, day, "cells")
        try:
            with self._exclusively():
                if day not in shelf.without_cells():  # retention was faster
                    return f"sealing_in_vain day={day} reason=its rows are gone"
                moves, reach, rows = touched.moves, touched.reach, shelf.folders[day]
                self._copy_others(folder, rows, (begin - reach, end + reach))
            answer = run_job(
                {
                    "do": "cells",
                    "day": day.isoformat(),
                    "rows": str(rows),
                    "folder": str(folder),
                    "stamp": shelf.stamps.cells,
                    "begin": begin.isoformat(),
                    "end": end.isoformat(),
                    "reach": reach.total_seconds(),
                    "stale_after": self._stale_after.total_seconds(),
                    "memory_mb": self._memory_mb,
                },
                stopping,
            )
            with self._exclusively():
                if touched.since(moves, begin - HOUR, end + HOUR) or shelf.folders.get(day) != rows:
                    return f"sealing_in_vain day={day} reason=rows came meanwhile"
                cells = manifest.read(folder, CellsManifest)
                folder = manifest.publish(folder, cells)
                shelf.put_cells_in(day, folder, cells)
                shelf.urgent.discard(day)
        finally:
            if shelf.cells.get(day) != folder:
                shutil.rmtree(folder, ignore_errors=True)
        return f"accounts_sealed day={day} seconds={answer['seconds']}"

    def _copy_others(self, folder: Path, rows: Path, window: Window) -> None:
        """Writes the rows around a day, and those in it that are not sealed in it, for the worker."""
        self._store.look([window], without=rows)
        for table in SEALABLE:
            target = quoted(str(folder / f"other_{table.name}.parquet"))
            self._store.execute(
                f"COPY (SELECT {', '.join(table.columns)} FROM {table.name} "
                f"WHERE sampled_at >= ? AND sampled_at <= ? ORDER BY row_id) TO {target} (FORMAT parquet)",
                list(window),
            )
