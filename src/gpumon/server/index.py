"""All that is made of the CSV files so that questions are answered fast: its parts, and what is done with all of
them.

The store has the newest rows and the rollups; `catchup` keeps it equal to the files, `sealer` moves days that are
over from it to Parquet files, `shelf` knows these, `roller` makes the rollups of the accounts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from gpumon.clock import Now
from gpumon.errors import StorageError
from gpumon.server.accounts.cells import CREATE_CELLS
from gpumon.server.arrivals import Arrivals
from gpumon.server.catchup import CatchUp
from gpumon.server.days import FileNames
from gpumon.server.rolling import Roller
from gpumon.server.scrubbing import Scrubber
from gpumon.server.sealedfiles import SealedFiles
from gpumon.server.sealer import Sealer
from gpumon.server.sealing.stamps import sealing_stamps
from gpumon.server.settings import ServerSettings
from gpumon.server.shelf import Shelf
from gpumon.server.store import Store
from gpumon.server.touched import Touched

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Contents:
    """What there is: rows by table; days that are sealed, and those of which only rollups are left; lines that
    were damaged since the start or the sealing of their day; why files are left out."""

    rows: dict[str, int]
    days: int
    kept_days: int
    damaged_lines: int
    unreadable: list[str]


class Index:
    """That of one data folder, of which `committed_sizes` are the lengths of the files that the server writes,
    `wrote` whether a file is as old as it made it, and `take_replaced` the names of those that it has replaced
    since the last call."""

    def __init__(
        self,
        settings: ServerSettings,
        folder: Path,
        names: FileNames,
        zone: ZoneInfo,
        now: Now,
        committed_sizes: Callable[[], dict[str, int]],
        wrote: Callable[[str, int], bool],
        take_replaced: Callable[[], set[str]],
    ) -> None:
        performance, limits = settings.performance, settings.limits
        stale_after = timedelta(seconds=limits.stale_after_seconds)
        self.store = Store(
            folder,
            cell_columns=CREATE_CELLS.strip("()"),
            zone_key=zone.key,
            memory_mb=performance.query_memory_mb,
            threads=performance.query_threads,
            query_timeout_seconds=performance.query_timeout_seconds,
            max_rows=limits.max_rows,
        )
        self.touched = Touched(self.store, stale_after)
        self.arrivals = Arrivals(self.store, folder, zone, self.touched)
        self.shelf = Shelf(
            self.store, self.arrivals, self.touched, folder, names, zone, sealing_stamps(zone.key, stale_after)
        )
        self.sealed_files = SealedFiles(self.store, self.shelf, names)
        self.catchup = CatchUp(
            self.store,
            self.arrivals,
            self.touched,
            self.shelf,
            folder,
            names,
            committed_sizes,
            wrote,
            take_replaced,
            self._may_defer,
        )
        self.sealer = Sealer(
            self.store,
            self.shelf,
            self.touched,
            folder=folder,
            zone=zone,
            names=names,
            committed_sizes=committed_sizes,
            exclusively=self.catchup.exclusively,
            now=now,
            seal_after=timedelta(minutes=performance.seal_after_minutes),
            memory_mb=performance.seal_memory_mb,
            stale_after=stale_after,
        )
        self.scrubber = Scrubber(self.store, self.shelf, self.catchup.exclusively)
        self.roller = Roller(
            self.store, self.touched, self.catchup.exclusively, self.sealer.awaited, now, stale_after
        )

    def _may_defer(self, day: date) -> bool:
        return self.sealer.may_defer(day)  # which is made later

    def roll_due(self, stopping: threading.Event) -> None:
        """Rolls up what has settled; where the disk doesn't let it, another time."""
        try:
            self.roller.roll_due(stopping.is_set)
        except StorageError as error:  # as on a full disk: questions are answered from the rows
            log.warning("rolling_failed error=%s", error)

    def seal_due(self, stopping: threading.Event, tell: Callable[[str], None] = log.info) -> int:
        """Scrubs what is sealed, where that is due, and seals what is due; gives the number of what was sealed."""
        self.scrubber.scrub_due(stopping)
        return self.sealer.seal_due(stopping, tell)

    def settle(self, tell: Callable[[str], None] = log.info) -> None:
        """Loads, rolls up and seals all that is due, until nothing is; `tell` hears of each day. For a server
        without upkeep."""
        never = threading.Event()
        while True:
            self.catchup.refresh()
            sealed = self.seal_due(never, tell)
            rolled = self.roller.roll_due(never.is_set, patient=False)
            if not sealed and not rolled:
                return

    def contents(self) -> Contents:
        """What there is now."""
        shelf = self.shelf
        with self.catchup.exclusively():
            return Contents(
                rows=shelf.rows(),
                days=sum(raw.has_rows for raw in shelf.days.values()),
                kept_days=sum(not raw.has_rows for raw in shelf.days.values()),
                damaged_lines=sum(raw.damaged for raw in shelf.days.values())
                + sum(count for name, count in self.arrivals.damaged.items() if shelf.sealed_bytes(name) is None),
                unreadable=[
                    *(f"{name}: {reason}" for name, reason in self.catchup.left_out.reasons().items()),
                    *(
                        f"{file.name}: {file.left_out}"
                        for raw in shelf.days.values()
                        for file in raw.files
                        if file.left_out is not None
                    ),
                ],
            )
