"""What goes wrong in the simulation on purpose; the library's life; and its place in the binding."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from gpumon.agent import fakenvml
from gpumon.agent.fakenvml import FakeNvml
from gpumon.errors import SettingsError
from tests.agent.simulated import Library, Times, libraries

ONE_L4 = '[[node]]\nmatch = "*"\n[[node.gpus]]\nmodel = "l4"'


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Library]]:
    with libraries(tmp_path) as make:
        yield make


def outcomes(read: Callable[[], Any], times: int) -> list[str]:
    found = []
    for _ in range(times):
        try:
            read()
            found.append("ok")
        except pynvml.NVMLError as error:
            found.append(type(error).__name__.removeprefix("NVMLError_"))
    return found


def test_a_fault_hits_every_nth_call_of_its_gpu(make: Callable[..., Library]) -> None:
    library = make(
        'model = "l4"\ncount = 2',
        '[[node.faults]]\ncall = "nvmlDeviceGetPowerUsage"\nerror = "Unknown"\nevery = 3\ngpu = 1',
    )
    healthy, faulty = library.gpu(0), library.gpu(1)
    assert outcomes(lambda: pynvml.nvmlDeviceGetPowerUsage(healthy), 6) == ["ok"] * 6
    assert outcomes(lambda: pynvml.nvmlDeviceGetPowerUsage(faulty), 6) == ["ok", "ok", "Unknown"] * 2
    assert outcomes(lambda: pynvml.nvmlDeviceGetName(faulty), 3) == ["ok"] * 3


def test_a_fault_lasts_for_its_time(make: Callable[..., Library]) -> None:
    library = make(rest='[[node.faults]]\ncall = "nvmlDeviceGet*"\nerror = "NoPermission"\nfrom = 10\nto = 20')
    gpu = library.gpu()
    found = []
    for _ in range(3):
        found += outcomes(lambda: pynvml.nvmlDeviceGetName(gpu), 1)
        library.times.move(10)
    assert found == ["ok", "NoPermission", "ok"]


def test_a_fault_of_one_gpu_hits_the_search_for_it_too(make: Callable[..., Library]) -> None:
    library = make('model = "l4"\ncount = 2')
    library.fake.fail("nvmlDeviceGetHandleByIndex_v2", "Unknown", gpu=1)
    assert outcomes(lambda: library.gpu(0), 1) == ["ok"]
    assert outcomes(lambda: library.gpu(1), 1) == ["Unknown"]


def test_a_slow_call_answers_with_what_holds_when_it_ends(make: Callable[..., Library]) -> None:
    library = make('model = "l4"\nutilization = 50')
    gpu = library.gpu()
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    library.fake.fail("nvmlDeviceGetTotalEnergyConsumption", delay_seconds=2.0)
    rise = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) - before
    assert library.times.slept == [2.0]
    assert rise == pytest.approx(84_000, abs=2)


def test_a_call_that_hangs_keeps_nobody_else_waiting() -> None:
    release, hangs = threading.Event(), threading.Event()

    def hang(seconds: float) -> None:
        hangs.set()
        assert release.wait(30)

    fake = FakeNvml.from_text(ONE_L4 + "\ncount = 2", "node-1", now=Times(), sleep=hang)
    fake.install()
    try:
        pynvml.nvmlInit()
        stuck, other = (pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(2))
        fake.fail("nvmlDeviceGetPowerUsage", delay_seconds=60, gpu=0)
        thread = threading.Thread(target=pynvml.nvmlDeviceGetPowerUsage, args=(stuck,))
        thread.start()
        assert hangs.wait(30)
        assert pynvml.nvmlDeviceGetPowerUsage(other) > 0
        assert pynvml.nvmlDeviceGetUtilizationRates(stuck)
        release.set()
        thread.join()
    finally:
        fake.uninstall()


def test_faults_can_be_added_and_taken_back(make: Callable[..., Library]) -> None:
    library = make()
    gpu = library.gpu()
    library.fake.fail("nvmlDeviceGetName", "Timeout")
    assert outcomes(lambda: pynvml.nvmlDeviceGetName(gpu), 2) == ["Timeout", "Timeout"]
    library.fake.clear_faults()
    assert outcomes(lambda: pynvml.nvmlDeviceGetName(gpu), 1) == ["ok"]
    for call, error in (("nvmlDeviceGetNmae", "Timeout"), ("nvmlDeviceGetName", "TimedOut")):
        with pytest.raises(ValueError, match=error):
            library.fake.fail(call, error)


def test_a_lost_gpu_leaves_the_others_alone_and_comes_back_under_a_new_handle(
    make: Callable[..., Library],
) -> None:
    library = make('model = "l4"\nlost = { from = 10, to = 20 }', '[[node.gpus]]\nmodel = "l4"')
    gpu, other = library.gpu(0), library.gpu(1)
    uuid = pynvml.nvmlDeviceGetUUID(gpu)
    library.times.move(10)
    assert outcomes(lambda: pynvml.nvmlDeviceGetPowerUsage(gpu), 1) == ["GpuIsLost"]
    assert outcomes(lambda: pynvml.nvmlDeviceGetHandleByUUID(uuid), 1) == ["GpuIsLost"]
    assert pynvml.nvmlDeviceGetCount() == 2
    assert pynvml.nvmlDeviceGetPowerUsage(other)
    library.times.move(10)
    assert outcomes(lambda: pynvml.nvmlDeviceGetPowerUsage(gpu), 1) == ["GpuIsLost"]
    found = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    assert pynvml.nvmlDeviceGetPowerUsage(found)
    assert pynvml.nvmlDeviceGetUUID(found) == uuid


def test_a_gpu_can_be_lost_from_the_start(make: Callable[..., Library]) -> None:
    library = make('model = "l4"\nlost = true')
    assert outcomes(library.gpu, 1) == ["GpuIsLost"]


def test_before_init_and_after_shutdown_nothing_is_answered(make: Callable[..., Library]) -> None:
    library = make()
    gpu = library.gpu()
    pynvml.nvmlInit()
    pynvml.nvmlShutdown()
    assert outcomes(lambda: pynvml.nvmlDeviceGetName(gpu), 1) == ["ok"]  # initialised twice, shut down once
    pynvml.nvmlShutdown()
    for read in (
        pynvml.nvmlDeviceGetCount,
        lambda: pynvml.nvmlDeviceGetName(gpu),
        pynvml.nvmlEventSetCreate,
        pynvml.nvmlShutdown,
    ):
        assert outcomes(read, 1) == ["Uninitialized"]
    pynvml.nvmlInit()
    assert outcomes(lambda: pynvml.nvmlDeviceGetName(gpu), 1) == ["InvalidArgument"]  # handles died


def test_what_is_no_handle_of_a_gpu_is_refused(make: Callable[..., Library]) -> None:
    library = make()
    events = pynvml.nvmlEventSetCreate()
    for handle in (pynvml.c_nvmlDevice_t(), events, None):
        assert outcomes(lambda h=handle: pynvml.nvmlDeviceGetName(h), 1) == ["InvalidArgument"]
    assert outcomes(lambda: library.gpu(1), 1) == ["InvalidArgument"]
    assert outcomes(lambda: pynvml.nvmlDeviceGetHandleByUUID("GPU-0"), 1) == ["NotFound"]
    assert outcomes(lambda: pynvml.nvmlEventSetFree(library.gpu()), 1) == ["InvalidArgument"]


def test_the_same_gpu_has_the_same_handle(make: Callable[..., Library]) -> None:
    library = make()
    uuid = pynvml.nvmlDeviceGetUUID(library.gpu())
    data = [bytes(handle) for handle in (library.gpu(), pynvml.nvmlDeviceGetHandleByUUID(uuid))]
    assert data[0] == data[1]


@pytest.mark.parametrize("error", ["DriverNotLoaded", "LibraryNotFound", "LibRmVersionMismatch"])
def test_the_whole_library_can_refuse_to_start(error: str) -> None:
    fake = FakeNvml.from_text(f'[[node]]\nmatch = "*"\ninit_error = "{error}"', "node-1")
    fake.install()
    try:
        assert outcomes(pynvml.nvmlInit, 1) == [error]
    finally:
        fake.uninstall()


def test_a_node_that_no_entry_matches_has_no_driver() -> None:
    fake = FakeNvml.from_text('[[node]]\nmatch = "gpu-*"', "control-plane")
    fake.install()
    try:
        assert outcomes(pynvml.nvmlInit, 1) == ["DriverNotLoaded"]
    finally:
        fake.uninstall()


def test_the_binding_asks_it_for_the_text_of_an_error_that_it_does_not_know() -> None:
    fake = FakeNvml.from_text(ONE_L4, "node-1")
    fake.install()
    try:
        assert pynvml.nvmlErrorString(pynvml.NVML_ERROR_GPU_IS_LOST) == "GpuIsLost"
        assert pynvml.nvmlErrorString(12345) == "Unknown"
    finally:
        fake.uninstall()


def test_the_binding_is_as_before_once_it_is_uninstalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(ONE_L4)
    monkeypatch.setitem(pynvml._nvmlGetFunctionPointer_cache, "nvmlDeviceGetCount_v2", "of the real library")
    before = (pynvml.nvmlLib, dict(pynvml._nvmlGetFunctionPointer_cache), pynvml._nvmlLib_refcount)
    first = fakenvml.install(path, "node-1")
    pynvml.nvmlInit()
    second = fakenvml.install(path, "node-2")
    assert pynvml.nvmlLib is second
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetCount() == 1
    assert first.calls["nvmlInitWithFlags"] == second.calls["nvmlInitWithFlags"] == 1
    first.uninstall()  # gave way already
    assert pynvml.nvmlLib is second
    second.uninstall()
    second.uninstall()
    assert (pynvml.nvmlLib, dict(pynvml._nvmlGetFunctionPointer_cache), pynvml._nvmlLib_refcount) == before


def test_a_scenario_that_is_wrong_at_the_start_is_an_error_and_leaves_the_binding_alone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "scenario.toml"
    before = pynvml.nvmlLib
    with pytest.raises(SettingsError, match=r"can't read the scenario .*scenario\.toml"):
        fakenvml.install(path, "node-1")
    path.write_text('[[node]]\nmatch = "*"\n[[node.gpus]]\nmodel = "v100"')
    with pytest.raises(SettingsError, match=r"model: 'v100' is not known"):
        fakenvml.install(path, "node-1")
    assert pynvml.nvmlLib is before
