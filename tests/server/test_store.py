"""The store says what the files say, whoever wrote them and whatever happened to them."""

from __future__ import annotations

import gzip
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from gpumon.errors import QueryError
from gpumon.model.fields import CSV_COLUMNS
from gpumon.server.accounts.cells import CREATE_CELLS
from gpumon.server.queries import Query
from gpumon.server.store import Store
from tests.samples import sample
from tests.server.conftest import Serve, serving, settings_for

SEED = ",".join(CSV_COLUMNS[:13])


def old_line(hour: int, gpu: int = 0, utilization: str = "40.0", client: str = "old-node") -> str:
    return f"2026-11-24 {hour:02d}:00:00,{gpu},Tesla T4,{utilization},10,15360,7680,7680,50,60.0,70.0,0,{client}"


def put(folder: Path, name: str, *lines: str, newline: str = "\n") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes("".join(line + newline for line in lines).encode())
    return path


def figures(client: httpx.Client) -> tuple[int, float]:
    data = client.post("/api/gpu/statistics").json()["data"]
    return data["samples"], data["period_average"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_files_of_the_old_program_are_answered_by_every_query(serve: Serve, tmp_path: Path, newline: str) -> None:
    lines = [old_line(10, utilization="20"), old_line(11, utilization="40"), old_line(11, gpu=1, utilization="")]
    put(tmp_path / "data", "gpu_metrics_20261124.csv", SEED, *lines, newline=newline)
    client = serve()
    assert figures(client) == (2, 30.0)
    assert [(g["gpu_id"], g["last_update"]) for g in client.post("/api/gpu/list").json()["data"]] == [
        (0, "2026-11-24 11:00:00"),
        (1, "2026-11-24 11:00:00"),
    ]
    day = {"start_date": "2026-11-24", "end_date": "2026-11-24"}
    hours = client.post("/api/gpu/hourly-usage", json=day).json()["data"]["chart_data"]
    assert [hours[h]["utilization"] for h in (9, 10, 11)] == [0.0, 20.0, 40.0]
    realtime = client.post("/api/gpu/realtime", json={"gpu_id": 0}).json()["data"]
    assert (realtime["memory_used_percent"], realtime["temperature"]) == (50.0, 50)


def test_a_row_is_counted_on_its_own_day_also_where_the_old_program_filed_it_under_another(
    serve: Serve, tmp_path: Path
) -> None:
    put(tmp_path / "data", "gpu_metrics_20261125.csv", SEED, old_line(23))
    day = {"start_date": "2026-11-24", "end_date": "2026-11-24"}
    assert serve().post("/api/gpu/daily-usage", json=day).json()["data"]["chart_data"][0]["samples"] == 1


def test_old_and_new_rows_mix_in_one_day_and_in_one_file(serve: Serve, tmp_path: Path) -> None:
    new_line = old_line(12) + ",2026-11-24T12:00:00.000Z,5.0" + "," * (len(CSV_COLUMNS) - 15)
    put(tmp_path / "data", "gpu_metrics_20261124.csv", SEED, old_line(10), new_line, old_line(11))
    put(tmp_path / "data", "gpu_metrics_20261123.csv", ",".join(CSV_COLUMNS), new_line, old_line(9))
    client = serve()
    assert figures(client) == (5, 40.0)
    client.post("/api/receive-data", json=sample(utilization_gpu=100.0)).raise_for_status()
    assert figures(client) == (6, 50.0)


def test_a_file_dropped_in_changed_or_taken_away_while_the_server_runs_is_noticed_by_the_next_query(
    serve: Serve, tmp_path: Path
) -> None:
    client = serve()
    assert figures(client) == (0, 0.0)
    path = put(tmp_path / "data", "gpu_metrics_20261124.csv", SEED, old_line(10))
    assert figures(client) == (1, 40.0)
    put(tmp_path / "data", "gpu_metrics_20261124.csv", SEED, old_line(10), old_line(11, utilization="60"))
    assert figures(client) == (2, 50.0)
    with gzip.open(tmp_path / "data" / "gpu_metrics_20261120.csv.gz", "wb") as file:
        file.write(f"{SEED}\n{old_line(1, utilization='80')}\n".encode())
    assert figures(client) == (3, 60.0)
    path.unlink()
    assert figures(client) == (1, 80.0)
    assert len(client.post("/api/gpu/list").json()["data"]) == 1


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00\x00\x00\x00\n",
        b'2026-11-24 10:30:00,0,"never closed,40,10,15360,7680,7680,50,60.0,70.0,0,n\n',
        b"2026-11-24 10:30:00,0,\xff\xfe,40,10,15360,7680,7680,50,60.0,70.0,0,n\n",
        b"not a row at all\n",
        b"2026-11-24 10:30:00,x,T4,40,10,15360,7680,7680,50,60.0,70.0,0,n\n",
        b",,,,,,,,,,,,\n",
    ],
)
def test_a_damaged_line_is_left_out_and_counted_and_the_others_are_served(
    serve: Serve, tmp_path: Path, damage: bytes
) -> None:
    lines = [f"{line}\n".encode() for line in (SEED, old_line(10), old_line(11))]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "gpu_metrics_20261124.csv").write_bytes(lines[0] + lines[1] + damage + lines[2])
    client = serve()
    assert figures(client) == (2, 40.0)
    assert "gpumon_server_csv_lines_damaged_total 1.0" in client.get("/metrics").text


def test_a_cell_that_is_no_number_is_absent_and_its_row_stays(serve: Serve, tmp_path: Path) -> None:
    lines = [old_line(10, utilization=u) for u in ("N/A", "nan", "inf", "[Not Supported]", "40")]
    put(tmp_path / "data", "gpu_metrics_20261124.csv", SEED, *lines)
    client = serve()
    assert figures(client) == (1, 40.0)
    assert client.post("/api/gpu/realtime").json()["data"]["samples"] == 5


def test_another_order_of_columns_and_unknown_ones_are_read_by_name(serve: Serve, tmp_path: Path) -> None:
    put(
        tmp_path / "data",
        "gpu_metrics_20261124.csv",
        "client_name,rack,gpu_id,timestamp,utilization_gpu",
        "n,7,3,2026-11-24 10:00:00,25.5",
    )
    client = serve()
    assert figures(client) == (1, 25.5)
    assert client.post("/api/gpu/list").json()["data"][0]["gpu_id"] == 3


def test_a_file_that_is_no_csv_of_samples_is_left_alone(serve: Serve, tmp_path: Path) -> None:
    put(tmp_path / "data", "gpu_metrics_20261124.csv", "a,b", "1,2")
    put(tmp_path / "data", "gpu_metrics_20269999.csv", SEED, old_line(1))
    put(tmp_path / "data", "notes.csv", SEED, old_line(1))
    client = serve()
    assert figures(client) == (0, 0.0)
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize("harm", ["delete", "garbage", "another version"])
def test_the_store_is_disposable(tmp_path: Path, harm: str) -> None:
    settings = settings_for(tmp_path / "data")
    with serving(settings) as client:
        client.post("/api/receive-data", json=[sample(), sample(gpu_id=1)]).raise_for_status()
        before = figures(client)
    store = tmp_path / "data" / ".gpumon" / "store.duckdb"
    if harm == "delete":
        store.unlink()
    elif harm == "garbage":
        store.write_bytes(b"no database" * 1000)
    else:
        import duckdb

        with duckdb.connect(str(store)) as database:
            database.execute("UPDATE version SET text = 'an older one'")
    with serving(settings) as client:
        assert figures(client) == before == (2, 50.0)


def test_rows_committed_but_not_yet_in_the_store_are_there_after_a_restart(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "data")
    with serving(settings) as client:
        client.post("/api/receive-data", json=sample()).raise_for_status()
        assert figures(client) == (1, 50.0)
    shutil.copy(tmp_path / "data" / ".gpumon" / "store.duckdb", tmp_path / "older")
    with serving(settings) as client:
        client.post("/api/receive-data", json=sample(gpu_id=1)).raise_for_status()
    shutil.copy(tmp_path / "older", tmp_path / "data" / ".gpumon" / "store.duckdb")
    with serving(settings) as client:
        assert figures(client) == (2, 50.0)


def test_a_query_that_takes_too_long_is_stopped_and_says_what_to_do(tmp_path: Path) -> None:
    endless = Query("SELECT sum(a.range * b.range) FROM range(?) a, range(100000) b", [10**9])
    store = Store(tmp_path, cell_columns=CREATE_CELLS.strip("()"), query_timeout_seconds=0.2)
    store.open()
    with pytest.raises(QueryError, match="query_timeout_seconds") as refused:
        store.select(endless)
    assert refused.value.status == 503
    assert store.select(Query("SELECT 1")) == [(1,)]
    store.close()


def test_to_close_the_store_takes_no_longer_than_a_query_may(tmp_path: Path) -> None:
    endless = Query("SELECT sum(a.range * b.range) FROM range(?) a, range(100000) b", [10**9])
    store = Store(tmp_path, cell_columns=CREATE_CELLS.strip("()"), query_timeout_seconds=1.0)
    store.open()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(store.select, endless)
        time.sleep(0.3)  # it runs now
        store.close()
        with pytest.raises(QueryError):
            asked.result(timeout=10)


def test_a_reading_sees_the_newest_samples_as_they_are_in_its_rows(tmp_path: Path) -> None:
    store = Store(tmp_path, cell_columns=CREATE_CELLS.strip("()"), query_timeout_seconds=10)
    store.open()
    with store.reading() as reading:
        store.execute("INSERT INTO live.latest (client_name) VALUES ('later')")
        assert reading.select("SELECT count(*) FROM live.latest") == [(0,)]
    store.close()


def test_what_a_sealed_file_says_of_itself_is_kept_from_one_reading_to_the_next(tmp_path: Path) -> None:
    store = Store(tmp_path, cell_columns=CREATE_CELLS.strip("()"))
    store.open()
    with store.reading() as reading:  # its connection has none of what is set on another alone
        assert reading.select("SELECT current_setting('parquet_metadata_cache')") == [(True,)]
    store.close()
