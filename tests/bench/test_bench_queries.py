"""The benchmark of queries runs, scaled down; what it measures here says nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bench.queries import Line, generate, idle_lines, loaded_lines, questions, scene_of
from bench.rivals import difference
from bench.served import Asked, Latencies, Served, fetch, served

from bench import growth

GPUS = 16


def test_every_question_is_answered_idle_and_while_samples_come_in(tmp_path: Path) -> None:
    generate(tmp_path, GPUS, days=1, step=600)
    with served(tmp_path) as server:
        scene = scene_of(server)
        assert (len(scene.gpus), scene.days) == (GPUS, 1)
        asked = questions(scene)
        lines = list(idle_lines(server, asked, requests=0))
        assert [line.name for line in lines] == [question.name for question in asked]
        assert {line.name: line.found.status for line in lines if line.found.status != 200} == {}
        before = fetch(server.port, Asked("POST", "/api/gpu/realtime", "{}"))["data"]["samples"]
        *loaded, told = loaded_lines(server, asked[:2], requests=0, rate=800, samples_per_gpu=10, is_usual=True)
        assert [line.found.status for line in loaded if isinstance(line, Line)] == [200, 200]
        assert "rows/s in" in str(told)
        after = fetch(server.port, Asked("POST", "/api/gpu/realtime", "{}"))["data"]["samples"]
        assert after >= before + 160


def test_a_question_that_is_too_slow_or_fails_is_missed() -> None:
    taken = sorted([10.0] * 94 + [30.0] * 6)
    assert str(Line("slow", 15, Latencies(200, 99.0, taken))).endswith("2.00  MISSED")
    assert str(Line("fast", 30, Latencies(200, 99.0, taken))).endswith("1.00  ok")
    assert str(Line("gone", 15, Latencies(404, 1.0, [1.0]))).endswith("answer 404  MISSED")
    assert "MISSED" not in str(Line("no aim", None, Latencies(200, 99.0, taken)))


def test_a_fleet_that_grows_day_by_day_is_asked_the_same_also_when_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, wait = 0, growth._wait_until_in

    def stop_in_the_second_day(server: Served, made: Any) -> float:
        nonlocal waits
        waits += 1
        if waits == 2:
            raise KeyboardInterrupt
        return wait(server, made)

    monkeypatch.setattr(growth, "TIMED_DAYS", 1)
    one = partial(growth.grow, tmp_path, gpus=2, days=3, step=3600, requests=0, sealed=False)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(growth, "_wait_until_in", stop_in_the_second_day)
        one()
    size = one()
    assert 2 * 3 * 20 < size.samples <= 2 * 3 * 24
    assert (size.days, size.timed_days) == (3, 1)
    assert 2 * 20 < size.timed_samples <= 2 * 24
    told = growth.table([size]).splitlines()
    assert f"{size.samples}" in told[1]
    assert set(size.latencies) <= {line[:40].strip() for line in told}
    assert one() == size


def test_answers_are_equal_within_the_tolerance_and_by_the_same_keys() -> None:
    ours = {"a": 100.0, "b": 0.0}
    assert difference(ours, {"a": 100.1, "b": 0.0}, 0.001).startswith("equal: 2 values")
    assert difference(ours, {"a": 100.2, "b": 0.0}, 0.001).startswith("DIFFERENT")
    assert difference(ours, {"a": 100.0}, 0.001).startswith("NOT THE SAME KEYS (1 more, 0 missing)")
    assert difference(ours, None, 0.001) == "-"
