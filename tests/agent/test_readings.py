"""The rules of reading one GPU, over scripted sources."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from gpumon.agent.nvml.readings import ASK_AGAIN_AFTER_SECONDS, GpuReader, NoReading, Source, Verdict
from gpumon.errors import GpuLost, NvmlUnavailable

SLOW_SECONDS = 30.0


class Clock:
    """A monotonic clock that stands still until it is told the time."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Scripted:
    """A source that gives its answers in turn, the last one for ever; an exception is raised. A number
    stands for a value of the source's one field."""

    def __init__(self, field: str, *answers: Any, name: str = "", slow: bool = False) -> None:
        self.field = field
        self.answers = list(answers)
        self.asked = 0
        self.forgotten = 0
        self.source = Source(
            name or f"call for {field}", frozenset({field}), self._ask, slow=slow, forget=self._forget
        )

    def _ask(self) -> dict[str, Any]:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, dict) else {self.field: answer}

    def _forget(self) -> None:
        self.forgotten += 1


def reader_of(*scripts: Scripted, clock: Callable[[], float] | None = None) -> GpuReader:
    return GpuReader(
        [script.source for script in scripts], slow_interval_seconds=SLOW_SECONDS, monotonic=clock or Clock()
    )


def unsupported() -> NoReading:
    return NoReading("Not Supported", Verdict.UNSUPPORTED)


def refused() -> NoReading:
    return NoReading("Invalid Argument", Verdict.REFUSED)


def missed() -> NoReading:
    return NoReading("Unknown Error", Verdict.MISSED)


def test_what_is_not_supported_is_left_out_and_not_asked_again() -> None:
    fan, clock = Scripted("fan_speed", unsupported()), Scripted("sm_clock", 1980)
    reader = reader_of(fan, clock)
    assert [reader.read(), reader.read()] == [{"sm_clock": 1980}] * 2
    assert (fan.asked, clock.asked) == (1, 2)


def test_what_is_not_supported_is_asked_again_after_an_hour() -> None:
    clock = Clock()
    utilization = Scripted("utilization_gpu", unsupported(), 40.0)
    reader = reader_of(utilization, clock=clock)
    assert reader.read() == {}
    clock.seconds += ASK_AGAIN_AFTER_SECONDS
    assert reader.read() == {"utilization_gpu": 40.0}


def test_a_later_source_stands_in_for_one_that_is_not_supported() -> None:
    new, old = Scripted("temperature", unsupported(), name="new"), Scripted("temperature", 41, name="old")
    assert reader_of(new, old).read() == {"temperature": 41}


def test_a_later_source_is_not_asked_for_what_an_earlier_one_gave() -> None:
    new, old = Scripted("temperature", 40, name="new"), Scripted("temperature", 41, name="old")
    assert reader_of(new, old).read() == {"temperature": 40}
    assert old.asked == 0


def test_a_source_that_worked_and_fails_once_is_not_replaced_for_one_sample() -> None:
    new = Scripted("memory_used", 100, missed(), 102, name="new")
    old = Scripted("memory_used", 650, name="old")
    reader = reader_of(new, old)
    assert [reader.read() for _ in range(3)] == [{"memory_used": 100}, {}, {"memory_used": 102}]


def test_a_source_that_never_worked_is_replaced_even_if_it_may_answer_another_time() -> None:
    new, old = Scripted("memory_used", missed(), name="new"), Scripted("memory_used", 650, name="old")
    assert reader_of(new, old).read() == {"memory_used": 650}


def test_a_field_missing_from_an_answer_that_used_to_have_it_is_left_out_for_one_sample() -> None:
    batch = Scripted("energy_mj", 7, {"energy_mj": None}, 9, name="batch")
    call = Scripted("energy_mj", 1, name="call")
    reader = reader_of(batch, call)
    assert [reader.read() for _ in range(3)] == [{"energy_mj": 7}, {}, {"energy_mj": 9}]


def test_a_refusal_lasts_unless_the_source_has_worked() -> None:
    never, once = Scripted("pstate", refused(), 0), Scripted("sm_clock", 5, refused(), 6)
    reader = reader_of(never, once)
    assert [reader.read() for _ in range(3)] == [{"sm_clock": 5}, {}, {"sm_clock": 6}]
    assert never.asked == 1


@pytest.mark.parametrize("junk", [-1.0, 100.5, 37_100.0, math.nan, math.inf])
def test_a_value_beyond_the_catalogues_bounds_is_left_out(junk: float) -> None:
    utilization, other = Scripted("utilization_gpu", junk), Scripted("utilization_memory", 5.0)
    assert reader_of(utilization, other).read() == {"utilization_memory": 5.0}


def test_the_catalogues_bounds_themselves_are_believed() -> None:
    assert reader_of(Scripted("utilization_gpu", 100.0)).read() == {"utilization_gpu": 100.0}
    assert reader_of(Scripted("utilization_gpu", 0.0)).read() == {"utilization_gpu": 0.0}


def test_a_slow_source_is_asked_once_per_interval_and_carried_in_between() -> None:
    clock = Clock()
    limit = Scripted("power_limit", 700.0, 600.0, slow=True)
    reader = reader_of(limit, clock=clock)
    seen = []
    for _ in range(32):
        seen.append(reader.read()["power_limit"])
        clock.seconds += 1
    assert seen == [700.0] * 30 + [600.0] * 2
    assert limit.asked == 2


def test_a_slow_source_that_fails_is_left_out_and_asked_again_at_the_next_sample() -> None:
    clock = Clock()
    limit = Scripted("power_limit", 700.0, missed(), 650.0, slow=True)
    reader = reader_of(limit, clock=clock)
    reader.read()
    clock.seconds += SLOW_SECONDS
    assert reader.read() == {}
    clock.seconds += 1
    assert reader.read() == {"power_limit": 650.0}


def test_a_slow_source_whose_value_is_junk_once_is_asked_again_at_the_next_sample() -> None:
    clock = Clock()
    limit = Scripted("power_limit", 700.0, -1.0, 650.0, slow=True)
    reader = reader_of(limit, clock=clock)
    reader.read()
    clock.seconds += SLOW_SECONDS
    assert reader.read() == {}
    clock.seconds += 1
    assert reader.read() == {"power_limit": 650.0}


def test_what_is_carried_is_dropped_when_the_gpu_is_lost() -> None:
    limit = Scripted("power_limit", 700.0, missed(), slow=True)
    power = Scripted("power_draw", 300.0, GpuLost("gone"), 310.0)
    reader = reader_of(limit, power)
    reader.read()
    with pytest.raises(GpuLost, match="gone"):
        reader.read()
    assert reader.read() == {"power_draw": 310.0}
    assert power.forgotten == 1


def test_a_library_that_is_gone_passes_through() -> None:
    with pytest.raises(NvmlUnavailable, match="gone"):
        reader_of(Scripted("pstate", NvmlUnavailable("gone"))).read()


def test_a_gpu_of_which_nothing_answers_is_lost() -> None:
    scripts = [Scripted(field, 1, missed()) for field in ("sm_clock", "memory_used", "temperature")]
    carried = Scripted("pstate", 0, slow=True)
    reader = reader_of(carried, *scripts)
    reader.read()
    with pytest.raises(GpuLost, match="temperature: Unknown Error"):
        reader.read()


def test_a_source_whose_values_are_all_missing_does_not_count_as_an_answer() -> None:
    batch = Scripted("energy_mj", 7, {"energy_mj": None}, name="batch")
    scripts = [Scripted(field, 1, missed()) for field in ("sm_clock", "memory_used")]
    reader = reader_of(*scripts, batch)
    reader.read()
    with pytest.raises(GpuLost, match="batch: no value"):
        reader.read()


def test_a_gpu_of_which_one_source_answers_is_not_lost() -> None:
    scripts = [Scripted(field, 1, missed()) for field in ("sm_clock", "memory_used", "temperature")]
    reader = reader_of(*scripts, Scripted("power_draw", 50.0))
    reader.read()
    assert reader.read() == {"power_draw": 50.0}


def test_a_gpu_that_supports_nothing_is_not_lost() -> None:
    fields = ("sm_clock", "memory_used", "temperature", "pstate")
    assert reader_of(*(Scripted(field, unsupported()) for field in fields)).read() == {}


def test_support_names_what_was_given_and_why_the_rest_was_not() -> None:
    reader = reader_of(Scripted("sm_clock", 1980), Scripted("fan_speed", unsupported(), name="GetFanSpeed"))
    reader.read()
    assert reader.support.supported == {"sm_clock"}
    assert reader.support.unsupported == {"fan_speed": "GetFanSpeed: Not Supported"}


def test_support_ends_when_the_gpu_says_so() -> None:
    reader = reader_of(Scripted("utilization_gpu", 40.0, unsupported(), name="GetUtilizationRates"))
    reader.read()
    reader.read()
    assert reader.support.supported == frozenset()
    assert reader.support.unsupported == {"utilization_gpu": "GetUtilizationRates: Not Supported"}
