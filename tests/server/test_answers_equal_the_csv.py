"""Whatever was stored, every answer of the old program's API equals what plain Python makes of the CSV files."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.samples import sample
from tests.server import oracle
from tests.server.conftest import serving, settings_for

ZONES = ("UTC", "Asia/Taipei", "Asia/Kolkata", "Europe/Berlin", "America/St_Johns")
SEED_HEADER = (
    "timestamp,gpu_id,gpu_name,utilization_gpu,utilization_memory,memory_total,memory_used,memory_free,temperature,"
    "power_draw,power_limit,fan_speed,client_name\n"
)

percent = st.none() | st.floats(0, 100).map(lambda x: round(x, 2))
# Around the days on which Berlin and St John's change their clocks, and a quiet week later on.
instants = st.one_of(
    st.datetimes(datetime(2026, 10, 24), datetime(2026, 11, 2)),
    st.datetimes(datetime(2026, 3, 7), datetime(2026, 3, 9)),
).map(lambda at: at.replace(tzinfo=UTC, microsecond=at.microsecond // 1000 * 1000))
samples = st.builds(
    lambda at, exact, gpu, client, util, memory, used, total, temperature, power: sample(
        timestamp=at.isoformat() if exact else at.replace(microsecond=0).isoformat(),
        gpu_id=gpu,
        client_name=client,
        utilization_gpu=util,
        utilization_memory=memory,
        memory_used=used,
        memory_total=total,
        temperature=temperature,
        power_draw=power,
    ),
    instants,
    st.booleans(),
    st.integers(0, 2),
    st.sampled_from(["node-1", "node-2", 'odd, "name"']),
    percent,
    percent,
    st.none() | st.integers(0, 80_000),
    st.none() | st.sampled_from([0, 80_000]),
    st.none() | st.integers(-5, 100),
    st.none() | st.floats(0, 700).map(lambda x: round(x, 2)),
)
questions = st.fixed_dictionaries(
    {"start_date": st.sampled_from(["2026-03-07", "2026-10-24", "2026-10-25"]),
     "end_date": st.sampled_from(["2026-10-25", "2026-11-01", "2026-11-02"])},
    optional={"gpu_id": st.integers(0, 3), "client_name": st.sampled_from(["node-1", 'odd, "name"', "nobody"])},
)  # fmt: skip


def write_old_file(folder: Path, day: str, rows: list[dict[str, Any]], newline: str) -> None:
    """A file of the old program: thirteen columns, named by the day of arrival."""
    folder.mkdir(exist_ok=True)
    lines = [
        f"{r['timestamp']},{r['gpu_id']},Old GPU,{_cell(r['utilization_gpu'])},,,,,{_cell(r['temperature'])},"
        f"{_cell(r['power_draw'])},,,{r['client_name']}\n"
        for r in rows
    ]
    text = (SEED_HEADER + "".join(lines)).replace("\n", newline)
    (folder / f"gpu_metrics_{day}.csv").write_text(text, newline="")


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


old_rows = st.builds(
    lambda at, gpu, util, temperature: {
        "timestamp": at.strftime("%Y-%m-%d %H:%M:%S"), "gpu_id": gpu, "utilization_gpu": util,
        "temperature": temperature, "power_draw": None, "client_name": "old-node",
    },
    st.datetimes(datetime(2026, 10, 25, 4), datetime(2026, 10, 26, 12)),
    st.integers(0, 1), percent, st.none() | st.integers(20, 90),
)  # fmt: skip


@pytest.fixture(scope="module", params=["daily", "size", "hourly"])
def split(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    zone=st.sampled_from(ZONES),
    old=st.lists(old_rows, max_size=12),
    newline=st.sampled_from(["\n", "\r\n"]),
    batches=st.lists(st.lists(samples, min_size=1, max_size=12), max_size=6),
    asked=questions,
    restart_after=st.integers(0, 6),
)
def test_every_endpoint_equals_an_independent_computation(
    split: str,
    zone: str,
    old: list[dict[str, Any]],
    newline: str,
    batches: list[list[dict[str, Any]]],
    asked: dict[str, Any],
    restart_after: int,
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        if old:
            write_old_file(folder, "20261025", old, newline)
        wanted = settings_for(
            folder, server={"timezone": zone}, storage={"file_split_mode": split, "max_file_size_mb": 0.002}
        )
        with serving(wanted) as client:
            for batch in batches[:restart_after]:
                assert client.post("/api/receive-data", json=batch).status_code == 200
        with serving(wanted) as client:
            for batch in batches[restart_after:]:
                assert client.post("/api/receive-data", json=batch).status_code == 200
            assert_answers_equal(client, folder, zone, asked)


def assert_answers_equal(client: httpx.Client, folder: Path, zone: str, asked: dict[str, Any]) -> None:
    rows = oracle.read_rows(folder, zone)
    filters = {key: value for key, value in asked.items() if key in ("gpu_id", "client_name")}

    def ask(name: str, body: dict[str, Any]) -> Any:
        answer = client.post(f"/api/gpu/{name}", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["success"] is True
        return answer.json()["data"]

    same(ask("statistics", asked), oracle.statistics(rows, **asked))
    same(ask("statistics", {}), oracle.statistics(rows))
    same(ask("hourly-usage", asked)["chart_data"], oracle.hourly_usage(rows, **asked))
    same(ask("daily-usage", asked)["chart_data"], oracle.daily_usage(rows, **asked))
    same(ask("list", {}), oracle.gpu_list(rows))
    same(ask("realtime", filters), oracle.realtime(rows, **filters))
    same(ask("realtime", {}), oracle.realtime(rows))


def same(answer: Any, expected: Any) -> None:
    """All that is expected stands in the answer, numbers to the precision they are rounded to."""
    if isinstance(expected, list):
        assert len(answer) == len(expected)
        for one, other in zip(answer, expected, strict=True):
            same(one, other)
    elif isinstance(expected, dict):
        for key, value in expected.items():
            digits = 0.5001 if key == "temperature" else 0.00501
            if isinstance(value, float):
                assert math.isclose(answer[key], value, abs_tol=digits), (key, answer[key], value)
            else:
                assert answer[key] == value, key


def test_hours_of_a_day_with_25_hours_are_24_and_coverage_counts_25(tmp_path: Path) -> None:
    begin = datetime(2026, 10, 24, 22, tzinfo=UTC)  # midnight in Berlin
    every_minute = [
        sample(timestamp=(begin + timedelta(minutes=m)).isoformat(), utilization_gpu=10.0) for m in range(25 * 60)
    ]
    with serving(settings_for(tmp_path / "data", server={"timezone": "Europe/Berlin"})) as client:
        client.post("/api/receive-data", json=every_minute).raise_for_status()
        day = {"start_date": "2026-10-25", "end_date": "2026-10-25"}
        usage = client.post("/api/gpu/hourly-usage", json=day).json()["data"]
    assert [item["samples"] for item in usage["chart_data"]] == [60, 60, 120] + [60] * 21
    assert usage["coverage"] == 1.0


def test_a_day_begins_where_its_zone_says(tmp_path: Path) -> None:
    with serving(settings_for(tmp_path / "data", server={"timezone": "Asia/Kolkata"})) as client:
        client.post("/api/receive-data", json=sample(timestamp="2026-11-23T18:45:00Z")).raise_for_status()
    rows = oracle.read_rows(tmp_path / "data")
    assert rows[0]["local"] == datetime(2026, 11, 24, 0, 15)
    assert rows[0]["utc"].astimezone(ZoneInfo("Asia/Kolkata")).hour == 0
    assert (tmp_path / "data" / "gpu_metrics_20261124.csv").exists()
