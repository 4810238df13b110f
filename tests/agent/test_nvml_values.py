"""What the door to NVML makes of values that the simulated library does not give by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pynvml
import pytest

from gpumon.agent.nvml import gpm
from gpumon.errors import GpuLost
from tests.agent.nvmlnode import GPM, PCIE, answering, simulated


@pytest.fixture
def nodes() -> Iterator[Any]:
    with simulated() as make:
        yield make


def test_gpm_overshoot_is_clamped_and_a_metric_that_failed_or_is_no_number_is_left_out(nodes: Any) -> None:
    def change(request: Any) -> None:
        metrics = request._obj.metrics
        metrics[0].value = 100.4
        metrics[1].value = math.nan
        metrics[2].nvmlReturn = pynvml.NVML_ERROR_UNKNOWN
        metrics[3].value = 250.0
        metrics[4].value = -1.0
        metrics[5].value = math.inf

    node = nodes()
    answering(node, "nvmlGpmMetricsGet", change)
    node.open().read()
    reading = node.read()
    assert list(gpm.METRICS.values()) == ["sm_active", "sm_occupancy", "tensor_active", "dram_active"]
    assert {field: reading[field] for field in GPM & set(reading)} == {"sm_active": 100.0}


def test_traffic_over_pcie_is_counted_up_and_absent_where_an_interval_of_it_is_missing(nodes: Any) -> None:
    node = nodes("model = 'h100-sxm'\nutilization = 50").open()
    tx, rx = (bytes_ / 1024 for bytes_ in node.fake.state.gpus[0].traffic_bytes(0.5)[:2])

    def counted(after: float) -> tuple[Any, Any]:
        reading = node.read(after=after)
        return reading.get("pcie_tx_kib"), reading.get("pcie_rx_kib")

    assert counted(1) == (None, None)
    assert counted(2) == pytest.approx((2 * tx, 2 * rx), rel=1e-6)
    assert counted(10) == pytest.approx((12 * tx, 12 * rx), rel=1e-6)
    node.fake.fail("nvmlGpmSampleGet", "Unknown")
    assert counted(5) == (None, None)
    node.fake.clear_faults()
    assert counted(5) == pytest.approx((22 * tx, 22 * rx), rel=1e-6), "the mean since the last that was taken"
    node.fake.fail("nvmlGpmMetricsGet", "Unknown")
    assert counted(5) == (None, None)
    node.fake.clear_faults()
    assert counted(5) == pytest.approx((27 * tx, 27 * rx), rel=1e-6)


def test_a_counter_of_bytes_that_has_but_32_bits_is_not_believed(nodes: Any) -> None:
    node = nodes("model = 'l4'\nutilization = 50").open()
    values = pynvml.nvmlDeviceGetFieldValues(pynvml.nvmlDeviceGetHandleByIndex(0), [197, 198])
    assert [value.nvmlReturn for value in values] == [0, 0]
    assert all(value.valueType == pynvml.NVML_VALUE_TYPE_UNSIGNED_INT for value in values)
    node.read()
    assert not PCIE & set(node.read())


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
    assert expected.items() <= node.read().items(), "GPM, which comes later, does not take its place"


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
    fills = node.fake._functions["nvmlDeviceGetFieldValues"]
    answers = iter([fills, lambda *args: 0])

    def first_fills(*args: Any) -> int:
        return next(answers)(*args)  # type: ignore[no-any-return]

    node.fake._functions["nvmlDeviceGetFieldValues"] = first_fills
    assert "energy_mj" in node.open().read()
    assert "energy_mj" not in node.read()


def test_values_that_the_library_leaves_untouched_are_no_zeros(nodes: Any) -> None:
    node = nodes("model = 'l4'\npower_watts = 40")
    node.fake._functions["nvmlDeviceGetFieldValues"] = lambda *args: 0
    reading = node.open().read()
    assert reading["power_draw"] == 40.0
    assert "pcie_rx_kib" not in reading
