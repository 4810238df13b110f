"""The queue in front of the disk: groups, bounds, and when the disk is asked to sync."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpumon.errors import StorageBusy, StorageError
from gpumon.server import parts
from gpumon.server.accept import Accepted
from gpumon.server.csvlog import CsvLog
from gpumon.server.ingest import Ingest
from gpumon.server.journal import Journal
from gpumon.server.serve import ServerProcess
from tests.processes import until
from tests.samples import sample
from tests.server.conftest import settings_for
from tests.server.test_csvlog import NAMES, accepted_of


@contextmanager
def ingest_on(folder: Path, **options: Any) -> Iterator[Ingest]:
    defaults = {"group_rows": 1, "group_delay_seconds": 0.0, "max_batches": 1000, "sync_interval_seconds": 0.0}
    chosen = defaults | options
    journal = Journal(folder / ".gpumon" / "commits.log", 1e10)
    log = CsvLog(folder, NAMES, journal, sync_each_commit=chosen["sync_interval_seconds"] == 0)
    log.open()
    ingest = Ingest(log, journal, **chosen)
    ingest.start()
    try:
        yield ingest
    finally:
        ingest.stop()
        log.close()


@contextmanager
def writer_held(ingest: Ingest) -> Iterator[None]:
    """The writer is busy for as long as the block lasts."""
    begun, done = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        done.wait(20)

    holder = threading.Thread(target=ingest.between_writes, args=(hold,))
    holder.start()
    assert begun.wait(20)
    try:
        yield
    finally:
        done.set()
        holder.join(20)


def one(number: int = 0) -> Accepted:
    return accepted_of(sample(memory_used=number))


def test_batches_that_wait_become_one_group_with_one_sync(tmp_path: Path) -> None:
    async def send(ingest: Ingest) -> None:
        with writer_held(ingest):
            waiting = [asyncio.ensure_future(ingest.submit(one(n), None)) for n in range(30)]
            await asyncio.sleep(0)
            assert ingest.waiting == (30, 30)
        assert await asyncio.gather(*waiting) == [True] * 30

    with ingest_on(tmp_path) as ingest:
        asyncio.run(send(ingest))
        assert (ingest.groups, ingest.rows_stored, ingest.waiting) == (1, 30, (0, 0))


def test_a_further_batch_is_refused_when_buffer_size_wait_and_taken_later(tmp_path: Path) -> None:
    async def send(ingest: Ingest) -> None:
        with writer_held(ingest):
            waiting = [asyncio.ensure_future(ingest.submit(one(n), None)) for n in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(StorageBusy, match="buffer_size"):
                await ingest.submit(one(4), None)
        await asyncio.gather(*waiting)
        assert await ingest.submit(one(4), None)

    with ingest_on(tmp_path, max_batches=3) as ingest:
        asyncio.run(send(ingest))
        assert ingest.rows_stored == 4


def test_a_full_buffer_is_429_with_retry_after_over_http(tmp_path: Path) -> None:
    server = ServerProcess(settings_for(tmp_path, performance={"buffer_size": 1}))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.listening.wait(20)
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=20, trust_env=False) as client:
            client.get("/ready").raise_for_status()
            ingest = server.app.state.gpumon.engine.ingest
            with writer_held(ingest):
                first = threading.Thread(
                    target=client.post, args=("/api/receive-data",), kwargs={"json": sample()}
                )
                first.start()
                assert until(lambda: ingest.waiting == (1, 1))
                refused = client.post("/api/receive-data", json=sample())
            first.join(20)
        assert (refused.status_code, refused.json()["error_code"]) == (429, "HTTP_429")
        assert int(refused.headers["retry-after"]) >= 1
    finally:
        server.stop()
        thread.join(20)


def test_fewer_rows_than_batch_write_size_wait_for_company_up_to_the_delay(tmp_path: Path) -> None:
    async def send(ingest: Ingest) -> None:
        await asyncio.gather(*(ingest.submit(one(n), None) for n in range(5)))

    with ingest_on(tmp_path, group_rows=5, group_delay_seconds=20.0) as ingest:
        asyncio.run(send(ingest))  # the fifth row ends the wait: far sooner than after 20 s
        assert ingest.groups == 1


@pytest.mark.parametrize(("interval", "synced_at_once"), [(0.0, True), (3600.0, False)])
def test_file_sync_interval_0_syncs_before_the_answer_and_more_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: float, synced_at_once: bool
) -> None:
    synced: list[str] = []
    real = parts.sync_file

    def counted(file: Any) -> None:
        synced.append(file.name)
        real(file)

    monkeypatch.setattr(parts, "sync_file", counted)
    with ingest_on(tmp_path, sync_interval_seconds=interval) as ingest:
        assert asyncio.run(ingest.submit(one(), None))
        assert bool(synced) is synced_at_once
    assert synced, "at a stop everything is synced"


def test_with_an_interval_the_files_are_synced_by_and_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = threading.Event()
    monkeypatch.setattr(parts, "sync_file", lambda _: synced.set())
    with ingest_on(tmp_path, sync_interval_seconds=0.05) as ingest:
        assert asyncio.run(ingest.submit(one(), None))
        assert synced.wait(20)


def test_after_the_stop_nothing_more_is_taken(tmp_path: Path) -> None:
    with ingest_on(tmp_path) as ingest:
        pass
    with pytest.raises(StorageError, match="stopping"):
        asyncio.run(ingest.submit(one(), None))


def test_a_group_that_fails_is_refused_whole_and_said_and_the_next_one_heals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def both(ingest: Ingest) -> list[Any]:
        with writer_held(ingest):
            waiting = [asyncio.ensure_future(ingest.submit(one(n), None)) for n in range(2)]
            await asyncio.sleep(0)
        return await asyncio.gather(*waiting, return_exceptions=True)

    def broken(_: Any) -> None:
        raise OSError(5, "Input/output error")

    with ingest_on(tmp_path) as ingest:
        with monkeypatch.context() as patch:
            patch.setattr(parts, "sync_file", broken)
            assert [type(result) for result in asyncio.run(both(ingest))] == [StorageError, StorageError]
            assert ingest.trouble is not None and "Input/output error" in ingest.trouble
        assert asyncio.run(both(ingest)) == [True, True]
        assert ingest.trouble is None
    assert ingest.rows_stored == 2
    assert (tmp_path / "gpu_metrics_20261124.csv").read_bytes().count(b"\n") == 3
