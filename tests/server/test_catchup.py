"""When a row is in the answers: at once, or within half a second where much comes in all the time."""

from __future__ import annotations

import errno
import gzip
import shutil
import time
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from gpumon.server import arrivals as arrivals_module
from gpumon.server import catchup as catchup_module
from gpumon.server import engine as engine_module
from gpumon.server import pace, sources
from gpumon.server import store as store_module
from gpumon.server.sealing import filling
from tests.samples import full_sample
from tests.server.test_sealed_answers import NEVER, Client, differences, served
from tests.server.test_sealed_days import RANGE, answers, answers_of_the_csv, rows, seal_here
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


@pytest.mark.parametrize(
    "far_off", ["0001-01-01 00:00:00", "9999-12-31 23:59:59", "infinity", "12026-11-20 00:00:00"]
)
def test_a_line_of_another_age_is_one_damaged_line_and_keeps_no_row_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, far_off: str
) -> None:
    seal_here(monkeypatch)
    old = "gpu_metrics_20261119.csv"
    good = old_line(10).replace("2026-11-24", "2026-11-19")
    with served(tmp_path, "UTC", NOW) as (client, engine):
        post(client, 0)
        (tmp_path / old).write_text("\n".join([SEED, good, good.replace("2026-11-19 10:00:00", far_off)]) + "\n")
        engine.index.catchup.refresh()
        assert counted(client) == 2
        post(client, 1)
        assert counted(client) == 3
        assert "gpumon_server_csv_lines_damaged_total 1.0" in client.get("/metrics").text
        aside = (tmp_path / ".gpumon" / "quarantine" / f"{old}.damaged.csv").read_text()
        assert [line.split(",")[0] for line in aside.splitlines()] == ["line", "3"]
        engine.index.settle()
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert counted(client) == 3
        post(client, 2)
        assert counted(client) == 4
        for seal in (engine.index.sealer.seal_rows, engine.index.sealer.seal_cells):
            seal(date(2026, 11, 19), NEVER)
        assert engine.index.shelf.days[date(2026, 11, 19)].damaged == 1
        assert counted(client) == 4
        assert client.get("/api/usage", params=RANGE).status_code == 200


@pytest.mark.parametrize(
    ("day", "rows_of_it"), [("00010101", 0), ("99991231", 0), ("17000101", 1), ("21991231", 1)]
)
def test_a_file_of_another_age_keeps_no_row_out(tmp_path: Path, day: str, rows_of_it: int) -> None:
    there = f"{day[:4]}-{day[4:6]}-{day[6:]}"
    lines = [SEED, old_line(10).replace("2026-11-24", there)]
    (tmp_path / f"gpu_metrics_{day}.csv").write_text("\n".join(lines) + "\n")
    for before in (0, 1):
        with served(tmp_path, "Asia/Kathmandu", NOW) as (client, engine):
            post(client, before)
            assert counted(client) == before + 1 + rows_of_it
            engine.index.settle()
            assert engine.not_ready_because is None


def test_a_server_whose_first_load_failed_is_not_ready_until_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with served(tmp_path, "UTC", NOW) as (client, _):
        post(client, 0)
    (tmp_path / ".gpumon" / "store.duckdb").unlink()
    monkeypatch.setattr(engine_module, "FIRST_LOAD_SECONDS", 0.01)
    with monkeypatch.context() as full:
        full.setattr(arrivals_module, "copy_lines", fail)
        with served(tmp_path, "UTC", NOW) as (client, engine):
            engine.index.catchup.refresh()
            assert engine.index.catchup.behind is not None
            assert engine.not_ready_because is not None
            assert client.get("/ready").status_code == 503
            post(client, 1)
            full.undo()
            engine.index.catchup.refresh()
            assert engine.not_ready_because is None
            assert counted(client) == 2


def test_a_large_day_that_is_put_in_while_running_is_told_of_until_it_is_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal_here(monkeypatch)
    with served(tmp_path / "other", "UTC", NOW) as (client, _):
        assert client.post("/api/receive-data", json=rows()[144:150]).status_code == 200
    with served(tmp_path / "data", "UTC", NOW) as (client, engine):
        post(client, 0)
        assert counted(client) == 1
        monkeypatch.setattr(catchup_module, "_DEFERRED_BYTES", 1)
        for file in (tmp_path / "other").glob("*.csv"):
            shutil.copy(file, tmp_path / "data")
        engine.index.catchup.refresh()
        assert engine.index.shelf.deferred == {date(2026, 11, 21)}
        assert (counted(client), engine.counts().unsealed_days) == (1, 1)
        assert engine.not_ready_because is None, "agents are sent away from a server that is not ready"
        engine.index.settle()
        assert (counted(client), engine.counts().unsealed_days) == (1 + 6, 0)


def test_a_file_that_was_deleted_and_written_anew_before_the_next_look_is_read_from_its_beginning(
    tmp_path: Path,
) -> None:
    with served(tmp_path / "data", "UTC", NOW) as (client, _):
        assert client.post("/api/receive-data", json=rows()[:12]).status_code == 200
        answers(client)
    with served(tmp_path / "data", "UTC", NOW) as (client, engine):
        engine._upkeep.stop(10)
        engine.index.catchup.refresh()
        for path in (tmp_path / "data").glob("*.csv"):
            path.unlink()
        others = [row | {"gpu_id": n, "gpu_uuid": f"GPU-{n}"} for n in (1, 2) for row in rows()[20:32]]
        assert client.post("/api/receive-data", json=others).status_code == 200
        engine.index.catchup.refresh()
        wanted = answers_of_the_csv(tmp_path / "data", tmp_path / "alone")
        assert not list(differences(answers(client), wanted))


def test_a_list_of_damaged_lines_that_a_kill_left_unfinished_is_gone_after_a_start(tmp_path: Path) -> None:
    unfinished = tmp_path / ".gpumon" / "quarantine" / "gpu_metrics_20261119.csv.damaged.csv.new"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_text("line,rea")
    (tmp_path / "gpu_metrics_20261120.csv").write_text(f"{SEED}\nnot,a,row\n")
    with served(tmp_path, "UTC", NOW) as (client, _):
        assert counted(client) == 0
    assert [path.name for path in unfinished.parent.iterdir()] == ["gpu_metrics_20261120.csv.damaged.csv"]


def test_a_file_that_could_not_be_read_when_its_day_was_sealed_counts_when_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal_here(monkeypatch)
    opened, other = sources.open_csv, tmp_path / "gpu_metrics_20261120.001.csv"

    def refuse(path: Path) -> object:
        if path == other:
            raise PermissionError(13, "Permission denied")
        return opened(path)

    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert client.post("/api/receive-data", json=rows()[138:144]).status_code == 200
        lines = (tmp_path / "gpu_metrics_20261120.csv").read_bytes().splitlines(keepends=True)
        with monkeypatch.context() as patched:
            for module in (sources, filling):
                patched.setattr(module, "open_csv", refuse)
            other.write_bytes(b"".join(lines[:4]).replace(b"node-1", b"node-9"))
            assert counted(client) == 6
            engine.index.sealer.seal_rows(date(2026, 11, 20), NEVER)
            assert counted(client) == 6
        other.chmod(0o600)
        engine.index.settle()
        assert counted(client) == 6 + 3
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert counted(client) == 6 + 3


def test_what_arrives_just_before_a_question_reaches_as_far_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    span = {"start": "2026-11-20T01:00:00Z", "end": "2026-11-20T01:30:00Z"}

    def of_an_hour(at: str, seconds: float) -> dict[str, Any]:
        return full_sample(timestamp=at, sampled_at=at, interval_seconds=seconds)

    with served(tmp_path, "UTC", NOW) as (client, engine):
        engine._upkeep.stop(10)
        client.post("/api/receive-data", json=[of_an_hour("2026-11-20T00:00:30Z", 10.0)]).raise_for_status()
        engine.index.catchup.refresh()
        begin = engine.index.store.reading

        def load_and_begin(*of: Any, **options: Any) -> Any:
            late = of_an_hour("2026-11-20T02:00:00Z", 3600.0)
            client.post("/api/receive-data", json=[late]).raise_for_status()
            engine.index.catchup.refresh()
            return begin(*of, **options)

        with monkeypatch.context() as patched:
            patched.setattr(engine.index.store, "reading", load_and_begin)
            found = client.get("/api/ledger", params=span).json()["data"]["total"]
        assert found == client.get("/api/ledger", params=span).json()["data"]["total"]
