"""When a row is in the answers: at once, or within half a second where much comes in all the time."""

from __future__ import annotations

import gzip
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from gpumon.server import catchup as catchup_module
from gpumon.server import pace
from gpumon.server import store as store_module
from tests.samples import full_sample
from tests.server.test_sealed_answers import Client, served
from tests.server.test_store import SEED, old_line

NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)


def post(client: Client, second: int) -> None:
    row = full_sample(timestamp=f"2026-11-22 02:00:{second:02d}", sampled_at=f"2026-11-22T02:00:{second:02d}Z")
    assert client.post("/api/receive-data", json=row).status_code == 200


def counted(client: Client) -> int:
    samples: int = client.post("/api/gpu/statistics", json={}).json()["data"]["samples"]
    return samples


def test_a_row_is_in_the_answers_when_its_sender_has_been_told_200(tmp_path: Path) -> None:
    with served(tmp_path, "UTC", NOW) as (client, _):
        for second in range(5):
            post(client, second)
            assert counted(client) == second + 1


def test_where_much_comes_in_no_query_waits_for_the_last_half_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_BUSY_BYTES_A_SECOND", 1)
    with served(tmp_path, "UTC", NOW) as (client, engine):
        engine._upkeep.stop(10)
        catchup = engine.index.catchup
        for second in range(2):  # one load alone may be a file that was put into the folder
            post(client, second)
            assert counted(client) == second + 1
        assert catchup.pause_seconds < 0.5
        monkeypatch.setattr(pace, "_BUSY_REFRESH_SECONDS", 60.0)
        post(client, 2)
        assert counted(client) == 2
        monkeypatch.setattr(pace, "_BUSY_REFRESH_SECONDS", 0.0)
        time.sleep(0.01)
        assert counted(client) == 3


@pytest.mark.parametrize(("limit", "kept"), [("_KEPT_BYTES", 1), ("_KEPT_SECONDS", -1.0)])
def test_after_so_much_or_so_long_the_store_is_put_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, kept: float
) -> None:
    def on_disk() -> int:
        shutil.copy(tmp_path / ".gpumon" / "store.duckdb", tmp_path / "copied.duckdb")
        with duckdb.connect(str(tmp_path / "copied.duckdb"), read_only=True) as database:
            rows: int = database.execute("SELECT count(*) FROM hot_samples").fetchall()[0][0]
        return rows

    with served(tmp_path, "UTC", NOW) as (client, engine):
        engine._upkeep.stop(10)
        engine.index.store.checkpoint()
        post(client, 0)
        assert (counted(client), on_disk()) == (1, 0)
        monkeypatch.setattr(catchup_module, limit, kept)
        with monkeypatch.context() as little_room:
            little_room.setattr(store_module, "_ROOM_BYTES", 2**60)
            post(client, 1)
            assert (counted(client), on_disk()) == (2, 0)
        post(client, 2)
        assert (counted(client), on_disk()) == (3, 3)
    assert on_disk() == 3
    assert not list((tmp_path / ".gpumon").glob("*.wal"))


def test_it_is_not_busy_any_more_when_nothing_comes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_BUSY_BYTES_A_SECOND", 1)
    with served(tmp_path, "UTC", NOW) as (client, engine):
        engine._upkeep.stop(10)
        for second in range(2):
            post(client, second)
            counted(client)
        engine.index.catchup.refresh()
        assert engine.index.catchup.pause_seconds == pace.REFRESH_SECONDS


def test_where_nothing_has_changed_a_query_looks_at_no_files_of_sealed_days(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_LOOK_SECONDS", 60.0)
    with served(tmp_path, "UTC", NOW) as (client, engine):
        engine._upkeep.stop(10)
        post(client, 0)
        counted(client)
        counted(client)  # the file is known from now on
        with monkeypatch.context() as patched:
            patched.delattr(Path, "iterdir")
            assert counted(client) == 1
            assert engine.index.catchup.behind is None
        post(client, 1)
        assert counted(client) == 2
        next(tmp_path.glob("gpu_metrics_*.csv")).unlink()
        assert counted(client) == 0


def test_a_file_that_could_not_be_read_is_read_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_LOOK_SECONDS", 60.0)
    whole = gzip.compress(f"{SEED}\n{old_line(10)}\n".encode() * 50)
    with served(tmp_path, "UTC", NOW) as (client, engine):
        engine._upkeep.stop(10)
        copied = tmp_path / "gpu_metrics_20261121.csv.gz"
        copied.write_bytes(whole[:-20])
        assert counted(client) == 0
        counted(client)
        copied.write_bytes(whole)
        assert counted(client) == 50
