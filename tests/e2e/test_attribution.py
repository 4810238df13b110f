"""Whose use was it? Scenes with a known truth, played to real agents and a real server, up to `/api/usage`."""

from __future__ import annotations

import pytest
from bench.attribution.mishaps import agent_outage
from bench.attribution.play import play
from bench.attribution.score import Score
from bench.attribution.sharing import foreign, held_idle, time_sliced

SECONDS = 12.0
PLAYED = {"time-sliced": time_sliced, "foreign": foreign, "held-idle": held_idle, "agent-outage": agent_outage}


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Score]:
    """All scenes at once: it is the waiting that takes long."""
    played = play(list(PLAYED.items()), SECONDS, tmp_path_factory.mktemp("attribution"))
    return dict(zip(PLAYED, played, strict=True))


def test_gpu_seconds_are_with_the_pods_that_worked(scores: dict[str, Score]) -> None:
    wrong = {name: score.percent(score.error) for name, score in scores.items()}
    assert {name for name, percent in wrong.items() if percent > 10} == set()
    assert scores["time-sliced"].true > 0.7 * SECONDS, "the scene was played"


def test_held_gpu_seconds_are_with_the_pods_that_held_them(scores: dict[str, Score]) -> None:
    wrong = {name: score.held_error / score.wall for name, score in scores.items()}
    assert {name for name, part in wrong.items() if part > 0.1} == set()
    assert scores["held-idle"].true == 0
    assert set(scores["held-idle"].methods) == {"exclusive", "allocation-only"}, "each of them all the time"


def test_use_without_allocation_is_told_from_use_of_what_is_held(scores: dict[str, Score]) -> None:
    wrong = {name: score.unallocated_error / score.wall for name, score in scores.items()}
    assert {name for name, part in wrong.items() if part > 0.03} == set()


def test_it_is_nearer_to_the_truth_than_to_clone_the_gpus_value_or_to_give_it_to_the_last(
    scores: dict[str, Score],
) -> None:
    for name in ("time-sliced", "foreign"):
        score = scores[name]
        assert score.cloned is not None and score.last is not None
        assert 3 * score.error < min(score.cloned, score.last), name


def test_the_parts_of_the_ledger_add_up_to_the_wall_time(scores: dict[str, Score]) -> None:
    assert {name for name, score in scores.items() if not score.adds_up} == set()


def test_while_the_agent_is_away_there_is_no_data_and_not_idleness(scores: dict[str, Score]) -> None:
    away = SECONDS / 2 - SECONDS / 3
    assert away <= scores["agent-outage"].no_data < SECONDS / 2
    assert scores["time-sliced"].no_data < 0.1 * SECONDS, "it was not away there"
