"""kill -9 while days are sealed, sealed again, compressed and deleted: every acknowledged row is there once."""

from __future__ import annotations

import csv
import gzip
import os
import random
import signal
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import processes
from tests.processes import free_port, until
from tests.samples import full_sample, pod

PATH = "/api/receive-data"
DAYS = 3


def batch_of(number: int, chance: random.Random) -> list[dict[str, Any]]:
    """Samples of past days that can be told apart by memory_used, each with a pod."""
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(
        days=chance.randint(1, DAYS)
    )
    moments = [day + timedelta(seconds=chance.randrange(86_400)) for _ in range(20)]
    return [
        full_sample(
            timestamp=moment.isoformat(), sampled_at=moment.isoformat(), gpu_id=gpu % 2, gpu_uuid=f"GPU-{gpu % 2}",
            memory_used=number * 100 + gpu, pods=[pod(memory_used=float(number * 100 + gpu))],
        )
        for gpu, moment in enumerate(moments)
    ]  # fmt: skip


def in_files(folder: Path, prefix: str) -> Counter[float]:
    found: Counter[float] = Counter()
    for path in folder.glob(f"{prefix}_*.csv*"):
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(newline="") as file:
            found.update(float(line["memory_used"]) for line in csv.DictReader(file))
    return found


def exported(client: httpx.Client, table: str) -> Counter[float]:
    answer = client.get("/api/export", params={"format": "csv", "table": table, "last": f"{DAYS + 2}d"})
    assert answer.status_code == 200, answer.text
    return Counter(float(line["memory_used"]) for line in csv.DictReader(answer.text.splitlines()))


@pytest.mark.timeout(400)
def test_after_kill_9_while_sealing_every_acknowledged_row_is_there_once(tmp_path: Path) -> None:
    chance = random.Random(11)
    port = free_port()
    server = processes.server(
        tmp_path,
        port,
        GPUMON_SERVER__PERFORMANCE__SEAL_AFTER_MINUTES="0",
        GPUMON_SERVER__PERFORMANCE__GC_INTERVAL="1",
        GPUMON_SERVER__STORAGE__ENABLE_FILE_COMPRESSION="true",
        GPUMON_SERVER__STORAGE__COMPRESS_AFTER_DAYS="2",
        GPUMON_SERVER__STORAGE__DATA_RETENTION_DAYS="0",
    )
    wanted: Counter[float] = Counter()
    sealed = tmp_path / ".gpumon" / "sealed"
    for number in range(1, int(os.environ.get("GPUMON_TEST_KILLS", "3")) + 1):
        server.start()
        batch = batch_of(number, chance)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            client.post(PATH, json=batch, headers={"Gpumon-Batch": f"n/b/{number}"}).raise_for_status()
        wanted.update(float(one["memory_used"]) for one in batch)
        if number % 2:
            until(lambda: list(sealed.glob("*/*.new")) or list(sealed.glob("*/*/manifest.json")), 60)
            threading.Event().wait(chance.random())  # anywhere in it
        else:
            until(lambda: list(sealed.glob("*/cells-*/manifest.json")), 60)
        server.end(signal.SIGKILL)
    server.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        until(lambda: client.get("/ready").status_code == 200, 60)
        for table, prefix in (("samples", "gpu_metrics"), ("pod_usage", "pod_usage")):
            assert in_files(tmp_path, prefix) == wanted
            assert exported(client, table) == wanted
        assert client.post("/api/gpu/statistics").json()["data"]["samples"] == wanted.total()
        hours = client.get("/api/usage", params={"last": f"{DAYS + 2}d", "group_by": "none"}).json()["data"][
            "total"
        ]
        assert hours["gpu_hours_allocated"] > 0
        until(lambda: not list(tmp_path.rglob("*.new")), 60)
    server.end(signal.SIGTERM)
    assert not list(tmp_path.rglob("*.new"))
    assert not list(tmp_path.rglob("other_*"))
    assert len(list(sealed.glob("*/raw-*"))) <= DAYS
