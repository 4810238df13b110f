"""The door to NVML through the real binding, over simulated GPUs: what is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from gpumon.agent.fakenvml import FakeNvml
from gpumon.agent.nvml import GROUPS, Nvml
from gpumon.agent.ports import Gpu, GpuLibrary
from gpumon.agent.settings import GpuMetrics
from gpumon.model.sample import GpuSample
from tests.agent.nvmlnode import FIELDS_OF, GPM, NVLINK, simulated


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
    node.read()
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
        ("nvmlDeviceGetFieldValues", NVLINK | {"temperature_memory"}),
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
