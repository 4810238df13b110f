"""What becomes of sealed days: damage is found and mended, hands in the folder are obeyed, rollups outlive the
rows."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest

from gpumon.errors import QueryError
from gpumon.server import arrivals as arrivals_module
from gpumon.server import catchup as catchup_module
from gpumon.server import manifest
from gpumon.server import rolling as rolling_module
from gpumon.server import sealer as sealer_module
from gpumon.server import shelf as shelf_module
from gpumon.server.accounts import pieces
from gpumon.server.accounts.cells import FINE
from gpumon.server.accounts.pieces import Part
from gpumon.server.database import DatabaseError
from gpumon.server.desk import Desk, Place
from gpumon.server.engine import Engine
from gpumon.server.relations import Window
from gpumon.server.retention import Policy
from gpumon.server.sealing import worker
from gpumon.server.sealing.cells import _halving
from tests.samples import full_sample, pod
from tests.server.test_sealed_answers import NEVER, Client, differences, served
from tests.server.test_store import SEED, old_line

DAYS = [date(2026, 11, 20), date(2026, 11, 21)]
NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)
RANGE = {"start": "2026-11-20", "end": "2026-11-21"}


def rows() -> list[dict[str, Any]]:
    """Of the last four hours of the first day and the first four of the second: each costs when it is sealed."""
    begin = datetime(2026, 11, 20, 20, 0, 30, tzinfo=UTC)
    moments = [begin + timedelta(seconds=100 * number) for number in range(2 * 144)]
    return [
        full_sample(
            timestamp=moment.isoformat(), sampled_at=moment.isoformat(), interval_seconds=100.0, holder_count=1,
            utilization_gpu=float(number % 101), pods=[pod(utilization=float(number % 101))],
            energy_mj=number * number * 1000,
        )
        for number, moment in enumerate(moments)
    ]  # fmt: skip


def few_rows() -> list[dict[str, Any]]:
    """Of the end of the first day and the beginning of the second."""
    return rows()[138:150]


def filled(client: Client, engine: Engine) -> None:
    assert client.post("/api/receive-data", json=rows()).status_code == 200
    sealed(engine)


def with_first_day_sealed(client: Client, engine: Engine, posted: list[dict[str, Any]]) -> None:
    assert client.post("/api/receive-data", json=posted).status_code == 200
    sealed(engine, DAYS[:1])


def sealed(engine: Engine, days: Sequence[date] = DAYS) -> None:
    engine.index.catchup.refresh()
    for day in days:
        engine.index.sealer.seal_rows(day, NEVER)
    for day in days:
        engine.index.sealer.seal_cells(day, NEVER)


def without_rows(engine: Engine) -> None:
    """The first day's rows are deleted, as retention does it."""
    engine._retention._policy = Policy(keep_days=1, max_bytes=0, compress_after_days=None)
    engine.tidy_now()
    engine.index.shelf.delete_retired(5)


def answers(client: Client) -> list[Any]:
    asked = [
        client.post("/api/gpu/statistics", json={}),
        client.post("/api/gpu/daily-usage", json={"start_date": "2026-11-20", "end_date": "2026-11-21"}),
        client.get("/api/usage", params=RANGE),
        client.get("/api/ledger", params=RANGE | {"group_by": "pod"}),
        client.get("/api/utilization", params=RANGE),
        client.get("/api/series", params=RANGE | {"metric": "power_draw", "step": "1h"}),
    ]
    assert [answer.status_code for answer in asked] == [200] * len(asked), [answer.text for answer in asked]
    return [answer.json()["data"] for answer in asked]


def energy(client: Client) -> list[float | None]:
    """The increase of a counter, by hour."""
    told = client.get("/api/series", params=RANGE | {"metric": "energy_mj", "step": "1h"}).json()["data"]["points"]
    assert any(point["value"] for point in told)
    return [point["value"] for point in told]


def figures(client: Client) -> tuple[int, float]:
    """How many samples there are, and the GPU-hours of the first day."""
    samples = client.post("/api/gpu/statistics", json={}).json()["data"]["samples"]
    first_day = {"start": "2026-11-20", "end": "2026-11-20"}
    return samples, client.get("/api/usage", params=first_day).json()["data"]["total"]["gpu_hours_allocated"]


def answers_of_the_csv(data: Path, alone: Path) -> list[Any]:
    """Those of a server that has nothing but the CSV files, in a folder of its own."""
    alone.mkdir()
    for there in data.glob("*.csv*"):
        shutil.copy(there, alone)
    with served(alone, "UTC", NOW) as (client, _):
        return answers(client)


def seal_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own for each job takes a second to start."""

    def run_job(job: Any, _: object) -> Any:
        wanted = worker._decode(json.dumps(job).encode())
        return json.loads(msgspec.json.encode(worker.WORK[type(wanted)](wanted) | {"seconds": 0.0}))

    monkeypatch.setattr(sealer_module, "run_job", run_job)


@pytest.fixture(autouse=True)
def sealing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the processes do the same, `test_sealing` and `test_killed_while_sealing` say."""
    seal_here(monkeypatch)


def seal_what_is_due_weeks_later(engine: Engine) -> None:
    engine.index.sealer._seal_after = timedelta()
    engine.index.sealer._now = lambda: NOW + timedelta(days=17)
    engine.index.settle()


def late_row() -> dict[str, Any]:
    """Of the first day, of a GPU that no other row is of."""
    return rows()[140] | {"gpu_id": 1, "gpu_uuid": "GPU-1"}


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def folder_of(data: Path, day: date, kind: str) -> Path:
    (folder,) = (data / ".gpumon" / "sealed" / f"{day:%Y%m%d}").glob(f"{kind}-*")
    return folder


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("raw", "samples.parquet"),
        ("raw", "readings.parquet"),
        ("cells", "fine.parquet"),
        ("cells", "metrics.parquet"),
    ],
)
def test_a_flipped_byte_is_found_and_the_day_made_anew(tmp_path: Path, kind: str, name: str) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        before = answers(client)
        flip_a_byte(folder_of(tmp_path, DAYS[0], kind) / name)
        engine.index.scrubber.scrub(NEVER)
        assert answers(client) == before
        assert "gpumon_server_sealed_days_damaged_total 1.0" in client.get("/metrics").text
        sealed(engine)
        assert answers(client) == before


def test_a_day_of_which_rows_and_accounts_are_damaged_is_made_anew(tmp_path: Path) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        before = answers(client)
        flip_a_byte(folder_of(tmp_path, DAYS[0], "raw") / "samples.parquet")
        flip_a_byte(folder_of(tmp_path, DAYS[0], "cells") / "fine.parquet")
        engine.index.scrubber.scrub(NEVER)
        assert answers(client) == before
        sealed(engine)
        assert answers(client) == before


@pytest.mark.parametrize("name", ["fine.parquet", "metrics.parquet"])
def test_what_late_rows_left_of_a_days_accounts_is_checked_as_well(tmp_path: Path, name: str) -> None:
    part = {"start": "2026-11-20T20:12:10Z", "end": "2026-11-20T22:07:00Z"}
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        assert client.post("/api/receive-data", json=late_row()).status_code == 200
        before = [*answers(client), client.get("/api/usage", params=part).json()["data"]]
        assert engine.index.shelf.spoiled == {DAYS[0]}
        flip_a_byte(folder_of(tmp_path, DAYS[0], "cells") / name)
        engine.index.scrubber.scrub(NEVER)
        assert not list(
            differences([*answers(client), client.get("/api/usage", params=part).json()["data"]], before)
        )
        assert "gpumon_server_sealed_days_damaged_total 1.0" in client.get("/metrics").text
        sealed(engine)
        assert not list(
            differences([*answers(client), client.get("/api/usage", params=part).json()["data"]], before)
        )


def test_a_query_that_fails_on_a_sealed_file_has_all_of_them_checked(tmp_path: Path) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        (folder_of(tmp_path, DAYS[0], "raw") / "samples.parquet").write_bytes(b"PAR1 no more PAR1")
        engine.index.scrubber.scrub_due(NEVER)  # nothing is due: it was checked at the start
        export = {"format": "csv", **RANGE}
        client.get("/api/export", params=export)
        engine.index.scrubber.scrub_due(NEVER)
        exported = client.get("/api/export", params=export)
        assert exported.text.count("\n") == 1 + len(rows())


def test_a_folder_without_a_manifest_or_a_lost_store_changes_nothing(tmp_path: Path) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        before = answers(client)
    (folder_of(tmp_path, DAYS[0], "raw") / manifest.MANIFEST).unlink()
    (folder_of(tmp_path, DAYS[1], "cells") / manifest.MANIFEST).write_text("{")
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert answers(client) == before
        assert list(engine.index.shelf.days) == DAYS[1:]
    (tmp_path / ".gpumon" / "store.duckdb").write_bytes(b"no database")
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert answers(client) == before
        assert list(engine.index.shelf.days) == DAYS[1:]


def test_a_lost_store_costs_no_day_its_rollups(tmp_path: Path) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        before = answers(client)
    cells = [folder_of(tmp_path, day, "cells") for day in DAYS]
    (tmp_path / ".gpumon" / "store.duckdb").unlink()
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert engine.index.shelf.without_cells() == []
        assert [folder_of(tmp_path, day, "cells") for day in DAYS] == cells
        assert answers(client) == before


def test_rows_of_two_days_are_told_apart_where_each_is_read_by_itself(tmp_path: Path) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        with Desk(engine.index.store, engine.index.touched).reading() as reading:
            whole = [datetime(day.year, day.month, day.day) for day in (*DAYS, DAYS[-1] + timedelta(days=1))]
            first, second = (
                {row for (row,) in reading.select(f"SELECT row_id FROM {relation}")}
                for relation in (reading.rows_in("samples", window, ["gpu_id"]) for window in pairwise(whole))
            )
    assert len(first) == len(second) == 144
    assert max(first) < min(second)


def test_of_the_last_part_of_a_range_there_are_fine_cells(tmp_path: Path) -> None:
    begin, end = datetime(2026, 11, 21, 0), datetime(2026, 11, 21, 4)
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        with Desk(engine.index.store, engine.index.touched).reading() as reading:
            for fine_from, first in ((end, end), (end - timedelta(minutes=10), end - timedelta(hours=1))):
                known = reading.coverage(begin, end, fine_from)
                assert known.fine == ([] if first == end else [(first, end)])
                ((cells,),) = reading.select(
                    "SELECT count(DISTINCT bucket) FROM fine_cells WHERE bucket >= $of", {"of": first}
                )
                assert cells == (end - first) / FINE


def test_a_series_reads_rows_only_where_a_bucket_has_no_whole_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Window] = []
    rows_in = Place.rows_in

    def noted(place: Place, table: str, window: Window, columns: Sequence[str]) -> str:
        looked.append(window)
        return rows_in(place, table, window, columns)

    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        monkeypatch.setattr(Place, "rows_in", noted)
        wanted = {"metric": "utilization_gpu", "start": "2026-11-20T20:00:00Z", "end": "2026-11-21T03:10:00Z"}
        found = client.get("/api/series", params=wanted | {"step": "6h"}).json()["data"]["points"]
        assert [of.hour for of, _ in looked] == [2]  # and a few minutes
        looked.clear()
        assert client.get("/api/series", params=RANGE | {"metric": "power_draw", "step": "1d"}).status_code == 200
        assert not looked
        assert client.get("/api/series", params=wanted | {"step": "30m"}).status_code == 200
        assert looked
    assert [point["samples"] for point in found] == [145, 115]  # one stands for both sides of midnight


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "a$b's $start" / "metric=x"
    folder.mkdir(parents=True)
    with served(folder, "UTC", NOW) as (client, engine):
        filled(client, engine)
        part = {"start": "2026-11-20T20:02:10Z", "end": "2026-11-21T03:31:10Z"}
        for path in ("ledger", "usage", "series", "idle", "export"):
            words = {"series": {"metric": "power_draw", "step": "1h"}, "export": {"format": "csv"}}.get(path, {})
            answer = client.get(f"/api/{path}", params=part | words)
            assert answer.status_code == 200, answer.text


def test_accounts_that_all_have_to_be_made_anew_are_those_of_the_newest_day_first(tmp_path: Path) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
    with served(tmp_path, "UTC", NOW, stale_after_seconds=2000) as (client, engine):
        engine.index.sealer._now = lambda: NOW + timedelta(days=17)
        told: list[str] = []
        engine.index.seal_due(NEVER, told.append)
        assert [line.split()[:2] for line in told] == [["accounts_sealed", f"day={day}"] for day in DAYS[::-1]]


def test_rows_that_no_rollup_was_told_of_make_the_day_beside_them_out_of_date(tmp_path: Path) -> None:
    """As after a kill between the sealing of a day that was never loaded and its first use."""
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        before = answers(client)
    folder = folder_of(tmp_path, DAYS[1], "raw")
    told = manifest.read(folder, manifest.RawManifest)
    assert told.taken
    (folder / manifest.MANIFEST).write_bytes(msgspec.json.encode(msgspec.structs.replace(told, taken=False)))
    (tmp_path / ".gpumon" / "store.duckdb").unlink()
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert engine.index.shelf.without_cells() == DAYS
        assert answers(client) == before
        assert manifest.read(folder, manifest.RawManifest).taken


@pytest.mark.parametrize("of_the_store", ["kept", "lost"])
@pytest.mark.parametrize("of_the_rows", ["late", "sealed again"])
def test_what_a_late_row_leaves_of_a_days_accounts_counts_after_a_restart(
    tmp_path: Path, of_the_rows: str, of_the_store: str
) -> None:
    hour = datetime.fromisoformat(late_row()["timestamp"]).replace(minute=0, second=0, microsecond=0, tzinfo=None)
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        cells = folder_of(tmp_path, DAYS[0], "cells")
        assert client.post("/api/receive-data", json=late_row()).status_code == 200
        engine.index.catchup.refresh()
        if of_the_rows == "sealed again":
            engine.index.sealer.seal_rows(DAYS[0], NEVER)
        wanted = [*answers(client), energy(client)]
    if of_the_store == "lost":
        (tmp_path / ".gpumon" / "store.duckdb").unlink()
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert engine.index.shelf.cells[DAYS[0]] == cells
        assert engine.index.shelf.without_cells() == DAYS[:1]
        for level, least in (("hour", 20), ("fine", 240), ("metrics", 20)):
            rolled = engine.index.store.execute(
                "SELECT bucket FROM rolled WHERE level = ? AND origin = '20261120'", [level]
            )
            assert len(rolled) >= least
            assert (hour,) not in rolled
        assert ("20261120",) not in engine.index.store.execute("SELECT origin FROM day_cells")
        assert (str(cells), str(cells)) in engine.index.store.execute("SELECT cells, metrics FROM sealed")
        assert (hour,) not in engine.index.store.execute("SELECT bucket FROM hour_cells WHERE origin = '20261120'")
        assert not list(differences([*answers(client), energy(client)], wanted))
        seal_what_is_due_weeks_later(engine)
        assert engine.index.shelf.without_cells() == []
        assert not list(differences([*answers(client), energy(client)], wanted))


def sealed_again(client: Client, engine: Engine) -> None:
    sealed(engine)
    engine.index.shelf.delete_retired(5)


def compressed(client: Client, engine: Engine) -> None:
    engine._retention._policy = Policy(keep_days=0, max_bytes=0, compress_after_days=1)
    engine.tidy_now()
    assert len(list(engine._folder.glob("*.csv.gz"))) == 4


def deleted(client: Client, engine: Engine) -> None:
    without_rows(engine)


def compressed_and_deleted(client: Client, engine: Engine) -> None:
    compressed(client, engine)
    deleted(client, engine)


def late(client: Client, engine: Engine) -> None:
    assert (
        client.post("/api/receive-data", json=[row | {"gpu_id": 1} for row in few_rows()[:3]]).status_code == 200
    )
    engine.index.catchup.refresh()


def late_and_sealed(client: Client, engine: Engine) -> None:
    late(client, engine)
    engine.index.sealer.seal_rows(DAYS[0], NEVER)


def late_after_midnight_and_sealed(client: Client, engine: Engine) -> None:
    """By which the last seconds of the day before are another sample's."""
    moment = "2026-11-21T00:00:10+00:00"
    row = rows()[144] | {"timestamp": moment, "sampled_at": moment, "pods": [pod(utilization=99.0)]}
    assert client.post("/api/receive-data", json=row | {"utilization_gpu": 99.0}).status_code == 200
    engine.index.catchup.refresh()
    engine.index.sealer.seal_rows(DAYS[1], NEVER)


def rolled(client: Client, engine: Engine) -> None:
    engine.index.catchup.refresh()
    engine.index.roller.roll_due(NEVER.is_set, patient=False)
    for day in DAYS:
        engine.index.sealer.seal_rows(day, NEVER)


def gone(client: Client, engine: Engine) -> None:
    for day in DAYS:
        engine.index.sealer.seal_cells(day, NEVER)
    for path in engine._folder.glob("*_20261120.csv*"):
        path.unlink()
    engine.index.catchup.refresh()


def made_anew(client: Client, engine: Engine) -> None:
    """The CSV files of a day go, and larger ones of the same name come."""
    for path in engine._folder.glob("*_20261120.csv*"):
        path.unlink()
    engine.index.catchup.refresh()
    others = [row | {"gpu_id": gpu} for gpu in (1, 2) for row in few_rows() if "-11-20T" in row["timestamp"]]
    assert client.post("/api/receive-data", json=others).status_code == 200
    engine.index.catchup.refresh()


@pytest.mark.parametrize(
    ("first", "then", "copied"),
    [
        ([], sealed_again, "before"),
        ([sealed_again], sealed_again, "after"),
        ([sealed_again], compressed, "before"),
        ([], compressed, "after"),
        ([sealed_again], deleted, "before"),
        ([sealed_again], deleted, "after"),
        ([sealed_again], late, "before"),
        ([sealed_again, late], sealed_again, "after"),
        ([sealed_again, compressed], deleted, "before"),
        ([rolled], gone, "after"),
        ([sealed_again], compressed_and_deleted, "before"),
        ([sealed_again], made_anew, "before"),
        ([sealed_again], late, "after"),
        ([sealed_again], late, "never"),
        ([sealed_again], late_and_sealed, "before"),
        ([sealed_again], late_and_sealed, "after"),
        ([sealed_again], late_and_sealed, "never"),
        ([sealed_again, late], late_and_sealed, "before"),
        ([sealed_again], late_after_midnight_and_sealed, "before"),
        ([sealed_again], late_after_midnight_and_sealed, "never"),
    ],
)
def test_a_store_that_is_older_than_what_is_there_is_brought_up_to_it(
    tmp_path: Path,
    first: list[Callable[[Client, Engine], None]],
    then: Callable[[Client, Engine], None],
    copied: str,
) -> None:
    """That of a server that was killed is as it was at its last checkpoint, or at the one before, where it was
    killed just before that; or there is none."""
    store, older = tmp_path / ".gpumon" / "store.duckdb", tmp_path / "older"
    export = {"format": "csv", **RANGE}
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert client.post("/api/receive-data", json=few_rows()).status_code == 200
        for action in first:
            action(client, engine)
        answers(client)
        engine.index.store.checkpoint()
        shutil.copy(store, older)
        then(client, engine)
        if copied == "after":
            shutil.copy(store, older)
        now = answers(client)
        lines = client.get("/api/export", params=export).text.count("\n")
    if copied == "never":
        store.unlink()
    else:
        shutil.copy(older, store)
    with served(tmp_path, "UTC", NOW) as (client, engine):
        for _ in range(2):
            assert answers(client) == now
            assert client.get("/api/export", params=export).text.count("\n") == lines
            engine.index.settle()


def test_what_a_day_that_was_never_loaded_makes_out_of_date_is_so_after_a_kill_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path / "all", "UTC", NOW) as (client, _):
        assert client.post("/api/receive-data", json=rows()).status_code == 200
        now = answers(client)
    data = tmp_path / "data"
    with served(data, "UTC", NOW) as (client, engine):
        assert client.post("/api/receive-data", json=rows()[:144]).status_code == 200
        engine.index.catchup.refresh()
        engine.index.roller.roll_due(NEVER.is_set, patient=False)
        engine.index.store.checkpoint()
        monkeypatch.setattr(catchup_module, "_DEFERRED_BYTES", 1)
        for file in (tmp_path / "all").glob("*_20261121.csv"):
            shutil.copy(file, data)
        engine.index.catchup.refresh()
        assert engine.index.shelf.deferred == {DAYS[1]}
        engine.index.sealer.seal_rows(DAYS[1], NEVER)
        assert answers(client) == now
        shutil.copy(data / ".gpumon" / "store.duckdb", tmp_path / "killed")
    shutil.copy(tmp_path / "killed", data / ".gpumon" / "store.duckdb")
    with served(data, "UTC", NOW) as (client, engine):
        assert answers(client) == now


def test_a_day_that_went_with_the_store_leaves_nothing_in_the_rollups_beside_it(tmp_path: Path) -> None:
    with served(tmp_path / "data", "UTC", NOW) as (client, engine):
        filled(client, engine)
    for gone in (tmp_path / "data").glob("*_20261121.csv"):
        gone.unlink()
    (tmp_path / "data" / ".gpumon" / "store.duckdb").unlink()
    (tmp_path / "alone").mkdir()
    for there in (tmp_path / "data").glob("*.csv"):
        shutil.copy(there, tmp_path / "alone")
    with (
        served(tmp_path / "data", "UTC", NOW) as (client, engine),
        served(tmp_path / "alone", "UTC", NOW) as (alone, _),
    ):
        assert answers(client) == answers(alone)
        sealed(engine)
        assert answers(client) == answers(alone)


def test_a_sealed_day_follows_its_csv_when_a_hand_changes_it(tmp_path: Path) -> None:
    csv = tmp_path / "gpu_metrics_20261120.csv"
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
    lines = csv.read_bytes().splitlines(keepends=True)
    csv.write_bytes(b"".join(lines[:-10]))
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert client.post("/api/gpu/statistics", json={}).json()["data"]["samples"] == len(rows()) - 10
        csv.unlink()
        assert client.post("/api/gpu/statistics", json={}).json()["data"]["samples"] == 144


def test_rollups_outlive_the_rows(tmp_path: Path) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        before = answers(client)
        raw = folder_of(tmp_path, DAYS[0], "raw")
        without_rows(engine)
        assert not list(tmp_path.glob("*_20261120.csv*"))
        assert sorted(path.name for path in raw.iterdir()) == ["manifest.json", "readings.parquet"]
        assert answers(client) == before
        exported = client.get("/api/export", params={"format": "csv", **RANGE}).text
        assert exported.count("\n") == 1 + 144
    (tmp_path / ".gpumon" / "store.duckdb").unlink()
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert answers(client) == before
    with served(tmp_path, "UTC", NOW, stale_after_seconds=300) as (client, engine):
        engine.index.settle()
        assert answers(client) == before
        assert engine.index.contents().kept_days == 1


@pytest.mark.parametrize(
    ("kind", "name", "harm"),
    [
        ("raw", "readings.parquet", flip_a_byte),
        ("raw", "readings.parquet", cut_short),
        ("cells", "fine.parquet", flip_a_byte),
        ("cells", "fine.parquet", cut_short),
        ("cells", "hours.parquet", flip_a_byte),
    ],
)
def test_rollups_that_nobody_could_make_again_are_answered_from_while_the_store_has_them(
    tmp_path: Path, kind: str, name: str, harm: Callable[[Path], None]
) -> None:
    part = {"start": "2026-11-20T00:10:00Z", "end": "2026-11-21T00:00:00Z"}
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        before = answers(client)
        without_rows(engine)
        harm(folder_of(tmp_path, DAYS[0], kind) / name)
        for _ in range(2):
            engine.index.scrubber.scrub(NEVER)
        assert answers(client) == before
        assert engine.index.scrubber.damaged_days == 1
        assert client.get("/api/usage", params=part).status_code == 200
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert answers(client) == before
    (tmp_path / ".gpumon" / "store.duckdb").unlink()
    with served(tmp_path, "UTC", NOW) as (client, engine):  # the damage is there, the server as well
        assert client.get("/api/usage", params=RANGE).status_code == 200
    assert folder_of(tmp_path, DAYS[0], kind).exists()


def test_a_bucket_with_more_rows_than_are_rolled_at_once_is_divided_by_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_gpus = [
        row | {"gpu_id": gpu, "gpu_uuid": f"GPU-{gpu}", "attribution_note": "the kubelet could not be asked"}
        for row in few_rows()
        for gpu in range(4)
    ]
    by_gpu = RANGE | {"metric": "power_draw", "step": "1h", "aggregate": "sum"}
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert client.post("/api/receive-data", json=of_gpus).status_code == 200
        before = answers(client), client.get("/api/series", params=by_gpu).json()
        monkeypatch.setattr(pieces, "MOST_ROWS", 15)
        sealed(engine)
        after = answers(client), client.get("/api/series", params=by_gpu).json()
        assert not list(differences(after, before))
        cells = folder_of(tmp_path, DAYS[0], "cells") / "fine.parquet"
        assert duckdb.execute(f"SELECT max(samples) FROM '{cells}' WHERE kind = 'note'").fetchall()[0][0] < 4 * 3


def test_where_memory_is_not_enough_for_a_part_it_is_made_in_halves() -> None:
    made = set()
    begin = datetime(2026, 11, 20, 20)
    buckets = [(begin + number * FINE, begin + (number + 1) * FINE) for number in range(3)]

    def step(part: Part) -> None:
        if len(part.buckets) > 1 or part.among < 4:
            raise DatabaseError(duckdb.OutOfMemoryException("too much"))
        made.add((part.buckets[0], part.among, part.rest))

    _halving(step, Part(buckets))
    assert made == {(bucket, 4, rest) for bucket in buckets for rest in range(4)}


def hour_by_hour(client: Client) -> list[Any]:
    answer = client.get("/api/series", params=RANGE | {"metric": "power_draw", "step": "1h"})
    assert answer.status_code == 200, answer.text
    return [point["value"] for point in answer.json()["data"]["points"]]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata"])
def test_figures_of_metrics_outlive_the_rows_of_whole_local_hours(tmp_path: Path, zone: str) -> None:
    with served(tmp_path, zone, NOW) as (client, engine):
        filled(client, engine)
        before = hour_by_hour(client)
        without_rows(engine)
        assert hour_by_hour(client) == before
        assert sum(value is not None for value in before) >= 7


def test_an_hour_of_both_days_that_a_late_row_took_from_one_is_made_anew_of_the_other(tmp_path: Path) -> None:
    """Days begin at 18:30 UTC, and what is out of date of a sealed day is so by whole hours of UTC."""
    begin = datetime(2026, 11, 20, 16, 0, 30, tzinfo=UTC)
    moments = [begin + timedelta(seconds=100 * number) for number in range(180)]
    posted = [
        row | {"timestamp": moment.isoformat(), "sampled_at": moment.isoformat()}
        for row, moment in zip(rows(), moments, strict=False)
    ]
    with served(tmp_path, "Asia/Kolkata", NOW) as (client, engine):
        assert client.post("/api/receive-data", json=posted).status_code == 200
        sealed(engine)
        figures_of = "SELECT bucket FROM rolled WHERE level = 'metrics' AND origin = '20261121' ORDER BY bucket"
        before = engine.index.store.execute(figures_of)
        moment = "2026-11-20T18:10:00+00:00"  # 23:40
        late = posted[0] | {"timestamp": moment, "sampled_at": moment, "gpu_id": 1, "gpu_uuid": "GPU-1"}
        assert client.post("/api/receive-data", json=late).status_code == 200
        engine.index.catchup.refresh()
        assert engine.index.store.execute(figures_of) == before[1:]
        assert engine.index.shelf.without_cells() == DAYS
        seal_what_is_due_weeks_later(engine)
        assert engine.index.store.execute(figures_of) == before
        points = hour_by_hour(client)
        without_rows(engine)
        assert hour_by_hour(client) == points


def test_figures_that_nobody_could_make_again_are_missing_when_they_are_damaged_and_nothing_else_is(
    tmp_path: Path,
) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        before, points = answers(client), hour_by_hour(client)
        without_rows(engine)
        cells = folder_of(tmp_path, DAYS[0], "cells")
        for name in ("hours.parquet", "metrics.parquet"):  # the first is in the store
            flip_a_byte(cells / name)
            engine.index.scrubber.scrub(NEVER)
        assert answers(client)[:-1] == before[:-1]
        assert hour_by_hour(client) == [None] * 23 + points[23:]  # the next day's first stands for its end


@pytest.mark.parametrize("gone", ["the manifest", "the folder"])
def test_cells_that_are_gone_with_the_rows_leave_what_the_store_has(tmp_path: Path, gone: str) -> None:
    part = {"start": "2026-11-20T20:12:10Z", "end": "2026-11-21T00:00:00Z"}
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        before = answers(client)
        without_rows(engine)
    cells = folder_of(tmp_path, DAYS[0], "cells")
    if gone == "the folder":
        shutil.rmtree(cells)
    else:
        (cells / manifest.MANIFEST).unlink()
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert answers(client)[:-1] == before[:-1]
        assert client.get("/api/usage", params=part).status_code == 200


def test_the_owner_of_a_pod_is_what_the_later_of_two_rows_says(tmp_path: Path) -> None:
    wanted = RANGE | {"metric": "utilization", "owner": "old", "step": "1d"}
    named = [row | {"pods": [pod(utilization=50.0, owner_name="old")]} for row in few_rows()]
    again = [row | {"pods": [pod(utilization=50.0, owner_name="new")]} for row in few_rows()[:6]]
    with served(tmp_path, "UTC", NOW) as (client, engine):
        for posted in (named, again):
            assert client.post("/api/receive-data", json=posted).status_code == 200
        found = client.get("/api/series", params=wanted).json()["data"]["points"]
        assert [point["samples"] for point in found] == [1, 6]
        sealed(engine)
        assert client.get("/api/series", params=wanted).json()["data"]["points"] == found


@pytest.mark.parametrize(
    ("kind", "name"), [("raw", "readings.parquet"), ("cells", "hours.parquet"), ("cells", "days.parquet")]
)
def test_what_is_damaged_does_not_get_into_a_store_that_is_made_anew(tmp_path: Path, kind: str, name: str) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        before = answers(client)
    flip_a_byte(folder_of(tmp_path, DAYS[0], kind) / name)
    (tmp_path / ".gpumon" / "store.duckdb").unlink()
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert answers(client) == before
        sealed(engine)
        assert answers(client) == before


def test_retention_waits_a_day_for_the_accounts_of_a_day_that_is_being_sealed(tmp_path: Path) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert client.post("/api/receive-data", json=rows()).status_code == 200
        engine.index.catchup.refresh()
        engine.index.sealer.seal_rows(DAYS[0], NEVER)
        engine._retention._policy = Policy(keep_days=1, max_bytes=0, compress_after_days=None)
        engine.tidy_now()
        assert list(tmp_path.glob("gpu_metrics_20261120.csv"))
        engine.index.sealer.seal_cells(DAYS[0], NEVER)
        engine.tidy_now()
        assert not list(tmp_path.glob("gpu_metrics_20261120.csv"))


def test_a_deletion_that_a_kill_interrupted_is_ended_at_the_next_start(tmp_path: Path) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        before = answers(client)
    raw = folder_of(tmp_path, DAYS[0], "raw")
    manifest.without_rows(raw, manifest.read(raw, manifest.RawManifest), deleting=True)
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert not list(tmp_path.glob("gpu_metrics_20261120.csv*"))
        assert answers(client) == before


@pytest.mark.parametrize("when", ["while running", "while it is down"])
def test_csv_files_that_come_back_after_retention_count_again_and_once(tmp_path: Path, when: str) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        before = answers(client)
        kept = {path: path.read_bytes() for path in tmp_path.glob("*_20261120.csv")}
        engine._retention._policy = Policy(keep_days=1, max_bytes=0, compress_after_days=None)
        engine.tidy_now()
        if when == "while running":
            assert not engine.index.shelf.days[DAYS[0]].has_rows
            for path, data in kept.items():
                path.write_bytes(data)
            engine.index.catchup.refresh()
            assert answers(client) == before
    for path, data in kept.items():
        path.write_bytes(data)
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert answers(client) == before


def test_what_is_being_read_is_deleted_when_it_has_been_read(tmp_path: Path) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        old = folder_of(tmp_path, DAYS[0], "raw")
        always = [(datetime(2026, 11, 20), datetime(2026, 11, 22))]
        with engine.index.sealer._store.reading(always) as reading:
            engine.index.sealer.seal_rows(DAYS[0], NEVER)
            engine.index.shelf.delete_retired(0.05)
            assert reading.select("SELECT count(*), count(power_draw) FROM samples") == [(288, 288)]
            assert old.exists()
        engine.index.shelf.delete_retired(5)
        assert not old.exists()


def test_a_large_day_that_is_over_is_sealed_without_having_been_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path, "UTC", NOW) as (client, _):
        assert client.post("/api/receive-data", json=rows()).status_code == 200
        before = answers(client)
    (tmp_path / ".gpumon" / "store.duckdb").unlink()
    monkeypatch.setattr(catchup_module, "_DEFERRED_BYTES", 1)
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert client.get("/ready").status_code == 503
        assert engine.index.shelf.deferred == set(DAYS)
        engine.index.settle()
        assert client.get("/ready").status_code == 200
        assert answers(client) == before
        assert not engine.index.shelf.without_cells()


def test_an_hour_is_not_rolled_up_where_its_day_is_sealed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert client.post("/api/receive-data", json=rows()).status_code == 200
        before = answers(client)
        roll, calls = rolling_module.roll, []

        def sealed_in_between(*given: Any, **named: Any) -> None:
            if not calls and given[1][0][0] >= datetime(2026, 11, 20):
                calls.append(given)
                sealed(engine)
            roll(*given, **named)

        monkeypatch.setattr(rolling_module, "roll", sealed_in_between)
        engine.index.roller.roll_due(NEVER.is_set, patient=False)
        store = engine.index.sealer._store
        assert calls
        assert store.execute("SELECT bucket, level FROM rolled GROUP BY ALL HAVING count(*) > 1") == []
        of_days = "bucket >= '2026-11-20' AND bucket < '2026-11-22'"
        assert store.execute(f"SELECT count(*) FROM fine_cells WHERE {of_days}") == [(0,)]
        assert answers(client) == before


def test_an_hour_is_made_of_all_its_buckets_or_not_at_all(tmp_path: Path) -> None:
    hour = datetime(2026, 11, 20, 21)
    made = "SELECT count(*) FROM rolled WHERE level = 'hour' AND bucket = ?"
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert client.post("/api/receive-data", json=rows()).status_code == 200
        engine.index.catchup.refresh()
        store, roller = engine.index.store, engine.index.roller
        roller.roll_due(lambda: False, patient=False)
        assert store.execute(made, [hour]) == [(1,)]
        store.execute("DELETE FROM rolled WHERE bucket = ?", [hour])  # as late rows do it, of its first bucket
        assert not roller._make_hour(hour)
        assert store.execute(made, [hour]) == [(0,)]


def test_the_rollup_by_hour_stays_small_however_often_rows_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals_module, "_FEW_READINGS", 20)
    with served(tmp_path, "UTC", NOW) as (client, engine):
        engine.index.arrivals._readings_wanted = 20
        for row in rows()[:100]:
            assert client.post("/api/receive-data", json=row).status_code == 200
            engine.index.catchup.refresh()
        counted = engine.index.sealer._store.execute("SELECT count(*), sum(rows) FROM readings")[0]
        assert counted[0] <= 17 + 20 + 1  # hours, and what has come since
        assert counted[1] == 100
        assert client.post("/api/gpu/statistics", json={}).json()["data"]["samples"] == 100


def test_rebuild_makes_all_anew_and_tells_what_it_found(tmp_path: Path) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        filled(client, engine)
        before = answers(client)
    with (tmp_path / "gpu_metrics_20261121.csv").open("ab") as file:
        file.write(b"not,a,row\n")
    (tmp_path / ".gpumon" / "store.duckdb").write_bytes(b"no database")
    flip_a_byte(folder_of(tmp_path, DAYS[0], "raw") / "samples.parquet")
    ran = subprocess.run(
        [sys.executable, "-m", "gpumon", "server", "--rebuild", "--config", "/dev/null"],
        env={
            "GPUMON_SERVER__STORAGE__OUTPUT_DIRECTORY": str(tmp_path),
            "GPUMON_SERVER__LOGGING__LOG_FILE": "",
            "PATH": "",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 1, ran.stderr  # a damaged line
    assert "288 samples, 288 pod_usage" in ran.stdout
    assert "2 days sealed" in ran.stdout
    assert "1 damaged lines were left out" in ran.stdout
    damaged = (tmp_path / ".gpumon" / "quarantine" / "gpu_metrics_20261121.csv.damaged.csv").read_text()
    assert damaged.splitlines()[1].startswith("146,")
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert answers(client) == before
        assert list(engine.index.shelf.days) == DAYS


@pytest.mark.parametrize("harm", [flip_a_byte, overwrite])
def test_a_damaged_file_of_the_latest_rows_keeps_no_server_from_starting(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    row = late_row() | {"timestamp": "2026-11-22T02:00:00Z", "sampled_at": "2026-11-22T02:00:00Z"}

    def everything(client: Client) -> list[Any]:
        gpus = [client.post(path, json={}).json()["data"] for path in ("/api/gpu/list", "/api/gpu/realtime")]
        return [*answers(client), *gpus]

    with served(tmp_path / "data", "UTC", NOW) as (client, engine):
        assert client.post("/api/receive-data", json=few_rows()[:6]).status_code == 200
        engine.index.catchup.refresh()
        engine.index.sealer.seal_rows(DAYS[0], NEVER)
    harm(folder_of(tmp_path / "data", DAYS[0], "raw") / "latest.parquet")
    with served(tmp_path / "data", "UTC", NOW) as (client, engine):
        assert engine.closed_because is None
        assert client.post("/api/receive-data", json=row).status_code == 200
        shutil.copytree(tmp_path / "data", tmp_path / "alone", ignore=shutil.ignore_patterns(".gpumon"))
        with served(tmp_path / "alone", "UTC", NOW) as (alone, _):
            wanted = everything(alone)
        assert not list(differences(answers(client), wanted[:-2]))
        engine.index.scrubber.scrub_due(NEVER)
        assert not list(differences(everything(client), wanted))
        engine.index.sealer.seal_rows(DAYS[0], NEVER)
        assert not list(differences(everything(client), wanted))
        engine.index.shelf.delete_retired(5)
        raw = folder_of(tmp_path / "data", DAYS[0], "raw")
        assert manifest.fault(raw, manifest.read(raw, manifest.RawManifest).outputs) is None


def test_a_late_row_of_a_day_whose_rows_are_gone_counts_beside_what_is_kept_of_it(tmp_path: Path) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        with_first_day_sealed(client, engine, few_rows()[:6])
        samples, hours = figures(client)
        for max_bytes in (1, 10**12):
            engine._retention._policy = Policy(keep_days=0, max_bytes=max_bytes, compress_after_days=None)
            engine.tidy_now()
        engine.index.shelf.delete_retired(5)
        assert not list(tmp_path.glob("*.csv"))
        assert client.post("/api/receive-data", json=late_row()).status_code == 200
        now = figures(client)
        assert now[0] == samples + 1
        assert now[1] >= hours
        seal_what_is_due_weeks_later(engine)
        assert figures(client) == now
    for _ in range(2):
        with served(tmp_path, "UTC", NOW) as (client, engine):
            assert figures(client) == now
            seal_what_is_due_weeks_later(engine)
            assert figures(client) == now


@pytest.mark.parametrize("begun", ["by a server that was killed", "by one that goes on"])
def test_a_csv_file_that_can_not_be_deleted_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: str
) -> None:
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "gpu_metrics_20261120.csv":
            raise PermissionError(13, "in use")
        unlink(path, missing_ok=missing_ok)

    row = full_sample(timestamp="2026-11-22T02:00:00Z", sampled_at="2026-11-22T02:00:00Z")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        with served(tmp_path, "UTC", NOW) as (client, engine):
            with_first_day_sealed(client, engine, few_rows())
            before = answers(client)
            if begun == "by one that goes on":
                without_rows(engine)
                assert answers(client) == before
        raw = folder_of(tmp_path, DAYS[0], "raw")
        if begun == "by a server that was killed":
            manifest.without_rows(raw, manifest.read(raw, manifest.RawManifest), deleting=True)
        assert manifest.read(raw, manifest.RawManifest).deleting
        with served(tmp_path, "UTC", NOW) as (client, engine):
            assert engine.closed_because is None
            assert answers(client) == before
            assert client.post("/api/receive-data", json=row).status_code == 200
            after = answers(client)
    assert (tmp_path / "gpu_metrics_20261120.csv").exists()
    with served(tmp_path, "UTC", NOW) as (client, engine):
        without_rows(engine)
        assert not list(tmp_path.glob("*_20261120.csv"))
        assert answers(client) == after


def test_a_day_whose_accounts_a_late_row_made_out_of_date_keeps_them_when_the_disk_is_full(tmp_path: Path) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        with_first_day_sealed(client, engine, rows()[130:141] + rows()[150:156])
        assert client.post("/api/receive-data", json=late_row()).status_code == 200
        before = figures(client)[1]
        size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        engine._retention._policy = Policy(keep_days=0, max_bytes=size - 1, compress_after_days=None)
        engine.tidy_now()
        assert len(list(tmp_path.glob("gpu_metrics_*.csv"))) == 2
        engine.index.settle()
        engine.tidy_now()
        assert len(list(tmp_path.glob("gpu_metrics_*.csv"))) < 2
        assert figures(client)[1] == before


@pytest.mark.parametrize(("place", "at"), [(0, "2026-11-20T23:33:00Z"), (1, "2026-11-21T00:00:01Z")])
def test_rows_that_nobody_had_looked_at_before_their_day_was_sealed_count_in_all_rollups(
    tmp_path: Path, place: int, at: str
) -> None:
    """The second stands for ten minutes of the day before as well."""
    unseen = rows()[144] | {"timestamp": at, "sampled_at": at, "utilization_gpu": 77.0}
    unseen["pods"] = [pod(utilization=77.0, pod="other")]
    with served(tmp_path / "data", "UTC", NOW) as (client, engine):
        assert client.post("/api/receive-data", json=few_rows()).status_code == 200
        sealed(engine)
        engine._upkeep.stop(10)
        assert client.post("/api/receive-data", json=unseen).status_code == 200
        engine.index.sealer.seal_rows(DAYS[place], NEVER)
        wanted = answers_of_the_csv(tmp_path / "data", tmp_path / "alone")
        assert not list(differences(answers(client), wanted))
    with served(tmp_path / "data", "UTC", NOW) as (client, _):
        assert not list(differences(answers(client), wanted))


def test_a_day_that_was_sealed_again_without_new_rows_keeps_its_accounts_when_its_rows_and_the_store_are_gone(
    tmp_path: Path,
) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        with_first_day_sealed(client, engine, few_rows()[:6])
        before = answers(client)
        header = (tmp_path / "gpu_metrics_20261120.csv").read_bytes().splitlines(keepends=True)[0]
        (tmp_path / "gpu_metrics_20261120.001.csv").write_bytes(header)
        engine.index.catchup.refresh()
        seal_what_is_due_weeks_later(engine)
        assert engine.index.shelf.is_sealed(DAYS[0], "gpu_metrics_20261120.001.csv")
        without_rows(engine)
        assert answers(client) == before
    (tmp_path / ".gpumon" / "store.duckdb").unlink()
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert not list(differences(answers(client), before))


def test_a_day_that_can_not_be_taken_in_leaves_one_folder_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fail(*_: object) -> None:
        raise DatabaseError(duckdb.OutOfMemoryException("Out of Memory Error: could not allocate"))

    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert client.post("/api/receive-data", json=few_rows()).status_code == 200
        before = answers(client)
        with monkeypatch.context() as patched:
            patched.setattr(shelf_module, "put_in", fail)
            for _ in range(3):
                with pytest.raises(DatabaseError):
                    engine.index.sealer.seal_rows(DAYS[0], NEVER)
        engine.index.shelf.delete_retired(5)
        folder = tmp_path / ".gpumon" / "sealed" / "20261120"
        assert len(list(folder.glob("raw-*"))) <= 1
        assert answers(client) == before
        sealed(engine, DAYS[:1])
        assert not list(differences(answers(client), before))


def test_a_row_years_off_makes_no_hour_out_of_date_in_which_there_is_no_row(tmp_path: Path) -> None:
    file = tmp_path / "gpu_metrics_20261119.csv"
    lines = [SEED, old_line(10).replace("2026-11-24", "2026-11-19"), old_line(10).replace("2026-11", "2024-11")]
    with served(tmp_path, "UTC", NOW) as (client, engine):
        engine._upkeep.stop(10)
        file.write_text("\n".join(lines) + "\n")
        engine.index.catchup.refresh()
        engine.index.sealer.seal_rows(date(2026, 11, 19), NEVER)
        file.write_text("\n".join([*lines, lines[1].replace(",0,", ",1,", 1)]) + "\n")
        engine.index.catchup.refresh()
        assert figures(client)[0] == 3
        assert len(engine.index.touched.hours) < 200


def test_whichever_byte_of_a_sealed_file_is_flipped_it_is_only_that_file_that_can_not_be_read(
    tmp_path: Path,
) -> None:
    """DuckDB's words on it may hold bytes of the file, which are no UTF-8."""
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert client.post("/api/receive-data", json=few_rows()[:6]).status_code == 200
        engine.index.catchup.refresh()
        engine.index.sealer.seal_rows(DAYS[0], NEVER)
        path = folder_of(tmp_path, DAYS[0], "raw") / "latest.parquet"
        whole = path.read_bytes()
        for place in range(0, len(whole), 50):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
            engine.index.store.remember_latest()
            with contextlib.suppress(QueryError), engine.index.store.reading() as reading:
                reading.select(f"SELECT client_name, power_draw, state FROM read_parquet('{path}')")
