"""The old design, rebuilt as a baseline: what a server of NVIDIA GPU Metrics Logger v2 does with samples.

    python -m bench.old_design FOLDER PORT

A pydantic model of the body, a lock, and for each row: open the day's CSV, write the header if the file is new,
append the row, close. A query reads every file anew by pandas. Neither syncs, nor keeps the good rows of a bad
batch, nor knows a batch again. It is kinder than the original, which also logs a line for each sample.
"""

from __future__ import annotations

import csv
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Sample(BaseModel):
    """The thirteen fields, null where the GPU has no such reading."""

    timestamp: str
    gpu_id: int
    gpu_name: str
    utilization_gpu: float | None
    utilization_memory: float | None
    memory_total: int | None
    memory_used: int | None
    memory_free: int | None
    temperature: int | None
    power_draw: float | None
    power_limit: float | None
    fan_speed: int | None
    client_name: str


def application(folder: Path) -> FastAPI:
    """The server's two endpoints that the benchmark asks."""
    app, lock = FastAPI(), threading.Lock()

    def append(row: dict[str, Any]) -> None:
        path = folder / f"gpu_metrics_{datetime.now():%Y%m%d}.csv"
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(Sample.model_fields))
            if new:
                writer.writeheader()
            writer.writerow(row)

    @app.post("/api/receive-data")
    async def receive(body: list[Sample]) -> dict[str, Any]:
        with lock:
            for sample in body:
                append(sample.model_dump())
        return {"success": True, "received_count": len(body), "failed_count": 0}

    @app.post("/api/gpu/statistics")
    async def statistics() -> dict[str, Any]:
        files = sorted(folder.glob("gpu_metrics_*.csv"))  # noqa: ASYNC240 - as the original, in the event loop
        rows = pd.concat(map(pd.read_csv, files), ignore_index=True)
        times = pd.to_datetime(rows["timestamp"])
        rows["date"], rows["hour"] = times.dt.date, times.dt.hour
        used = rows["utilization_gpu"]
        data = {
            "hourly_average": rows.groupby(["date", "hour"])["utilization_gpu"].mean().mean(),
            "daily_average": rows.groupby("date")["utilization_gpu"].mean().mean(),
            "period_average": used.mean(),
            "max_utilization": used.max(),
            "min_utilization": used.min(),
        }
        return {"success": True, "data": {name: round(float(value), 2) for name, value in data.items()}}

    return app


if __name__ == "__main__":
    uvicorn.run(application(Path(sys.argv[1])), port=int(sys.argv[2]), log_level="error", access_log=False)
