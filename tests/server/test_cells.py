"""An answer is the same, whatever of it comes from cells: and it is what plain Python makes of the samples."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumon.server.accounts.answers import RangeWords
from gpumon.server.accounts.cells import FINE, HOUR
from gpumon.server.accounts.prices import Price
from tests.server import ledger_oracle as oracle
from tests.server.cellbench import Bench, some_runs
from tests.server.ledger_checks import PRICES, assert_ledger, assert_usage
from tests.server.ledger_ticks import label_some, posted_at, tick

BASE = datetime(2026, 1, 5, 10, 58, tzinfo=UTC)
FIRST, LAST = datetime(2026, 1, 5, 10), datetime(2026, 1, 5, 12)
REACH = timedelta(seconds=3000)
GROUPINGS = ["none", "pod", "container", "owner", "namespace", "node", "gpu", "model", "node,namespace",
             "label:team", "pod,owner", "label:team,gpu"]  # fmt: skip


def words(start: datetime, end: datetime) -> RangeWords:
    return RangeWords(start.isoformat(), end.isoformat())


def assert_same(one: Any, other: Any, path: str = "") -> None:
    """The same to ten digits. Sums may be added up in another order."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{path}[{number}]")
    elif isinstance(one, float) and isinstance(other, float):
        assert math.isclose(one, other, rel_tol=1e-10, abs_tol=1e-7), (path, one, other)
    else:
        assert one == other, path


def in_order(answer: dict[str, Any]) -> dict[str, Any]:
    """Groups that are equally large stand in the order in which sums are rounded."""
    return answer | {"groups": sorted(answer["groups"], key=lambda group: str((group["group"], group["who"])))}


@settings(max_examples=15, deadline=None)
@given(
    ticks=st.lists(tick, max_size=14),
    begin=st.integers(-8000, 300),
    length=st.sampled_from([1, 60, 299, 300, 601, 3600, 5000, 15_000, 90_000]),
    by=st.sampled_from(GROUPINGS),
    seed=st.integers(0, 1000),
)
def test_answers_do_not_depend_on_what_comes_from_cells(
    ticks: list[dict[str, Any]], begin: int, length: int, by: str, seed: int
) -> None:
    posted = posted_at(BASE, ticks)
    labels = label_some(posted, "team")
    start = BASE + timedelta(seconds=begin)
    end = start + timedelta(seconds=length)
    with closing(Bench(posted, REACH)) as bench:
        bench.roll(FIRST, LAST)
        answers = bench.answers(end, [Price(name.lower(), price) for name, price in PRICES.items()])
        ledger, usage = answers.ledger(words(start, end), by), answers.usage(words(start, end), by, 1000)
        fleet = oracle.fleet_of(posted, start, end)
        if by != "none":
            assert_ledger(ledger, fleet, by, labels)
            assert_usage(usage, fleet, by, labels)
        chance = random.Random(seed)
        bench.days = chance.choice([[], [(FIRST, LAST)]])
        bench.hours = some_runs(chance, FIRST, LAST, HOUR)
        bench.fine = some_runs(chance, FIRST, LAST, FINE)
        assert_same(in_order(answers.ledger(words(start, end), by)), in_order(ledger))
        assert_same(in_order(answers.usage(words(start, end), by, 1000)), in_order(usage))


def shift(chance: random.Random) -> Iterator[dict[str, Any]]:
    """Two GPUs for two hours: shared, in use now and then, read badly, told twice, once moved to another node."""
    for gpu, period in (("gpu-a", 10), ("gpu-b", 30)):
        moves, shares = chance.randrange(7200), chance.choice([0.25, 0.5, None])
        for seconds in range(chance.randrange(period), 7200, period):
            if chance.random() < 0.05:
                continue
            at = (BASE + timedelta(seconds=seconds, milliseconds=chance.randrange(1000))).isoformat()
            users = [
                {"namespace": "red", "pod": f"p-{n}", "container": "main", "pod_uid": f"uid-{n}-{seconds // 3000}",
                 "owner_kind": "Job", "owner_name": "train", "held": True, "method": "process",
                 "gpu_share": shares if seconds < 5000 else 0.5, "memory_used": float(seconds),
                 "utilization": chance.choice([None, 0.0, 0.3]) if chance.random() < 0.997 else 40.0,
                 "energy_mj": chance.choice([None, 1000.0]), "process_count": 1}
                for n in range(2)
            ]  # fmt: skip
            told = {"gpu_uuid": gpu, "client_name": "node-1" if seconds < moves else "node-2", "gpu_name": "H100",
                    "gpu_id": int(gpu == "gpu-b"), "interval_seconds": chance.choice([period * 1.0, None, 90.0]),
                    "state": "unknown" if chance.random() < 0.02 else "ok", "holder_count": 2, "utilization_gpu":
                    1.0, "sampled_at": at, "timestamp": at, "pods": users}  # fmt: skip
            yield told
            if chance.random() < 0.02:
                yield told | {"pods": [users[0] | {"utilization": 50.0, "method": "exclusive"}]}


@pytest.mark.parametrize("seed", range(4))
def test_who_is_idle_does_not_depend_on_what_comes_from_cells(seed: int) -> None:
    chance = random.Random(seed)
    now = BASE + timedelta(hours=2)
    with closing(Bench(shift(chance), timedelta(seconds=120))) as bench:
        bench.roll(FIRST, LAST)
        answers = bench.answers(now, [Price("h100", 2.0)])
        listed = 0
        for _ in range(4):
            start = BASE + timedelta(seconds=chance.randrange(-4000, 5000))
            end = chance.choice([now, now, now - timedelta(seconds=chance.randrange(1000))])
            asked = (words(start, end), chance.choice([0.1, 1.0]), chance.choice(["1s", "5m", "20m"]), None)
            bench.days, bench.hours, bench.fine = [], [], []
            raw = answers.idle(*asked)
            bench.days = chance.choice([[], [(FIRST, LAST)]])
            bench.hours = some_runs(chance, FIRST, LAST, HOUR)
            bench.fine = some_runs(chance, FIRST, LAST, FINE)
            assert_same(answers.idle(*asked), raw)
            listed += len(raw["idle"])
        assert listed
