"""The old program's figures computed anew from the CSV files, by plain Python and nothing of gpumon's: what the
server's answers are held against."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

Row = dict[str, Any]


def read_rows(folder: Path, zone: str = "UTC") -> list[Row]:
    """All rows of the folder's CSV files, in the order of files and lines."""
    rows: list[Row] = []
    for path in sorted(folder.glob("gpu_metrics_*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                local = datetime.strptime(line["timestamp"], "%Y-%m-%d %H:%M:%S")
                exact = line.get("sampled_at")
                rows.append(
                    {
                        "local": local,
                        "utc": datetime.fromisoformat(exact)
                        if exact
                        else local.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC),
                        "gpu_id": int(line["gpu_id"]),
                        "gpu_name": line["gpu_name"],
                        "client_name": line["client_name"],
                    }
                    | {
                        name: float(line[name]) if line[name] else None
                        for name in (
                            "utilization_gpu",
                            "utilization_memory",
                            "memory_total",
                            "memory_used",
                            "temperature",
                            "power_draw",
                        )
                    }
                )
    return rows


def matching(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows that a request's body asks for."""
    start, end = wanted.get("start_date"), wanted.get("end_date")
    return [
        row
        for row in rows
        if (start is None or row["local"].date() >= date.fromisoformat(start))
        and (end is None or row["local"].date() <= date.fromisoformat(end))
        and wanted.get("gpu_id") in (None, row["gpu_id"])
        and wanted.get("client_name") in (None, row["client_name"])
    ]


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is there; None of nothing."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _grouped(rows: list[Row], key: Callable[[Row], Any]) -> dict[Any, list[float]]:
    groups: dict[Any, list[float]] = {}
    for row in rows:
        if row["utilization_gpu"] is not None:
            groups.setdefault(key(row), []).append(row["utilization_gpu"])
    return groups


def statistics(rows: list[Row], **wanted: Any) -> dict[str, float]:
    """POST /api/gpu/statistics."""
    found = matching(rows, **wanted)
    values = [row["utilization_gpu"] for row in found if row["utilization_gpu"] is not None]
    by_hour = _grouped(found, lambda row: (row["local"].date(), row["local"].hour))
    by_day = _grouped(found, lambda row: row["local"].date())
    return {
        "hourly_average": mean(mean(group) for group in by_hour.values()) or 0.0,
        "daily_average": mean(mean(group) for group in by_day.values()) or 0.0,
        "period_average": mean(values) or 0.0,
        "max_utilization": max(values, default=0.0),
        "min_utilization": min(values, default=0.0),
    }


def _days(wanted: dict[str, Any]) -> list[date]:
    first, last = date.fromisoformat(wanted["start_date"]), date.fromisoformat(wanted["end_date"])
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def hourly_usage(rows: list[Row], **wanted: Any) -> list[dict[str, Any]]:
    """POST /api/gpu/hourly-usage."""
    groups = _grouped(matching(rows, **wanted), lambda row: (row["local"].date(), row["local"].hour))
    return [
        {"date": day.isoformat(), "hour": hour, "utilization": mean(groups.get((day, hour), [])) or 0.0,
         "samples": len(groups.get((day, hour), []))}
        for day in _days(wanted)
        for hour in range(24)
    ]  # fmt: skip


def daily_usage(rows: list[Row], **wanted: Any) -> list[dict[str, Any]]:
    """POST /api/gpu/daily-usage."""
    groups = _grouped(matching(rows, **wanted), lambda row: row["local"].date())
    return [
        {"date": day.strftime("%m/%d"), "day": day.isoformat(), "min_utilization": min(groups.get(day, [0.0])),
         "max_utilization": max(groups.get(day, [0.0])), "samples": len(groups.get(day, []))}
        for day in _days(wanted)
    ]  # fmt: skip


def gpu_list(rows: list[Row], **wanted: Any) -> list[dict[str, Any]]:
    """POST /api/gpu/list: the newest row of each, of two of the same instant the later."""
    newest: dict[tuple[str, int], Row] = {}
    for row in matching(rows, **wanted):
        key = (row["client_name"], row["gpu_id"])
        if key not in newest or row["utc"] >= newest[key]["utc"]:
            newest[key] = row
    return [
        {"gpu_id": gpu_id, "client_name": client, "gpu_name": row["gpu_name"],
         "last_update": row["local"].strftime("%Y-%m-%d %H:%M:%S")}
        for (client, gpu_id), row in sorted(newest.items())
    ]  # fmt: skip


def realtime(rows: list[Row], **wanted: Any) -> dict[str, Any]:
    """POST /api/gpu/realtime."""
    if not rows:
        return {"scope": "no_data", "samples": 0}
    newest = max(row["utc"] for row in rows)
    start = newest.replace(microsecond=0) - timedelta(minutes=5)
    window = [row for row in matching(rows, **wanted) if row["utc"] >= start]
    if not window:
        return {"scope": "no_recent_data", "samples": 0, "utilization_gpu": 0.0, "power_draw": 0.0}
    memory = [
        row["memory_used"] / row["memory_total"] * 100
        if row["memory_total"] and row["memory_used"] is not None
        else row["utilization_memory"]
        for row in window
    ]
    return {
        "samples": len(window),
        "utilization_gpu": mean(row["utilization_gpu"] for row in window),
        "temperature": mean(row["temperature"] for row in window),
        "memory_used_percent": mean(memory),
        "power_draw": mean(row["power_draw"] for row in window),
        "gpu_count": len({(row["client_name"], row["gpu_id"]) for row in window}),
        "client_count": len({row["client_name"] for row in window}),
    }
