"""What reading costs: which calls, and how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.agent.nvmlnode import EIGHT_BUSY_H100, FIELDS_OF, simulated


@pytest.fixture
def nodes() -> Iterator[Any]:
    with simulated() as make:
        yield make


PROCESSES = "\n".join(
    f"[[node.processes]]\ngpu = {gpu}\npid = {100 * gpu + n + 1}" for gpu in range(8) for n in range(3)
)


def test_eight_h100_with_processes_take_at_most_eighty_calls_a_second(nodes: Any) -> None:
    node = nodes(EIGHT_BUSY_H100 + "\n" + PROCESSES).open()

    def read_all() -> None:
        node.times.seconds += 1
        for gpu in node.gpus:
            node.nvml.read(gpu)

    read_all()
    seconds = 60
    total = node.calls_of(lambda: [read_all() for _ in range(seconds)]).total()
    assert total / seconds <= 80


def test_a_second_between_slow_readings_takes_seven_calls_on_an_idle_h100(nodes: Any) -> None:
    node = nodes("model = 'h100-sxm'\nutilization = 0").open()
    node.read()
    node.read()
    calls = node.calls_of(node.read)
    assert calls == Counter(
        {
            "nvmlDeviceGetUtilizationRates": 1,
            "nvmlDeviceGetMemoryInfo_v2": 1,
            "nvmlDeviceGetFieldValues": 1,
            "nvmlDeviceGetSamples": 1,
            "nvmlDeviceGetComputeRunningProcesses_v3": 1,
            "nvmlGpmSampleGet": 1,
            "nvmlGpmMetricsGet": 1,
        }
    )


def test_slow_readings_are_read_every_thirty_seconds_and_carried(nodes: Any) -> None:
    node = nodes().open()
    calls = node.calls_of(lambda: [node.read() for _ in range(61)])
    assert calls["nvmlDeviceGetEnforcedPowerLimit"] == 3
    assert calls["nvmlDeviceGetTotalEccErrors"] == 3
    assert calls["nvmlDeviceGetPowerUsage"] == 0
    assert node.read()["power_limit"] == 700.0


def test_the_temperature_is_read_every_five_seconds_and_carried(nodes: Any) -> None:
    node = nodes("model = 'l4'\ntemperature_celsius = 55").open()
    temperatures = []
    calls = node.calls_of(lambda: temperatures.extend(node.read()["temperature"] for _ in range(30)))
    assert calls["nvmlDeviceGetTemperatureV"] == 6
    assert temperatures == [55] * 30


@pytest.mark.parametrize("model", FIELDS_OF)
def test_what_is_not_supported_is_asked_once(nodes: Any, model: str) -> None:
    node = nodes(f"model = '{model}'").open()
    node.read()
    calls = node.calls_of(lambda: [node.read() for _ in range(40)])
    assert not set(calls) & set(node.fake.state.gpus[0].model.unsupported_calls)
    assert calls.total() <= 40 * 10


def test_unknown_ids_leave_the_batch_after_the_first_sample(nodes: Any) -> None:
    node = nodes("model = 't4'").open()
    sizes = []
    original = node.fake._functions["nvmlDeviceGetFieldValues"]

    def watched(handle: Any, count: Any, values: Any) -> int:
        sizes.append(count.value)
        return original(handle, count, values)  # type: ignore[no-any-return]

    node.fake._functions["nvmlDeviceGetFieldValues"] = watched
    node.read()
    node.read()
    assert sizes == [7, 1]


def process(pid: int, kind: str = "compute") -> str:
    return f"[[node.processes]]\npid = {pid}\nkind = '{kind}'\n"


def test_a_process_on_several_lists_counts_once(nodes: Any) -> None:
    on_lists = process(7) + process(7, "graphics") + process(8, "mps") + process(9, "graphics")
    node = nodes(f"model = 'l4'\n{on_lists}").open()
    assert node.read()["process_count"] == 3


def test_no_processes_are_zero_processes(nodes: Any) -> None:
    assert nodes("model = 'l4'").open().read()["process_count"] == 0


def test_a_list_longer_than_the_buffer_is_read_again_once_and_then_fits(nodes: Any) -> None:
    node = nodes("model = 'l4'\n" + "".join(process(pid) for pid in range(1, 201))).open()
    compute = "nvmlDeviceGetComputeRunningProcesses_v3"
    first, later = node.calls_of(node.read), node.calls_of(node.read)
    assert (first[compute], later[compute]) == (2, 1)
    assert node.read()["process_count"] == 200


def test_a_list_that_never_fits_is_missed(nodes: Any) -> None:
    node = nodes("model = 'l4'").open()
    node.fake.fail("nvmlDeviceGetComputeRunningProcesses_v3", "InsufficientSize")
    assert "process_count" not in node.read()
    assert "temperature" in node.read()


def test_a_count_without_one_of_its_lists_is_no_count(nodes: Any) -> None:
    node = nodes("model = 'l4'\n" + process(7) + process(8, "graphics")).open()
    assert node.read()["process_count"] == 2
    node.fake.fail("nvmlDeviceGetGraphicsRunningProcesses_v3", "Unknown")
    node.times.seconds += 30
    assert "process_count" not in node.read()
    node.fake.clear_faults()
    assert node.read()["process_count"] == 2


def test_a_driver_without_some_lists_counts_those_it_has(nodes: Any) -> None:
    missing = "missing_calls = ['nvmlDeviceGetMPS*', 'nvmlDeviceGetGraphicsRunning*']"
    assert nodes("model = 'l4'\n" + process(7), missing).open().read()["process_count"] == 1
