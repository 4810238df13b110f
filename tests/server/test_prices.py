"""What a GPU-hour costs: how prices are written, and which one counts."""

from __future__ import annotations

from typing import Any

import pytest

from gpumon.errors import SettingsError
from gpumon.server.accounts.prices import Price, parse_prices
from tests.samples import pod, sample
from tests.server.conftest import Serve

ZONE_LABEL = "topology.kubernetes.io/zone"


def test_entries_are_separated_by_semicolons_or_lines() -> None:
    text = """
        NVIDIA H100*: 2.50
        node-label node.kubernetes.io/instance-type=p4d.24xlarge: 4.10; *: 1
    """
    assert parse_prices(text) == (
        Price("NVIDIA H100*", 2.5),
        Price("p4d.24xlarge", 4.1, "node.kubernetes.io/instance-type"),
        Price("*", 1.0),
    )
    assert parse_prices("") == ()


@pytest.mark.parametrize(
    "entry", ["H100", "H100: cheap", ": 2.5", "H100: -1", "H100: nan", "H100: inf", "node-label x: 1"]
)
def test_a_wrong_entry_is_named(entry: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_prices(f"*: 1; {entry}")
    assert repr(entry) in str(refused.value)
    assert "[COST] prices" in str(refused.value)


def cost(serve: Serve, prices: str, **fields: Any) -> tuple[float | None, list[str]]:
    client = serve(cost={"prices": prices, "currency": "TWD"})
    posted = (
        sample(timestamp="2026-11-23T12:00:00Z", interval_seconds=3600.0, holder_count=1, pods=[pod()]) | fields
    )
    client.post("/api/receive-data", json=posted).raise_for_status()
    wanted = {"start": "2026-11-23T11:00:00Z", "end": "2026-11-23T12:00:00Z", "group_by": "pod"}
    data = client.get("/api/usage", params=wanted).json()["data"]
    assert data["currency"] == ("TWD" if prices else None)
    (of_pod,) = [group for group in data["groups"] if group["who"] == "pod"]
    assert of_pod["cost"] == data["total"]["cost"]
    return of_pod["cost"], data["notes"]


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        ("NVIDIA H100*: 2.5; *: 1", 2.5),
        ("nvidia h100 80gb hbm?: 2.5", 2.5),
        ("Tesla*: 3; *: 1", 1.0),
        (f"node-label {ZONE_LABEL}=eu-*: 4; *: 1", 4.0),
        (f"node-label {ZONE_LABEL}=us-*: 4; *: 1", 1.0),
        ("node-label other=eu-1: 4; *: 1", 1.0),
        ("", None),
    ],
)
def test_the_first_entry_that_matches_counts(serve: Serve, prices: str, expected: float | None) -> None:
    assert cost(serve, prices, node_labels={ZONE_LABEL: "eu-1"})[0] == expected


def test_a_gpu_without_a_price_has_no_cost_and_is_named(serve: Serve) -> None:
    found, notes = cost(serve, "Tesla*: 3")
    assert found is None
    assert any("NVIDIA H100 80GB HBM3" in note for note in notes)


def test_a_label_of_a_pod_is_none_of_its_node(serve: Serve) -> None:
    prices = f"node-label {ZONE_LABEL}=eu-*: 4; *: 1"
    assert cost(serve, prices, pods=[pod(labels={ZONE_LABEL: "eu-1"})])[0] == 1.0
