"""Answers questions from the store, with exactly the figures of the old program and how far they are backed.

Every answer carries `coverage`: of the minutes that were asked for and have passed, the share that holds at
least one reading. So a filled 0.0 (the old program's way to say "nothing") can be told from a real zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from gpumon.clock import Now
from gpumon.errors import QueryError
from gpumon.server import queries
from gpumon.server.days import days_between, local_midnight
from gpumon.server.figures import Figures, by_day, mean_of_means, rounded, together
from gpumon.server.queries import Filter
from gpumon.server.store import Store
from gpumon.server.tables import POD_USAGE, SAMPLES

REALTIME_MINUTES = 5
_EARLIEST = date(1970, 1, 1)
_READINGS = 3
"""Where a row of `select_by_hour` has their number."""
Answer = dict[str, Any]


class Reader:
    """Answers by the store, the server's zone and limits."""

    def __init__(
        self,
        store: Store,
        refresh: Callable[[], None],
        zone: ZoneInfo,
        now: Now,
        *,
        max_range_days: int,
        stale_after: timedelta,
    ) -> None:
        self._store = store
        self._refresh = refresh
        self._zone = zone
        self._now = now
        self._max_range_days = max_range_days
        self._stale_after = stale_after

    def statistics(self, wanted: Filter) -> Answer:
        """Averages and extremes of utilization_gpu over a range, or over all that is stored."""
        self._check(wanted)
        self._refresh()
        by_hour, first = self._by_hour(wanted)
        days = by_day(by_hour)
        whole = together(by_hour.values())
        return {
            "hourly_average": mean_of_means(by_hour.values()),
            "daily_average": mean_of_means(days.values()),
            "period_average": rounded(whole.mean),
            "max_utilization": rounded(whole.high),
            "min_utilization": rounded(whole.low),
            "period": {"start_date": _iso(wanted.start), "end_date": _iso(wanted.end)},
            "gpu_id": wanted.gpu_id,
            "client_name": wanted.client_name,
            "samples": whole.readings,
            "coverage": self._coverage(whole.minutes, wanted, first),
        }

    def hourly_usage(self, wanted: Filter) -> Answer:
        """The mean utilization of every hour of a range."""
        first, last = self._check(wanted)
        self._refresh()
        found, _ = self._by_hour(wanted)
        empty = Figures()
        hours = [
            (day, hour, found.get((day, hour), empty)) for day in days_between(first, last) for hour in range(24)
        ]
        return self._chart(
            wanted,
            found.values(),
            [
                {
                    "date": day.isoformat(),
                    "hour": hour,
                    "utilization": rounded(figures.mean),
                    "samples": figures.readings,
                }
                for day, hour, figures in hours
            ],
        )

    def daily_usage(self, wanted: Filter) -> Answer:
        """The extremes of utilization of every day of a range."""
        first, last = self._check(wanted)
        self._refresh()
        found = by_day(self._by_hour(wanted)[0])
        empty = Figures()
        days = [(day, found.get(day, empty)) for day in days_between(first, last)]
        return self._chart(
            wanted,
            found.values(),
            [
                {
                    "date": f"{day:%m/%d}",
                    "day": day.isoformat(),
                    "min_utilization": rounded(figures.low),
                    "max_utilization": rounded(figures.high),
                    "samples": figures.readings,
                }
                for day, figures in days
            ],
        )

    def gpu_list(self, client_name: str | None) -> list[Answer]:
        """The newest row of each GPU, and whether it is recent."""
        self._refresh()
        now = self._now()
        answer = []
        for gpu_id, name, client, local, sampled_at, uuid, state in self._store.select(
            queries.select_latest(client_name)
        ):
            age = now - sampled_at.replace(tzinfo=UTC)
            answer.append(
                {
                    "gpu_id": gpu_id,
                    "gpu_name": name,
                    "client_name": client,
                    "status": "active" if age <= self._stale_after else "stale",
                    "last_update": _seed_time(local),
                    "gpu_uuid": uuid,
                    "state": state,
                    "age_seconds": max(0, round(age.total_seconds())),
                }
            )
        return answer

    def realtime(self, gpu_id: int | None, client_name: str | None) -> Answer:
        """Means over the five minutes up to the newest row of all."""
        self._refresh()
        newest, local = self._store.select(queries.select_newest())[0]
        last = newest or datetime.min
        # At whole seconds, like the old program's timestamp; nothing is older than nothing.
        first = last.replace(microsecond=0) - timedelta(minutes=REALTIME_MINUTES) if newest else last
        samples, utilization, temperature, memory, power, gpus, clients, minutes = self._store.select(
            queries.select_realtime(gpu_id, client_name, first, last)
        )[0]
        scope = (
            "no_data"
            if newest is None
            else "no_recent_data"
            if samples == 0
            else f"{'all_clients' if client_name is None else 'single_client'}"
            f"_{'all_gpus' if gpu_id is None else 'single_gpu'}"
        )
        empty = 0.0 if samples == 0 else None
        return {
            "timestamp": None if newest is None else _seed_time(local),
            "type": "average",
            "scope": scope,
            "utilization_gpu": rounded(utilization, empty),
            "temperature": round(temperature) if temperature is not None else 0 if samples == 0 else None,
            "memory_used_percent": rounded(memory, empty),
            "power_draw": rounded(power, empty),
            "gpu_count": gpus,
            "client_count": clients,
            "samples": samples,
            "coverage": min(1.0, round(minutes / REALTIME_MINUTES, 4)),
        }

    def latest(self) -> list[Answer]:
        """Every field of the newest row of each GPU that is not stale."""
        self._refresh()
        rows = self._store.select(queries.select_latest_all())
        horizon = self._now() - self._stale_after
        samples = [dict(zip(SAMPLES.columns, row, strict=True)) for row in rows]
        return [s for s in samples if s["sampled_at"].replace(tzinfo=UTC) >= horizon]

    def latest_pods(self) -> list[Answer]:
        """Every field of each user of a GPU at the GPU's newest sample, where that is not stale."""
        self._refresh()
        horizon = (self._now() - self._stale_after).astimezone(UTC).replace(tzinfo=None)
        return newest_pods(self._store, horizon)

    def _check(self, wanted: Filter) -> tuple[date, date]:
        """The first and last day of a range; an open end is left to the query."""
        today = self._now().astimezone(self._zone).date()
        first, last = wanted.start or wanted.end or today, wanted.end or wanted.start or today
        if wanted.start and wanted.end and wanted.start > wanted.end:
            raise QueryError(f"start_date {wanted.start} is after end_date {wanted.end}; exchange them")
        if (last - first).days + 1 > self._max_range_days:
            raise QueryError(
                f"the range of {(last - first).days + 1} days is longer than the {self._max_range_days} that "
                "[LIMITS] max_range_days allows; ask for a shorter one"
            )
        return first, last

    def _by_hour(self, wanted: Filter) -> tuple[dict[tuple[date, int], Figures], date | None]:
        """Of each hour with readings; and the first day with rows of those asked for."""
        rows = self._store.select(queries.select_by_hour(wanted))
        found: dict[tuple[date, int], Figures] = {}
        for day, hour, *figures in sorted(row for row in rows if row[_READINGS]):
            if (before := found.get((day, hour))) is None:
                found[day, hour] = Figures(*figures)
            else:
                before.add(Figures(*figures))
        return found, min((day for day, *_ in rows), default=None)

    def _chart(self, wanted: Filter, found: Iterable[Figures], items: list[Answer]) -> Answer:
        return {
            "chart_data": items,
            "period": {"start_date": _iso(wanted.start), "end_date": _iso(wanted.end)},
            "gpu_id": wanted.gpu_id,
            "client_name": wanted.client_name,
            "coverage": self._coverage(together(found).minutes, wanted),
        }

    def _coverage(self, minutes: int, wanted: Filter, found: date | None = None) -> float:
        """Share of the asked minutes up to now that hold a reading; 0.0 when none has passed. An open start is
        the first day that is stored: the first that was `found` where all GPUs were asked for."""
        now = self._now()
        of_all = wanted.gpu_id is None and wanted.client_name is None
        first = wanted.start or (found if of_all else None)
        if first is None and minutes:
            first = self._store.select(queries.select_first_day())[0][0]
        if first is None or minutes == 0:
            return 0.0
        today = now.astimezone(self._zone).date()
        end = now
        if wanted.end is not None and wanted.end < today:
            end = local_midnight(wanted.end + timedelta(days=1), self._zone)
        begin = local_midnight(max(first, _EARLIEST), self._zone)
        # A sample may be stamped a little ahead of the server's clock; it still counts once.
        asked = (end - begin).total_seconds() / 60
        return round(min(1.0, minutes / max(asked, 1.0)), 4)


def newest_pods(store: Store, horizon: datetime) -> list[Answer]:
    """Every field of each user of a GPU at the GPU's newest sample, where that is not older than `horizon` (naive
    UTC)."""
    oldest = store.select(queries.select_oldest_latest(horizon))[0][0]
    if oldest is None:
        return []
    rows = store.select(queries.select_latest_pods(oldest))
    return [dict(zip(POD_USAGE.columns, row, strict=True)) for row in rows]


def _iso(day: date | None) -> str | None:
    return None if day is None else day.isoformat()


def _seed_time(local: datetime) -> str:
    return local.strftime("%Y-%m-%d %H:%M:%S")
