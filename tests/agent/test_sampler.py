"""The pace of sampling, and what becomes of it when GPUs or NVML fail."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from gpumon.agent.counts import SamplerCounts
from gpumon.agent.ports import Reading
from gpumon.agent.sampler import Sampler
from gpumon.errors import GpuLost, NvmlUnavailable
from gpumon.model.sample import GpuSample
from tests.agent.doors import PATIENCE_SECONDS, FakeLibrary, Hang, Times, Until, gpu


class Bench:
    """A sampler over a fake library, on a clock that moves when it waits. `samples` is what it emitted."""

    def __init__(self, library: FakeLibrary, times: Times, **settings: Any) -> None:
        self.samples: list[Reading] = []
        self.counts = SamplerCounts()
        self.emit: Callable[[Reading], None] = lambda sample: None
        given: dict[str, Any] = {
            "labels": {"client_name": "node-1", "node": None},
            "interval_seconds": 1.0,
            "call_timeout_seconds": 5.0,
            "nvml_retry_seconds": 10.0,
            "now": times.now,
            "monotonic": times.monotonic,
        }
        self.sampler = Sampler(library, self._take, self.counts, **(given | settings))

    def _take(self, sample: Reading) -> None:
        self.samples.append(sample)
        self.emit(sample)

    def of(self, index: int, field: str = "state") -> list[Any]:
        return [sample.get(field) for sample in self.samples if sample["gpu_id"] == index]


def test_a_sample_is_what_the_wire_format_expects() -> None:
    times = Times()
    library = FakeLibrary(gpu(3, pci_bus_id="00000000:1A:00.0"), times=times)
    library.answers[3] = {"power_draw": 70.5, "memory_used": 1024, "fan_speed": None}
    bench = Bench(library, times, labels={"client_name": "node-1", "node": "worker-1"})

    bench.sampler.run(Until(times, 0.5))

    assert bench.samples == [
        {
            "timestamp": "2026-11-24T12:00:00.000Z",
            "sampled_at": "2026-11-24T12:00:00.000Z",
            "interval_seconds": 1.0,
            "gpu_id": 3,
            "gpu_name": "NVIDIA L4",
            "gpu_uuid": "GPU-3",
            "pci_bus_id": "00000000:1A:00.0",
            "client_name": "node-1",
            "node": "worker-1",
            "state": "ok",
            "power_draw": 70.5,
            "memory_used": 1024,
        }
    ]
    msgspec.convert(bench.samples, list[GpuSample])


def test_every_gpu_is_sampled_at_every_tick() -> None:
    times = Times()
    bench = Bench(FakeLibrary(gpu(0), gpu(1), times=times), times)

    states = []
    bench.sampler.run(Until(times, 2.5, {2.2: lambda: states.append(bench.counts.gpus_by_state)}))

    at = ["2026-11-24T12:00:00.000Z", "2026-11-24T12:00:01.000Z", "2026-11-24T12:00:02.000Z"]
    assert (bench.of(0, "sampled_at"), bench.of(1, "sampled_at")) == (at, at)
    assert bench.counts.samples == 6
    assert states == [{"ok": 2}]


def test_missed_ticks_are_skipped_and_counted_and_the_schedule_is_kept() -> None:
    times = Times()
    bench = Bench(FakeLibrary(gpu(), times=times), times)
    delays = iter([3.25])

    def delay(sample: Reading) -> None:
        times.seconds += next(delays, 0.0)

    bench.emit = delay
    bench.sampler.run(Until(times, 5.5))

    assert [text[17:23] for text in bench.of(0, "sampled_at")] == ["00.000", "03.250", "04.000", "05.000"]
    assert bench.of(0, "interval_seconds") == [1.0, 3.25, 0.75, 1.0]
    assert bench.counts.skipped_ticks == 2


def test_a_lost_gpu_is_lost_and_the_others_go_on_until_it_is_found_again() -> None:
    times = Times()
    library = FakeLibrary(gpu(0), gpu(1), times=times)
    library.answers[0] = GpuLost("fell off the bus")
    bench = Bench(library, times)
    stop = Until(times, plan={5.0: library.answers.clear})

    def watch(sample: Reading) -> None:
        if sample["gpu_id"] == 0 and times.seconds == 10.0:
            assert library.looked.acquire(timeout=PATIENCE_SECONDS)
        if sample["gpu_id"] == 0 and sample["state"] == "ok":
            stop.set()

    bench.emit = watch
    bench.sampler.run(stop)

    assert library.looked_at == [10.0]
    assert bench.of(0) == ["lost"] * (len(bench.of(0)) - 1) + ["ok"]
    assert bench.of(0, "power_draw")[0] is None
    assert set(bench.of(1)) == {"ok"}


def test_a_lost_gpu_is_looked_for_no_more_often_than_every_retry_interval() -> None:
    times = Times()
    library = FakeLibrary(gpu(0), gpu(1), times=times)
    library.answers[0] = GpuLost("fell off the bus")
    library.found = False
    bench = Bench(library, times)

    def watch(sample: Reading) -> None:
        if sample["gpu_id"] == 0 and times.seconds in {10.0, 20.0, 30.0}:
            assert library.looked.acquire(timeout=PATIENCE_SECONDS)

    bench.emit = watch
    bench.sampler.run(Until(times, 35.0))

    assert library.looked_at == [10.0, 20.0, 30.0]


def test_while_a_gpu_stays_lost_nvml_is_opened_anew_at_most_every_five_minutes() -> None:
    times = Times()
    library = FakeLibrary(gpu(0), gpu(1), times=times)
    library.answers[0] = GpuLost("fell off the bus")
    library.found = False
    bench = Bench(library, times)
    stop = Until(times)
    bench.emit = lambda sample: stop.set() if len(library.opened_at) == 3 else None

    bench.sampler.run(stop)

    first, second, third = library.opened_at
    assert second - first >= 300
    assert third - second >= 300


def test_nvml_that_is_gone_when_a_lost_gpu_is_looked_for_is_opened_again() -> None:
    times = Times()
    library = FakeLibrary(gpu(0), gpu(1), times=times)
    library.answers[0] = GpuLost("fell off the bus")
    library.found = NvmlUnavailable("driver not loaded")
    bench = Bench(library, times)
    stop = Until(times, end=250.0)  # before a GPU that stays lost is a reason for it
    bench.emit = lambda sample: stop.set() if len(library.opened_at) == 2 else None

    bench.sampler.run(stop)

    assert len(library.opened_at) == 2


def test_on_a_node_without_gpus_nvml_is_opened_anew_every_five_minutes() -> None:
    times = Times()
    library = FakeLibrary(times=times)
    bench = Bench(library, times)

    bench.sampler.run(Until(times, 650.0))

    assert library.opened_at == [0.0, 300.0, 600.0]
    assert bench.counts.nvml_opens == 3


def test_a_gpu_that_nvml_lists_no_more_stays_lost() -> None:
    times = Times()
    library = FakeLibrary(gpu(0), gpu(1), times=times)
    library.found = False
    bench = Bench(library, times)

    def driver_reloads() -> None:
        library.gpus = [gpu(1)]
        library.answers.update({0: GpuLost("not there"), 1: NvmlUnavailable("driver reloads")})

    bench.sampler.run(Until(times, 13.5, {1.5: driver_reloads, 5.0: library.answers.clear}))

    assert bench.of(0)[-3:] == ["lost"] * 3
    assert bench.of(1)[-3:] == ["ok"] * 3


def test_without_nvml_there_are_no_samples_and_it_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    times = Times()
    library = FakeLibrary(gpu(), times=times)
    library.open_error = NvmlUnavailable("no driver; looked in libnvidia-ml.so.1")
    bench = Bench(library, times)
    seen = []

    def driver_comes() -> None:
        seen.append((len(bench.samples), bench.counts.nvml_trouble))
        library.open_error = None

    with caplog.at_level(logging.INFO):
        bench.sampler.run(Until(times, 31.5, {25.0: driver_comes}))

    assert seen == [(0, "no driver; looked in libnvidia-ml.so.1")]
    assert library.opened_at == [0.0, 10.0, 20.0, 30.0]
    assert bench.of(0, "sampled_at") == ["2026-11-24T12:00:30.000Z", "2026-11-24T12:00:31.000Z"]
    assert bench.counts.nvml_trouble is None
    logged = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("trouble nvml") for line in logged) == 1
    assert sum(line.startswith("recovered nvml") for line in logged) == 1


def test_nvml_that_goes_away_is_closed_and_opened_again_and_no_sample_stands_for_the_gap() -> None:
    times = Times()
    library = FakeLibrary(gpu(), times=times)
    bench = Bench(library, times)

    def goes() -> None:
        library.answers[0] = NvmlUnavailable("driver not loaded")
        library.open_error = NvmlUnavailable("driver not loaded")

    def comes() -> None:
        library.answers.clear()
        library.open_error = None

    bench.sampler.run(Until(times, 31.5, {2.5: goes, 25.0: comes}))

    assert library.opened_at == [0.0, 10.0, 20.0, 30.0]
    assert bench.of(0, "interval_seconds") == [1.0] * 5
    assert set(bench.of(0)) == {"ok"}


def test_nvml_that_opens_but_does_not_read_is_opened_once_per_retry_interval() -> None:
    times = Times()
    library = FakeLibrary(gpu(), times=times)
    library.answers[0] = NvmlUnavailable("uninitialized")
    bench = Bench(library, times)

    bench.sampler.run(Until(times, 25.0))

    assert library.opened_at == [0.0, 10.0, 20.0]
    assert bench.counts.nvml_trouble == "uninitialized"
    assert bench.samples == []


def test_a_bug_in_reading_makes_the_gpu_unknown_and_nothing_else() -> None:
    times = Times()
    library = FakeLibrary(gpu(0), gpu(1), times=times)
    library.answers[0] = TypeError("not a number")
    bench = Bench(library, times)

    bench.sampler.run(Until(times, 1.5))

    assert (bench.of(0), bench.of(1)) == (["unknown"] * 2, ["ok"] * 2)
    assert bench.counts.failed_reads == 2


class Live:
    """A sampler on the real clock in a thread of its own; what it emits comes through a queue."""

    def __init__(self, library: FakeLibrary, *, interval: float, call_timeout: float) -> None:
        self.emitted: queue.Queue[Reading] = queue.Queue()
        self.counts = SamplerCounts()
        self.stop = threading.Event()
        sampler = Sampler(
            library,
            self.emitted.put,
            self.counts,
            labels={"client_name": "node-1"},
            interval_seconds=interval,
            call_timeout_seconds=call_timeout,
            nvml_retry_seconds=10.0,
        )
        self.thread = threading.Thread(target=sampler.run, args=(self.stop,))

    def __enter__(self) -> Live:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(PATIENCE_SECONDS)
        assert not self.thread.is_alive()

    def take_until(self, done: Callable[[Reading], bool]) -> list[Reading]:
        taken = []
        while True:
            taken.append(self.emitted.get(timeout=PATIENCE_SECONDS))
            if done(taken[-1]):
                return taken


def test_a_gpu_that_hangs_is_unknown_and_the_others_are_not_kept_waiting() -> None:
    library = FakeLibrary(gpu(0), gpu(1))
    hang = library.answers[0] = Hang({"power_draw": 666.0})
    with Live(library, interval=0.2, call_timeout=0.1) as live:
        first_tick = live.take_until(lambda sample: sample["gpu_id"] == 0)
        while_hung = live.take_until(lambda sample: library.reads.count(1) >= 6)
        assert library.reads.count(0) == 1
        library.answers[0] = {"power_draw": 70.5}
        hang.released.set()
        live.take_until(lambda sample: sample["gpu_id"] == 0 and sample["state"] == "ok")
        after = live.take_until(lambda sample: library.reads.count(0) >= 4)

    assert [(sample["gpu_id"], sample["state"]) for sample in first_tick] == [(1, "ok"), (0, "unknown")]
    assert {(sample["gpu_id"], sample["state"]) for sample in while_hung} == {(0, "unknown"), (1, "ok")}
    assert {sample.get("power_draw") for sample in after} == {70.5}
    assert live.counts.late_reads == 1


def test_an_answer_that_comes_late_into_another_tick_is_thrown_away() -> None:
    library = FakeLibrary(gpu(0), gpu(1))
    late = library.answers[0] = Hang({"power_draw": 666.0})
    with Live(library, interval=0.5, call_timeout=600.0) as live:
        live.take_until(lambda sample: sample["gpu_id"] == 0 and sample["state"] == "unknown")
        library.answers[0] = {"power_draw": 70.5}
        other = library.answers[1] = Hang({})
        assert other.entered.wait(PATIENCE_SECONDS)  # a tick is waiting for GPU 1
        late.released.set()
        taken = live.take_until(lambda sample: sample["gpu_id"] == 0 and sample["state"] == "ok")
        other.released.set()

    assert taken[-1]["power_draw"] == 70.5


def test_a_call_timeout_above_the_interval_does_not_make_ticks_late() -> None:
    library = FakeLibrary(gpu(0), gpu(1))
    hang = library.answers[0] = Hang({})
    with Live(library, interval=0.2, call_timeout=600.0) as live:
        live.take_until(lambda sample: sample["gpu_id"] == 0 and sample["state"] == "unknown")
        live.take_until(lambda sample: library.reads.count(1) >= 3)
        hang.released.set()


def test_a_stop_does_not_wait_for_a_call_that_hangs_and_leaves_nvml_open_under_it() -> None:
    library = FakeLibrary(gpu(0))
    hang = library.answers[0] = Hang({})
    with Live(library, interval=3600.0, call_timeout=600.0):
        assert hang.entered.wait(PATIENCE_SECONDS)
    assert library.is_open
    hang.released.set()


def test_a_stop_ends_every_thread_and_closes_nvml() -> None:
    before = set(threading.enumerate())
    library = FakeLibrary(gpu(0), gpu(1))
    with Live(library, interval=3600.0, call_timeout=1.0) as live:
        live.take_until(lambda sample: live.counts.samples == 2)
    assert set(threading.enumerate()) <= before
    assert not library.is_open
