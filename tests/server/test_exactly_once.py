"""Every acknowledged sample is stored once: under repetition, reordering, many senders, and kill -9."""

from __future__ import annotations

import contextlib
import csv
import os
import random
import signal
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import processes
from tests.processes import free_port
from tests.samples import sample
from tests.server.conftest import Serve, serving, settings_for

PATH = "/api/receive-data"


def batch_of(number: int, rows: int = 3) -> list[dict[str, Any]]:
    """Rows that can be told apart: the batch's number in memory_used, the row's in gpu_id."""
    return [sample(gpu_id=row, memory_used=number, utilization_gpu=float(number % 100)) for row in range(rows)]


def stored(folder: Path) -> Counter[tuple[int, int]]:
    found: Counter[tuple[int, int]] = Counter()
    for path in folder.glob("*.csv"):
        with path.open(newline="") as file:
            found.update((int(line["memory_used"]), int(line["gpu_id"])) for line in csv.DictReader(file))
    return found


def once_each(numbers: set[int], rows: int = 3) -> Counter[tuple[int, int]]:
    return Counter((number, row) for number in numbers for row in range(rows))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=40), st.integers(0, 40))
def test_any_interleaving_of_repeats_and_reordering_changes_nothing(arrivals: list[int], restart_at: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        wanted = settings_for(Path(folder))
        for part in (arrivals[:restart_at], arrivals[restart_at:]):
            with serving(wanted) as client:
                for number in part:
                    headers = {"Gpumon-Batch": f"node/boot/{number}"}
                    client.post(PATH, json=batch_of(number), headers=headers).raise_for_status()
                answered = client.post("/api/gpu/statistics").json()["data"]["samples"]
        assert stored(Path(folder)) == once_each(set(arrivals))
        assert answered == len(set(arrivals)) * 3


def test_the_same_batch_from_many_connections_at_once_is_stored_once(serve: Serve, tmp_path: Path) -> None:
    client = serve()

    def send(number: int) -> bool:
        answer = client.post(PATH, json=batch_of(number), headers={"Gpumon-Batch": f"node/boot/{number}"})
        return "duplicate" in answer.raise_for_status().json()

    with ThreadPoolExecutor(16) as pool:
        duplicates = list(pool.map(send, [n for n in range(1, 11) for _ in range(8)]))
    assert duplicates.count(False) == 10
    assert stored(tmp_path / "data") == once_each(set(range(1, 11)))


@pytest.mark.timeout(300)
def test_after_kill_9_under_load_every_acknowledged_row_is_there_once(tmp_path: Path) -> None:
    rounds = int(os.environ.get("GPUMON_TEST_KILLS", "6"))
    chance = random.Random(7)
    port = free_port()
    server = processes.server(tmp_path, port)
    acknowledged: set[int] = set()
    numbers = iter(range(1, 10**9))
    lock = threading.Lock()
    pending: list[int] = []

    def sender(stop: threading.Event, enough: threading.Event, quota: int) -> None:
        with httpx.Client(timeout=10, trust_env=False) as client:
            while not stop.is_set():
                with lock:
                    number = pending.pop() if pending else next(numbers)
                try:
                    answer = client.post(
                        f"http://127.0.0.1:{port}{PATH}",
                        json=batch_of(number),
                        headers={"Gpumon-Batch": f"node/boot/{number}"},
                    )
                    answer.raise_for_status()
                except httpx.HTTPError:
                    with lock:
                        pending.append(number)
                    if stop.wait(0.01):
                        return
                    continue
                with lock:
                    acknowledged.add(number)
                    if len(acknowledged) >= quota:
                        enough.set()

    for _ in range(rounds):
        server.start()
        stop, enough = threading.Event(), threading.Event()
        quota = len(acknowledged) + chance.randrange(20, 200)
        with ThreadPoolExecutor(4) as pool:
            for _ in range(4):
                pool.submit(sender, stop, enough, quota)
            assert enough.wait(60)
            server.end(signal.SIGKILL)
            stop.set()

    server.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:
        while pending:
            number = pending.pop()
            headers = {"Gpumon-Batch": f"node/boot/{number}"}
            client.post(PATH, json=batch_of(number), headers=headers).raise_for_status()
            acknowledged.add(number)
        answered = client.post("/api/gpu/statistics").json()["data"]["samples"]
    server.end(signal.SIGTERM)
    assert stored(tmp_path) == once_each(acknowledged)
    assert answered == 3 * len(acknowledged)
    with contextlib.suppress(FileNotFoundError):
        left = {path.name for path in (tmp_path / ".gpumon").iterdir()}
        assert left <= {"commits.log", "store.duckdb", "quarantine", "tmp", "reserve"}
