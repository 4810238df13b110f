"""Reads again what is sealed, since a disk may lose what it has kept for months.

A damaged file is taken out, so that it is made anew from the CSV. Of a day whose rows are gone it can't be: what
the store has of it stays in the answers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from typing import Final

from gpumon.server import manifest
from gpumon.server.shelf import Shelf
from gpumon.server.store import Store

log = logging.getLogger(__name__)

_EVERY_SECONDS: Final = 86_400.0
_STORE_HAS: Final = "its rows are gone, so answers are as they were as long as store.duckdb is there"


class Scrubber:
    """Called from the sealer's thread; `exclusively` keeps others from the shelf for moments."""

    def __init__(
        self, store: Store, shelf: Shelf, exclusively: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self._store = store
        self._shelf = shelf
        self._exclusively = exclusively
        self._damaged_for_good: set[Path] = set()
        self._next_time = 0.0
        self.damaged_days = 0

    def scrub_due(self, stopping: threading.Event) -> None:
        """Scrubs at the start, once a day, and when a query failed on a file."""
        if time.monotonic() >= self._next_time or self._store.suspect.is_set():
            self.scrub(stopping)

    def scrub(self, stopping: threading.Event) -> None:
        """Reads all that is sealed and compares checksums."""
        suspect = self._store.suspect.is_set()
        self._store.suspect.clear()
        self._next_time = time.monotonic() + _EVERY_SECONDS
        with self._exclusively():
            folders = [(day, self._shelf.folders[day], raw.outputs) for day, raw in self._shelf.days.items()]
            cells = dict(self._shelf.cells)
        for day, folder, outputs in folders:
            if stopping.is_set():
                return
            wrong = manifest.fault(folder, outputs)
            if wrong is not None:
                self._give_up(day, folder, wrong)
        for day, folder in cells.items():
            wrong = manifest.fault_of_cells(folder)
            if wrong is not None:
                self._give_up_cells(day, folder, wrong, suspect=suspect)

    def _give_up(self, day: date, folder: Path, wrong: str) -> None:
        with self._exclusively():
            if self._shelf.folders.get(day) != folder or folder in self._damaged_for_good:
                return
            self.damaged_days += 1
            if self._shelf.days[day].has_rows:
                log.error("sealed_day_damaged day=%s fault=%s: it is made anew from the CSV", day, wrong)
                self._shelf.remove(day, wrong)
            else:
                self._damaged_for_good.add(folder)
                log.error("sealed_day_damaged day=%s fault=%s: %s", day, wrong, _STORE_HAS)

    def _give_up_cells(self, day: date, folder: Path, wrong: str, *, suspect: bool) -> None:
        with self._exclusively():
            # What late rows spoiled, and there was no room to note: it has no manifest, and is being made anew.
            unnoted = day in self._shelf.spoiled and not (folder / manifest.MANIFEST).exists()
            if self._shelf.cells.get(day) != folder or (unnoted and not suspect):
                return
            has_rows = self._shelf.days[day].has_rows
            if has_rows and not unnoted:
                self.damaged_days += 1
                log.error("sealed_accounts_damaged day=%s fault=%s: they are made anew", day, wrong)
                self._shelf.remove_cells(day)
                return
            if not has_rows and folder not in self._damaged_for_good:
                self.damaged_days += 1
                self._damaged_for_good.add(folder)
                log.error("sealed_accounts_damaged day=%s fault=%s: %s", day, wrong, _STORE_HAS)
            # What is read from these files, with each question.
            if manifest.fault_of_cells(folder, only=("fine.parquet",)) is not None:
                self._shelf.remove_fine(day)
            if manifest.fault_of_cells(folder, only=(manifest.METRICS,)) is not None:
                self._shelf.remove_metrics(day)
