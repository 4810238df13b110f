"""Exports hold exactly the rows of the CSV files, in every form, and take neither memory nor the slot for ever."""

from __future__ import annotations

import csv
import io
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import httpx
import nanoarrow as na
import pytest
from nanoarrow import ipc

from gpumon.model.fields import CSV_COLUMNS, FIELDS
from gpumon.server import exporting, exportrows
from gpumon.server.api import streaming
from gpumon.server.index import Index
from gpumon.server.tables import POD_USAGE, SAMPLES
from tests.processes import until
from tests.samples import full_sample, pod, sample
from tests.server.conftest import Serve, serving, settings_for

RANGE = {"start": "2026-11-23", "end": "2026-11-25"}
ODD = 'N "x", ü'


def filled(client: httpx.Client) -> httpx.Client:
    rows = [
        full_sample(gpu_id=0, gpu_name=ODD, power_draw=1.5e-07, utilization_gpu=1 / 3, pods=[pod(), pod(pod="b")]),
        sample(gpu_id=1, client_name="node-2", timestamp="2026-11-23 23:59:59"),
        sample(gpu_id=2, utilization_gpu=None, memory_used=None),
        full_sample(gpu_id=3, node="a", namespace="research", pod="train-0", timestamp="2026-11-25T00:00:00.007Z",
                    sampled_at="2026-11-25T00:00:00.007Z"),
    ]  # fmt: skip
    answer = client.post("/api/receive-data", json=rows).json()
    assert (answer["received_count"], answer["failed_count"]) == (4, 0), answer
    return client


def exported(client: httpx.Client, form: str, **asked: Any) -> bytes:
    answer = client.get("/api/export", params=RANGE | {"format": form} | asked)
    assert answer.status_code == 200, answer.text
    return answer.content


def rows_of(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


def kept(folder: Path, prefix: str) -> list[dict[str, str]]:
    return [row for path in sorted(folder.glob(f"{prefix}_*.csv")) for row in rows_of(path.read_bytes())]


def by_place(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["gpu_id"], row["timestamp"], row.get("pod") or ""))


def typed(rows: list[dict[str, str]], fields: Any = FIELDS) -> list[dict[str, Any]]:
    casts: dict[str, Callable[[str], Any]] = {
        "int": int,
        "float": float,
        "text": str,
        "bool": "true".__eq__,
        "instant": lambda text: datetime.fromisoformat(text).replace(tzinfo=None),
    }
    return [
        {field.name: casts[field.kind](row[field.name]) if row[field.name] else None for field in fields}
        for row in rows
    ]


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[[bytes], list[dict[str, Any]]]:
    def read(data: bytes) -> list[dict[str, Any]]:
        path = tmp_path / "taken.parquet"
        path.write_bytes(data)
        answer = duckdb.sql(f"SELECT * FROM '{path}'")
        return [dict(zip(answer.columns, row, strict=True)) for row in answer.fetchall()]

    return read


def arrow(data: bytes) -> list[dict[str, Any]]:
    return list(na.Array(ipc.InputStream.from_readable(io.BytesIO(data))).to_pylist())


@pytest.mark.parametrize(("table", "prefix"), [(SAMPLES, "gpu_metrics"), (POD_USAGE, "pod_usage")])
def test_a_csv_has_the_cells_of_the_daily_files(serve: Serve, tmp_path: Path, table: Any, prefix: str) -> None:
    data = exported(filled(serve()), "csv", table=table.name)
    assert data.startswith(table.header)
    assert by_place(rows_of(data)) == by_place(kept(tmp_path / "data", prefix))
    assert rows_of(data)


def test_parquet_and_arrow_have_the_values_of_the_daily_files(
    serve: Serve, tmp_path: Path, parquet: Callable[[bytes], list[dict[str, Any]]]
) -> None:
    client = filled(serve())
    there = by_place(typed(kept(tmp_path / "data", "gpu_metrics")))
    assert by_place(parquet(exported(client, "parquet"))) == there
    assert by_place(arrow(exported(client, "arrow"))) == there
    uses = by_place(typed(kept(tmp_path / "data", "pod_usage"), POD_USAGE.fields))
    assert by_place(arrow(exported(client, "arrow", table="pod_usage"))) == uses


def test_an_exported_csv_put_into_another_folder_is_the_same_data(serve: Serve, tmp_path: Path) -> None:
    data = exported(filled(serve()), "csv")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "gpu_metrics_20261124.csv").write_bytes(data)
    with serving(settings_for(tmp_path / "other")) as again:
        assert sorted(exported(again, "csv").splitlines()) == sorted(data.splitlines())


@pytest.mark.parametrize(
    ("asked", "gpus"),
    [
        ({"client_name": "node-2"}, [1]),
        ({"gpu_id": 2}, [2]),
        ({"node": "a", "namespace": "research", "pod": "train-0"}, [3]),
        ({"gpu_uuid": "GPU-8f0c1d3e-0000-0000-0000-000000000001"}, [0, 3]),
        ({"start": "2026-11-24", "end": "2026-11-24"}, [0, 2]),
        ({"start": "2026-11-24T12:00:00.250Z", "end": "2026-11-25T00:00:00.007Z"}, [0]),
        ({"client_name": "' OR 1=1 --"}, []),
    ],
)
def test_rows_are_chosen_by_time_and_whose_they_are(serve: Serve, asked: dict[str, Any], gpus: list[int]) -> None:
    client = filled(serve())
    assert sorted(int(row["gpu_id"]) for row in rows_of(exported(client, "csv", **asked))) == gpus
    assert sorted(row["gpu_id"] for row in arrow(exported(client, "arrow", **asked))) == gpus


def test_columns_can_be_chosen_in_any_order(
    serve: Serve, parquet: Callable[[bytes], list[dict[str, Any]]]
) -> None:
    client = filled(serve())
    asked = {"columns": "power_draw, gpu_id", "gpu_id": "0"}
    assert exported(client, "csv", **asked) == b"power_draw,gpu_id\n1.5e-07,0\n"
    for rows in (parquet(exported(client, "parquet", **asked)), arrow(exported(client, "arrow", **asked))):
        assert [list(row.items()) for row in rows] == [[("power_draw", 1.5e-07), ("gpu_id", 0)]]


def test_nothing_that_matches_is_a_header_or_a_schema(serve: Serve, tmp_path: Path) -> None:
    client = filled(serve())
    assert exported(client, "csv", client_name="none") == SAMPLES.header
    stream = ipc.InputStream.from_readable(io.BytesIO(exported(client, "arrow", client_name="none")))
    assert [field.name for field in na.Array(stream).schema.fields] == list(CSV_COLUMNS)
    (tmp_path / "empty.parquet").write_bytes(exported(client, "parquet", client_name="none"))
    empty = duckdb.sql(f"SELECT * FROM '{tmp_path / 'empty.parquet'}'")
    assert (empty.columns, empty.fetchall()) == (list(CSV_COLUMNS), [])


@pytest.mark.parametrize(
    "asked",
    [
        {"format": "xls"},
        {"table": "pod_labels"},
        {"columns": "power"},
        {"columns": "gpu_id,gpu_id"},
        {"columns": ""},
        {"last": "1x"},
        {"gpu": "1"},
        {"gpu_id": "-1"},
    ],
)
def test_a_question_that_can_not_be_is_said(serve: Serve, asked: dict[str, str]) -> None:
    answer = serve().get("/api/export", params=asked)
    assert (answer.status_code, answer.json()["error_code"]) == (422, "VALIDATION_ERROR")


def many(folder: Path, rows: int) -> None:
    folder.mkdir()
    with (folder / "gpu_metrics_20261124.csv").open("w") as file:
        file.write(",".join(CSV_COLUMNS[:13]) + "\n")
        for number in range(rows):
            minute, second = divmod(number // 100 % 3600, 60)
            file.write(
                f"2026-11-24 {number // 360_000:02d}:{minute:02d}:{second:02d},{number % 100},NVIDIA H100,"
                f"{number / 7},2,80000,{number % 80000},1,60,400.5,700.0,,node-{number % 100}\n"
            )


def resident_mib() -> float:
    text = Path("/proc/self/statm").read_text()
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server with some hundred thousand rows."""
    folder = tmp_path_factory.mktemp("full") / "data"
    many(folder, ROWS)
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(Index, "roll_due", lambda *_: None)  # the memory is the exports'
        client = stack.enter_context(serving(settings_for(folder, performance={"query_memory_mb": 128})))
        until(lambda: client.get("/ready").status_code == 200)
        client.folder = folder  # type: ignore[attr-defined]
        yield client


ROWS = 150_000
COUNTERS: dict[str, Callable[[Iterator[bytes]], int]] = {
    "csv": lambda blocks: sum(block.count(b"\n") for block in blocks) - 1,
    "arrow": lambda blocks: len(na.Array(ipc.InputStream.from_readable(io.BytesIO(b"".join(blocks))))),
}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("form", list(COUNTERS))
def test_a_large_export_is_whole_and_takes_little_memory(full: httpx.Client, form: str) -> None:
    before, highest = resident_mib(), 0.0

    def measured(blocks: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal highest
        for block in blocks:
            highest = max(highest, resident_mib())
            yield block

    columns = "timestamp,gpu_id,gpu_name,utilization_gpu,client_name,sampled_at"
    asked = RANGE | {"format": form, "columns": columns}
    with full.stream("GET", "/api/export", params=asked, timeout=100) as answer:
        taken = list(measured(answer.iter_bytes(1 << 16)))
    grown = highest - before - sum(map(len, taken)) / 2**20
    assert COUNTERS[form](iter(taken)) == ROWS
    assert grown < 160, "the database's 128 MB, and a little"


def test_arrow_comes_in_slices_that_fit_the_memory(full: httpx.Client) -> None:
    data = full.get("/api/export", params=RANGE | {"format": "arrow", "columns": "gpu_id"}, timeout=100).content
    lengths = [len(array) for array in na.ArrayStream(ipc.InputStream.from_readable(io.BytesIO(data)))]
    assert sum(lengths) == ROWS
    assert max(lengths) <= exportrows.ARROW_ROWS


def test_one_export_at_a_time_and_small_questions_beside_it(
    full: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "WAIT_SECONDS", 0.1)
    url = urlsplit(str(full.base_url))
    asked = "&".join(f"{name}={value}" for name, value in RANGE.items())
    with socket.socket() as first:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # else all of it may be on its way at once
        first.connect((url.hostname, url.port))
        first.sendall(f"GET /api/export?{asked} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert first.recv(12) == b"HTTP/1.1 200"
        second = full.get("/api/export", params=RANGE)
        assert (second.status_code, second.json()["error_code"]) == (503, "HTTP_503")
        assert "one at a time" in second.json()["detail"]
        assert full.post("/api/gpu/list").status_code == 200
    until(lambda: full.get("/api/export", params=RANGE | {"gpu_id": "5", "columns": "gpu_id"}).status_code == 200)


def test_who_stops_reading_does_not_keep_the_slot(full: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(streaming.Streamed.__init__, "__kwdefaults__", {"status": 200, "patience_seconds": 0.5})
    url = urlsplit(str(full.base_url))
    asked = "&".join(f"{name}={value}" for name, value in RANGE.items())
    with socket.create_connection((url.hostname, url.port)) as client:
        client.sendall(f"GET /api/export?{asked} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert client.recv(12) == b"HTTP/1.1 200"
        until(lambda: full.get("/api/export", params=RANGE | {"gpu_id": "5"}).status_code == 200)


def test_a_parquet_file_is_gone_when_it_has_been_sent_or_the_client_has_left(full: httpx.Client) -> None:
    aside = full.folder / ".gpumon" / "tmp"  # type: ignore[attr-defined]
    asked = RANGE | {"format": "parquet"}
    with full.stream("GET", "/api/export", params=asked, timeout=100) as answer:
        assert next(answer.iter_raw(10))[:4] == b"PAR1"
    until(lambda: full.get("/api/export", params=asked | {"gpu_id": "5"}, timeout=100).status_code == 200)
    assert not list(aside.glob("export-*"))


def test_a_full_disk_is_503_and_leaves_nothing(full: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource
    import signal

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        answer = full.get("/api/export", params=RANGE | {"format": "parquet"}, timeout=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert answer.status_code == 503
    assert "room" in answer.json()["detail"]
    assert not list((full.folder / ".gpumon" / "tmp").glob("export-*"))  # type: ignore[attr-defined]
    assert full.get("/api/export", params=RANGE | {"gpu_id": "5", "format": "parquet"}).status_code == 200


def test_an_export_ends_before_the_disk_of_the_samples_is_full(
    full: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_RESERVE_BYTES", 2**60)
    monkeypatch.setattr(exporting, "_WATCH_SECONDS", 0.01)
    answer = full.get("/api/export", params=RANGE | {"format": "parquet"}, timeout=100)
    assert answer.status_code == 503
    assert "room" in answer.json()["detail"]


def test_what_a_killed_server_left_is_removed_at_the_next_start(serve: Serve, tmp_path: Path) -> None:
    left = tmp_path / "data" / ".gpumon" / "tmp" / "export-x.parquet"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"PAR1")
    serve()
    assert not left.exists()


def test_the_newest_day_is_the_default(serve: Serve) -> None:
    client = serve()
    fresh = sample(timestamp=datetime.now(UTC).isoformat(timespec="seconds"))
    client.post("/api/receive-data", json=[fresh, sample(timestamp="2025-11-24 12:00:00")]).raise_for_status()
    assert len(rows_of(client.get("/api/export").content)) == 1


def test_rows_ahead_of_the_clock_are_exported_as_they_are_counted(serve: Serve) -> None:
    client = serve()
    ahead = datetime.now(UTC) + timedelta(hours=23)
    client.post("/api/receive-data", json=[sample(timestamp=ahead.isoformat())]).raise_for_status()
    day = f"{ahead:%Y-%m-%d}"
    assert client.post("/api/gpu/statistics", json={"start_date": day, "end_date": day}).json()["data"]["samples"]
    assert len(rows_of(exported(client, "csv", start=day, end=day))) == 1


def test_a_limit_of_rows_is_of_the_answer_alone(serve: Serve) -> None:
    client = serve(limits={"max_rows": 3})
    now = datetime.now(UTC)
    samples = [
        full_sample(timestamp=(now - timedelta(minutes=7 * n)).isoformat(), sampled_at=None) for n in range(99)
    ]
    client.post("/api/receive-data", json=samples).raise_for_status()
    for path in ("usage", "ledger", "idle", "utilization"):
        answer = client.get(
            f"/api/{path}", params={"last": "11h"} | ({"group_by": "none"} if path != "idle" else {})
        )
        assert answer.status_code == 200, answer.text
    answer = client.get("/api/series", params={"metric": "power_draw", "last": "11h"})
    assert (answer.status_code, "max_rows" in answer.json()["detail"]) == (422, True)
