"""Which buckets of the accounts' rollup are out of date, because rows came that they don't know.

A bucket's cells are made of the rows within it and `reach` around it: a sample stands for up to so many seconds
before it, and bounds what the next one stands for; of counters it takes the increase since the one before, which
may be FOLLOWS intervals ago. `reach` is so many of the longest interval that any sample states, and `stale_after`
where a sample states none. Most rows are younger than all that is rolled, and touch nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final

from gpumon.server.accounts.cells import FINE, HOUR
from gpumon.server.accounts.slices import FOLLOWS, LONGEST_SECONDS
from gpumon.server.database import Rows
from gpumon.server.store import Store

HOT: Final = "hot"
"""Origin of what was rolled in this database; else it is the sealed day, YYYYMMDD."""
_REMEMBERED: Final = 20_000
_REACH: Final = (
    f"max(CASE WHEN interval_seconds > {LONGEST_SECONDS} THEN {LONGEST_SECONDS} ELSE interval_seconds END), "
    "coalesce(bool_or(interval_seconds IS NULL), false)"
)


class Touched:
    """Kept by whoever loads rows; read by whoever rolls."""

    def __init__(self, store: Store, stale_after: timedelta) -> None:
        self._store = store
        self._stale_after = stale_after
        self._longest = timedelta()
        self._unstated = False
        self._hours: set[datetime] = set()
        self._at: dict[datetime, float] = {}
        self._log: list[tuple[int, datetime]] = []
        self._moves = 0
        self._stale_days: set[str] = set()

    def open(self) -> None:
        """Reads what the store knows. Raises DatabaseError."""
        self._longest, self._unstated = timedelta(), False
        self._note_reach(self._store.execute(f"SELECT {_REACH} FROM hot_samples"))
        self._note_reach(
            self._store.execute("SELECT max(longest), coalesce(bool_or(unstated), false) FROM sealed")
        )
        self._hours = {hour for (hour,) in self._store.execute("SELECT hour FROM to_roll")}
        self._at.clear()

    @property
    def reach(self) -> timedelta:
        """How far a sample may reach."""
        reach = FOLLOWS * self._longest
        return max(reach, self._stale_after) if self._unstated else reach

    @property
    def hours(self) -> list[datetime]:
        """The hours (naive UTC) that have buckets to roll, oldest first."""
        return sorted(self._hours)

    @property
    def moves(self) -> int:
        """Counts what touched something; for `since`."""
        return self._moves

    def since(self, moves: int, of: datetime, to: datetime) -> bool:
        """Whether something in [of, to) was touched since then."""
        return any(move > moves and of <= bucket < to for move, bucket in self._log)

    def quiet_seconds(self, hour: datetime) -> float:
        """How long ago an hour was touched last, in seconds."""
        return time.monotonic() - self._at.get(hour, -1e9)

    def take_stale_days(self) -> set[str]:
        """The sealed days (YYYYMMDD), since the last call, some of whose cells are out of date."""
        days, self._stale_days = self._stale_days, set()
        return days

    def note_sealed(self, longest: float | None, unstated: bool) -> None:
        """A sealed day's samples reach so far."""
        self._note_reach([(longest, unstated)])

    def done(self, hours: Iterable[datetime]) -> None:
        """These hours are rolled; inside the caller's transaction. Raises DatabaseError."""
        for hour in hours:
            self._store.execute("DELETE FROM to_roll WHERE hour = ?", [hour])
            self._hours.discard(hour)

    def by(self, arriving: str, *, of_samples: bool) -> None:
        """Marks what the rows of a table touch, inside the caller's transaction. Raises DatabaseError."""
        if of_samples:
            self._note_reach(self._store.execute(f"SELECT {_REACH} FROM {arriving}"))
        self.mark(
            self._store.execute(
                f"SELECT min(sampled_at), max(sampled_at) FROM {arriving} "
                "GROUP BY time_bucket(INTERVAL 5 MINUTES, sampled_at)"
            )
        )

    def mark(self, stretches: Iterable[tuple[Any, ...]]) -> None:
        """Marks what rows between the first and last instants touch, inside the caller's transaction. Raises
        DatabaseError."""
        buckets: set[datetime] = set()
        for first, last in stretches:
            bucket = _floor(first - self.reach, FINE)
            while bucket <= last + self.reach:
                buckets.add(bucket)
                bucket += FINE
        if not buckets:
            return
        hours = {_floor(bucket, HOUR) for bucket in buckets}
        self._moves += 1
        self._log += [(self._moves, bucket) for bucket in buckets]
        del self._log[:-_REMEMBERED]
        self._at |= dict.fromkeys(hours, time.monotonic())
        for hour in sorted(hours - self._hours):
            self._store.execute("INSERT INTO to_roll VALUES (?)", [hour])
        self._hours |= hours
        self._invalidate(buckets)

    def _invalidate(self, buckets: set[datetime]) -> None:
        """Takes what is rolled of the buckets out; of what is sealed, by whole hours."""
        limits = [min(buckets), max(buckets)]
        rolled = self._store.execute(
            f"SELECT bucket, origin FROM rolled "
            f"WHERE level = 'fine' AND bucket >= ? AND bucket <= ? AND {_REPLACEABLE}",
            limits,
        )
        for bucket, origin in rolled:
            if bucket not in buckets:
                continue
            hour = _floor(bucket, HOUR)
            of, to = (bucket, bucket + FINE) if origin == HOT else (hour, hour + HOUR)
            for (other,) in self._store.execute(  # an hour of a chart may be of the day beside, too
                f"SELECT DISTINCT origin FROM rolled WHERE level = 'metrics' AND bucket < ? AND until > ? "
                f"AND {_REPLACEABLE}",
                [to, of],
            ):
                self._stale_days.add(other)
            for condition, values in (
                ("level = 'fine' AND bucket >= ? AND bucket < ?", [of, to]),
                ("level = 'hour' AND bucket = ?", [hour]),
                ("level = 'metrics' AND bucket < ? AND until > ?", [to, of]),
                ("level = 'day' AND bucket <= ? AND until > ?", [hour, hour]),
            ):
                self._store.execute(f"DELETE FROM rolled WHERE {condition} AND {_REPLACEABLE}", values)
            inside = f"bucket >= ? AND bucket < ? AND {_REPLACEABLE}"
            self._store.execute(f"DELETE FROM fine_cells WHERE {inside}", [of, to])
            self._store.execute(f"DELETE FROM hour_cells WHERE {inside}", [hour, hour + HOUR])
            if origin != HOT:
                self._store.execute(f"DELETE FROM day_cells WHERE origin = ? AND {_REPLACEABLE}", [origin])
                self._stale_days.add(origin)

    def _note_reach(self, rows: Rows | list[tuple[Any, Any]]) -> None:
        longest, unstated = rows[0]
        self._longest = max(self._longest, timedelta(seconds=longest or 0.0))
        self._unstated = self._unstated or bool(unstated)


def _floor(instant: datetime, length: timedelta) -> datetime:
    return instant - (instant - datetime.min) % length


_REPLACEABLE: Final = "origin NOT IN (SELECT strftime(day, '%Y%m%d') FROM sealed WHERE NOT has_rows)"
"""Of a day whose rows are deleted the rollups stay as they are: they can't be made anew."""
