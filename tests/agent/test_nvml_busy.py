"""How busy a GPU was between two samples, not only at the second one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pynvml
import pytest

from gpumon.agent.nvml.busy import NAME
from tests.agent.nvmlnode import Node, simulated


@pytest.fixture
def nodes() -> Iterator[Any]:
    with simulated() as make:
        yield make


def gives(node: Node, *samples: tuple[float, int], kind: int = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT) -> list[Any]:
    """Lets the driver give these samples (seconds before now, percent); the list gathers what it is asked with."""
    asked: list[Any] = []

    def answer(handle: Any, what: Any, since: Any, value_kind: Any, count: Any, array: Sequence[Any]) -> int:
        room = count._obj.value
        asked.append((since.value, room))
        value_kind._obj.value, count._obj.value = kind, len(samples)
        if len(samples) > room:
            return int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
        for row, (ago, percent) in zip(array, samples, strict=False):
            row.timeStamp = int((node.times.now().timestamp() - ago) * 1e6)
            if kind == pynvml.NVML_VALUE_TYPE_DOUBLE:
                row.sampleValue.dVal = percent
            else:
                row.sampleValue.uiVal = percent
        return 0 if samples else int(pynvml.NVML_ERROR_NOT_FOUND)

    node.fake._functions[NAME] = answer
    pynvml._nvmlGetFunctionPointer_cache.pop(NAME, None)
    return asked


def test_bursts_between_two_samples_are_not_overlooked(nodes: Any) -> None:
    node = nodes(
        "model = 'l4'\nutilization = { shape = 'bursts', busy = 100, period_seconds = 5, duty = 0.3 }"
    ).open()
    node.read(after=5)
    found = [node.read(after=5) for _ in range(6)]
    assert {reading["utilization_gpu"] for reading in found} <= {0.0, 100.0}
    assert [reading["utilization_mean"] for reading in found] == [pytest.approx(30, abs=1)] * 6


def test_the_driver_is_asked_from_the_newest_sample_that_was_seen(nodes: Any) -> None:
    node = nodes("model = 'l4'").open()
    asked = gives(node, (0.75, 10), (0.25, 30))
    assert node.read()["utilization_mean"] == 20
    newest = int((node.times.now().timestamp() - 0.25) * 1e6)
    node.read()
    assert asked[-1][0] == newest
    assert asked[0][0] > 0


def test_what_is_older_than_asked_or_nonsense_does_not_count(nodes: Any) -> None:
    node = nodes("model = 'l4'").open()
    gives(node, (30, 100), (0.5, 40), (0.2, 101))
    assert node.read()["utilization_mean"] == 40
    gives(node, (0.5, 70), kind=pynvml.NVML_VALUE_TYPE_DOUBLE)
    assert node.read()["utilization_mean"] == 70


def test_a_second_without_a_sample_has_no_mean(nodes: Any) -> None:
    node = nodes("model = 'l4'").open()
    node.read()
    gives(node)
    assert "utilization_mean" not in node.read()
    assert "utilization_gpu" in node.read()


def test_a_full_buffer_is_made_larger_once(nodes: Any) -> None:
    node = nodes("model = 'l4'").open()
    asked = gives(node, *((n / 400, 50) for n in range(300)))
    assert node.read()["utilization_mean"] == 50
    node.read()
    rooms = [room for _, room in asked]
    assert len(rooms) == 3 and rooms[0] < 300 <= rooms[1] == rooms[2]


def test_a_kind_of_value_that_is_not_known_is_not_guessed_at(nodes: Any) -> None:
    node = nodes("model = 'l4'").open()
    asked = gives(node, (0.5, 40), kind=99)
    assert "utilization_mean" not in node.read()
    node.read()
    assert len(asked) == 1, "it is not asked again and again"
