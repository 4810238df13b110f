"""The queue of batches: its order, its bounds, and what outlives what."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumon.agent.counts import BatcherCounts, DeliveryCounts, SpoolCounts
from gpumon.agent.ports import Batch, Outcome
from gpumon.agent.shipping import batchfiles
from gpumon.agent.shipping.batcher import Batcher, agent_name
from gpumon.agent.shipping.batchfiles import BatchFiles
from gpumon.agent.shipping.delivery import Delivery
from gpumon.agent.shipping.spool import Spool
from gpumon.agent.shipping.spooldisk import SpoolDisk
from gpumon.tasks import Task
from tests.agent.doors import NOON, PATIENCE_SECONDS, Times, Until, batch

NOW = threading.Event()
NOW.set()
"""A stop event for `head`: it waits for nothing."""


def open_spool(
    folder: Path | None,
    *,
    memory_bytes: int = 1000,
    disk_bytes: int = 100_000,
    times: Times | None = None,
    counts: SpoolCounts | None = None,
) -> Spool:
    times, counts = times or Times(), counts or SpoolCounts()
    files = None if folder is None else BatchFiles(folder, now=times.now)
    disk = SpoolDisk(files, counts, limit_bytes=disk_bytes, monotonic=times.monotonic)
    spool = Spool(disk, counts, memory_bytes=memory_bytes, monotonic=times.monotonic)
    spool.open()
    return spool


def take_all(spool: Spool) -> list[Batch]:
    taken = []
    while (head := spool.head(NOW)) is not None:
        taken.append(head)
        spool.delivered()
    return taken


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.batch"))


def test_batches_pass_through_memory_and_touch_no_disk(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.put(batch(1))
    spool.put(batch(2))

    assert files_in(tmp_path) == []
    assert take_all(spool) == [batch(1), batch(2)]


def test_what_memory_does_not_hold_goes_to_disk_in_order(tmp_path: Path) -> None:
    counts = SpoolCounts()
    spool = open_spool(tmp_path, memory_bytes=250, counts=counts)
    put = [batch(sequence, body=b"x" * 100) for sequence in range(1, 6)]
    for each in put:
        spool.put(each)

    assert (counts.memory_batches, counts.disk_batches) == (2, 3)
    assert take_all(spool) == put
    assert files_in(tmp_path) == []


def test_once_a_delivery_fails_a_kill_loses_nothing(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.put(batch(1))
    spool.put(batch(2))
    assert spool.head(NOW) == batch(1)
    spool.not_delivered()
    spool.put(batch(3))

    after_the_kill = open_spool(tmp_path)

    assert take_all(after_the_kill) == [batch(1), batch(2), batch(3)]


def test_a_kill_while_the_server_catches_up_loses_nothing(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.put(batch(1))
    spool.put(batch(2))
    spool.head(NOW)
    spool.not_delivered()
    spool.head(NOW)
    spool.delivered()
    spool.put(batch(3))

    assert take_all(open_spool(tmp_path)) == [batch(2), batch(3)]


def test_what_an_earlier_run_left_keeps_new_batches_on_disk_behind_it(tmp_path: Path) -> None:
    first = open_spool(tmp_path)
    first.put(batch(1))
    first.close()
    open_spool(tmp_path).put(batch(1, boot="boot2"))

    assert take_all(open_spool(tmp_path)) == [batch(1), batch(1, boot="boot2")]


def test_once_all_is_delivered_new_batches_stay_in_memory_again(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.put(batch(1))
    spool.head(NOW)
    spool.not_delivered()
    spool.head(NOW)
    spool.delivered()
    spool.put(batch(2))

    assert files_in(tmp_path) == []


def test_a_close_writes_what_is_left_and_the_next_run_takes_it_first_with_its_ids(tmp_path: Path) -> None:
    first = open_spool(tmp_path)
    first.put(batch(1, boot="a-1"))
    first.put(batch(2, boot="a-1"))
    first.close()

    second = open_spool(tmp_path)
    second.put(batch(1, boot="b-2"))

    assert [str(each.id) for each in take_all(second)] == ["node-1/a-1/1", "node-1/a-1/2", "node-1/b-2/1"]


def test_a_batch_in_delivery_is_kept_by_a_close_and_a_late_outcome_changes_nothing(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.put(batch(1))
    spool.head(NOW)
    spool.close()
    spool.delivered()

    assert take_all(open_spool(tmp_path)) == [batch(1)]


def test_the_oldest_is_dropped_and_counted_but_never_the_one_in_delivery(
    caplog: pytest.LogCaptureFixture,
) -> None:
    times, counts = Times(), SpoolCounts()
    spool = open_spool(None, memory_bytes=300, times=times, counts=counts)
    put = [batch(sequence, body=b"x" * 100, samples=10) for sequence in range(1, 7)]
    for each in put[:3]:
        spool.put(each)
    assert spool.head(NOW) == put[0]

    with caplog.at_level(logging.INFO):
        spool.put(put[3])
        spool.put(put[4])
        spool.delivered()
        times.seconds += 61
        spool.put(put[5])

    assert take_all(spool) == [put[3], put[4], put[5]]
    assert (counts.dropped_batches, counts.dropped_samples) == (2, 20)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["trouble", "recovered"]


def test_a_batch_that_fits_nowhere_is_dropped_alone(tmp_path: Path) -> None:
    counts = SpoolCounts()
    spool = open_spool(tmp_path, memory_bytes=100, disk_bytes=600, counts=counts)
    spool.put(batch(1))
    spool.put(batch(2, body=b"x" * 800))

    assert take_all(spool) == [batch(1)]
    assert counts.dropped_batches == 1


def test_a_close_on_a_full_disk_keeps_the_newest(tmp_path: Path) -> None:
    counts = SpoolCounts()
    spool = open_spool(tmp_path, memory_bytes=100, disk_bytes=1000, counts=counts)
    put = [batch(sequence, body=b"x" * 100) for sequence in range(1, 4)]
    for each in put:
        spool.put(each)
    assert (counts.memory_batches, counts.disk_batches) == (1, 2)
    spool.close()

    assert counts.memory_batches == 0
    kept = take_all(open_spool(tmp_path))
    assert kept == put[-len(kept) :]
    assert len(kept) + counts.dropped_batches == 3


def test_a_limit_that_was_lowered_holds_from_the_start(tmp_path: Path) -> None:
    before = open_spool(tmp_path)
    for sequence in range(1, 9):
        before.put(batch(sequence, body=b"x" * 400))
    before.close()

    counts = SpoolCounts()
    spool = open_spool(tmp_path, disk_bytes=1500, counts=counts)

    assert counts.disk_bytes <= 1500
    assert take_all(spool)[-1].id.sequence == 8
    assert counts.dropped_batches == 5


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"),
        lambda path: path.write_bytes(b"\xff\x00 no batch\n[]"),
    ],
    ids=["empty", "cut short", "altered", "something else"],
)
def test_a_torn_file_is_set_aside_with_the_reason_and_blocks_nothing(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    before = open_spool(tmp_path)
    before.put(batch(1))
    before.put(batch(2))
    before.close()
    spoil(tmp_path / files_in(tmp_path)[0])

    counts = SpoolCounts()
    assert take_all(open_spool(tmp_path, counts=counts)) == [batch(2)]

    assert counts.quarantined_batches == 1
    (set_aside,) = (tmp_path / "quarantine").iterdir()
    assert "can't be read from the spool" in json.loads(set_aside.read_bytes())["reason"]
    assert files_in(tmp_path) == []


def test_a_file_that_vanishes_is_passed_over(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.put(batch(1))
    spool.put(batch(2))
    spool.head(NOW)
    spool.not_delivered()
    (tmp_path / files_in(tmp_path)[0]).unlink()

    assert take_all(spool) == [batch(2)]


def test_what_was_being_written_when_a_run_died_is_removed(tmp_path: Path) -> None:
    (tmp_path / "000000000001-1-boot1.batch.new").write_bytes(b"half a ba")

    assert take_all(open_spool(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_refused_batch_is_set_aside_with_the_servers_words(tmp_path: Path) -> None:
    counts = SpoolCounts()
    spool = open_spool(tmp_path, counts=counts)
    spool.put(batch(1, body=b'[{"gpu_id": -1}]', samples=1))
    spool.put(batch(2))
    spool.head(NOW)
    spool.refused("HTTP 422: gpu_id must not be negative")

    (set_aside,) = (tmp_path / "quarantine").iterdir()
    record = json.loads(set_aside.read_bytes())
    assert (record["batch"], record["reason"], record["body"], record["set_aside_at"]) == (
        "node-1/boot1/1",
        "HTTP 422: gpu_id must not be negative",
        '[{"gpu_id": -1}]',
        "2026-11-24T12:00:00.000Z",
    )
    assert counts.quarantined_batches == 1
    assert take_all(spool) == [batch(2)]


def test_what_is_set_aside_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchfiles, "QUARANTINE_FILES", 3)
    monkeypatch.setattr(batchfiles, "QUARANTINE_BYTES", 1000)
    files = BatchFiles(tmp_path)
    for sequence in range(1, 6):
        files.quarantine(f"{sequence}", "refused", batch(sequence))
    assert sorted(path.name for path in (tmp_path / "quarantine").iterdir()) == ["3.json", "4.json", "5.json"]

    files.quarantine("6", "refused", batch(6, body=b"x" * 800))

    assert sorted(path.name for path in (tmp_path / "quarantine").iterdir()) == ["6.json"]


def test_a_folder_that_cannot_be_written_is_said_once_and_tried_again_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / "spool"
    in_the_way.write_text("a file where the folder should be")
    times, counts = Times(), SpoolCounts()
    with caplog.at_level(logging.INFO):
        spool = open_spool(in_the_way, times=times, counts=counts)
        spool.put(batch(1))
        spool.head(NOW)
        spool.not_delivered()
        spool.put(batch(2))
        assert counts.disk_trouble is not None
        in_the_way.unlink()
        times.seconds += 61
        spool.put(batch(3))

    assert counts.disk_trouble is None
    assert counts.disk_batches == 1
    assert take_all(spool) == [batch(1), batch(2), batch(3)]
    spoken = [record.getMessage() for record in caplog.records]
    assert [line.split()[:2] for line in spoken] == [["trouble", "spool_disk"], ["recovered", "spool_disk"]]
    assert "do=" in spoken[0]


def test_while_the_disk_cannot_be_written_what_is_on_it_is_not_dropped(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    times, counts = Times(), SpoolCounts()
    spool = open_spool(folder, memory_bytes=200, times=times, counts=counts)
    put = [batch(sequence, body=b"x" * 100) for sequence in range(1, 8)]
    for each in put[:3]:
        spool.put(each)
    kept = tmp_path / "kept"
    folder.rename(kept)
    folder.write_text("in the way")
    for each in put[3:]:
        spool.put(each)
    folder.unlink()
    shutil.copytree(kept, folder)

    assert take_all(spool) == [put[2], put[5], put[6]]
    assert counts.dropped_batches == 4


def test_memory_only_loses_at_a_close_and_says_so() -> None:
    counts = SpoolCounts()
    spool = open_spool(None, counts=counts)
    spool.put(batch(1, samples=10))
    spool.close()
    spool.put(batch(2, samples=10))

    assert counts.dropped_samples == 20
    assert spool.head(NOW) is None


def test_head_waits_for_a_batch_and_ends_with_the_stop() -> None:
    spool, stop, heads = open_spool(None), threading.Event(), []

    def take() -> None:
        while (head := spool.head(stop)) is not None:
            heads.append(head)
            spool.delivered()
            if len(heads) == 2:
                stop.set()

    taker = threading.Thread(target=take)
    taker.start()
    spool.put(batch(1))
    spool.put(batch(2))
    taker.join(20)

    assert not taker.is_alive()
    assert heads == [batch(1), batch(2)]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 7)),
        st.tuples(st.sampled_from(["take", "deliver", "fail", "refuse", "restart", "kill"]), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=150)
@given(STEPS, st.booleans())
def test_whatever_happens_order_is_kept_and_only_what_is_counted_is_missing(
    steps: list[tuple[str, int]], with_disk: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) if with_disk else None
        counts = SpoolCounts()
        put, gone, killed, dropped = 0, [], 0, 0

        def start() -> Spool:
            return open_spool(folder, memory_bytes=500, disk_bytes=3000, counts=counts)

        spool = start()
        for step, size in steps:
            head = None
            if step == "put":
                put += 1
                spool.put(batch(put, body=b"x" * 100 * size))
            elif step in {"restart", "kill"}:
                if step == "restart":
                    spool.close()
                    assert counts.memory_batches == 0
                killed += counts.memory_batches
                dropped += counts.dropped_batches
                counts = SpoolCounts()
                spool = start()
            else:
                head = spool.head(NOW)
            if head is not None:
                assert not gone or head.id.sequence > gone[-1]
                if step == "deliver":
                    spool.delivered()
                elif step == "refuse":
                    spool.refused("422")
                elif step == "fail":
                    spool.not_delivered()
                if step in {"deliver", "refuse"}:
                    gone.append(head.id.sequence)
            assert counts.memory_bytes <= 500
            assert counts.disk_bytes <= 3000
            if folder is not None:
                assert counts.disk_bytes == sum((folder / each).stat().st_size for each in files_in(folder))
        gone += [each.id.sequence for each in take_all(spool)]

        assert gone == sorted(set(gone))
        assert put == len(gone) + dropped + counts.dropped_batches + killed
        assert (counts.memory_bytes, counts.disk_bytes) == (0, 0)


class Server:
    """A sink that is away between two instants; a try takes 10 ms, and half a second while it is away."""

    def __init__(self, times: Times, away: tuple[float, float]) -> None:
        self.times = times
        self.away = away
        self.taken: list[Batch] = []
        self.tries: list[float] = []

    def deliver(self, batch: Batch) -> Outcome:
        self.tries.append(self.times.seconds)
        if self.away[0] <= self.times.seconds < self.away[1]:
            self.times.seconds += 0.5
            return Outcome("retry", "connection refused")
        self.times.seconds += 0.01
        self.taken.append(batch)
        return Outcome("delivered")

    def close(self) -> None:
        pass


def test_ten_minutes_without_a_server_lose_nothing_and_keep_the_order(tmp_path: Path) -> None:
    times, counts, delivered = Times(), SpoolCounts(), DeliveryCounts()
    spool = open_spool(tmp_path, memory_bytes=20_000, disk_bytes=10**7, times=times, counts=counts)
    server = Server(times, away=(60.0, 660.0))
    on_disk, numbers = [], count()
    batcher = new_batcher(spool.put, times, size=8)

    def second() -> None:
        for index in range(8):
            batcher.add({"gpu_id": index, "number": next(numbers)})
        batcher.tick_over()
        batcher.turn()
        on_disk.append(counts.disk_batches)

    plan = {float(at): second for at in range(1, 801)}
    delivery = Delivery(
        spool,
        server,
        delivered,
        delay_seconds=5.0,
        backoff=2.0,
        growths=3,
        now=times.now,
        monotonic=times.monotonic,
        chance=lambda: 0.5,
    )
    stop = Until(times, plan=plan)
    while times.seconds < 800:
        stop.wait(1.0)
        if spool.waiting_samples():
            run_until_empty(delivery, spool, stop)
    batcher.flush()
    run_until_empty(delivery, spool, stop)

    samples = [sample for each in server.taken for sample in json.loads(each.body)]
    assert [sample["number"] for sample in samples] == list(range(800 * 8))
    assert [each.id.sequence for each in server.taken] == list(range(1, 801))
    assert max(on_disk) > 400
    assert (counts.dropped_batches, counts.disk_batches, files_in(tmp_path)) == (0, 0, [])
    assert delivered.samples == 6400
    assert delivered.retries == len([at for at in server.tries if 60 <= at < 660]) < 40
    assert delivered.delivered_at is not None
    assert delivered.delivered_at >= NOON.timestamp() + 800


def run_until_empty(delivery: Delivery, spool: Spool, stop: Until) -> None:
    """The delivery as it runs, till there is nothing left to deliver: `head` would wait for more for real."""

    class Empty(threading.Event):
        def is_set(self) -> bool:
            return not spool.waiting_samples()

        def wait(self, timeout: float | None = None) -> bool:
            return stop.wait(timeout)

    delivery.run(Empty())


def test_a_batch_is_closed_by_its_size_or_its_age_and_ids_count_up() -> None:
    times, closed = Times(), []
    batcher = new_batcher(closed.append, times, size=2)
    batcher.add({"gpu_id": 0})
    batcher.add({"gpu_id": 1, "power_draw": 70.5})
    batcher.tick_over()
    batcher.add({"gpu_id": 2})
    batcher.tick_over()
    times.seconds = 20.0
    assert batcher.turn() == 10.0
    assert len(closed) == 1
    times.seconds = 30.0
    assert batcher.turn() == 30.0
    assert len(closed) == 2
    batcher.add({"gpu_id": 3})
    batcher.flush()

    assert [(str(each.id), each.samples, each.body) for each in closed] == [
        ("node-1/b1/1", 2, b'[{"gpu_id":0},{"gpu_id":1,"power_draw":70.5}]'),
        ("node-1/b1/2", 1, b'[{"gpu_id":2}]'),
        ("node-1/b1/3", 1, b'[{"gpu_id":3}]'),
    ]


def test_samples_of_one_tick_are_not_parted() -> None:
    closed: list[Batch] = []
    batcher = new_batcher(closed.append, Times(), size=3)
    for _ in range(2):
        for index in range(2):
            batcher.add({"gpu_id": index})
        batcher.tick_over()
        batcher.turn()
    assert [each.samples for each in closed] == [4]


def test_a_disk_that_hangs_never_stops_the_sampler_and_what_waits_is_bounded_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    entered, released, taken = threading.Event(), threading.Event(), []
    counts = BatcherCounts()

    def put(batch: Batch) -> None:
        entered.set()
        assert released.wait(PATIENCE_SECONDS)
        taken.append(batch)

    batcher = new_batcher(put, Times(), size=1, waiting_bytes=40, counts=counts)
    batching = Task("batcher", batcher.run).start()
    batcher.add({"gpu_id": 0})
    batcher.tick_over()
    assert entered.wait(PATIENCE_SECONDS)
    with caplog.at_level(logging.INFO):
        for index in range(1, 6):  # of these, 14 bytes each, two fit
            batcher.add({"gpu_id": index})
            batcher.tick_over()
        assert (counts.dropped_batches, counts.dropped_samples) == (3, 3)
        batching.stopping.set()
        batcher.wake()
        released.set()
        assert batching.stop(PATIENCE_SECONDS)
    batcher.flush()

    assert [each.id.sequence for each in taken] == [1, 5, 6]
    assert [record.getMessage().split()[:2] for record in caplog.records] == [
        ["trouble", "batcher"],
        ["recovered", "batcher"],
    ]


def new_batcher(
    put: Callable[[Batch], None],
    times: Times,
    *,
    size: int,
    waiting_bytes: int = 10**6,
    counts: BatcherCounts | None = None,
) -> Batcher:
    return Batcher(
        put,
        counts or BatcherCounts(),
        agent="node-1",
        boot="b1",
        size=size,
        max_age_seconds=30.0,
        waiting_bytes=waiting_bytes,
        monotonic=times.monotonic,
    )


@pytest.mark.parametrize(
    ("client_name", "name"),
    [
        ("node-1.example", "node-1.example"),
        ("Büro PC/3", "B-ro-PC-3"),
        ("..", "agent"),
        ("../../etc", "-..-etc"),
        ("", "agent"),
    ],
)
def test_an_agents_name_is_safe_in_an_id_and_as_a_folder(client_name: str, name: str) -> None:
    assert agent_name(client_name) == name
