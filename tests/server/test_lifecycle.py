"""Start and stop: in order, with nothing lost and nothing left behind."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.samples import sample
from tests.server.conftest import serving, settings_for


def descriptors() -> list[str]:
    """What this process has open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except OSError:
            continue  # the listing's own
    return sorted(found)


def test_50_starts_and_stops_leave_no_thread_and_no_descriptor_behind(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "data")

    def once() -> None:
        with serving(settings) as client:
            client.post("/api/receive-data", json=sample()).raise_for_status()
            client.post("/api/gpu/statistics").raise_for_status()

    once()
    gc.collect()
    threads, files = {thread.name for thread in threading.enumerate()}, descriptors()
    for _ in range(50):
        once()
    gc.collect()
    assert {thread.name for thread in threading.enumerate()} == threads
    assert len(descriptors()) <= len(files), set(descriptors()) - set(files)


def test_a_stop_under_load_answers_what_it_took_and_loses_none_of_it(tmp_path: Path) -> None:
    acknowledged: list[int] = []
    enough = threading.Event()

    def send(port: int, worker: int) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as client:
            for number in range(10_000):
                row = sample(gpu_id=worker, memory_used=number)
                try:
                    answer = client.post("/api/receive-data", json=row)
                except httpx.HTTPError:
                    return
                if answer.status_code != 200:
                    return
                acknowledged.append(number)
                if len(acknowledged) > 100:
                    enough.set()

    with ThreadPoolExecutor(6) as pool, serving(settings_for(tmp_path / "data")) as client:
        for worker in range(6):
            pool.submit(send, client.base_url.port or 0, worker)
        assert enough.wait(30)
    stored = sum(path.read_bytes().count(b"\n") - 1 for path in (tmp_path / "data").glob("*.csv"))
    assert stored >= len(acknowledged)
    assert stored <= len(acknowledged) + 6, "at most the answer under way of each sender was lost with its line"
