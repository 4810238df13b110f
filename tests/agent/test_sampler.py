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
from gpumon.agent.sampling.sampler import Sampler
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


def test_a_tick_is_over_after_all_its_samples() -> None:
    times = Times()
    taken: list[int] = []
    bench = Bench(
        FakeLibrary(gpu(0), gpu(1), times=times), times, tick_over=lambda: taken.append(len(bench.samples))
    )

    bench.sampler.run(Until(times, 2.5))

    assert taken == [2, 4, 6]


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

    assert [text[17:23] for text in bench.of(0, "sampled_at")] == ["00.000", "04.000", "05.000"]
    assert bench.of(0, "interval_seconds") == [1.0, 4.0, 1.0]
    assert bench.counts.skipped_ticks == 3


def test_a_tick_that_is_late_by_a_moment_is_skipped_too() -> None:
    times = Times()
    bench = Bench(FakeLibrary(gpu(), times=times), times)
    delays = iter([0.0, 1.002])

    def delay(sample: Reading) -> None:
        times.seconds += next(delays, 0.0)

    bench.emit = delay
    bench.sampler.run(Until(times, 4.5))

    assert [text[17:23] for text in bench.of(0, "sampled_at")] == ["00.000", "01.000", "03.000", "04.000"]
    assert bench.counts.skipped_ticks == 1


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


def test_a_gpu_in_whose_place_another_one_is_now_goes() -> None:
    times = Times()
    library = FakeLibrary(gpu(0, uuid="no-uuid-0"), gpu(1), times=times)
    library.found = False
    bench = Bench(library, times)

    def driver_reloads() -> None:
        library.gpus = [gpu(0), gpu(1)]
        library.answers[1] = NvmlUnavailable("driver reloads")

    states = []
    bench.sampler.run(
        Until(
            times,
            13.5,
            {
                1.5: driver_reloads,
                5.0: library.answers.clear,
                13.2: lambda: states.append(bench.counts.gpus_by_state),
            },
        )
    )

    assert bench.of(0, "gpu_uuid")[-2:] == ["GPU-0"] * 2
    assert states == [{"ok": 2}]


def test_a_gpu_that_is_lost_at_its_neighbours_renumbering_stays_to_be_seen() -> None:
    times = Times()
    library = FakeLibrary(gpu(0), gpu(1), times=times)
    library.found = False
    bench = Bench(library, times)

    def driver_reloads() -> None:
        library.gpus = [gpu(0, uuid="GPU-1")]
        library.answers[0] = NvmlUnavailable("driver reloads")

    states = []
    plan = {
        1.5: driver_reloads,
        5.0: library.answers.clear,
        13.2: lambda: states.append(bench.counts.gpus_by_state),
    }
    bench.sampler.run(Until(times, 13.5, plan))

    assert states == [{"ok": 1, "lost": 1}]


def test_a_gpu_that_was_left_out_at_opening_is_lost_and_comes_when_nvml_is_opened_anew() -> None:
    times = Times()
    library = FakeLibrary(gpu(0), times=times)
    library.left_out = [1]
    bench = Bench(library, times)

    def comes_back() -> None:
        library.gpus, library.left_out = [gpu(0), gpu(1)], []

    states = []
    plan = {
        1.5: lambda: states.append(bench.counts.gpus_by_state),
        2.5: comes_back,
        302.5: lambda: states.append(bench.counts.gpus_by_state),
    }
    bench.sampler.run(Until(times, 650.0, plan))

    assert states == [{"ok": 1, "lost": 1}, {"ok": 2}]
    assert library.opened_at == [0.0, 300.0]
    assert bench.of(0, "interval_seconds") == [1.0] * 650


def test_a_lost_gpu_that_is_left_out_when_nvml_is_opened_anew_is_counted_once() -> None:
    times = Times()
    library = FakeLibrary(gpu(0), gpu(1), times=times)
    library.answers[1] = GpuLost("fell off the bus")
    library.found = False
    bench = Bench(library, times)

    def can_not_be_addressed() -> None:
        library.gpus, library.left_out = [gpu(0)], [1]

    states = []
    plan = {1.5: can_not_be_addressed, 320.0: lambda: states.append(bench.counts.gpus_by_state)}
    bench.sampler.run(Until(times, 321.0, plan))

    assert len(library.opened_at) == 2
    assert states == [{"ok": 1, "lost": 1}]


def test_where_every_gpu_was_left_out_nvml_is_opened_anew_every_retry_interval() -> None:
    times = Times()
    library = FakeLibrary(times=times)
    library.left_out = [0, 1]
    bench = Bench(library, times)
    seen = []

    bench.sampler.run(Until(times, 25.0, {5.5: lambda: seen.append(bench.counts.nvml_trouble)}))

    assert library.opened_at == [0.0, 10.0, 20.0]
    assert "no GPU answers" in str(seen[0])


def test_opening_nvml_anew_for_a_lost_gpu_does_not_close_it_under_the_others() -> None:
    times = Times()
    library = FakeLibrary(gpu(0), gpu(1), times=times)
    library.answers[0] = GpuLost("fell off the bus")
    library.found = False
    bench = Bench(library, times)
    closed = []
    plan = {
        299.5: lambda: setattr(library, "open_error", NvmlUnavailable("not now")),
        350.0: lambda: closed.append(library.closed),
    }

    bench.sampler.run(Until(times, 350.5, plan))

    assert len(library.opened_at) == 2
    assert closed == [0]
    assert bench.of(1, "interval_seconds") == [1.0] * 351
    assert bench.counts.nvml_trouble is None


def test_where_no_gpu_works_nvml_is_closed_before_it_is_opened_anew() -> None:
    times = Times()
    library = FakeLibrary(gpu(0), times=times)
    library.answers[0] = GpuLost("fell off the bus")
    bench = Bench(library, times, nvml_retry_seconds=1000.0)  # it is not looked for before
    closed = []
    stop = Until(times)

    def watch(sample: Reading) -> None:
        if len(library.opened_at) == 2:
            closed.append(library.closed)
            stop.set()

    bench.emit = watch
    bench.sampler.run(stop)

    assert closed == [1]


def test_where_no_gpu_answers_that_is_trouble_until_one_does(caplog: pytest.LogCaptureFixture) -> None:
    times = Times()
    library = FakeLibrary(gpu(0), gpu(1), times=times)
    library.answers = {0: GpuLost("fell off the bus"), 1: TypeError("not a number")}
    bench = Bench(library, times)
    seen = []

    def one_answers() -> None:
        seen.append(bench.counts.nvml_trouble)
        del library.answers[1]

    with caplog.at_level(logging.INFO):
        bench.sampler.run(Until(times, 4.5, {2.5: one_answers}))

    assert "no GPU answers" in str(seen[0])
    assert bench.counts.nvml_trouble is None
    assert [record.getMessage().split()[:2] for record in caplog.records if " nvml " in record.getMessage()] == [
        ["trouble", "nvml"],
        ["recovered", "nvml"],
    ]


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

    def __init__(self, library: FakeLibrary, *, interval: float, call_timeout: float, retry: float = 10.0) -> None:
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
            nvml_retry_seconds=retry,
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


def test_while_every_gpu_hangs_the_agent_is_not_ready() -> None:
    library = FakeLibrary(gpu(0))
    hang = library.answers[0] = Hang({})
    with Live(library, interval=0.2, call_timeout=600.0) as live:
        ticks = iter(range(3))
        live.take_until(lambda sample: next(ticks) == 2)
        trouble = live.counts.nvml_trouble
        hang.released.set()
    assert trouble is not None
    assert "no GPU answers" in trouble


def test_nvml_that_goes_while_a_call_hangs_is_not_closed_under_it_but_opened_once_more() -> None:
    library = FakeLibrary(gpu(0), gpu(1))
    hang = library.answers[0] = Hang({})
    with Live(library, interval=0.2, call_timeout=0.1, retry=0.3) as live:
        live.take_until(lambda sample: sample["gpu_id"] == 0 and sample["state"] == "unknown")
        library.answers[1] = NvmlUnavailable("driver not loaded")
        for _ in range(2):
            assert library.opened.acquire(timeout=PATIENCE_SECONDS)
        assert library.closed == 0
        library.answers.clear()
        live.take_until(lambda sample: sample["gpu_id"] == 1)
        hang.released.set()
        live.take_until(lambda sample: sample["gpu_id"] == 0 and sample["state"] == "ok")


def test_nvml_that_hangs_when_it_is_opened_leaves_the_loop_turning_and_is_waited_for() -> None:
    times = Times()
    library = FakeLibrary(gpu(0), times=times)
    hang = library.opening = Hang({})
    bench = Bench(library, times, call_timeout_seconds=0.05)
    seen = []

    def returns() -> None:
        seen.append((bench.counts.nvml_trouble, bench.counts.turned_at))
        hang.released.set()

    stop = Until(times, plan={25.0: returns})
    bench.emit = lambda sample: stop.set()
    bench.sampler.run(stop)

    assert seen == [("opening NVML has not returned within 0.05 s", 20.0)]
    assert len(library.opened_at) == 1
    assert bench.of(0) == ["ok"]


def test_a_stop_does_not_wait_for_nvml_that_hangs_when_it_is_opened() -> None:
    library = FakeLibrary(gpu(0))
    hang = library.opening = Hang({})
    with Live(library, interval=0.2, call_timeout=600.0):
        assert hang.entered.wait(PATIENCE_SECONDS)
    assert library.closed == 0
    hang.released.set()


def test_opening_nvml_anew_that_hangs_does_not_keep_the_gpus_that_work_waiting() -> None:
    times = Times()
    library = FakeLibrary(gpu(0), times=times)
    library.left_out = [1]
    bench = Bench(library, times, call_timeout_seconds=0.05)
    hang = Hang({})

    def comes() -> None:
        library.gpus, library.left_out = [gpu(0), gpu(1)], []
        hang.released.set()

    stop = Until(times, plan={299.5: lambda: setattr(library, "opening", hang), 310.0: comes})
    bench.emit = lambda sample: stop.set() if sample["gpu_id"] == 1 else None
    bench.sampler.run(stop)

    assert len(library.opened_at) == 2
    assert set(bench.of(0, "interval_seconds")) == {1.0}


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
