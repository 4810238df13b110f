"""Whatever was posted, in whatever order, ledger and usage equal what plain Python makes of it, and add up."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server import ledger_oracle as oracle
from tests.server.conftest import serving, settings_for
from tests.server.ledger_checks import PRICES, assert_ledger, assert_usage
from tests.server.ledger_ticks import groupings, label_some, posted_at, tick

BASE = datetime(1980, 1, 1, tzinfo=UTC)
APART = timedelta(days=10)
"""No example sees another's GPUs: they are known for a day only."""
numbers = itertools.count()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    wanted = settings_for(
        tmp_path_factory.mktemp("accounts") / "data",
        cost={"prices": "; ".join(f"{name}: {price}" for name, price in PRICES.items())},
    )
    with serving(wanted) as client:
        yield client


def ask(client: httpx.Client, name: str, **wanted: Any) -> dict[str, Any]:
    answer = client.get(f"/api/{name}", params=wanted)
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ticks=st.lists(tick, max_size=14),
    batches=st.integers(1, 4),
    begin=st.integers(-100, 300),
    length=st.integers(60, 600) | st.sampled_from([1, 90_000]),
    by=groupings,
)
def test_ledger_and_usage_equal_an_independent_computation(
    client: httpx.Client, ticks: list[dict[str, Any]], batches: int, begin: int, length: int, by: str
) -> None:
    number = next(numbers)
    base = BASE + number * APART
    posted = posted_at(base, ticks)
    by = by.replace("team", f"team-{number}")
    labels = label_some(posted, f"team-{number}")
    for batch in range(batches):
        if posted[batch::batches]:
            assert client.post("/api/receive-data", json=posted[batch::batches]).status_code == 200
    in_order = [one for batch in range(batches) for one in posted[batch::batches]]
    start = base + timedelta(seconds=begin)
    end = start + timedelta(seconds=length)
    fleet = oracle.fleet_of(in_order, start, end)
    wanted = {"start": start.isoformat(), "end": end.isoformat(), "group_by": by}
    assert_ledger(ask(client, "ledger", **wanted), fleet, by, labels)
    assert_usage(ask(client, "usage", **wanted), fleet, by, labels)
