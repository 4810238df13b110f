"""Questions as SQL; pure. Identifiers come from the catalogue, values are always parameters.

`samples` and `pod_usage` are the rows (see `relations`), `readings` and `sealed_…` their rollup (see `readings`),
`live.latest` the newest sample of each GPU (see `store`). `timestamp` is local wall time in the server's zone, so
that days and hours need no zone in SQL; `sampled_at` is UTC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from gpumon.server.relations import WHOLE, Window
from gpumon.server.tables import POD_KEY, POD_USAGE, SAMPLES

SAMPLE_COLUMNS = ", ".join(SAMPLES.columns)
LATEST_KEY = "client_name, gpu_id"
_AVERAGED = (
    "client_name", "gpu_id", "sampled_at", "utilization_gpu", "temperature", "memory_total", "memory_used",
    "utilization_memory", "power_draw",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Query:
    """SQL text, its parameters, and from when to when (naive UTC) it needs rows of which tables, with which of
    their columns: to name one to DuckDB takes longer than to read a few of its values."""

    sql: str
    parameters: list[Any] | dict[str, Any] = field(default_factory=list)
    windows: Sequence[Window] = ()
    tables: Mapping[str, Sequence[str]] = field(default_factory=lambda: WHOLE)

    @property
    def has_latest(self) -> bool:
        """Whether it looks at the newest samples."""
        return "live.latest" in self.sql


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows: local days, both ends included; None is no bound."""

    start: date | None = None
    end: date | None = None
    gpu_id: int | None = None
    client_name: str | None = None

    def where(self, day: str = "CAST(timestamp AS DATE)") -> tuple[str, list[Any]]:
        """The condition and its parameters; `day` is the local day of a row."""
        conditions = ["TRUE"]
        parameters: list[Any] = []
        for condition, value in (
            (f"{day} >= CAST(? AS DATE)", self.start),
            (f"{day} <= CAST(? AS DATE)", self.end),
            ("gpu_id = ?", None if self.gpu_id is None else max(-1, min(self.gpu_id, 2**62))),
            ("client_name = ?", self.client_name),
        ):
            if value is not None:
                conditions.append(condition)
                parameters.append(value)
        return " AND ".join(conditions), parameters


def select_by_hour(wanted: Filter) -> Query:
    """Per (date, hour) with rows, in any order: sum and count of utilization_gpu, its extremes, and how many
    minutes hold a reading (a bit for each, so that many GPUs count a minute once); of one without readings the
    count is 0. An hour that the clocks repeat, or that straddles two hours of UTC, comes in two rows that add
    up."""
    where, parameters = wanted.where("day")
    of_all = wanted.gpu_id is None and wanted.client_name is None
    columns = "day, hour, utc_hour, total, readings, low, high, minutes"
    sealed = "sealed_hours" if of_all else "sealed_readings"
    whose = columns if of_all else f"{columns}, gpu_id, client_name"
    return Query(
        f"""
        SELECT day, hour, sum(total) AS total, CAST(sum(readings) AS BIGINT) AS readings, min(low) AS low,
               max(high) AS high, CAST(bit_count(bit_or(minutes)) AS INTEGER) AS minutes
        FROM (SELECT {whose} FROM readings UNION ALL SELECT {whose} FROM {sealed})
        WHERE {where}
        GROUP BY day, hour, utc_hour
        """,
        parameters,
    )


def select_first_day() -> Query:
    """The first local day with any row; NULL when nothing is stored."""
    return Query("SELECT min(day) FROM (SELECT day FROM readings UNION ALL SELECT day FROM sealed_hours)")


def select_latest(client_name: str | None) -> Query:
    """The newest row of each GPU, by client and index."""
    where, parameters = Filter(client_name=client_name).where()
    return Query(
        f"""
        SELECT gpu_id, gpu_name, client_name, timestamp, sampled_at, gpu_uuid, state
        FROM live.latest WHERE {where} ORDER BY client_name, gpu_id
        """,
        parameters,
    )


def select_latest_all() -> Query:
    """Every field of the newest row of each GPU."""
    return Query(f"SELECT {SAMPLE_COLUMNS} FROM live.latest ORDER BY client_name, gpu_id")


def select_oldest_latest(since: datetime) -> Query:
    """The instant of the oldest of the newest samples that are not older than `since` (naive UTC)."""
    return Query("SELECT min(sampled_at) FROM live.latest WHERE sampled_at >= ?", [since])


def select_latest_pods(since: datetime) -> Query:
    """Every field of who used the GPUs at their newest samples, as far as these are not older than `since` (naive
    UTC). A sample that came twice tells of its users once: the later row."""
    columns = ", ".join(POD_USAGE.columns)
    return Query(
        f"""
        WITH told AS MATERIALIZED (
            SELECT {columns}, row_id FROM pod_usage SEMI JOIN live.latest USING ({LATEST_KEY}, sampled_at)
            WHERE sampled_at >= ?
        )
        SELECT {columns} FROM told
        WHERE row_id IN (SELECT max(row_id) FROM told GROUP BY {LATEST_KEY}, {", ".join(POD_KEY)})
        ORDER BY {LATEST_KEY}, row_id
        """,
        [since],
        [(since, datetime.max)],
        {"pod_usage": POD_USAGE.columns},
    )


def select_newest() -> Query:
    """The instant (naive UTC) and local time of the newest sample of all; NULLs when there is none."""
    return Query("SELECT max(sampled_at), arg_max(timestamp, sampled_at) FROM live.latest")


def select_realtime(gpu_id: int | None, client_name: str | None, first: datetime, last: datetime) -> Query:
    """Means over the samples from `first` to `last`, both included, naive UTC. Memory in use is the share of the
    total, or the controller's utilisation where a total is missing."""
    where, parameters = Filter(gpu_id=gpu_id, client_name=client_name).where()
    return Query(
        f"""
        SELECT count(*) AS samples,
               avg(utilization_gpu) AS utilization_gpu,
               avg(temperature) AS temperature,
               avg(CASE WHEN memory_total > 0 AND memory_used IS NOT NULL
                        THEN memory_used / memory_total * 100 ELSE utilization_memory END) AS memory_used_percent,
               avg(power_draw) AS power_draw,
               count(DISTINCT (client_name, gpu_id)) AS gpu_count,
               count(DISTINCT client_name) AS client_count,
               count(DISTINCT date_trunc('minute', sampled_at)) AS minutes
        FROM samples
        WHERE {where} AND sampled_at >= ? AND sampled_at <= ?
        """,
        [*parameters, first, last],
        [(first, last)],
        {"samples": _AVERAGED},
    )
