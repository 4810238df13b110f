"""What the door to NVML makes of errors, lost GPUs, and opening and closing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from gpumon.agent.nvml import GROUPS
from gpumon.agent.ports import Gpu
from gpumon.errors import GpuLost, NvmlUnavailable
from tests.agent.nvmlnode import EIGHT_BUSY_H100, FIELDS_OF, GPM, MEMORY, NVLINK, answering, simulated


@pytest.fixture
def nodes() -> Iterator[Any]:
    with simulated() as make:
        yield make


READING_CALLS = [
    ("nvmlDeviceGetUtilizationRates", {"utilization_gpu", "utilization_memory"}),
    ("nvmlDeviceGetSamples", {"utilization_mean"}),
    ("nvmlDeviceGetMemoryInfo_v2", MEMORY),
    ("nvmlDeviceGetTemperatureV", {"temperature"}),
    ("nvmlDeviceGetFieldValues", NVLINK | {"temperature_memory", "power_draw", "energy_mj"}),
    ("nvmlDeviceGetCurrentClocksEventReasons", {"clock_event_reasons"}),
    ("nvmlGpmSampleGet", GPM),
    ("nvmlGpmMetricsGet", GPM),
]


@pytest.mark.parametrize("error", ["Unknown", "Timeout", "InUse", "InvalidArgument"])
@pytest.mark.parametrize(("call", "fields"), READING_CALLS)
def test_an_error_that_passes_takes_one_reading_out_of_one_sample(
    nodes: Any, call: str, fields: set[str], error: str
) -> None:
    node = nodes().open()
    node.read()
    node.read()
    node.fake.fail(call, error)
    assert set(node.read(after=5)) == FIELDS_OF["h100-sxm"] - fields
    node.fake.clear_faults()
    assert set(node.read()) == FIELDS_OF["h100-sxm"]


@pytest.mark.parametrize("error", ["NotSupported", "NoPermission", "FunctionNotFound", "InvalidArgument"])
def test_an_error_that_lasts_is_asked_once(nodes: Any, error: str) -> None:
    node = nodes().open()
    node.fake.fail("nvmlDeviceGetUtilizationRates", error)
    calls = node.calls_of(lambda: [node.read() for _ in range(5)])
    assert calls["nvmlDeviceGetUtilizationRates"] == 1
    assert "utilization_gpu" not in node.read()


@pytest.mark.parametrize("error", ["GpuIsLost", "ResetRequired"])
def test_a_lost_gpu_is_lost_alone(nodes: Any, error: str) -> None:
    node = nodes("model = 'h100-sxm'\ncount = 2").open()
    node.read(1)
    node.fake.fail("*", error, gpu=1)
    with pytest.raises(GpuLost):
        node.read(1)
    assert "power_draw" in node.read(0)


def test_a_gpu_that_is_lost_for_a_moment_has_no_activity_across_it(nodes: Any) -> None:
    node = nodes().open()
    node.read()
    node.fake.fail("nvmlDevice*", "GpuIsLost")
    with pytest.raises(GpuLost):
        node.read()
    node.fake.clear_faults()
    assert node.calls_of(node.read)["nvmlGpmMetricsGet"] == 0
    assert set(node.read()) >= GPM


def test_finding_a_gpu_that_answers_frees_what_its_last_reader_kept(nodes: Any) -> None:
    node = nodes().open()
    node.read()
    assert node.nvml.find_again(node.gpus[0])
    assert node.fake.calls["nvmlGpmSampleFree"] == 2


@pytest.mark.parametrize("error", ["Uninitialized", "DriverNotLoaded", "LibRmVersionMismatch"])
def test_a_library_that_is_gone_has_to_be_opened_anew(nodes: Any, error: str) -> None:
    node = nodes().open()
    before = set(node.read()) | GPM
    node.fake.fail("nvmlDevice*", error)
    with pytest.raises(NvmlUnavailable, match="opened anew"):
        node.read()
    node.nvml.close()
    node.fake.clear_faults()
    node.open()
    node.read()
    assert set(node.read()) == before


def test_a_gpu_that_answers_nothing_is_lost_whatever_it_says(nodes: Any) -> None:
    node = nodes("model = 'l4'").open()
    node.read()
    node.fake.fail("nvmlDevice*", "Unknown")
    with pytest.raises(GpuLost, match="answers nothing"):
        node.read()
    assert not node.nvml.find_again(node.gpus[0])
    node.fake.clear_faults()
    assert node.nvml.find_again(node.gpus[0])


def test_a_gpu_that_was_lost_is_found_again_with_fresh_slow_readings(nodes: Any) -> None:
    node = nodes("model = 'h100-sxm'\nlost = { from = 3, to = 6 }").open()
    node.read()
    node.read()
    for _ in range(2):
        with pytest.raises(GpuLost):
            node.read()
        assert not node.nvml.find_again(node.gpus[0])
    node.times.seconds = 7
    with pytest.raises(GpuLost):  # the old handle stays dead
        node.read()
    assert node.nvml.find_again(node.gpus[0])
    calls = node.calls_of(node.read)
    assert calls["nvmlDeviceGetEnforcedPowerLimit"] == 1
    assert node.fake.calls["nvmlGpmSampleAlloc"] - node.fake.calls["nvmlGpmSampleFree"] == 2
    assert set(node.read()) == FIELDS_OF["h100-sxm"]


def test_looking_for_a_gpu_in_a_library_that_is_gone_says_so(nodes: Any) -> None:
    node = nodes("model = 'l4'").open()
    node.fake.fail("nvmlDeviceGetHandleByUUID", "DriverNotLoaded")
    with pytest.raises(NvmlUnavailable):
        node.nvml.find_again(node.gpus[0])


def test_a_gpu_without_a_handle_is_left_out_when_the_library_is_opened(
    nodes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    node = nodes("model = 'l4'\n[[node.gpus]]\nmodel = 't4'\nlost = true").open()
    assert [gpu.name for gpu in node.gpus] == ["NVIDIA L4"]
    assert node.nvml.left_out == [1]
    assert "gpu_left_out index=1" in caplog.text


def test_a_gpu_that_can_not_tell_its_uuid_now_is_left_out_until_it_can(nodes: Any) -> None:
    node = nodes("model = 'l4'\ncount = 2")
    node.fake.fail("nvmlDeviceGetUUID", "Unknown", gpu=1)
    node.open()
    assert ([gpu.index for gpu in node.gpus], node.nvml.left_out) == ([0], [1])
    node.fake.clear_faults()
    node.open()
    assert ([gpu.index for gpu in node.gpus], node.nvml.left_out) == ([0, 1], [])
    assert all(gpu.uuid.startswith("GPU-") for gpu in node.gpus)


def test_a_library_without_uuids_has_its_gpus_by_index(nodes: Any) -> None:
    node = nodes("model = 'l4'\ncount = 2", "missing_calls = ['nvmlDeviceGetUUID']").open()
    assert [gpu.uuid for gpu in node.gpus] == ["no-uuid-0", "no-uuid-1"]
    assert node.nvml.find_again(node.gpus[1])


@pytest.mark.parametrize("call", ["nvmlDeviceGetUUID", "nvmlDeviceGetName", "nvmlSystemGetDriverVersion"])
def test_a_library_that_goes_while_a_gpu_is_identified_is_unavailable(nodes: Any, call: str) -> None:
    node = nodes("model = 'l4'")
    node.fake.fail(call, "DriverNotLoaded")
    with pytest.raises(NvmlUnavailable, match="Driver Not Loaded"):
        node.open()
    assert node.fake.state.references == 0


def test_a_gpu_that_was_not_there_at_opening_is_lost(nodes: Any) -> None:
    node = nodes("model = 'l4'").open()
    with pytest.raises(GpuLost, match="was not there"):
        node.nvml.read(Gpu(3, "GPU-unheard-of", "x", None, None))


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("DriverNotLoaded", "modprobe nvidia"),
        ("LibRmVersionMismatch", "Restart the agent"),
        ("NoPermission", "/dev/nvidiactl"),
        ("Unknown", "nvidia-smi"),
    ],
)
def test_a_library_that_does_not_start_says_what_to_do(nodes: Any, error: str, advice: str) -> None:
    node = nodes(rest=f"init_error = '{error}'")
    with pytest.raises(NvmlUnavailable, match=advice):
        node.open()
    assert node.fake.calls["nvmlShutdown"] == 0


def test_a_library_that_can_not_list_is_shut_down_and_can_be_opened_later(nodes: Any) -> None:
    node = nodes()
    node.fake.fail("nvmlDeviceGetCount_v2", "Unknown")
    with pytest.raises(NvmlUnavailable, match="list its GPUs"):
        node.open()
    assert node.fake.state.references == 0
    node.fake.clear_faults()
    assert node.open().read()


def test_a_library_that_goes_while_it_lists_is_unavailable_not_empty(nodes: Any) -> None:
    node = nodes()
    node.fake.fail("nvmlDeviceGetHandleByIndex_v2", "DriverNotLoaded")
    with pytest.raises(NvmlUnavailable, match="Driver Not Loaded"):
        node.open()


def test_closing_frees_every_sample_and_every_reference(nodes: Any) -> None:
    node = nodes(EIGHT_BUSY_H100).open()
    for gpu in range(8):
        node.read(gpu)
    node.nvml.close()
    node.nvml.close()
    calls = node.fake.calls
    assert calls["nvmlGpmSampleAlloc"] == calls["nvmlGpmSampleFree"] == 16
    assert calls["nvmlInitWithFlags"] == calls["nvmlShutdown"] == 1


def test_opening_twice_holds_the_library_once(nodes: Any) -> None:
    node = nodes("model = 'l4'").open().open()
    assert node.fake.state.references == 1
    assert node.read()


def test_opening_anew_does_not_disturb_the_gpus_that_answer(nodes: Any) -> None:
    node = nodes("model = 'h100-sxm'\ncount = 2").open()
    node.read()
    node.open()
    assert set(node.read()) >= GPM  # the mean since the sample before
    assert node.fake.calls["nvmlGpmSampleAlloc"] == 2


def test_opening_anew_brings_back_a_gpu_that_was_lost_at_the_first_time(nodes: Any) -> None:
    node = nodes("model = 'l4'\n[[node.gpus]]\nmodel = 't4'\nlost = { from = 0, to = 5 }").open()
    assert node.nvml.left_out == [1]
    node.times.seconds = 6
    node.open()
    assert "power_draw" in node.read(1)


def test_opening_anew_that_fails_leaves_the_gpus_as_they_were(nodes: Any) -> None:
    node = nodes("model = 'l4'").open()
    node.fake.fail("nvmlDeviceGetCount_v2", "Unknown")
    with pytest.raises(NvmlUnavailable):
        node.nvml.open()
    assert node.fake.state.references == 1
    assert "power_draw" in node.read()


def test_a_handle_that_was_looked_for_across_a_close_does_not_come_into_the_new_table(nodes: Any) -> None:
    node = nodes("model = 'l4'").open()
    reopened = []

    def reopen(*args: Any) -> None:
        if not reopened:
            reopened.append(True)
            node.nvml.close()
            node.open()

    answering(node, "nvmlDeviceGetPerformanceState", reopen)
    assert not node.nvml.find_again(node.gpus[0])
    assert "power_draw" in node.read()


def test_a_closed_library_is_unavailable(nodes: Any) -> None:
    node = nodes().open()
    node.nvml.close()
    with pytest.raises(NvmlUnavailable, match="open it first"):
        node.read()


def test_closing_frees_nothing_under_a_reader_that_hangs(nodes: Any) -> None:
    in_call, go_on = threading.Event(), threading.Event()

    def hang(seconds: float) -> None:
        in_call.set()
        assert go_on.wait(30)

    node = nodes(groups=GROUPS - {"health"}).open()
    node.fake.state.sleep = hang
    node.read()
    node.fake.fail("nvmlGpmSampleGet", delay_seconds=9)
    reader = threading.Thread(target=lambda: suppress_source_errors(node.read))
    reader.start()
    assert in_call.wait(30)
    node.nvml.close()
    assert node.fake.calls["nvmlGpmSampleFree"] == 0
    go_on.set()
    reader.join(30)


def suppress_source_errors(action: Any) -> None:
    with contextlib.suppress(GpuLost, NvmlUnavailable):
        action()


def test_gpus_can_be_read_side_by_side_while_others_are_looked_for(nodes: Any) -> None:
    node = nodes(EIGHT_BUSY_H100).open()
    failures: list[BaseException] = []

    def read_often(gpu: int) -> None:
        try:
            for _ in range(30):
                assert node.nvml.read(node.gpus[gpu])["memory_total"] == 81559
                if gpu == 0:
                    assert node.nvml.find_again(node.gpus[1])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read_often, args=(gpu,)) for gpu in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
