"""A soak of seconds, with days of seconds: nothing is lost, all is seen, days are sealed. Timings say nothing."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.soak import run, table
from bench.soaking import Sender, plan_of

SHORT: dict[str, Any] = {"seconds": 3.0, "rows_per_second": 800, "day_seconds": 2.5, "gpus": 16, "keep_days": 0}


def test_a_soak_loses_nothing_and_seals_its_days(tmp_path: Path) -> None:
    plan = plan_of(**SHORT)
    found = run(plan, tmp_path)
    assert found.sent["batches"] == 30
    assert found.sent["lost"] == 0
    assert found.sent["rows"] == 30 * 80
    assert found.acknowledged == found.stored == found.samples == 30 * 80 + found.markers.rows
    assert found.markers.rows == len(found.markers.seconds) > 0
    assert (found.markers.failed, found.markers.never_seen, found.watch.questions_failed) == (0, 0, 0)
    assert found.days_sealed >= found.days_over >= 1
    assert found.counters["sealing_failures_total"] == found.counters["sealed_days_damaged_total"] == 0
    assert found.watch.workers_mib > 0, "a day is sealed by a process of its own"
    rows = f"{found.samples:,}"
    assert f"{rows} / {rows} / {rows}  equal" in table(plan, found)


def test_a_batch_is_what_the_fleet_sampled_since_the_one_before_by_the_fast_clock() -> None:
    plan = plan_of(**SHORT)
    before = plan.now()
    batch = json.loads(Sender(plan).body(1))
    assert [sample["client_name"] for sample in batch[:16]] == ["gpu-node-0"] * 8 + ["gpu-node-1"] * 8
    assert plan.interval == timedelta(seconds=16 / 800 * 86_400 / 2.5)
    stamps = [datetime.fromisoformat(sample["sampled_at"]) for sample in batch if sample["gpu_id"] == 3]
    assert len(stamps) == 2 * 80 / 16
    apart = {round((later - sooner) / plan.interval, 3) for sooner, later in pairwise(stamps[::2])}
    assert apart == {1}, "a sample stands for the time since the GPU's last one"
    assert {sample["interval_seconds"] for sample in batch} == {691.2}
    assert datetime.fromisoformat(batch[-1]["sampled_at"]) >= before - timedelta(milliseconds=1)
    assert all(sample["pods"][0]["pod"] == sample["pod"] for sample in batch)
