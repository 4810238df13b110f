"""Processes and Xid events of the simulation, through the real binding."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from tests.agent.simulated import Library, libraries

MIB = 2**20
PER_SECOND = 6
PROCESSES = """
[[node.processes]]
pid = 11
memory_mib = 1000
[[node.processes]]
pid = 12
memory_known = false
[[node.processes]]
pid = 13
kind = "graphics"
memory_mib = 200
[[node.processes]]
pid = 14
kind = "mps"
"""


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Library]]:
    with libraries(tmp_path) as make:
        yield make


def test_processes_are_listed_by_kind_with_what_they_hold(make: Callable[..., Library]) -> None:
    gpu = make('model = "h100-sxm"\nmemory_used_mib = 3000', PROCESSES).gpu()
    compute = {p.pid: p.usedGpuMemory for p in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)}
    graphics = {p.pid: p.usedGpuMemory for p in pynvml.nvmlDeviceGetGraphicsRunningProcesses(gpu)}
    mps = {p.pid: p.usedGpuMemory for p in pynvml.nvmlDeviceGetMPSComputeRunningProcesses(gpu)}
    assert compute == {11: 1000 * MIB, 12: None}
    assert graphics == {13: 200 * MIB}
    assert list(mps) == [14]
    unknown = mps[14]  # both processes without a size share the rest alike
    assert sum(v for v in (*compute.values(), *graphics.values(), *mps.values()) if v) + unknown == pytest.approx(
        3000 * MIB, abs=8 * MIB
    )


def test_a_list_tells_the_room_that_it_takes_and_fills_room_brought_at_once(
    make: Callable[..., Library],
) -> None:
    library = make('model = "h100-sxm"', PROCESSES)
    gpu = library.gpu()
    call = library.fake.nvmlDeviceGetComputeRunningProcesses_v3
    count = ctypes.c_uint(0)
    assert call(gpu, ctypes.byref(count), None) == pynvml.NVML_ERROR_INSUFFICIENT_SIZE
    assert count.value == 2
    rows = (pynvml.c_nvmlProcessInfo_v3_t * 8)()
    count.value = 8
    assert call(gpu, ctypes.byref(count), rows) == pynvml.NVML_SUCCESS
    assert (count.value, [row.pid for row in rows[:2]]) == (2, [11, 12])
    count.value = 1
    assert call(gpu, ctypes.byref(count), rows) == pynvml.NVML_ERROR_INSUFFICIENT_SIZE


def run_process(proc: Path, pid: int, command: str) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "cmdline").write_bytes(command.replace(" ", "\0").encode() + b"\0")


def test_real_processes_that_match_make_a_gpu_busy_while_they_run(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    run_process(proc, 1, "/sbin/init")
    (proc / "self").mkdir()
    (proc / "77").mkdir()  # a kernel thread, or one that ended while we looked
    search = '[[node.processes]]\ncmdline = "python .*train\\\\.py"'
    with libraries(proc) as make:
        library = make('model = "l4"\nutilization = 80', search)
        gpu = library.gpu()
        assert pynvml.nvmlDeviceGetComputeRunningProcesses(gpu) == []
        assert pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu == 0
        idle = pynvml.nvmlDeviceGetMemoryInfo(gpu, version=pynvml.nvmlMemory_v2).used
        energy = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)

        run_process(proc, 4242, "python -u train.py --epochs 3")
        library.times.move(1)
        (row,) = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)
        assert row.pid == 4242
        assert pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu == 80
        used = pynvml.nvmlDeviceGetMemoryInfo(gpu, version=pynvml.nvmlMemory_v2).used
        assert used == row.usedGpuMemory + idle
        library.times.move(10)
        rise = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) - energy
        assert rise == pytest.approx(12_000 + 10 * 60_000, abs=3)

        (proc / "4242" / "cmdline").unlink()
        library.times.move(1)
        assert pynvml.nvmlDeviceGetComputeRunningProcesses(gpu) == []
        assert pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu == 0


def test_processes_that_do_not_fit_are_squeezed(tmp_path: Path) -> None:
    for pid in range(10, 20):
        run_process(tmp_path, pid, "serve")
    with libraries(tmp_path) as make:
        gpu = make('model = "t4"', '[[node.processes]]\ncmdline = "serve"\nmemory_mib = 4000').gpu()
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu, version=pynvml.nvmlMemory_v2)
        held = sum(row.usedGpuMemory for row in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu))
        assert memory.free == 0
        assert held == pytest.approx(memory.used, abs=4 * 2**20)


def test_memory_in_use_is_at_least_what_processes_hold(make: Callable[..., Library]) -> None:
    gpu = make('model = "t4"\nmemory_used_mib = 100', "[[node.processes]]\npid = 5\nmemory_mib = 1000").gpu()
    assert pynvml.nvmlDeviceGetMemoryInfo(gpu, version=pynvml.nvmlMemory_v2).used == 1003 * MIB


SHARES = """
[[node.processes]]
pid = 1
share = 3
[[node.processes]]
pid = 2
[[node.processes]]
pid = 3
share = 0
"""


@pytest.mark.parametrize(
    "read", [pynvml.nvmlDeviceGetProcessUtilization, pynvml.nvmlDeviceGetProcessesUtilizationInfo]
)
def test_utilisation_of_processes_adds_up_and_comes_once(make: Callable[..., Library], read: Any) -> None:
    library = make('model = "l4"\nutilization = 80', SHARES)
    rows = read(library.gpu(), 0)
    assert {row.pid: row.smUtil for row in rows} == {1: 60, 2: 20}  # who does nothing has no row
    seen = rows[0].timeStamp
    with pytest.raises(pynvml.NVMLError_NotFound):
        read(library.gpu(), seen)
    library.times.move(1 / PER_SECOND)
    assert {row.timeStamp > seen for row in read(library.gpu(), seen)} == {True}


def test_nobody_works_on_an_idle_gpu_and_junk_comes_where_it_is_asked_for(
    make: Callable[..., Library],
) -> None:
    idle = make('model = "l4"\nutilization = 0', SHARES)
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetProcessUtilization(idle.gpu(), 0)
    junk = make('model = "l4"\nutilization = 80\njunk_rows = true', SHARES)
    rows = pynvml.nvmlDeviceGetProcessUtilization(junk.gpu(), 0)
    assert (0, 37_100) in {(row.pid, row.smUtil) for row in rows}


READS = [pynvml.nvmlDeviceGetProcessUtilization, pynvml.nvmlDeviceGetProcessesUtilizationInfo]
BURSTS = '{ shape = "bursts", busy = 90, idle = 10, period_seconds = 7, duty = 0.3 }'
WAVE = '{ shape = "wave", mean = 20, swing = 15, period_seconds = 11 }'
COME_AND_GO = f"""
[[node.processes]]
pid = 1
utilization = {BURSTS}
from = 3.4
[[node.processes]]
pid = 2
utilization = {WAVE}
to = 2026-03-01T12:00:25.5Z
[[node.processes]]
pid = 3
utilization = 40
from = 10
to = 10.5
"""


def used(read: Any, gpu: Any, since: int) -> dict[int, int]:
    """Pid → its utilisation; nobody where nobody worked."""
    try:
        return {row.pid: row.smUtil for row in read(gpu, since)}
    except pynvml.NVMLError_NotFound:
        return {}


@pytest.mark.parametrize("read", READS)
def test_a_process_that_ended_since_it_was_asked_for_has_its_part_of_the_time(
    make: Callable[..., Library], read: Any
) -> None:
    library = make('model = "l4"', "[[node.processes]]\npid = 9\nutilization = 60\nfrom = 1.5\nto = 3")
    gpu, start = library.gpu(), int(library.times().timestamp())
    found = []
    for second in (1, 2, 4, 5):
        library.times.move(start + second - library.times().timestamp())
        found.append(used(read, gpu, (start + second - 1) * 1_000_000))
    assert found == [{}, {9: 30}, {}, {}]
    assert used(read, gpu, start * 1_000_000) == {9: 18}  # 1.5 s at 60 % of 5 s


@pytest.mark.parametrize("read", READS)
def test_what_is_longer_ago_than_twenty_seconds_is_forgotten(make: Callable[..., Library], read: Any) -> None:
    library = make('model = "l4"', "[[node.processes]]\npid = 9\nutilization = 100\nto = 2")
    library.times.move(12)
    assert used(read, library.gpu(), 1) == {9: 50}
    library.times.move(11)
    assert used(read, library.gpu(), 1) == {}


@pytest.mark.parametrize("read", READS)
def test_a_gpu_is_as_busy_as_its_processes_together_whoever_comes_and_goes(
    make: Callable[..., Library], read: Any
) -> None:
    library = make('model = "h100-sxm"\nutilization = 3', COME_AND_GO)
    gpu, seen = library.gpu(), 0
    samples = [pynvml.nvmlGpmSampleAlloc() for _ in range(2)]
    pynvml.nvmlGpmSampleGet(gpu, samples[0])
    for _ in range(30):
        seen = int(library.times().timestamp()) * 1_000_000
        library.times.move(1)
        pynvml.nvmlGpmSampleGet(gpu, samples[1])
        request = pynvml.c_nvmlGpmMetricsGet_t()
        request.version, request.numMetrics = pynvml.NVML_GPM_METRICS_GET_VERSION, 1
        request.sample1, request.sample2 = samples
        request.metrics[0].metricId = 1
        pynvml.nvmlGpmMetricsGet(request)
        whole = request.metrics[0].value
        assert sum(used(read, gpu, seen).values()) == pytest.approx(whole, abs=1.5)
        assert whole > 3
        samples.reverse()


def test_processes_are_listed_and_hold_memory_in_their_time_only(make: Callable[..., Library]) -> None:
    library = make('model = "l4"', "[[node.processes]]\npid = 9\nmemory_mib = 100\nfrom = 0.25\nto = 0.5")
    gpu = library.gpu()
    seen = []
    for _ in range(4):
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu, version=pynvml.nvmlMemory_v2).used
        seen.append(([row.pid for row in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)], memory // MIB))
        library.times.move(0.2)
    assert [pids for pids, _ in seen] == [[], [], [9], []]
    assert seen[2][1] - seen[0][1] == 100
    assert seen[3] == seen[0]


def test_processes_with_a_share_divide_the_load_among_those_that_run(make: Callable[..., Library]) -> None:
    library = make(
        'model = "l4"\nutilization = 80', "[[node.processes]]\npid = 1\n[[node.processes]]\npid = 2\nfrom = 1"
    )
    gpu, start = library.gpu(), int(library.times().timestamp())
    library.times.move(1)
    assert used(READS[0], gpu, start * 1_000_000) == {1: 80}
    library.times.move(1)
    assert used(READS[0], gpu, (start + 1) * 1_000_000) == {1: 40, 2: 40}


def test_a_gpu_whose_processes_all_have_a_time_idles_without_them(make: Callable[..., Library]) -> None:
    library = make('model = "l4"\nutilization = 80', "[[node.processes]]\npid = 1\nfrom = 5\nto = 6")
    gpu = library.gpu()
    assert pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu == 0
    library.times.move(5.5)
    assert pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu == 80


def test_loads_that_together_are_more_than_a_gpu_are_scaled_down_alike(make: Callable[..., Library]) -> None:
    library = make(
        'model = "l4"',
        "[[node.processes]]\npid = 1\nutilization = 90\n[[node.processes]]\npid = 2\nutilization = 60",
    )
    gpu = library.gpu()
    assert pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu == 100
    assert used(READS[0], gpu, 0) == {1: 60, 2: 40}
    assert pynvml.nvmlDeviceGetPowerUsage(gpu) == 72_000


def test_beside_a_process_with_a_load_of_its_own_one_without_does_nothing(make: Callable[..., Library]) -> None:
    library = make(
        'model = "l4"\nutilization = 80',
        "[[node.processes]]\npid = 1\nutilization = 30\n[[node.processes]]\npid = 2",
    )
    gpu = library.gpu()
    assert pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu == 30
    assert used(READS[0], gpu, 0) == {1: 30}


def test_a_real_process_that_ended_has_its_part_of_the_time_until_that_was_seen(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    run_process(proc, 4242, "python train.py")
    with libraries(proc) as make:
        library = make('model = "l4"', '[[node.processes]]\ncmdline = "train"\nutilization = 50')
        gpu, start = library.gpu(), int(library.times().timestamp())
        library.times.move(1)
        pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)
        (proc / "4242" / "cmdline").unlink()
        library.times.move(1)
        assert pynvml.nvmlDeviceGetComputeRunningProcesses(gpu) == []
        library.times.move(2)
        assert used(READS[0], gpu, start * 1_000_000) == {4242: 25}
        assert pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu == 0


EVENTS = """
[[node.events]]
gpu = 1
at = 2.25
xid = 31
every_seconds = 10
[[node.events]]
gpu = 1
at = 2026-03-01T12:00:15Z
xid = 79
"""


def test_xids_come_in_their_order_and_after_79_the_gpu_is_lost(make: Callable[..., Library]) -> None:
    library = make('model = "l4"\ncount = 2', EVENTS)
    events = pynvml.nvmlEventSetCreate()
    gpus = [library.gpu(0), library.gpu(1)]
    for gpu in gpus:
        assert pynvml.nvmlDeviceGetSupportedEventTypes(gpu) & pynvml.nvmlEventTypeXidCriticalError
        pynvml.nvmlDeviceRegisterEvents(gpu, pynvml.nvmlEventTypeXidCriticalError, events)
    with pytest.raises(pynvml.NVMLError_Timeout):
        pynvml.nvmlEventSetWait_v2(events, 1000)
    assert library.times.slept == [0.5, 0.5]
    found = [pynvml.nvmlEventSetWait_v2(events, 20_000) for _ in range(3)]
    assert [data.eventData for data in found] == [31, 31, 79]
    assert {data.eventType for data in found} == {pynvml.nvmlEventTypeXidCriticalError}
    assert bytes(found[2].device) == bytes(gpus[1])
    slept = len(library.times.slept)
    for _ in range(3):
        with pytest.raises(pynvml.NVMLError_GpuIsLost):
            pynvml.nvmlEventSetWait_v2(events, 20_000)
    assert len(library.times.slept) == slept  # at once, as on hardware
    assert pynvml.nvmlDeviceGetName(gpus[0])
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetName(gpus[1])


def test_an_event_set_gives_what_was_registered(make: Callable[..., Library]) -> None:
    library = make('model = "l4"\ncount = 2', EVENTS)
    events = pynvml.nvmlEventSetCreate()
    pynvml.nvmlDeviceRegisterEvents(library.gpu(0), pynvml.nvmlEventTypeXidCriticalError, events)
    pynvml.nvmlDeviceRegisterEvents(library.gpu(1), pynvml.nvmlEventTypeDoubleBitEccError, events)
    with pytest.raises(pynvml.NVMLError_Timeout):
        pynvml.nvmlEventSetWait_v2(events, 5000)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceRegisterEvents(library.gpu(0), pynvml.nvmlEventTypePState, events)
    pynvml.nvmlEventSetFree(events)
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlEventSetWait_v2(events, 0)


def test_xids_of_several_gpus_that_are_due_come_by_their_time(make: Callable[..., Library]) -> None:
    late_first = "".join(f"[[node.events]]\ngpu = {g}\nat = {9 - 4 * g}\nxid = {40 + g}\n" for g in range(2))
    library = make('model = "l4"\ncount = 2', late_first)
    events = pynvml.nvmlEventSetCreate()
    for index in range(2):
        pynvml.nvmlDeviceRegisterEvents(library.gpu(index), pynvml.nvmlEventTypeXidCriticalError, events)
    library.times.move(10)
    assert [pynvml.nvmlEventSetWait_v2(events, 0).eventData for _ in range(2)] == [41, 40]
