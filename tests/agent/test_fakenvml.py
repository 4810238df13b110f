"""The simulated library's answers about one GPU, through the real binding."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from gpumon.agent.fakenvml import CALLS, FakeNvml, abi, fields, gpm
from gpumon.agent.fakenvml.scenario_file import models
from tests.agent.simulated import MODELS, Library, libraries

MIB = 2**20
ALL_LINKS = 2**32 - 1


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Library]]:
    with libraries(tmp_path) as make:
        yield make


def error_of(read: Callable[[], Any]) -> type[Exception] | None:
    try:
        read()
    except pynvml.NVMLError as error:
        return type(error)
    return None


def test_its_numbers_are_those_of_the_binding() -> None:
    for code in abi.Return:
        name = "NVML_SUCCESS" if code == 0 else f"NVML_ERROR_{code.name}"
        assert getattr(pynvml, name) == code
    for name in abi.ERRORS:
        assert issubclass(getattr(pynvml, f"NVMLError_{name}"), pynvml.NVMLError)
    for kind in abi.ValueType:
        assert getattr(pynvml, f"NVML_VALUE_TYPE_{kind.name}") == kind
    assert pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value == abi.NOT_AVAILABLE
    assert pynvml.nvmlEventTypeXidCriticalError == abi.EVENT_XID
    ids = {value for name, value in vars(pynvml).items() if name.startswith("NVML_FI_DEV_")}
    assert set(fields.FIELDS) <= ids
    assert max(ids) >= abi.FIELD_ID_MAX
    metrics = {value for name, value in vars(pynvml).items() if name.startswith("NVML_GPM_METRIC_")}
    assert set(gpm.METRICS) <= metrics


@pytest.mark.parametrize("model", MODELS)
def test_what_a_model_does_not_support_is_a_call_or_field_that_exists(model: str) -> None:
    assert models()[model].unsupported_calls <= CALLS
    assert models()[model].unsupported_fields <= set(fields.FIELDS)


def test_tells_who_a_gpu_is(make: Callable[..., Library]) -> None:
    library = make('model = "h100-sxm"\ncount = 3', top='driver = "570.1"\ncuda = 12080')
    gpu = library.gpu(2)
    assert pynvml.nvmlDeviceGetCount() == 3
    assert pynvml.nvmlDeviceGetName(gpu) == "NVIDIA H100 80GB HBM3"
    assert pynvml.nvmlDeviceGetUUID(gpu).startswith("GPU-")
    assert pynvml.nvmlDeviceGetIndex(gpu) == pynvml.nvmlDeviceGetMinorNumber(gpu) == 2
    assert pynvml.nvmlDeviceGetPciInfo(gpu).busId == "00000000:1A:00.0"
    assert pynvml.nvmlDeviceGetPciInfo(gpu).busIdLegacy == "0000:1A:00.0"
    assert pynvml.nvmlDeviceGetCudaComputeCapability(gpu) == (9, 0)
    assert len(pynvml.nvmlDeviceGetSerial(gpu)) == 13
    assert pynvml.nvmlSystemGetDriverVersion() == "570.1"
    assert pynvml.nvmlSystemGetCudaDriverVersion_v2() == 12080
    assert pynvml.nvmlSystemGetNVMLVersion()


def test_a_uuid_is_the_same_each_time_and_belongs_to_one_gpu_of_the_fleet(
    make: Callable[..., Library],
) -> None:
    def uuids(node: str) -> list[str]:
        make('model = "a100-sxm"\ncount = 4\nmig = ["1g.5gb"]', node=node)
        found = []
        for index in range(4):
            gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
            found += [gpu, pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)]
        return [pynvml.nvmlDeviceGetUUID(handle) for handle in found]

    assert uuids("node-1") == uuids("node-1")
    assert len(set(uuids("node-1") + uuids("node-2"))) == 16


def test_fixed_values_are_read_as_they_are_written(make: Callable[..., Library]) -> None:
    gpu = make(
        'model = "rtx-4090"\nutilization = 42\nmemory_activity_percent = 7\npower_watts = 321.5\n'
        "temperature_celsius = 66\nfan_percent = 51\nmemory_used_mib = 2048\nclock_event_reasons = 0x24"
    ).gpu()
    assert pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu == 42
    assert pynvml.nvmlDeviceGetUtilizationRates(gpu).memory == 7
    assert pynvml.nvmlDeviceGetPowerUsage(gpu) == 321_500
    assert pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU) == 66
    assert pynvml.nvmlDeviceGetTemperatureV(gpu, pynvml.NVML_TEMPERATURE_GPU) == 66
    assert pynvml.nvmlDeviceGetFanSpeed(gpu) == 51
    assert pynvml.nvmlDeviceGetMemoryInfo(gpu, version=pynvml.nvmlMemory_v2).used == 2048 * MIB
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu) == 0x24
    assert pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu) == 0x24


def test_an_idle_gpu_and_a_full_one_look_like_it(make: Callable[..., Library]) -> None:
    library = make('model = "h100-sxm"\nutilization = 0', '[[node.gpus]]\nmodel = "h100-sxm"\nutilization = 100')
    idle, full = library.gpu(0), library.gpu(1)
    assert [pynvml.nvmlDeviceGetPowerUsage(gpu) for gpu in (idle, full)] == [70_000, 700_000]
    assert [pynvml.nvmlDeviceGetPerformanceState(gpu) for gpu in (idle, full)] == [8, 0]
    assert [pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu) for gpu in (idle, full)] == [1, 4]
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(full) == 700_000
    clocks = [pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM) for gpu in (idle, full)]
    assert clocks[0] == 345 < clocks[1] <= 1980
    assert pynvml.nvmlDeviceGetClockInfo(idle, pynvml.NVML_CLOCK_MEM) == 2619
    hot = [pynvml.nvmlDeviceGetTemperature(gpu, 0) for gpu in (idle, full)]
    assert hot == [32, 72]


def test_memory_adds_up_in_both_versions(make: Callable[..., Library]) -> None:
    gpu = make('model = "h100-sxm"', "[[node.processes]]\npid = 11").gpu()
    new = pynvml.nvmlDeviceGetMemoryInfo(gpu, version=pynvml.nvmlMemory_v2)
    old = pynvml.nvmlDeviceGetMemoryInfo(gpu)
    assert new.total == old.total == 81559 * MIB
    assert new.used + new.free + new.reserved == new.total
    assert old.used == new.used + new.reserved
    assert old.free == new.free


def test_a_structure_of_another_version_is_refused(make: Callable[..., Library]) -> None:
    gpu = make().gpu()
    refused = pynvml.NVMLError_ArgumentVersionMismatch
    assert error_of(lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu, version=0x01000020)) is refused


UNSUPPORTED = {
    "fan": (pynvml.nvmlDeviceGetFanSpeed, {"rtx-4090"}),
    "memory": (pynvml.nvmlDeviceGetMemoryInfo, set(MODELS) - {"gb10"}),
    "power": (pynvml.nvmlDeviceGetPowerUsage, set(MODELS) - {"vgpu-a40-8q"}),
    "limit": (pynvml.nvmlDeviceGetEnforcedPowerLimit, set(MODELS) - {"gb10", "vgpu-a40-8q"}),
    "temperature": (lambda gpu: pynvml.nvmlDeviceGetTemperature(gpu, 0), set(MODELS) - {"vgpu-a40-8q"}),
    "ecc": (
        lambda gpu: pynvml.nvmlDeviceGetTotalEccErrors(gpu, 1, 0),
        {"h100-sxm", "a100-sxm", "t4", "l4"},
    ),
    "rows": (pynvml.nvmlDeviceGetRemappedRows, {"h100-sxm", "a100-sxm", "l4"}),
    "pages": (lambda gpu: pynvml.nvmlDeviceGetRetiredPages(gpu, 1), {"t4"}),
    "serial": (pynvml.nvmlDeviceGetSerial, {"h100-sxm", "a100-sxm", "t4", "l4"}),
    "mig": (pynvml.nvmlDeviceGetMigMode, {"h100-sxm", "a100-sxm"}),
    "memory clock": (lambda gpu: pynvml.nvmlDeviceGetClockInfo(gpu, 2), set(MODELS) - {"gb10"}),
}


@pytest.mark.parametrize("reading", UNSUPPORTED)
@pytest.mark.parametrize("model", MODELS)
def test_each_model_supports_what_the_real_one_does(
    make: Callable[..., Library], model: str, reading: str
) -> None:
    read, supporters = UNSUPPORTED[reading]
    gpu = make(f'model = "{model}"').gpu()
    assert error_of(lambda: read(gpu)) is (None if model in supporters else pynvml.NVMLError_NotSupported)


@pytest.mark.parametrize("model", MODELS)
def test_gpm_is_for_hopper(make: Callable[..., Library], model: str) -> None:
    gpu = make(f'model = "{model}"').gpu()
    assert pynvml.nvmlGpmQueryDeviceSupport(gpu).isSupportedDevice == (model == "h100-sxm")


def test_each_field_has_its_own_code_type_and_cost(make: Callable[..., Library]) -> None:
    gpu = make('model = "t4"\nutilization = 50\necc_uncorrected = 3\npcie_replays = 9').gpu()
    asked = [83, 82, 4, 94, 138, 250, 9999]
    values = list(pynvml.nvmlDeviceGetFieldValues(gpu, asked))
    assert [value.fieldId for value in values] == asked
    assert [value.nvmlReturn for value in values] == [
        pynvml.NVML_SUCCESS,
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_SUCCESS,
        pynvml.NVML_SUCCESS,
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
    ]
    assert values[0].valueType == pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
    assert values[0].value.ullVal == pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    assert (values[2].value.ullVal, values[3].value.uiVal) == (3, 9)
    assert all(value.latencyUsec > 0 and value.timestamp > 0 for value in values)


def test_nvlink_counts_per_link_and_over_all(make: Callable[..., Library]) -> None:
    gpu = make('model = "h100-sxm"\nutilization = 50').gpu()
    asked = [(138, link) for link in range(18)] + [(138, ALL_LINKS), (138, 18)]
    *links, whole, beyond = pynvml.nvmlDeviceGetFieldValues(gpu, asked)
    assert sum(link.value.ullVal for link in links) == whole.value.ullVal > 0
    assert beyond.nvmlReturn == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_margins_to_the_temperature_limit_are_signed(make: Callable[..., Library]) -> None:
    gpu = make('model = "h100-sxm"').gpu()
    (shutdown,) = pynvml.nvmlDeviceGetFieldValues(gpu, [193])
    assert shutdown.valueType == pynvml.NVML_VALUE_TYPE_SIGNED_INT
    assert shutdown.value.siVal == -8


def test_retired_pages_and_remapped_rows_are_counted_where_the_model_has_them(
    make: Callable[..., Library],
) -> None:
    old = make('model = "t4"\nretired_pages = 12').gpu()
    assert len(set(pynvml.nvmlDeviceGetRetiredPages(old, 1))) == 12
    assert pynvml.nvmlDeviceGetRetiredPages(old, 0) == []
    new = make('model = "h100-sxm"\nremapped_rows = 2').gpu()
    assert pynvml.nvmlDeviceGetRemappedRows(new) == (0, 2, 0, 0)


def test_a_function_that_it_does_not_have_is_missing_as_in_an_old_driver(
    make: Callable[..., Library],
) -> None:
    gpu = make(top='missing_calls = ["nvmlDeviceGetTemperatureV", "nvmlGpm*"]').gpu()
    missing = pynvml.NVMLError_FunctionNotFound
    assert error_of(lambda: pynvml.nvmlDeviceGetTemperatureV(gpu, 0)) is missing
    assert error_of(pynvml.nvmlGpmSampleAlloc) is missing
    assert error_of(lambda: pynvml.nvmlDeviceGetBoardId(gpu)) is missing
    assert pynvml.nvmlDeviceGetTemperature(gpu, 0) > 0


def test_every_function_stands_where_ctypes_would_find_it() -> None:
    fake = FakeNvml.from_text('[[node]]\nmatch = "*"', "node-1")
    for name in CALLS:
        function = getattr(fake, name)
        function.restype = ctypes.c_uint  # as the binding sets it for some
