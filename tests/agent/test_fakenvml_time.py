"""What changes over time in the simulation: load, counters, and edits of the scenario."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pynvml
import pytest

from gpumon.agent import fakenvml
from tests.agent.simulated import Library, Times, libraries

SHAPES = {
    "steady": "37",
    "wave": '{ shape = "wave", mean = 50, swing = 45, period_seconds = 120 }',
    "bursts": '{ shape = "bursts", busy = 90, idle = 10, period_seconds = 47, duty = 0.3 }',
}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Library]]:
    with libraries(tmp_path) as make:
        yield make


@pytest.fixture
def scenario(tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Writes the scenario's file; the first time, installs it with a clock, later a second passes."""
    path = tmp_path / "scenario.toml"
    times = Times()
    installed: list[fakenvml.FakeNvml] = []

    def write(gpus: str, top: str = "") -> Times:
        path.write_text(f'[[node]]\nmatch = "*"\n{top}\n[[node.gpus]]\n{gpus}')
        if not installed:
            installed.append(
                fakenvml.install(path, "node-1", now=times, sleep=times.sleep, proc=tmp_path / "proc")
            )
            pynvml.nvmlInit()
        else:
            stamp = path.stat().st_mtime_ns + len(installed) * 1_000_000_000
            os.utime(path, ns=(stamp, stamp))
            times.move(1)
        return times

    yield write
    for fake in installed:
        fake.uninstall()


def counter(gpu: Any, field: int) -> int:
    (value,) = pynvml.nvmlDeviceGetFieldValues(gpu, [field])
    assert value.nvmlReturn == pynvml.NVML_SUCCESS
    return int(value.value.ullVal)


@pytest.mark.parametrize("shape", SHAPES)
def test_energy_is_the_integral_of_power(make: Callable[..., Library], shape: str) -> None:
    library = make(f'model = "h100-sxm"\nutilization = {SHAPES[shape]}')
    gpu = library.gpu()
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    joules = 0.0
    for _ in range(300):
        library.times.move(1)
        joules += pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000  # the mean of the last second
    rise = (pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) - before) / 1000
    assert rise == pytest.approx(joules, rel=1e-5)
    assert counter(gpu, 83) == pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("field", [83, 138, 139])
def test_counters_never_step_back(make: Callable[..., Library], shape: str, field: int) -> None:
    library = make(f'model = "h100-sxm"\nutilization = {SHAPES[shape]}')
    gpu = library.gpu()
    read = [counter(gpu, field)]
    for step in (1e-6, 1e-6, 1e-3, 0.1, 1, 30, 7200, 1e-6, 86400, -5):
        library.times.move(step)
        read.append(counter(gpu, field))
    assert read[:-1] == sorted(read[:-1])
    assert read[-1] < read[-2] and read[0] < read[-1]  # a clock that is set back is no counter's fault


def test_counters_of_pcie_are_the_low_32_bits_of_what_passed(make: Callable[..., Library]) -> None:
    library = make('model = "h100-sxm"\nutilization = 50')
    gpu, read = library.gpu(), []
    for _ in range(2):
        (value,) = pynvml.nvmlDeviceGetFieldValues(gpu, [198])
        read.append(value.value.uiVal)
        library.times.move(10)
    assert value.valueType == pynvml.NVML_VALUE_TYPE_UNSIGNED_INT
    passed = 10 * 0.5 * 0.3 * 24 * 2**30  # bytes: of 24 GiB a second, 0.3 come in
    assert (read[1] - read[0]) % 2**32 == pytest.approx(passed % 2**32, abs=2)


COMING_AND_GOING = "".join(
    f"[[node.processes]]\npid = {pid}\nutilization = {SHAPES[shape]}\nfrom = {3.3 * pid}\nto = {3.3 * pid + 7.7}\n"
    for pid, shape in enumerate(SHAPES, start=1)
)


@pytest.mark.parametrize("step", [0.01, 0.7, 5.0])
def test_energy_is_the_same_however_often_it_is_read_while_processes_come_and_go(
    make: Callable[..., Library], step: float
) -> None:
    library = make('model = "h100-sxm"', COMING_AND_GOING)
    gpu = library.gpu()
    before, end = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu), library.times() + timedelta(seconds=30)
    read = [before]
    while library.times() < end:
        library.times.move(min(step, (end - library.times()).total_seconds()))
        read.append(pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu))
    assert read == sorted(read)
    unread = make('model = "h100-sxm"', COMING_AND_GOING)
    unread.times.move(30)
    rise = pynvml.nvmlDeviceGetTotalEnergyConsumption(unread.gpu()) - before
    assert read[-1] - before == pytest.approx(rise, abs=20)  # a millijoule for each change, at most
    assert rise > 30 * 70_000 + 100_000


def test_the_mean_of_the_last_second_reaches_back_over_a_change(make: Callable[..., Library]) -> None:
    library = make('model = "h100-sxm"', "[[node.processes]]\npid = 1\nutilization = 100\nfrom = 10")
    library.times.move(10.25)
    assert pynvml.nvmlDeviceGetPowerUsage(library.gpu()) == pytest.approx((70 + 630 / 4) * 1000, abs=1)


def test_a_clock_that_is_set_back_before_the_start_stops_the_counters(make: Callable[..., Library]) -> None:
    library = make('model = "l4"\nutilization = 30')
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(library.gpu())
    library.times.move(-3600)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(library.gpu()) == before


def test_counters_go_on_where_a_restarted_process_finds_them(make: Callable[..., Library]) -> None:
    first = make('model = "l4"\nutilization = 30')
    first.times.move(100)
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(first.gpu())
    second = make('model = "l4"\nutilization = 30')
    second.times.move(101)
    rise = pynvml.nvmlDeviceGetTotalEnergyConsumption(second.gpu()) - before
    assert rise == pytest.approx(30_000, abs=2)  # 12 W idle + 30 % of the 60 W to the limit


def test_a_clock_that_is_set_back_finds_the_processes_of_its_time(make: Callable[..., Library]) -> None:
    library = make('model = "l4"', "[[node.processes]]\npid = 1\nutilization = 60\nfrom = 10")
    seen = []
    for step in (40, 1, -3600, 3600):
        library.times.move(step)
        seen.append(pynvml.nvmlDeviceGetUtilizationRates(library.gpu()).gpu)
    assert seen == [60, 60, 0, 60]


def test_gpus_differ_and_change(make: Callable[..., Library]) -> None:
    library = make('model = "h100-sxm"\ncount = 8')

    def loads() -> list[int]:
        return [pynvml.nvmlDeviceGetUtilizationRates(library.gpu(i)).gpu for i in range(8)]

    before = loads()
    library.times.move(60)
    assert len(set(before)) > 4
    assert max(before) - min(before) > 20
    assert loads() != before


def test_a_gpu_warms_up_slowly(make: Callable[..., Library]) -> None:
    library = make(
        'model = "l4"\nutilization = { shape = "bursts", busy = 100, period_seconds = 1000, duty = 0.5 }'
    )
    gpu = library.gpu()
    for wanted in (0, 100):
        while pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu != wanted:
            library.times.move(1)
    assert pynvml.nvmlDeviceGetTemperature(gpu, 0) < 45
    library.times.move(20)
    assert pynvml.nvmlDeviceGetTemperature(gpu, 0) == 79


def test_an_edit_shows_a_second_later_and_counters_go_on(scenario: Callable[..., Times]) -> None:
    scenario('model = "l4"\nutilization = 10')
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    scenario('model = "l4"\nutilization = 90')
    assert pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu == 90
    rise = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) - before
    assert rise == pytest.approx(18_000, abs=2)  # a second at 10 %


def test_a_file_is_looked_at_once_a_second(
    scenario: Callable[..., Times], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = scenario('model = "l4"\nutilization = 10')
    looked = []
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **kw: looked.append(self) or stat(self, **kw))
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    for _ in range(100):
        times.move(0.0099)
        pynvml.nvmlDeviceGetPowerUsage(gpu)
    assert looked == []
    times.move(0.02)
    pynvml.nvmlDeviceGetPowerUsage(gpu)
    assert len(looked) == 1


def test_an_edit_shows_though_the_clock_was_set_back(scenario: Callable[..., Times]) -> None:
    times = scenario('model = "l4"\nutilization = 10')
    times.move(-3600)
    scenario('model = "l4"\nutilization = 90')
    assert pynvml.nvmlDeviceGetUtilizationRates(pynvml.nvmlDeviceGetHandleByIndex(0)).gpu == 90


def test_an_edit_that_is_wrong_is_logged_once_and_the_last_good_one_stays(
    scenario: Callable[..., Times], caplog: pytest.LogCaptureFixture
) -> None:
    scenario('model = "l4"\nutilization = 10')
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    times = scenario('model = "l5"')
    for _ in range(3):
        assert pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu == 10
        times.move(1)
    assert len(caplog.messages) == 1
    assert "scenario.toml: node[0].gpus[0].model" in caplog.text


def test_a_gpu_that_an_edit_takes_away_is_lost_and_a_new_one_is_there(
    scenario: Callable[..., Times],
) -> None:
    scenario('model = "l4"\ncount = 2')
    last = pynvml.nvmlDeviceGetHandleByIndex(1)
    scenario('model = "l4"\ncount = 1')
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetName(last)
    scenario('model = "l4"\ncount = 3')
    assert pynvml.nvmlDeviceGetCount() == 3


def test_a_driver_loaded_anew_begins_to_count_and_wants_to_be_initialised(
    scenario: Callable[..., Times],
) -> None:
    scenario('model = "l4"\nutilization = 50')
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) > 10**9
    scenario('model = "l4"\nutilization = 50', top="driver_loaded_at = 2026-03-01T12:00:00Z")
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetName(gpu)
    pynvml.nvmlInit()
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceGetName(gpu)
    fresh = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(fresh) == pytest.approx(42_000, abs=2)


def test_threads_that_read_at_once_are_all_counted(make: Callable[..., Library]) -> None:
    library = make('model = "l4"\ncount = 4')
    before = library.fake.calls["nvmlDeviceGetPowerUsage"]

    def read(gpu: Any) -> None:
        for _ in range(500):
            pynvml.nvmlDeviceGetPowerUsage(gpu)

    threads = [threading.Thread(target=read, args=(library.gpu(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert library.fake.calls["nvmlDeviceGetPowerUsage"] - before == 2000
