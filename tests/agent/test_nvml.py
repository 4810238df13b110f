"""The door to NVML through the real binding, over simulated GPUs: what is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import pynvml
import pytest

from gpumon.agent import nvml_gpm
from gpumon.agent.fakenvml import FakeNvml
from gpumon.agent.nvml import GROUPS, Nvml
from gpumon.agent.ports import Gpu, GpuLibrary
from gpumon.agent.settings import GpuMetrics
from gpumon.errors import GpuLost
from gpumon.model.sample import GpuSample
from tests.agent.nvmlnode import FIELDS_OF, GPM, NVLINK, PCIE, answering, simulated


@pytest.fixture
def nodes() -> Iterator[Any]:
    with simulated() as make:
        yield make


def test_the_door_is_a_gpu_library() -> None:
    library: GpuLibrary = Nvml()
    assert library.read


def test_the_groups_are_those_of_the_settings() -> None:
    names = [field.name for field in msgspec.structs.fields(GpuMetrics)]
    assert {f"include_{group}" for group in GROUPS} == set(names)


@pytest.mark.parametrize("model", FIELDS_OF)
def test_each_model_gives_what_it_supports_and_nothing_else(nodes: Any, model: str) -> None:
    node = nodes(f"model = '{model}'\nutilization = 50").open()
    node.read()
    assert set(node.read()) == FIELDS_OF[model]


@pytest.mark.parametrize("model", FIELDS_OF)
def test_every_reading_fits_the_wire(nodes: Any, model: str) -> None:
    node = nodes(f"model = '{model}'").open()
    node.read()
    sample = {"timestamp": "2026-01-01T00:00:00Z", "gpu_id": 0, "gpu_name": "x", "client_name": "x"}
    msgspec.convert(sample | node.read(), GpuSample)


def test_a_mig_parent_has_no_utilisation_but_memory_and_power(nodes: Any) -> None:
    node = nodes("model = 'a100-sxm'\nmig = ['3g.20gb', '']").open()
    reading = node.read()
    assert not {"utilization_gpu", "utilization_memory", "encoder_utilization", *GPM} & set(reading)
    assert reading["memory_total"] == 40960
    assert "power_draw" in reading


def test_values_come_in_the_catalogues_units(nodes: Any) -> None:
    node = nodes(
        "model = 'h100-sxm'\nutilization = 50\nmemory_used_mib = 40000\npower_watts = 350\n"
        "temperature_celsius = 61\necc_uncorrected = 3\nclock_event_reasons = 4"
    ).open()
    node.read()
    reading = node.read()
    expected = {
        "utilization_gpu": 50.0,
        "memory_total": 81559,
        "memory_used": 40000,
        "memory_reserved": 551,
        "memory_free": 81559 - 551 - 40000,
        "temperature": 61,
        "power_draw": 350.0,
        "power_limit": 700.0,
        "ecc_uncorrected": 3,
        "clock_event_reasons": 4,
        "memory_clock": 2619,
    }
    assert expected.items() <= reading.items()
    assert reading["sm_active"] == pytest.approx(46.0)
    assert reading["dram_active"] == pytest.approx(27.5)


def test_counters_grow_by_what_the_gpu_uses(nodes: Any) -> None:
    node = nodes("model = 'h100-sxm'\nutilization = 50\npower_watts = 400").open()
    before, after = node.read(), node.read()
    assert after["energy_mj"] - before["energy_mj"] == pytest.approx(400_000, abs=2)
    simulated = node.fake.state.gpus[0].traffic_bytes(0.5)
    grown = [after[name] - before[name] for name in ("pcie_tx_kib", "pcie_rx_kib", "nvlink_rx_kib")]
    assert grown == pytest.approx([bytes_ / 1024 for bytes_ in simulated], rel=1e-3)


def test_energy_and_power_come_from_their_own_calls_where_the_batch_lacks_them(nodes: Any) -> None:
    node = nodes("model = 't4'\npower_watts = 33.5", "missing_calls = ['nvmlDeviceGetFieldValues']").open()
    reading = node.read()
    assert reading["power_draw"] == 33.5
    assert reading["energy_mj"] > 0


def test_the_first_reading_has_no_activity_by_unit(nodes: Any) -> None:
    node = nodes().open()
    assert not GPM & set(node.read())
    assert set(node.read()) >= GPM


def test_identity_is_read_once_and_gpus_keep_their_order(nodes: Any) -> None:
    node = nodes("model = 'l4'\ncount = 3").open()
    assert [gpu.index for gpu in node.gpus] == [0, 1, 2]
    assert len({gpu.uuid for gpu in node.gpus}) == 3
    assert node.gpus[2].name == "NVIDIA L4"
    assert node.gpus[2].minor_number == 2
    assert node.gpus[2].pci_bus_id == "00000000:1A:00.0"
    assert not {"nvmlDeviceGetUUID", "nvmlDeviceGetName"} & set(node.calls_of(node.read))


def test_a_library_without_uuids_gives_position_as_identity(nodes: Any) -> None:
    missing = ["nvmlDeviceGetUUID", "nvmlDeviceGetName", "nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetMinorNumber"]
    node = nodes("model = 'l4'\ncount = 2", f"missing_calls = {missing}").open()
    assert node.gpus[1] == Gpu(1, "no-uuid-1", "unknown GPU", None, None)
    assert node.read(1)["memory_total"] == 23034
    assert node.nvml.find_again(node.gpus[1])


def test_no_gpus_are_no_error() -> None:
    fake = FakeNvml.from_text('[[node]]\nmatch = "*"', "node-1")
    fake.install()
    try:
        assert list(Nvml().open()) == []
    finally:
        fake.uninstall()


def test_versions_are_told(nodes: Any) -> None:
    node = nodes("model = 'l4'", "driver = '570.1.2'").open()
    assert node.nvml.driver_version == "570.1.2"
    assert node.nvml.nvml_version


def test_support_says_why_a_field_is_absent(nodes: Any) -> None:
    node = nodes("model = 't4'").open()
    node.read()
    support = node.nvml.support(node.gpus[0])
    assert support.supported == FIELDS_OF["t4"]
    assert support.unsupported["fan_speed"] == "nvmlDeviceGetFanSpeed: Not Supported"
    assert "temperature_memory" in support.unsupported


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_a_group_that_is_off_is_absent_and_costs_no_call(nodes: Any, group: str) -> None:
    only = nodes(groups=frozenset({group})).open()
    only.read()
    of_group = set(only.read())
    only.close()
    without = nodes(groups=GROUPS - {group}).open()
    without.read()
    assert set(without.read()) == FIELDS_OF["h100-sxm"] - of_group


@pytest.mark.parametrize(
    ("missing", "absent"),
    [
        ("nvmlDeviceGetMemoryInfo_v2", {"memory_reserved"}),
        ("nvmlDeviceGetTemperatureV", set()),
        ("nvmlDeviceGetCurrentClocksEventReasons", set()),
        ("nvmlGpm*", GPM),
        ("nvmlDeviceGetFieldValues", PCIE | NVLINK | {"temperature_memory"}),
        ("nvmlDeviceGetEnforcedPowerLimit", set()),
        ("nvmlDeviceGetClockInfo", {"sm_clock", "memory_clock"}),
        ("nvmlDeviceGet*RunningProcesses_v3", {"process_count"}),
    ],
)
def test_a_library_that_lacks_a_function_lacks_its_reading_alone(
    nodes: Any, missing: str, absent: set[str]
) -> None:
    node = nodes(rest=f"missing_calls = ['{missing}']").open()
    node.read()
    assert set(node.read()) == FIELDS_OF["h100-sxm"] - absent


def test_the_old_memory_call_counts_what_is_reserved_as_used(nodes: Any) -> None:
    node = nodes("model = 'l4'\nmemory_used_mib = 100", "missing_calls = ['nvmlDeviceGetMemoryInfo_v2']").open()
    assert node.read()["memory_used"] == 659


def test_gpm_overshoot_is_clamped_and_a_metric_that_failed_or_is_no_number_is_left_out(nodes: Any) -> None:
    def change(request: Any) -> None:
        metrics = request._obj.metrics
        metrics[0].value = 100.4
        metrics[1].value = math.nan
        metrics[2].nvmlReturn = pynvml.NVML_ERROR_UNKNOWN
        metrics[3].value = 250.0

    node = nodes()
    answering(node, "nvmlGpmMetricsGet", change)
    node.open().read()
    reading = node.read()
    assert list(nvml_gpm.METRICS.values()) == ["sm_active", "sm_occupancy", "tensor_active", "dram_active"]
    assert {field: reading[field] for field in GPM & set(reading)} == {"sm_active": 100.0}


def test_every_type_of_a_field_value_is_understood_and_not_available_is_no_number(nodes: Any) -> None:
    def change(handle: Any, count: Any, values: Any) -> None:
        for value in values:
            value.nvmlReturn = 0
        power, energy, memory, rx, tx, nvlink_rx, nvlink_tx = values
        power.valueType, power.value.dVal = pynvml.NVML_VALUE_TYPE_DOUBLE, 250_500.0
        energy.valueType, energy.value.ulVal = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG, 2**40
        memory.valueType, memory.value.siVal = pynvml.NVML_VALUE_TYPE_SIGNED_INT, -5
        rx.valueType, rx.value.sllVal = pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG, 4096
        tx.valueType, tx.value.ullVal = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, 2**64 - 1
        nvlink_rx.valueType, nvlink_rx.value.usVal = pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT, 77
        nvlink_tx.valueType = 99

    node = nodes(groups=frozenset({"power", "links", "temperature"}))
    answering(node, "nvmlDeviceGetFieldValues", change)
    reading = node.open().read()
    expected = {
        "power_draw": 250.5,
        "energy_mj": 2**40,
        "temperature_memory": -5,
        "pcie_rx_kib": 4,
        "nvlink_rx_kib": 77,
    }
    assert expected.items() <= reading.items()
    assert not {"pcie_tx_kib", "nvlink_tx_kib"} & set(reading)


def test_each_field_comes_from_its_own_id_and_nvlink_from_all_links(nodes: Any) -> None:
    def change(handle: Any, count: Any, values: Any) -> None:
        for value in values:
            value.nvmlReturn, value.valueType = 0, pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
            value.value.ullVal = value.fieldId * 1024 if value.scopeId == 0 else value.fieldId

    node = nodes()
    answering(node, "nvmlDeviceGetFieldValues", change)
    reading = node.open().read()
    expected = {
        "power_draw": 185 * 1.024,
        "energy_mj": 83 * 1024,
        "pcie_tx_kib": 197,
        "pcie_rx_kib": 198,
        "nvlink_tx_kib": 138,
        "nvlink_rx_kib": 139,
    }
    assert expected.items() <= reading.items()


def test_ecc_errors_are_the_uncorrected_ones_since_the_driver_was_loaded(nodes: Any) -> None:
    asked = []
    node = nodes(groups=frozenset({"health"}))
    answering(
        node, "nvmlDeviceGetTotalEccErrors", lambda handle, error, counter, count: asked.append((error, counter))
    )
    node.open().read()
    [(error, counter)] = asked
    assert (error.value, counter.value) == (1, 0)


def test_a_field_that_reports_the_gpu_as_lost_loses_it(nodes: Any) -> None:
    def change(handle: Any, count: Any, values: Any) -> None:
        for value in values:
            value.nvmlReturn = pynvml.NVML_ERROR_GPU_IS_LOST

    node = nodes()
    answering(node, "nvmlDeviceGetFieldValues", change)
    with pytest.raises(GpuLost):
        node.open().read()


def test_values_that_the_library_leaves_untouched_are_not_those_of_the_last_sample(nodes: Any) -> None:
    node = nodes()
    answers = [node.fake._functions["nvmlDeviceGetFieldValues"], lambda *args: 0]
    node.fake._functions["nvmlDeviceGetFieldValues"] = lambda *args: answers.pop(0)(*args)
    assert "energy_mj" in node.open().read()
    assert "energy_mj" not in node.read()


def test_values_that_the_library_leaves_untouched_are_no_zeros(nodes: Any) -> None:
    node = nodes("model = 'l4'\npower_watts = 40")
    node.fake._functions["nvmlDeviceGetFieldValues"] = lambda *args: 0
    reading = node.open().read()
    assert reading["power_draw"] == 40.0
    assert "pcie_rx_kib" not in reading
