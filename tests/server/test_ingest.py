"""The queue in front of the disk: groups, bounds, and when the disk is asked to sync."""

from __future__ import annotations

import asyncio
import csv
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from gpumon.errors import StorageBusy, StorageError
from gpumon.model.sample import BatchId
from gpumon.server import parts
from gpumon.server.accept import Accepted
from gpumon.server.api.receive import PATH, DirectRoute
from gpumon.server.csvlog import CsvLog, render
from gpumon.server.ingest import Ingest
from gpumon.server.journal import Journal
from gpumon.server.serve import ServerProcess
from tests.processes import until
from tests.samples import full_sample, pod, sample
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


def test_work_on_the_files_has_its_turn_also_when_there_is_always_a_next_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []

    async def send(ingest: Ingest) -> None:
        append, waiting = ingest._csvlog.append, []

        def append_and_send_another(*of: Any) -> None:
            append(*of)
            if ingest.groups < 50:
                added = threading.Event()

                def add() -> None:
                    waiting.append(asyncio.ensure_future(ingest.submit(one(), None)))
                    loop.call_soon(added.set)

                loop.call_soon_threadsafe(add)
                added.wait(20)

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(ingest._csvlog, "append", append_and_send_another)
        with writer_held(ingest):
            waiting.append(asyncio.ensure_future(ingest.submit(one(), None)))
            await asyncio.sleep(0)
            work = threading.Thread(target=ingest.between_writes, args=(lambda: turns.append(ingest.groups),))
            work.start()
            assert until(lambda: len(ingest._works) == 1)
        for sent in waiting:  # each has another one sent
            await sent
        work.join(20)

    with ingest_on(tmp_path) as ingest:
        asyncio.run(send(ingest))
    assert turns == [1]


def test_a_batch_that_was_stored_before_says_nothing_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    async def send(ingest: Ingest) -> None:
        first = BatchId("node-1", "boot", 1)
        assert await ingest.submit(one(), first)
        monkeypatch.setattr(ingest._csvlog, "append", full)
        with pytest.raises(StorageError, match="full"):
            await ingest.submit(one(), BatchId("node-1", "boot", 2))
        assert not await ingest.submit(one(), first)

    with ingest_on(tmp_path) as ingest:
        asyncio.run(send(ingest))
        assert ingest.trouble == "the disk is full"


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


def test_who_reads_the_committed_lengths_sees_all_files_of_a_commit_or_none(tmp_path: Path) -> None:
    """Both files grow by the same in each commit, so that half of one would show."""
    journal = Journal(tmp_path / ".gpumon" / "commits.log", 1e10)
    log = CsvLog(tmp_path, NAMES, journal, sync_each_commit=False)
    log.open()
    one_day, next_day = "gpu_metrics_20261124.csv", "gpu_metrics_20261125.csv"
    seen: list[dict[str, int]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            seen.append(log.committed_sizes())

    watcher = threading.Thread(target=watch)
    rows = accepted_of(sample(), sample(timestamp="2026-11-25 12:00:00")).rows
    log.append(rows, [])
    watcher.start()
    for _ in range(300):
        log.append(rows, [])
    ended.set()
    watcher.join(20)
    last = log.committed_sizes()
    log.close()
    assert last == {name: (tmp_path / name).stat().st_size for name in (one_day, next_day)}
    assert len({sizes[one_day] for sizes in seen}) > 1, "it looked while commits were made"
    assert all(sizes[one_day] == sizes[next_day] for sizes in seen)


def test_lengths_that_were_read_do_not_change_any_more(tmp_path: Path) -> None:
    journal = Journal(tmp_path / ".gpumon" / "commits.log", 1e10)
    log = CsvLog(tmp_path, NAMES, journal)
    log.open()
    log.append(accepted_of(sample()).rows, [])
    before = log.committed_sizes()
    kept = dict(before)
    log.append(accepted_of(sample()).rows, [])
    assert before == kept
    assert log.committed_sizes() != kept
    before.clear()
    assert log.committed("gpu_metrics_20261124.csv") == log.committed_sizes()["gpu_metrics_20261124.csv"]
    log.close()


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "a,b",
        'say "hi"',
        "back\\slash",
        "null",
        "x,null",
        "],[",
        "nullable",
        "[null",
        "雪",
        "\x7f",
        "a;b'c",
    ],
)
def test_lines_are_those_of_the_csv_module_whatever_stands_in_a_cell(text: str) -> None:
    rows = [
        ("2026-11-24 12:00:00", 0, text, None, 1.5, 0.1, "", None),
        ("2026-11-24 12:00:00", 2**62, None, 87.0, -0.0, 64.39999999999999, "x", "true"),
    ]
    for some in (rows, rows[:1], rows[1:], []):
        expected = io.StringIO(newline="")
        csv.writer(expected, lineterminator="\n").writerows(some)
        assert render(some) == expected.getvalue().encode()


def test_a_text_that_was_good_once_does_not_let_a_bad_neighbour_in() -> None:
    good = {"gpu_uuid": "GPU-1", "node": "a"}
    assert accepted_of(full_sample(**good), full_sample(**good)).samples == 2
    mixed = accepted_of(full_sample(**good), full_sample(gpu_uuid="GPU-1", node="=1+1"), full_sample(**good))
    assert (mixed.samples, mixed.faults.failed) == (2, 1)
    assert mixed.faults.found[0].loc == ["node"]
    pods = [pod(), pod(container="-x"), pod(container="y")]
    taken = accepted_of(full_sample(pods=pods), full_sample(pods=pods))
    assert (taken.samples, taken.faults.left_out, len(taken.rows)) == (2, 2, 6)


def test_what_the_shortcut_to_the_endpoint_can_not_answer_gets_the_envelope_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a bare DirectRoute, so that nothing is answered by the route behind it."""

    async def nobody(*_: Any) -> None:
        raise AssertionError("the route behind was asked")

    server = ServerProcess(settings_for(tmp_path / "data"))
    door = DirectRoute(nobody)
    app = server.app

    async def ask(*headers: tuple[bytes, bytes], body: bytes | None = b"[]") -> tuple[int, dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"} if body is None else {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": PATH, "headers": list(headers), "app": app}
        await door(scope, receive, send)
        assert scope["route"].path == PATH, "the metrics name the route"
        return sent[0]["status"], msgspec.json.decode(sent[1]["body"])

    async def go() -> None:
        good = msgspec.json.encode([sample()])
        for headers, body, status in (
            ([(b"content-type", b"text/csv")], good, 415),
            ([(b"content-encoding", b"br")], good, 415),
            ([(b"content-encoding", b"gzip")], good, 400),
            ([(b"gpumon-batch", b"no id")], good, 400),
            ([], b"[]", 422),
            ([], None, 400),
            ([], good, 503),  # the folder is not open: this server was never started
        ):
            found, answer = await ask(*headers, body=body)
            assert (found, answer["success"]) == (status, False), (headers, answer)
        monkeypatch.setattr("gpumon.server.accept.Acceptor.accept", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):  # for the layer that logs faults of ours and answers 500
            await ask(body=good)

    asyncio.run(go())
