"""What is done with the sealed days that are found at the start: the store, which may be a new one, is made to
have those that count, and no others. It may also be older than what is found: that of a server that was killed is
as it was at its last checkpoint.

First all days are taken in, then all cells, and only then what is out of date by it: what of a day is known only
when the days beside it are.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from gpumon.server import manifest
from gpumon.server.manifest import RawManifest
from gpumon.server.sealedfolders import Found, find
from gpumon.server.shelf import Shelf
from gpumon.server.store import Store
from gpumon.server.touched import Touched

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KnownDay:
    """What the store says of a sealed day: the folder of its rows, that of its cells, whether there are rows."""

    folder: str
    cells: str | None
    has_rows: bool


class Adoption:
    """Of one start, with `folder` the data folder and `committed` the lengths of the files that the server
    writes."""

    def __init__(
        self, store: Store, shelf: Shelf, touched: Touched, folder: Path, committed: Mapping[str, int]
    ) -> None:
        self._store = store
        self._shelf = shelf
        self._touched = touched
        self._folder = folder
        self._committed = committed

    def run(self) -> None:
        """Does it. Raises DatabaseError."""
        shelf = self._shelf
        shelf.begin()
        known = {
            day: KnownDay(folder, cells, has_rows)
            for day, folder, cells, has_rows in self._store.execute(
                "SELECT day, folder, cells, has_rows FROM sealed"
            )
        }
        found = find(shelf.root, shelf.stamps)
        for there in found.values():
            self._touched.note_sealed(there.raw.longest_interval, there.raw.unstated)
        for day, there in found.items():
            if day in known and known[day].has_rows and not there.raw.has_rows:
                # First of all: nothing that is marked below may take its rollups out.
                self._store.execute("UPDATE sealed SET has_rows = false WHERE day = ?", [day])
        for day in list(known):
            if day not in found or not self._knows(found[day], known[day]):
                shelf.take_out(day)
                known.pop(day)
        misfits = [there for day, there in found.items() if not self._adopt(day, there, known.get(day))]
        for day in shelf.days:
            self._adopt_cells(day, found[day], known[day].cells if day in known else None)
        for there in misfits:
            shelf.mark(there.raw.first_at, there.raw.last_at)
            shutil.rmtree(there.folder.parent, ignore_errors=True)
        for day, raw in list(shelf.days.items()):
            if not raw.taken:
                shelf.touch(day)
        shelf.spoil(self._touched.take_stale_days())

    def _knows(self, there: Found, known: KnownDay) -> bool:
        """Whether the store has what is sealed of a day, all its files under the names that they have now."""
        files = [self._shelf.files.get(file.name) for file in there.raw.files] if there.raw.has_rows else []
        return known.folder == str(there.folder) and all(file is not None and file.sealed for file in files)

    def _adopt(self, day: date, there: Found, known: KnownDay | None) -> bool:
        """Takes a day in; False where what is sealed does not fit the CSV files, so that it is to go."""
        shelf, raw = self._shelf, there.raw
        if raw.deleting:
            raw = self._end_deleting(there)
        is_new = known is None
        reason = shelf.misfit(raw, self._committed)
        if reason is None and is_new:
            reason = manifest.fault(there.folder, raw.outputs, only=manifest.LOADED)
            if reason is not None and not raw.has_rows:
                log.error("sealed_day_damaged day=%s fault=%s: it is left out, its rows are gone", day, reason)
                return True
        if reason is not None:
            log.warning("sealed_day_left day=%s reason=%s", day, reason)
            shelf.take_out(day)
            return False
        shelf.adopt(day, there.folder, raw, known=not is_new)
        if known is not None and known.has_rows and not raw.has_rows:
            shelf.forget_rows(day)
        return True

    def _adopt_cells(self, day: date, there: Found, known: str | None) -> None:
        folder, cells = there.cells_folder, there.cells
        if folder is not None and cells is not None:
            if known == str(folder) and not cells.spoiled:
                self._shelf.adopt_cells(day, folder)
                return
            fault = manifest.fault(folder, cells.outputs, only=manifest.LOADED)
            if fault is None:
                self._shelf.put_cells_in(day, folder, cells)
                return
            log.error("sealed_accounts_damaged day=%s fault=%s", day, fault)
        if self._shelf.days[day].has_rows:  # they are made anew; else the store may still have them
            self._shelf.remove_cells(day)
        elif folder is None:
            self._shelf.remove_fine(day)
            self._shelf.remove_metrics(day)

    def _end_deleting(self, there: Found) -> RawManifest:
        try:
            for name in [file.name for file in there.raw.files]:
                (self._folder / name).unlink(missing_ok=True)
            for name in manifest.RAW_ROWS:
                (there.folder / name).unlink(missing_ok=True)
            return manifest.without_rows(there.folder, there.raw, deleting=False)
        except OSError as error:  # retention tries again
            log.warning("deletion_not_ended day=%s error=%s", there.raw.day, error)
            return there.raw
