"""Who uses a GPU, as the door tells it: processes, their memory, and how hard each works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pynvml
import pytest

from gpumon.agent.nvml import GROUPS
from gpumon.agent.nvml.readings import ASK_AGAIN_AFTER_SECONDS
from gpumon.agent.ports import GpuProcess, GpuUse
from gpumon.errors import GpuLost, NvmlUnavailable
from tests.agent.nvmlnode import Node, answering, simulated

MIB = 2**20
NEW, OLD = "nvmlDeviceGetProcessesUtilizationInfo", "nvmlDeviceGetProcessUtilization"
COMPUTE = "nvmlDeviceGetComputeRunningProcesses_v3"
GRAPHICS, MPS = "nvmlDeviceGetGraphicsRunningProcesses_v3", "nvmlDeviceGetMPSComputeRunningProcesses_v3"
SLOW_SECONDS = 30


@pytest.fixture
def nodes() -> Iterator[Callable[..., Node]]:
    with simulated() as make:
        yield make


def process(pid: int, more: str = "") -> str:
    return f"\n[[node.processes]]\npid = {pid}\n{more}\n"


def sm(use: GpuUse) -> dict[int, float | None]:
    assert use.processes is not None
    return {of.pid: of.sm_percent for of in use.processes}


def rows(node: Node, *rows: tuple[int, int], stamp: Callable[[int], int] = lambda at: at) -> list[int]:
    """Lets the driver give these rows (pid, percent), stamped with the present; the list gathers what it is
    asked with."""
    asked: list[int] = []

    def answer(handle: Any, info: Any) -> int:
        asked.append(info._obj.lastSeenTimeStamp)
        info._obj.processSamplesCount = len(rows)
        for i, (pid, percent) in enumerate(rows):
            row = info._obj.procUtilArray[i]
            row.pid, row.smUtil, row.timeStamp = pid, percent, stamp(microseconds(node))
        return 0 if rows else pynvml.NVML_ERROR_NOT_FOUND

    node.fake._functions[NEW] = answer
    pynvml._nvmlGetFunctionPointer_cache.pop(NEW, None)
    return asked


def microseconds(node: Node) -> int:
    return int(node.times.now().timestamp() * 1e6)


def test_processes_come_with_memory_kind_and_use_each_once(nodes: Callable[..., Node]) -> None:
    node = nodes(
        "model = 'l4'\nutilization = 80"
        + process(7, "memory_mib = 1000\nshare = 2")
        + process(7, "kind = 'graphics'\nmemory_mib = 5\nshare = 0")
        + process(8, "kind = 'mps'\nmemory_mib = 200")
        + process(9, "kind = 'graphics'\nmemory_known = false")
    ).open()
    assert node.use() == GpuUse(
        (
            GpuProcess(7, 1000 * MIB, "compute", 40.0),
            GpuProcess(8, 200 * MIB, "mps", 20.0),
            GpuProcess(9, None, "graphics", 20.0),
        ),
        minor_number=0,
    )


def test_memory_that_one_list_can_not_tell_comes_from_another(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'l4'" + process(7, "memory_known = false") + process(7, "kind = 'mps'\nmemory_mib = 9"))
    (of,) = node.open().use().processes or ()
    assert (of.kind, of.memory_bytes) == ("compute", 9 * MIB)


def test_without_the_group_nobody_knows_who_uses_the_gpu(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'l4'" + process(7), groups=GROUPS - {"processes"}).open()
    assert node.use() == GpuUse(None, why_not="[GPU_METRICS] include_processes is off", minor_number=0)
    assert not {COMPUTE, NEW, OLD, "nvmlDeviceGetMigMode"} & set(node.fake.calls)


def test_each_process_has_its_mean_use_since_the_last_sample(nodes: Callable[..., Node]) -> None:
    node = nodes(
        "model = 'l4'"
        + process(7, "utilization = 50\nfrom = 4")
        + process(8, "utilization = 30")
        + process(9, "utilization = 0")
    ).open()
    node.use()
    assert sm(node.use()) == {8: 30.0, 9: 0.0}
    assert sm(node.use(after=4)) == {7: 25.0, 8: 30.0, 9: 0.0}  # busy for two of the four seconds
    assert sm(node.use()) == {7: 50.0, 8: 30.0, 9: 0.0}


def test_a_process_that_was_busy_and_is_idle_now_is_not_shown_busy_at_the_start(
    nodes: Callable[..., Node],
) -> None:
    busy_then_idle = "utilization = { shape = 'bursts', busy = 90, idle = 0, period_seconds = 1e6, duty = 0.5 }"
    node = nodes("model = 'l4'" + process(7, busy_then_idle)).open()
    gpu = node.fake.state.gpus[0]
    while gpu.busy(node.times.now().timestamp()) or not gpu.busy(node.times.now().timestamp() - 5):
        node.times.seconds += 3
    assert sm(node.use()) == {7: 0.0}


def test_a_process_that_ended_since_the_last_sample_is_there_once_more(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'l4'" + process(7, "utilization = 60\nto = 2.5") + process(8, "utilization = 10")).open()
    node.use()
    assert sm(node.use()) == {7: 60.0, 8: 10.0}
    ended = node.use()
    assert ended.processes is not None
    assert [(of.pid, of.memory_bytes, of.sm_percent) for of in ended.processes if of.pid == 7] == [(7, 0, 30.0)]
    assert sm(node.use()) == {8: 10.0}


def test_a_process_that_came_and_went_between_two_samples_is_not_overlooked(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'l4'" + process(7, "utilization = 80\nfrom = 2.25\nto = 2.75") + process(8)).open()
    node.use()
    node.use()
    assert sm(node.use())[7] == 40.0


def test_the_last_process_to_end_is_asked_for_and_then_an_idle_gpu_costs_nothing(
    nodes: Callable[..., Node],
) -> None:
    node = nodes("model = 'l4'" + process(7, "utilization = 60\nto = 1.5")).open()
    assert sm(node.use()) == {7: 60.0}
    assert sm(node.use()) == {7: 30.0}
    assert node.calls_of(node.use)[NEW] == 0
    assert node.use() == GpuUse((), minor_number=0)


def test_after_a_time_without_processes_use_counts_from_the_last_sample(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'l4'" + process(7, "utilization = 60\nfrom = 60")).open()
    for _ in range(60):
        node.use()
    assert sm(node.use(after=1.5)) == {7: 60.0}
    assert sm(node.use()) == {7: 60.0}


def test_nobody_who_worked_is_nought_for_everybody(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'l4'\nutilization = 0" + process(7) + process(8)).open()
    assert sm(node.use()) == {7: 0.0, 8: 0.0}


def test_nonsense_is_dropped_and_overshoot_of_those_listed_is_clamped(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'l4'" + process(7) + process(8)).open()
    rows(node, (0, 37_100), (0, 5), (4_294_967_295, 101), (7, 37_100), (99, 30))
    assert sm(node.use()) == {7: 100.0, 8: 0.0, 99: 30.0}


def test_several_rows_of_a_process_count_with_their_mean(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'l4'" + process(7)).open()
    rows(node, (7, 20), (7, 60), (99, 10), (99, 150), (99, 30))
    assert sm(node.use()) == {7: 40.0, 99: 20.0}


def test_the_driver_is_asked_from_the_newest_stamp_on_and_never_from_nought(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'l4'" + process(7)).open()
    asked = rows(node, (7, 20), (8, 20), stamp=lambda at: at - 100_000)
    for _ in range(3):
        node.use()
    first = int(node.times.now().timestamp() * 1e6) - 2_000_000
    assert asked == [first - 1_000_000, first - 100_000, first + 900_000]


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_after_a_step_of_the_clock_the_driver_is_asked_from_the_last_sample_on(
    nodes: Callable[..., Node], step: float
) -> None:
    node = nodes("model = 'l4'" + process(7)).open()
    asked = rows(node, (7, 20))
    node.use()
    node.times.step = step
    node.use()
    assert asked[-1] == microseconds(node) - 1_000_000


@pytest.mark.parametrize("stamp", [0, 2**63])
def test_a_stamp_that_is_nonsense_is_not_asked_from(nodes: Callable[..., Node], stamp: int) -> None:
    node = nodes("model = 'l4'" + process(7)).open()
    asked = rows(node, (7, 20), stamp=lambda at: stamp)
    node.use()
    node.use()
    assert asked[-1] == microseconds(node) - 1_000_000


def test_after_a_time_in_which_nobody_worked_the_driver_is_asked_from_the_last_sample_on(
    nodes: Callable[..., Node],
) -> None:
    node = nodes("model = 'l4'" + process(7)).open()
    asked = rows(node)
    for _ in range(30):
        node.use()
    assert asked[-1] == microseconds(node) - 1_000_000


def test_the_older_call_stands_in_where_the_newer_is_missing(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'l4'\nutilization = 80" + process(7), f"missing_calls = ['{NEW}']").open()
    node.use()
    assert sm(node.use()) == {7: 80.0}


def test_the_newer_call_is_not_replaced_by_the_older_for_one_sample(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'l4'\nutilization = 80" + process(7)).open()
    node.use()
    node.fake.fail(NEW, "Unknown")
    assert sm(node.use()) == {7: None}
    node.fake.clear_faults()
    assert sm(node.use()) == {7: 80.0}
    assert node.fake.calls[OLD] == 0


def test_where_neither_is_supported_use_is_unknown_and_asked_for_again_after_an_hour(
    nodes: Callable[..., Node],
) -> None:
    node = nodes("model = 'l4'\nutilization = 80" + process(7)).open()
    node.fake.fail("nvmlDeviceGetProcess*Utilization*", "NotSupported")
    assert [sm(node.use()) for _ in range(3)] == [{7: None}] * 3
    assert (node.fake.calls[NEW], node.fake.calls[OLD]) == (1, 1)
    node.fake.clear_faults()
    assert sm(node.use(after=ASK_AGAIN_AFTER_SECONDS)) == {7: 80.0}


@pytest.mark.parametrize("name", [NEW, OLD])
def test_use_takes_one_call_and_one_more_when_its_buffer_is_too_small(
    nodes: Callable[..., Node], name: str
) -> None:
    missing = f"missing_calls = {[other for other in (NEW, OLD) if other != name]}"
    crowd = "".join(process(pid) for pid in range(1, 151))
    node = nodes("model = 'l4'\nutilization = 100" + crowd, missing).open()
    first, later = node.calls_of(node.use), node.calls_of(node.use)
    assert (first[name], later[name]) == (2, 1)
    assert sm(node.use()) == dict.fromkeys(range(1, 151), 1.0)


def test_rows_that_a_driver_counts_and_does_not_fill_are_nobodys(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'l4'" + process(7, "utilization = 50") + process(8, "utilization = 30\nto = 1.5")).open()
    node.use()
    assert sm(node.use()) == {7: 50.0, 8: 15.0}

    def count_more(handle: Any, info: Any) -> None:
        info._obj.processSamplesCount = 100

    answering(node, NEW, count_more)
    pynvml._nvmlGetFunctionPointer_cache.pop(NEW)
    assert sm(node.use()) == {7: 50.0}


def test_a_process_on_a_list_that_is_read_slowly_is_found_when_it_works(nodes: Callable[..., Node]) -> None:
    graphics = process(8, "kind = 'graphics'\nmemory_mib = 50\nutilization = 20\nfrom = 3")
    node = nodes("model = 'l4'" + process(7, "utilization = 1") + graphics).open()
    for _ in range(3):
        node.use()
    use = node.use()
    assert GpuProcess(8, 50 * MIB, "graphics", 20.0) in (use.processes or ())
    assert node.calls_of(node.use)[GRAPHICS] == 1  # from now on with each sample


def test_a_process_of_another_list_that_ended_is_gone_at_once(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'l4'" + process(7, "kind = 'mps'\nutilization = 20\nto = 1.5") + process(8)).open()
    assert node.read()["process_count"] == 2
    assert node.read()["process_count"] == 1


def test_a_list_that_answered_and_fails_leaves_no_processes_but_all_other_readings(
    nodes: Callable[..., Node],
) -> None:
    node = nodes("model = 'l4'" + process(7) + process(8, "kind = 'mps'")).open()
    before = set(node.read())
    node.fake.fail(MPS, "Unknown")
    use = node.use()
    assert use.processes is None
    assert "list" in use.why_not
    assert set(node.read()) == before - {"process_count"}
    node.fake.clear_faults()
    assert len(node.use().processes or ()) == 2


def test_lists_that_are_not_supported_say_why_there_are_no_processes(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'l4'" + process(7)).open()
    node.fake.fail("nvmlDeviceGetComputeRunningProcesses*", "NoPermission")
    for _ in range(2):
        assert node.use() == GpuUse(None, why_not="Insufficient Permissions", minor_number=0)
    assert node.fake.calls[COMPUTE] == 1
    assert "temperature" in node.read()


@pytest.mark.parametrize(("error", "meaning"), [("GpuIsLost", GpuLost), ("DriverNotLoaded", NvmlUnavailable)])
@pytest.mark.parametrize("call", [NEW, COMPUTE, GRAPHICS])
def test_a_gpu_or_library_that_is_gone_is_gone_whichever_call_says_it(
    nodes: Callable[..., Node], call: str, error: str, meaning: type[Exception]
) -> None:
    node = nodes("model = 'h100-sxm'" + process(7, "kind = 'graphics'")).open()
    node.use()
    node.fake.fail(call, error)
    with pytest.raises(meaning):
        node.use()


def test_a_gpu_that_is_lost_while_its_use_is_read_starts_anew(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'h100-sxm'\nutilization = 40" + process(7)).open()
    node.use()
    node.fake.fail(NEW, "GpuIsLost")
    with pytest.raises(GpuLost):
        node.use()
    node.fake.clear_faults()
    assert node.fake.calls["nvmlGpmSampleFree"] == 2
    assert sm(node.use()) == {7: 40.0}


def test_use_is_asked_only_for_a_gpu_that_has_processes_or_worked(nodes: Callable[..., Node]) -> None:
    idle, busy = "model = 'l4'\nutilization = 0", "\n[[node.gpus]]\nmodel = 'l4'\nutilization = 50"
    node = nodes(idle + "\ncount = 2" + busy + process(7, "gpu = 1")).open()
    calls: Sequence[int] = [node.calls_of(lambda gpu=gpu: node.use(gpu))[NEW] for gpu in (0, 1, 2)]
    assert calls == [0, 1, 1]
