"""Rolls the accounts up while days are open: each five minutes that are over become cells, twelve of them an hour.

A bucket is rolled when it has been over for long enough that late rows are rare; when they come all the same, it
is rolled again (see `touched`). Until then questions are answered from its rows, so that nothing depends on it but
speed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Final

from gpumon.clock import Now
from gpumon.server.accounts.cells import FINE, HOUR
from gpumon.server.accounts.hourly import hours_of
from gpumon.server.accounts.pieces import parts_of
from gpumon.server.accounts.rolling import roll
from gpumon.server.database import Database
from gpumon.server.store import Store
from gpumon.server.touched import HOT, Touched

log = logging.getLogger(__name__)

SETTLED: Final = timedelta(minutes=2)
"""How long after its end a bucket waits for rows that agents still have."""
QUIET_SECONDS: Final = 10.0
"""How long after late rows their hour waits for more of them."""
_BUCKETS: Final = 12
"""Rolled in one step, so that no question waits long."""


class Roller:
    """Called from one thread; `exclusively` keeps others from the store meanwhile."""

    def __init__(
        self,
        store: Store,
        touched: Touched,
        exclusively: Callable[[], AbstractContextManager[object]],
        awaited: Callable[[datetime], bool],
        now: Now,
        stale_after: timedelta,
    ) -> None:
        self._store = store
        self._touched = touched
        self._exclusively = exclusively
        self._awaited = awaited
        self._now = now
        self._stale_after = stale_after

    def roll_due(self, stopping: Callable[[], bool], *, patient: bool = True) -> int:
        """Rolls what is due; gives the number of buckets. `patient`: leaves hours in which rows arrive just now.
        An hour of a sealed day whose cells are being made elsewhere (`awaited`) is left to them. Raises
        StorageError."""
        rolled = 0
        for hour in self._touched.hours:
            if stopping() or hour >= self._last():
                break
            if not self._awaited(hour):
                rolled += self._roll_hour(hour, QUIET_SECONDS if patient else 0.0)
        return rolled

    def _last(self) -> datetime:
        """Buckets that end by then (naive UTC) have settled."""
        return (self._now() - SETTLED - self._touched.reach).astimezone(UTC).replace(tzinfo=None)

    def _roll_hour(self, hour: datetime, quiet_seconds: float) -> int:
        last = self._last()
        over = hour + HOUR <= last
        if over and self._touched.quiet_seconds(hour) < quiet_seconds:
            return 0
        buckets = [hour + number * FINE for number in range(_BUCKETS)]
        there = self._origins(hour)
        due = [bucket for bucket in buckets if bucket not in there and bucket + FINE <= last]
        if due and not self._roll(hour, due):
            return 0
        if over:
            there = self._origins(hour)
            if len(there) == _BUCKETS and (set(there.values()) != {HOT} or self._make_hour(hour)):
                with self._exclusively(), self._store.transaction():
                    if len(self._origins(hour)) == _BUCKETS:  # else rows came meanwhile
                        self._touched.done([hour])
        return len(due)

    def _origins(self, hour: datetime, on: Database | None = None) -> dict[datetime, str]:
        with self._exclusively():
            return dict(
                (on or self._store).execute(
                    "SELECT bucket, origin FROM rolled WHERE level = 'fine' AND bucket >= ? AND bucket < ?",
                    [hour, hour + HOUR],
                )
            )

    def _roll(self, hour: datetime, due: Sequence[datetime]) -> bool:
        """Rolls buckets of an hour on a connection of its own, so that nobody waits for it; False when meanwhile
        rows came that it does not know, or their day was sealed."""
        store, touched = self._store, self._touched
        with store.beside() as beside:
            execute = beside.execute
            with self._exclusively():
                moves, reach = touched.moves, touched.reach
                beside.execute("BEGIN")
                store.look([(due[0] - reach, due[-1] + FINE + reach)], on=beside)  # the snapshot is of now
            execute("CREATE OR REPLACE TEMP TABLE rolling AS SELECT * EXCLUDE (origin) FROM fine_cells LIMIT 0")
            for part in parts_of(execute, [(bucket, bucket + FINE) for bucket in due]):
                roll(execute, part.buckets, reach, self._stale_after, "rolling", of=part.of)
            with self._exclusively():
                if touched.since(moves, due[0], due[-1] + FINE) or touched.reach != reach:
                    return False
                if self._origins(hour).keys() & set(due):
                    return False
                for bucket in due:
                    beside.execute("DELETE FROM fine_cells WHERE bucket = ? AND origin = ?", [bucket, HOT])
                    beside.execute("INSERT INTO rolled VALUES (?, ?, 'fine', ?)", [bucket, bucket + FINE, HOT])
                beside.execute("INSERT INTO fine_cells SELECT *, ? FROM rolling", [HOT])
                beside.execute("COMMIT")
        return True

    def _make_hour(self, hour: datetime) -> bool:
        """Makes the cells of an hour of its fine ones, as `_roll` does; False when these are others meanwhile."""
        with self._store.beside() as beside:
            execute = beside.execute
            with self._exclusively():
                moves = self._touched.moves
                beside.execute("BEGIN")
                origins = self._origins(hour, beside)  # the snapshot is of now
                if len(origins) != _BUCKETS or set(origins.values()) != {HOT}:
                    return False
            execute("CREATE OR REPLACE TEMP TABLE rolling AS SELECT * EXCLUDE (origin) FROM hour_cells LIMIT 0")
            fine = f"(SELECT * EXCLUDE (origin) FROM fine_cells WHERE origin = '{HOT}')"
            hours_of(execute, [(hour, hour + HOUR)], fine, "rolling")
            with self._exclusively():
                if self._touched.since(moves, hour, hour + HOUR) or self._origins(hour) != origins:
                    return False
                # A server that was killed before `to_roll` was told has them already.
                for table, what in (("hour_cells", "TRUE"), ("rolled", "level = 'hour'")):
                    beside.execute(f"DELETE FROM {table} WHERE bucket = ? AND origin = ? AND {what}", [hour, HOT])
                beside.execute("INSERT INTO hour_cells SELECT *, ? FROM rolling", [HOT])
                beside.execute("INSERT INTO rolled VALUES (?, ?, 'hour', ?)", [hour, hour + HOUR, HOT])
                beside.execute("COMMIT")
        return True
