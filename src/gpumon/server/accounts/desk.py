"""What the accounts need of the store, as types: readings of one snapshot, and how far its cells reach; pure.

Instants at this seam are UTC, naive, as the store has them. See `cells` for what a cell is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from gpumon.server.queries import Query

Rows = list[tuple[Any, ...]]
Execute = Callable[[str, Mapping[str, Any]], Rows]
"""Runs a statement."""
Run = tuple[datetime, datetime]
"""From when up to, not including, when."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """Of which stretches of time there are valid cells: `days` are a cell each, from any hour to any other;
    `hours` and `fine` are runs of whole buckets. Each in order and disjoint."""

    hours: Sequence[Run]
    fine: Sequence[Run]
    days: Sequence[Run] = ()


class Reading(Protocol):
    """One connection and one snapshot. Temporary tables that are made on it are its own."""

    @property
    def reach(self) -> timedelta:
        """A row that stands for longer, or without an interval of its own and further than that from the one
        before, there is not."""

    def select(self, sql: str, parameters: Mapping[str, Any] = ...) -> Rows:
        """Runs a statement; gives its rows. Raises QueryError."""

    def answer(self, sql: str, parameters: Mapping[str, Any] = ...) -> Rows:
        """Runs a statement whose rows are an answer's: raises QueryError also where they are too many for one."""

    def coverage(self, start: datetime, end: datetime, fine_from: datetime) -> Coverage:
        """What cells there are of a stretch of time; of fine ones those of hours before `fine_from` may be left
        out where there are coarser ones. From then on `day_cells`, `hour_cells` and `fine_cells` have these."""

    def counted(self, start: datetime, end: datetime) -> None:
        """From now on `counted` says how often each GPU, as it was known at a place, had which utilization_gpu
        from `start` up to `end`: client_name, gpu_id, gpu_uuid, node, gpu_name, value, readings."""

    def places_in(self, window: Run) -> str:
        """SQL for a relation with, at least, as what GPUs were known in their samples in a window, both ends
        included: client_name, gpu_id, gpu_uuid, node, gpu_name; and in which hour (`utc_hour`) in how many `rows`.
        There may be several of a GPU and hour."""

    def figures_in(self, start: datetime, end: datetime) -> tuple[list[datetime], str]:
        """The whole hours of a stretch of time of which there are figures of the metrics (see `metrics`), by their
        beginning, in order, and SQL for a relation that has them, and maybe those of other hours."""

    def rows_in(self, table: str, window: Run, columns: Sequence[str]) -> str:
        """SQL for a relation with at least the rows of `samples` or `pod_usage` in one window, of which both ends
        belong to it: these columns and `row_id`."""


class Desk(Protocol):
    """The store, as questions see it."""

    def reading(self) -> AbstractContextManager[Reading]:
        """A reading, until the block ends."""

    def select(self, query: Query) -> Rows:
        """Runs one query. Raises QueryError."""


def merged(runs: Sequence[Run]) -> Iterator[Run]:
    """The same stretches of time in order, as few runs as there can be."""
    begin: datetime | None = None
    end = datetime.min
    for one, other in sorted(runs):
        if begin is not None and one <= end:
            end = max(end, other)
            continue
        if begin is not None:
            yield begin, end
        begin, end = one, other
    if begin is not None:
        yield begin, end
