"""MIG and GPM of the simulated library, through the real binding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from tests.agent.simulated import Library, libraries

MIB = 2**20
SPLIT = 'model = "a100-sxm"\nutilization = 60\nmig = ["3g.20gb", "", "1g.5gb"]'
PROCESSES = """
[[node.processes]]
pid = 21
mig = 0
[[node.processes]]
pid = 22
mig = 2
memory_mib = 512
"""


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Library]]:
    with libraries(tmp_path) as make:
        yield make


def test_instances_are_enumerated_with_holes(make: Callable[..., Library]) -> None:
    gpu = make(SPLIT).gpu()
    assert pynvml.nvmlDeviceGetMigMode(gpu) == [1, 1]
    assert pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu) == 7
    first, third = (pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, i) for i in (0, 2))
    for hole in (1, 3):
        with pytest.raises(pynvml.NVMLError_NotFound):
            pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, hole)
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 7)
    assert pynvml.nvmlDeviceGetName(first) == "NVIDIA A100-SXM4-40GB MIG 3g.20gb"
    assert pynvml.nvmlDeviceGetUUID(first).startswith("MIG-")
    assert [pynvml.nvmlDeviceGetGpuInstanceId(mig) for mig in (first, third)] == [1, 3]
    assert pynvml.nvmlDeviceGetComputeInstanceId(third) == 0


def test_an_instance_leads_to_its_gpu_and_is_found_by_its_uuid(make: Callable[..., Library]) -> None:
    gpu = make(SPLIT).gpu()
    mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 2)
    parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(mig)
    assert pynvml.nvmlDeviceGetUUID(parent) == pynvml.nvmlDeviceGetUUID(gpu)
    again = pynvml.nvmlDeviceGetHandleByUUID(pynvml.nvmlDeviceGetUUID(mig))
    assert pynvml.nvmlDeviceGetGpuInstanceId(again) == 3
    assert pynvml.nvmlDeviceIsMigDeviceHandle(mig).value == 1
    assert pynvml.nvmlDeviceIsMigDeviceHandle(gpu).value == 0


def test_a_split_gpu_tells_power_but_no_utilisation(make: Callable[..., Library]) -> None:
    gpu = make(SPLIT).gpu()
    assert pynvml.nvmlDeviceGetPowerUsage(gpu) > 52_000
    reads: list[Callable[[Any], Any]] = [
        pynvml.nvmlDeviceGetUtilizationRates,
        pynvml.nvmlDeviceGetEncoderUtilization,
        pynvml.nvmlDeviceGetRemappedRows,
        lambda gpu: pynvml.nvmlDeviceGetProcessUtilization(gpu, 0),
    ]
    for read in reads:
        with pytest.raises(pynvml.NVMLError_NotSupported):
            read(gpu)


def test_memory_and_processes_of_the_instances_make_up_those_of_the_gpu(make: Callable[..., Library]) -> None:
    gpu = make(SPLIT, PROCESSES).gpu()
    migs = [pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, i) for i in (0, 2)]
    inside = [pynvml.nvmlDeviceGetMemoryInfo(mig, version=pynvml.nvmlMemory_v2) for mig in migs]
    assert [memory.total for memory in inside] == [19968 * MIB, 4864 * MIB]
    assert all(memory.used + memory.free + memory.reserved == memory.total for memory in inside)
    whole = pynvml.nvmlDeviceGetMemoryInfo(gpu, version=pynvml.nvmlMemory_v2)
    assert whole.used == sum(memory.used for memory in inside) + 4 * MIB
    rows = [pynvml.nvmlDeviceGetComputeRunningProcesses(mig) for mig in migs]
    assert [[(row.pid, row.gpuInstanceId) for row in mine] for mine in rows] == [[(21, 1)], [(22, 3)]]
    assert rows[1][0].usedGpuMemory == inside[1].used == 512 * MIB
    assert [row.pid for row in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)] == [21, 22]


def test_a_whole_gpu_has_no_instances(make: Callable[..., Library]) -> None:
    gpu = make('model = "a100-sxm"').gpu()
    assert pynvml.nvmlDeviceGetMigMode(gpu) == [0, 0]
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetGpuInstanceId(gpu)
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(gpu) == []


def metrics(first: Any, second: Any, ids: list[int]) -> dict[int, float | None]:
    request = pynvml.c_nvmlGpmMetricsGet_t()
    request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
    request.numMetrics, request.sample1, request.sample2 = len(ids), first, second
    for i, metric in enumerate(ids):
        request.metrics[i].metricId = metric
    pynvml.nvmlGpmMetricsGet(request)
    found = (request.metrics[i] for i in range(len(ids)))
    return {metric.metricId: None if metric.nvmlReturn else metric.value for metric in found}


def test_gpm_gives_the_mean_between_two_samples(make: Callable[..., Library]) -> None:
    library = make(
        'model = "h100-sxm"\n'
        'utilization = { shape = "bursts", busy = 80, idle = 0, period_seconds = 10, duty = 0.5 }'
    )
    gpu = library.gpu()
    samples = [pynvml.nvmlGpmSampleAlloc() for _ in range(2)]
    pynvml.nvmlGpmSampleGet(gpu, samples[0])
    library.times.move(10)
    pynvml.nvmlGpmSampleGet(gpu, samples[1])
    read = metrics(samples[0], samples[1], [1, 2, 3, 5, 10, 20, 60, 40])
    assert read[1] == pytest.approx(40)
    assert 0 < read[3] < read[2] < 40  # type: ignore[operator]
    assert read[20] and read[60]
    assert read[40] is None


def test_gpm_needs_two_samples_of_one_gpu_in_order(make: Callable[..., Library]) -> None:
    library = make('model = "h100-sxm"\ncount = 2')
    first, second, empty = (pynvml.nvmlGpmSampleAlloc() for _ in range(3))
    pynvml.nvmlGpmSampleGet(library.gpu(0), first)
    library.times.move(1)
    pynvml.nvmlGpmSampleGet(library.gpu(0), second)
    for pair in ((first, empty), (second, first)):
        with pytest.raises(pynvml.NVMLError_InvalidArgument):
            metrics(*pair, [2])
    assert metrics(second, second, [2]) == {2: None}
    pynvml.nvmlGpmSampleGet(library.gpu(1), second)
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        metrics(first, second, [2])
    pynvml.nvmlGpmSampleFree(first)
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlGpmSampleGet(library.gpu(0), first)


def test_gpm_samples_an_instance_that_there_is(make: Callable[..., Library]) -> None:
    gpu = make('model = "h100-sxm"\nmig = ["1g.10gb"]').gpu()
    sample = pynvml.nvmlGpmSampleAlloc()
    pynvml.nvmlGpmMigSampleGet(gpu, 1, sample)
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlGpmMigSampleGet(gpu, 2, sample)
    whole = pynvml.nvmlGpmSampleAlloc()
    pynvml.nvmlGpmSampleGet(gpu, whole)
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        metrics(sample, whole, [2])


def test_attributes_and_profiles_tell_the_slices(make: Callable[..., Library]) -> None:
    gpu = make(SPLIT).gpu()
    attributes = pynvml.nvmlDeviceGetAttributes(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0))
    assert (attributes.gpuInstanceSliceCount, attributes.computeInstanceSliceCount) == (3, 3)
    assert attributes.memorySizeMB == 19968
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetAttributes(gpu)
    profiles = [
        pynvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, profile, version)
        for version in (1, 2)
        for profile in (pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE, pynvml.NVML_GPU_INSTANCE_PROFILE_3_SLICE)
    ]
    assert [(info.sliceCount, info.instanceCount, info.memorySizeMB) for info in profiles] == [
        (1, 7, 4864),
        (3, 2, 19968),
    ] * 2
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetGpuInstanceProfileInfo(make('model = "l4"').gpu(), 0)


def activity(library: Library, seconds: float, ids: list[int]) -> dict[int, float | None]:
    """GPU instance id → metric 1 (graphics), in percent of the instance, over the next seconds."""
    gpu = library.gpu()
    samples = [[pynvml.nvmlGpmSampleAlloc() for _ in range(2)] for _ in ids]
    for pair, number in zip(samples, ids, strict=True):
        pynvml.nvmlGpmMigSampleGet(gpu, number, pair[0])
    library.times.move(seconds)
    for pair, number in zip(samples, ids, strict=True):
        pynvml.nvmlGpmMigSampleGet(gpu, number, pair[1])
    return {number: metrics(pair[0], pair[1], [1])[1] for pair, number in zip(samples, ids, strict=True)}


OWN_LOADS = """
[[node.processes]]
pid = 31
mig = 0
utilization = 50
[[node.processes]]
pid = 32
mig = 1
utilization = 80
to = 2
[[node.processes]]
pid = 33
mig = 1
utilization = 40
to = 2
"""


def test_gpm_gives_each_instance_its_own_load_and_power_follows_their_part_of_the_gpu(
    make: Callable[..., Library],
) -> None:
    library = make('model = "h100-sxm"\nmig = ["3g.40gb", "2g.20gb", "1g.10gb"]', OWN_LOADS)
    gpu = library.gpu()
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    assert activity(library, 4, [1, 2, 3]) == pytest.approx({1: 50, 2: 50, 3: 0})  # full for two of four seconds
    joules = (pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) - before) / 1000
    assert joules == pytest.approx(4 * 70 + 630 * (3 / 7 * 0.5 * 4 + 2 / 7 * 1.0 * 2), abs=0.01)


def test_an_instance_with_a_process_without_a_load_follows_the_gpus(make: Callable[..., Library]) -> None:
    library = make(
        'model = "h100-sxm"\nutilization = 60\nmig = ["3g.40gb", "1g.10gb"]',
        "[[node.processes]]\npid = 1\nmig = 1",
    )
    assert activity(library, 1, [1, 2]) == pytest.approx({1: 0, 2: 60})
    assert pynvml.nvmlDeviceGetPowerUsage(library.gpu()) == int(1000 * (70 + 630 * 0.6 / 7))


def test_an_instance_has_no_metrics_of_links(make: Callable[..., Library]) -> None:
    library = make('model = "h100-sxm"\nmig = ["3g.40gb"]')
    pair = [pynvml.nvmlGpmSampleAlloc() for _ in range(2)]
    for sample in pair:
        pynvml.nvmlGpmMigSampleGet(library.gpu(), 1, sample)
        library.times.move(1)
    read = metrics(pair[0], pair[1], [2, 20, 60])
    assert (read[20], read[60]) == (None, None)
    assert read[2]
