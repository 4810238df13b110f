"""The server without HTTP: opens files, store and writer in order, keeps them up to date, closes them in order.

When the folder can't be used at the start (read-only, not ours, in use by another server) the server is up all
the same and says so: `/health` and every refused request name the reason, and opening is tried again.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from gpumon import clock
from gpumon.errors import QueryError, StorageError
from gpumon.server.accept import Acceptor
from gpumon.server.accounts.answers import Answers
from gpumon.server.accounts.prices import parse_prices
from gpumon.server.csvlog import CsvLog
from gpumon.server.dayfiles import DayFiles
from gpumon.server.days import FileNames, zone_named
from gpumon.server.desk import Desk
from gpumon.server.disk import keep_reserve, use_reserve
from gpumon.server.exporting import Exports
from gpumon.server.index import Index
from gpumon.server.ingest import Ingest
from gpumon.server.journal import Journal
from gpumon.server.reader import Reader
from gpumon.server.retention import Policy, Retention
from gpumon.server.settings import ServerSettings
from gpumon.tasks import Task

log = logging.getLogger(__name__)

REOPEN_SECONDS = 5.0
ROLLING_SECONDS = 2.0
SEALING_SECONDS = 2.0
FIRST_LOAD_SECONDS = 3.0
QUERY_PATIENCE_SECONDS = 2.0
RUNS_SECONDS = 400 * 86_400.0
"""No agent sends a batch again after a longer outage than this."""
_MB = 10**6


@dataclass(frozen=True, slots=True)
class Counts:
    """What happened since the start, and what waits now."""

    rows_stored: int
    pod_rows_stored: int
    groups: int
    duplicates: int
    waiting_batches: int
    waiting_rows: int
    damaged_lines: int
    unreadable_files: int
    behind: bool
    sealed_days: int
    unsealed_days: int
    sealing_failures: int
    damaged_days: int


class Engine:
    """One data folder, open or trying to be. Constructed from the settings, which it does not keep."""

    def __init__(self, settings: ServerSettings, now: clock.Now = clock.now) -> None:
        storage, performance, limits = settings.storage, settings.performance, settings.limits
        self._now = now
        self._zone = zone_named(settings.server.timezone)
        self._folder = Path(storage.output_directory)
        self._names = FileNames(storage.csv_filename_prefix)
        self._housekeeping_seconds = performance.gc_interval
        past = timedelta(days=limits.accept_past_days)
        self.acceptor = Acceptor(self._zone, past, timedelta(seconds=limits.accept_future_seconds))
        remembered = min(past.total_seconds(), RUNS_SECONDS)
        journal = Journal(self._folder / ".gpumon" / "commits.log", remembered)
        self._csvlog = CsvLog(
            self._folder,
            self._names,
            journal,
            split=storage.file_split_mode,
            max_file_bytes=int(storage.max_file_size_mb * _MB),
            sync_each_commit=performance.file_sync_interval == 0,
        )
        stale_after = timedelta(seconds=limits.stale_after_seconds)
        self.index = Index(
            settings,
            self._folder,
            self._names,
            self._zone,
            now,
            committed_sizes=self._csvlog.committed_sizes,
            wrote=self._csvlog.wrote,
            take_replaced=self._csvlog.take_replaced,
        )
        self._ingest = Ingest(
            self._csvlog,
            journal,
            group_rows=performance.batch_write_size,
            group_delay_seconds=performance.commit_delay_ms / 1000,
            max_batches=performance.buffer_size,
            sync_interval_seconds=performance.file_sync_interval,
        )
        policy = Policy(
            keep_days=storage.data_retention_days,
            max_bytes=int(storage.max_disk_mb * _MB),
            compress_after_days=storage.compress_after_days if storage.enable_file_compression else None,
        )
        self._retention = Retention(
            self._folder, self._names, self._csvlog, policy, self._alone_with_files, self.index.sealed_files
        )
        store = self.index.store
        refresh = partial(self.index.catchup.refresh_for_query, QUERY_PATIENCE_SECONDS)
        self._reader = Reader(
            store, refresh, self._zone, now, max_range_days=limits.max_range_days, stale_after=stale_after
        )
        prices = parse_prices(settings.cost.prices)
        self._answers = Answers(
            Desk(store, self.index.touched),
            refresh,
            self._zone,
            now,
            max_range_days=limits.max_range_days,
            stale_after=stale_after,
            prices=prices,
            currency=settings.cost.currency if prices else None,
        )
        self._files = DayFiles(self._folder, self._names, self._csvlog.committed)
        self._exports = Exports(
            store, refresh, self._folder, self._zone, now, max_range_days=limits.max_range_days
        )
        self.closed_because: str | None = "the server is starting; try again in a moment"
        self._upkeep = Task("upkeep", self._keep_up)
        self._rolling = Task("rolling", self._keep_rolled)
        self._sealing = Task("sealing", self._keep_sealed)

    def open(self, *, upkeep: bool = True) -> None:
        """Opens everything that can be opened; the rest is tried again in the background, unless there is to be no
        `upkeep`."""
        self._try_to_open()
        if not upkeep:
            return
        self._upkeep.start()
        self._rolling.start()
        self._sealing.start()
        if self.closed_because is None:
            # Most stores are loaded by then, and the first query finds everything.
            self.index.catchup.complete.wait(FIRST_LOAD_SECONDS)

    def close(self) -> None:
        """Stops the upkeep, writes what waits, closes store and files."""
        tasks = (self._upkeep, self._rolling, self._sealing)
        for task in tasks:
            task.stopping.set()
        for task in tasks:
            task.stop(timeout_seconds=30)
        if self.closed_because is None:
            self._ingest.stop()
            self.index.catchup.refresh()  # so that the next start has nothing to load
            self.index.catchup.close()
            try:
                self._csvlog.close()
            except OSError as error:
                log.error("csv_close_failed error=%s", error)
            self.closed_because = "the server is stopping"

    @property
    def trouble(self) -> str | None:
        """Why samples can't be stored; None when they can."""
        return self.closed_because or self._ingest.trouble

    @property
    def not_ready_because(self) -> str | None:
        """Why queries can't be answered; None when they can."""
        if self.closed_because is None and not self.index.catchup.complete.is_set():
            behind = self.index.catchup.behind
            told = "" if behind is None else f", but can't go on: {behind}"
            return f"the server is loading the CSV files{told}; samples are stored meanwhile"
        return self.closed_because

    def counts(self) -> Counts:
        """The figures of this run."""
        ingest, (batches, rows) = self._ingest, self._ingest.waiting
        return Counts(
            rows_stored=ingest.rows_stored,
            pod_rows_stored=ingest.pod_rows_stored,
            groups=ingest.groups,
            duplicates=ingest.duplicates,
            waiting_batches=batches,
            waiting_rows=rows,
            damaged_lines=self.index.arrivals.damaged.total(),
            unreadable_files=len(self.index.catchup.left_out.reasons()),
            behind=self.index.catchup.behind is not None,
            sealed_days=len(self.index.shelf.days),
            unsealed_days=len(self.index.shelf.deferred) + len(self.index.shelf.without_cells()),
            sealing_failures=self.index.sealer.failures,
            damaged_days=self.index.scrubber.damaged_days,
        )

    @property
    def ingest(self) -> Ingest:
        """Where samples go. Raises StorageError when the folder is not open."""
        if self.closed_because is not None:
            raise StorageError(self.closed_because)
        return self._ingest

    @property
    def reader(self) -> Reader:
        """Who answers the old program's questions. Raises QueryError when the folder is not open, or not loaded
        for the first time."""
        self._check_ready()
        return self._reader

    @property
    def answers(self) -> Answers:
        """Who answers about pods and GPUs. Raises QueryError as `reader` does."""
        self._check_ready()
        return self._answers

    @property
    def files(self) -> DayFiles:
        """The CSV files, to list and to give out. Raises QueryError when the folder is not open."""
        if self.closed_because is not None:
            raise QueryError(self.closed_because, status=503)
        return self._files

    @property
    def exports(self) -> Exports:
        """Who exports rows. Raises QueryError as `reader` does."""
        self._check_ready()
        return self._exports

    def _check_ready(self) -> None:
        if self.not_ready_because is not None:
            raise QueryError(self.not_ready_because, status=503)

    def _try_to_open(self) -> None:
        use_reserve(self._folder / ".gpumon")
        try:
            self.index.catchup.open()  # first, because its lock says that no other server is at the files
            self._csvlog.open()
            self.index.catchup.begin()
            self._exports.clean()
        except (StorageError, OSError) as error:
            if str(error) != self.closed_because:
                log.error("storage_not_open reason=%s retry_in=%gs", error, REOPEN_SECONDS)
            self.closed_because = str(error)
            self.index.catchup.close()
            return
        self._ingest.start()
        self.closed_because = None
        self._announce_deletions()
        keep_reserve(self._folder / ".gpumon")
        log.info("storage_open folder=%s zone=%s", self._folder.resolve(), self._zone.key)

    def _keep_up(self, stopping: threading.Event) -> None:
        next_housekeeping = time.monotonic() + self._housekeeping_seconds
        pause = 0.0
        while not stopping.wait(pause):
            if self.closed_because is not None and pause:
                self._try_to_open()
            pause = REOPEN_SECONDS
            if self.closed_because is not None:
                continue
            self.index.catchup.refresh()
            pause = self.index.catchup.pause_seconds
            if time.monotonic() >= next_housekeeping:
                next_housekeeping = time.monotonic() + self._housekeeping_seconds
                self.tidy_now()
                gc.collect()

    def _keep_rolled(self, stopping: threading.Event) -> None:
        while not stopping.wait(ROLLING_SECONDS):
            if self.closed_because is None:
                self.index.roll_due(stopping)

    def _keep_sealed(self, stopping: threading.Event) -> None:
        while not stopping.wait(SEALING_SECONDS):
            if self.closed_because is None:
                self.index.seal_due(stopping)

    def _announce_deletions(self) -> None:
        """The old program ignored data_retention_days: whoever comes from it shall have time to set it."""
        today = self._now().astimezone(self._zone).date()
        doomed = self._retention.too_old(today)
        if doomed:
            log.warning(
                "retention will delete files=%d from=%s to=%s in=%gs; to keep them set data_retention_days=0",
                len(doomed),
                doomed[0].name,
                doomed[-1].name,
                self._housekeeping_seconds,
            )

    def tidy_now(self) -> None:
        """Retention, compression and disk cap, once. Returns when done."""
        self._retention.tidy(self._now().astimezone(self._zone).date())

    def _alone_with_files(self, work: Callable[[], None]) -> None:
        with self.index.catchup.exclusively():
            self._ingest.between_writes(work)
