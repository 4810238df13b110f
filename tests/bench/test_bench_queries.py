"""The benchmark of queries runs, scaled down; what it measures here says nothing."""

from __future__ import annotations

from pathlib import Path

from bench.queries import Line, generate, idle_lines, loaded_lines, questions, scene_of
from bench.served import Asked, Latencies, fetch, served

GPUS = 16
TO_COME = {"percentiles", "export"}
"""Their endpoints are not there yet."""


def test_every_question_is_answered_idle_and_while_samples_come_in(tmp_path: Path) -> None:
    generate(tmp_path, GPUS, days=1, step=600)
    with served(tmp_path) as server:
        scene = scene_of(server)
        assert (len(scene.gpus), scene.days) == (GPUS, 1)
        asked = questions(scene)
        lines = list(idle_lines(server, asked, requests=2))
        assert [line.name for line in lines] == [question.name for question in asked]
        unanswered = {line.name: line.found.status for line in lines if line.found.status != 200}
        assert {name.split()[0] for name in unanswered} <= TO_COME, unanswered
        before = fetch(server.port, Asked("POST", "/api/gpu/realtime", "{}"))["data"]["samples"]
        *loaded, told = loaded_lines(server, asked[:2], requests=2, rate=800)
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
