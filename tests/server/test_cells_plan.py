"""Which cells answer for a stretch of time, and what they say of those who share a GPU."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gpumon.server.accounts import gathering, ledger
from gpumon.server.accounts.answers import RangeWords
from gpumon.server.accounts.desk import Coverage, Run, merged
from gpumon.server.accounts.plan import Plan, plan
from gpumon.server.accounts.ranges import Span
from tests.samples import pod, sample
from tests.server.cellbench import Bench


def at(clock: str) -> datetime:
    day, hour, minute = (int(part) for part in clock.split(":"))
    return datetime(2026, 1, day, hour, minute)


def runs(*texts: str) -> list[Run]:
    return [(at(text.split()[0]), at(text.split()[1])) for text in texts]


KNOWN = Coverage(
    hours=runs("5:00:00 7:00:00", "7:02:00 7:05:00"),
    fine=runs("5:00:00 7:05:00"),
    days=runs("5:00:00 6:00:00", "6:00:00 7:00:00"),
)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (
            "5:22:57 7:04:13",
            Plan(runs("6:00:00 7:00:00"), runs("5:23:00 6:00:00", "7:02:00 7:04:00"),
                 runs("7:00:00 7:02:00", "7:04:00 7:04:10"), runs("5:22:57 5:23:00", "7:04:10 7:04:13")),
        ),
        ("5:00:00 6:00:00", Plan(runs("5:00:00 6:00:00"), [], [], [])),
        ("5:10:01 5:10:04", Plan([], [], [], runs("5:10:01 5:10:04"))),
        ("5:10:04 5:10:06", Plan([], [], [], runs("5:10:04 5:10:06"))),
        ("8:00:00 9:00:00", Plan([], [], [], runs("8:00:00 9:00:00"))),
    ],
)  # fmt: skip
def test_cells_as_coarse_as_can_be_answer_and_raw_rows_for_the_rest(asked: str, expected: Plan) -> None:
    ((start, end),) = runs(asked)
    assert plan(start, end, KNOWN) == expected


@pytest.mark.parametrize(
    ("fine_from", "expected"),
    [
        ("7:03:52", Plan(runs("6:00:00 7:00:00"), runs("5:23:00 6:00:00", "7:02:00 7:03:00"),
                         runs("7:00:00 7:02:00", "7:03:00 7:04:10"), runs("5:22:57 5:23:00", "7:04:10 7:04:13"))),
        ("7:04:12", Plan(runs("6:00:00 7:00:00"), runs("5:23:00 6:00:00", "7:02:00 7:04:00"),
                         runs("7:00:00 7:02:00", "7:04:00 7:04:10"), runs("5:22:57 5:23:00", "7:04:10 7:04:13"))),
        ("7:03:59", Plan(runs("6:00:00 7:00:00"), runs("5:23:00 6:00:00", "7:02:00 7:03:00"),
                         runs("7:00:00 7:02:00", "7:03:00 7:04:10"), runs("5:22:57 5:23:00", "7:04:10 7:04:13"))),
        ("6:23:52", Plan([], runs("5:23:00 6:23:00"), runs("6:23:00 7:04:10"),
                         runs("5:22:57 5:23:00", "7:04:10 7:04:13"))),
    ],
)  # fmt: skip
def test_the_last_part_may_be_had_in_fine_cells(fine_from: str, expected: Plan) -> None:
    ((start, end),) = runs("5:22:57 7:04:13")
    found = plan(start, end, KNOWN, at(fine_from))
    assert Plan(found.days, found.hours, list(merged(found.fine)), found.raw) == expected


def test_where_no_fine_cells_are_left_the_last_part_is_had_in_hours() -> None:
    ((start, end),) = runs("7:02:00 7:04:00")
    assert plan(start, end, replace(KNOWN, fine=[]), at("7:03:10")) == plan(start, end, KNOWN)


def usage_of(bench: Bench, by: str) -> dict[str, Any]:
    answers = bench.answers(at("5:12:00").replace(tzinfo=UTC))
    words = RangeWords("2026-01-05T10:00:00Z", "2026-01-05T12:00:00Z")
    return next(g for g in answers.usage(words, by, 10)["groups"] if g["who"] == "pod")


@pytest.mark.parametrize(
    ("by", "peak", "mean"),
    [("container", 30.0, 30.0), ("pod", 60.0, 40.0), ("namespace", 60.0, 40.0), ("gpu,namespace", 60.0, 40.0)],
)
@pytest.mark.parametrize("level", ["raw", "fine", "hours", "days"])
def test_the_peak_of_a_pod_is_that_of_its_containers_together(
    level: str, by: str, peak: float, mean: float
) -> None:
    """They share the GPU for a third of the time, and come apart in other buckets."""
    one, other = (pod(container=name, utilization=30.0, gpu_share=0.5, held=True) for name in ("a", "b"))
    posted = []
    for minute, users in ((1, [one]), (32, [one, other]), (58, [other])):
        moment = at(f"5:10:{minute:02}").replace(tzinfo=UTC).isoformat()
        posted.append(
            sample(
                sampled_at=moment, interval_seconds=60.0, utilization_gpu=60.0, holder_count=len(users), pods=users
            )
        )
    whole = runs("5:10:00 5:12:00")
    with closing(Bench(posted, timedelta(seconds=60))) as bench:
        bench.roll(*whole[0])
        if level != "raw":
            setattr(bench, level, whole)
        group = usage_of(bench, by)
    assert group["utilization_max"] == pytest.approx(peak)
    assert group["utilization_mean"] == pytest.approx(mean)


def every_minute(begin: datetime, minutes: int) -> list[dict[str, Any]]:
    moments = [(begin + n * timedelta(minutes=1)).replace(tzinfo=UTC).isoformat() for n in range(minutes)]
    return [sample(sampled_at=moment, interval_seconds=60.0) for moment in moments]


@pytest.mark.parametrize(("hours", "pieces"), [(2, 12), (1000, 20)])
def test_raw_rows_are_divided_by_not_too_many_at_once_nor_too_few(
    hours: int, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "MOST_SAMPLES", 10)
    end = at("5:12:00").replace(tzinfo=UTC)
    span = Span(end - timedelta(hours=hours), end)
    with closing(Bench(every_minute(at("5:10:01"), 120), timedelta(seconds=60))) as bench:
        with bench.reading() as reading:
            found = gathering.gather(reading, span, timedelta(seconds=120), ledger.KINDS)
        assert len(found.pieces) == pytest.approx(pieces, abs=1)
