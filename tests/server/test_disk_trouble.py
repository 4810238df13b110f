"""The disk takes nothing for a while: agents are told, queries go on, nothing acknowledged is lost."""

from __future__ import annotations

import resource
import signal
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import httpx
import pytest

from gpumon.errors import StorageError
from gpumon.server import catchup as catchup_module
from gpumon.server.accounts.cells import CREATE_CELLS
from gpumon.server.engine import Engine
from gpumon.server.queries import Filter, Query
from gpumon.server.store import DatabaseError, Store
from tests import processes
from tests.processes import free_port, until
from tests.samples import full_sample, sample
from tests.server.conftest import serving, settings_for
from tests.server.test_sealed_answers import served

NOW = datetime(2026, 11, 24, 18, tzinfo=UTC)


@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit")
def test_a_full_disk_is_503_and_heals_without_a_restart(tmp_path: Path) -> None:
    port = free_port()
    with processes.server(tmp_path, port) as server:
        server.start()
        acknowledged = 0
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:

            def post() -> httpx.Response:
                rows = [sample(gpu_id=gpu, memory_used=acknowledged) for gpu in range(20)]
                return client.post("/api/receive-data", json=rows)

            def samples() -> int:
                return int(client.post("/api/gpu/statistics").raise_for_status().json()["data"]["samples"])

            for _ in range(5):
                acknowledged += post().raise_for_status().json()["received_count"]
            assert samples() == acknowledged
            # The operating system refuses every further byte to the server, as a full disk does.
            unlimited = resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
            for _ in range(3):
                refused = post()
                assert (refused.status_code, refused.json()["error_code"]) == (503, "HTTP_503")
            assert client.get("/health").status_code == 503
            assert samples() == acknowledged, "queries go on"
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, unlimited)
            acknowledged += post().raise_for_status().json()["received_count"]
            assert client.get("/health").status_code == 200
            assert until(lambda: samples() == acknowledged)
        server.end(signal.SIGTERM)
    lines = Counter(line for path in tmp_path.glob("*.csv") for line in path.read_text().splitlines()[1:])
    assert lines.total() == acknowledged
    assert max(lines.values()) == 1


def test_a_database_that_duckdb_gave_up_is_opened_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(settings_for(tmp_path)) as client:
        client.post("/api/receive-data", json=sample()).raise_for_status()
    engine = Engine(settings_for(tmp_path))
    engine.open()
    try:
        with monkeypatch.context() as patch:

            def fail(*_: object) -> None:
                raise DatabaseError(duckdb.FatalException("database has been invalidated"))

            patch.setattr(engine.index.catchup, "_load_changes", fail)
            engine.index.catchup.refresh()
            assert engine.counts().behind
            assert "database has been invalidated" in (engine.not_ready_because or "")
        engine.index.catchup.refresh()
        assert engine.reader.statistics(Filter())["samples"] == 1
        assert not engine.counts().behind
    finally:
        engine.close()


def test_a_database_that_was_given_up_comes_back_with_what_it_had_not_put_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        engine._upkeep.stop(10)
        path = tmp_path / ".gpumon" / "store.duckdb"
        catchup, store = engine.index.catchup, engine.index.store
        store.checkpoint()
        on_disk = path.read_bytes()
        assert client.post("/api/receive-data", json=full_sample()).status_code == 200
        catchup.refresh()
        load = catchup._load_changes

        def be_given_up() -> None:
            monkeypatch.setattr(catchup, "_load_changes", load)
            store.close()
            path.write_bytes(on_disk)
            raise DatabaseError(duckdb.FatalException("database has been invalidated"))

        monkeypatch.setattr(catchup, "_load_changes", be_given_up)
        catchup.refresh()
        assert store.select(Query("SELECT count(*) FROM hot_samples")) == [(1,)]


def test_a_checkpoint_that_fails_stops_no_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise DatabaseError(duckdb.TransactionException("not now"))

    monkeypatch.setattr(catchup_module, "_KEPT_BYTES", 1)
    with served(tmp_path, "UTC", NOW) as (client, engine):
        with monkeypatch.context() as patch:
            patch.setattr(engine.index.store, "checkpoint", fail)
            assert client.post("/api/receive-data", json=full_sample()).status_code == 200
            engine.index.catchup.refresh()
        assert not engine.counts().behind
        assert client.post("/api/gpu/statistics", json={}).json()["data"]["samples"] == 1


def test_a_store_that_is_open_in_this_process_is_not_taken_for_a_broken_one(tmp_path: Path) -> None:
    with served(tmp_path, "UTC", NOW) as (client, engine):
        assert client.post("/api/receive-data", json=full_sample()).status_code == 200
        engine.index.catchup.refresh()
        before = (tmp_path / ".gpumon" / "store.duckdb").stat().st_ino
        with pytest.raises(StorageError, match="another gpumon server"):
            Store(tmp_path, cell_columns=CREATE_CELLS.strip("()")).open()
        assert (tmp_path / ".gpumon" / "store.duckdb").stat().st_ino == before


def test_a_second_server_on_the_same_folder_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    first, second = free_port(), free_port()
    with processes.server(tmp_path, first) as one, processes.server(tmp_path, second) as other:
        one.start()
        httpx.post(f"http://127.0.0.1:{first}/api/receive-data", json=sample(), trust_env=False).raise_for_status()
        other.start()
        health = httpx.get(f"http://127.0.0.1:{second}/health", trust_env=False)
        assert health.status_code == 503
        assert "another gpumon server" in health.json()["reasons"][0]
        httpx.post(f"http://127.0.0.1:{first}/api/receive-data", json=sample(), trust_env=False).raise_for_status()
        one.end(signal.SIGTERM)

        def taken_over() -> bool:
            return httpx.get(f"http://127.0.0.1:{second}/health", trust_env=False).status_code == 200

        assert until(taken_over), "it takes over when the first has gone"
        data = httpx.post(f"http://127.0.0.1:{second}/api/gpu/statistics", trust_env=False).json()["data"]
        assert data["samples"] == 2
        other.end(signal.SIGTERM)
