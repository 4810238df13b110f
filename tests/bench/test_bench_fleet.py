"""The benchmarks' data is what a server would have written of the same samples."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from bench.fleet import open_fleet
from bench.sending import cells

from gpumon.model.fields import FIELDS
from gpumon.model.pod_fields import USE_FIELDS
from tests.server.conftest import serving, settings_for

DAY = date(2026, 3, 1)
GPUS = 24
STEP = 1800


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def batches(folder: Path) -> Iterator[list[dict[str, Any]]]:
    """What the nodes would have sent, in the order of the files."""
    pods: dict[tuple[str, str], list[dict[str, Any]]] = {}
    labels: dict[str, dict[str, str]] = {}
    for row in rows(folder / f"pods_{DAY:%Y%m%d}.csv"):
        labels.setdefault(row["pod_uid"] or row["client_name"], {})[row["label"]] = row["value"]
    for row in rows(folder / f"pod_usage_{DAY:%Y%m%d}.csv"):
        use = cells(USE_FIELDS, row) | {"labels": labels[row["pod_uid"]]}
        pods.setdefault((row["sampled_at"], row["gpu_uuid"]), []).append(use)
    samples = rows(folder / f"gpu_metrics_{DAY:%Y%m%d}.csv")
    for _, batch in groupby(samples, key=lambda row: (row["sampled_at"], row["client_name"])):
        yield [
            cells(FIELDS, row)
            | {
                "pods": pods.get((row["sampled_at"], row["gpu_uuid"]), []),
                "node_labels": labels[row["client_name"]],
            }
            for row in batch
        ]


def test_a_server_that_gets_these_samples_writes_the_same_bytes(tmp_path: Path) -> None:
    with open_fleet(GPUS, step=STEP, seed=5) as fleet:
        samples = fleet.write_day(tmp_path, DAY)
    with serving(settings_for(tmp_path / "data")) as client:
        sent = 0
        for batch in batches(tmp_path):
            answer = client.post("/api/receive-data", json=batch).json()
            assert answer["received_count"] == len(batch), answer
            sent += len(batch)
        assert sent == samples > GPUS * 40
    written = sorted(tmp_path.glob("*.csv"))
    assert len(written) == 3
    for path in written:
        assert (tmp_path / "data" / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_fleet_has_every_kind_of_gpu_and_counters_that_go_on_over_midnight(tmp_path: Path) -> None:
    with open_fleet(GPUS, step=STEP) as fleet:
        fleet.write_day(tmp_path, DAY)
        fleet.write_day(tmp_path, date(2026, 3, 2), until=datetime(2026, 3, 2, 6, tzinfo=UTC))
    first, second = (rows(path) for path in sorted(tmp_path.glob("gpu_metrics_*.csv")))
    assert {row["attribution"] for row in first} == {"", "exclusive", "process"}
    assert {"0", "1", "3"} == {row["process_count"] for row in first}
    assert max(row["timestamp"] for row in second) < "2026-03-02 06:00:00"
    for uuid in {row["gpu_uuid"] for row in first}:
        energy = [int(row["energy_mj"]) for row in (*first, *second) if row["gpu_uuid"] == uuid]
        steps = [after - before for before, after in pairwise(energy)]
        assert all(STEP * 69_000 < step < STEP * 750_000 for step in steps), steps
    users = rows(tmp_path / "pod_usage_20260301.csv")
    shares = {
        method: sum(float(row["gpu_share"]) for row in users if row["method"] == method)
        for method in ("exclusive", "process")
    }
    assert all(share > 0 for share in shares.values())
    assert json.dumps(users) != json.dumps(rows(tmp_path / "pod_usage_20260302.csv"))


def test_the_same_arguments_give_the_same_bytes_also_of_a_fleet_that_goes_on(tmp_path: Path) -> None:
    days = DAY, date(2026, 3, 2)
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    with open_fleet(4, step=900, seed=7) as fleet:
        for day in days:
            fleet.write_day(one, day)
    counters = None
    for day in days:
        with open_fleet(4, step=900, seed=7) as fleet:
            if counters is not None:
                fleet.go_on(counters)
            fleet.write_day(other, day)
            counters = fleet.counters()
    for path in one.iterdir():
        assert (other / path.name).read_bytes() == path.read_bytes(), path.name
