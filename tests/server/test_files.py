"""The CSV files over HTTP: what is listed is what is there, and what is given out is whole."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from gpumon.clock import now, to_wire
from tests.samples import full_sample, pod, sample
from tests.server.conftest import Serve

YESTERYEAR = "2025-11-24 12:00:00"


def listed(client: httpx.Client, **asked: str) -> list[str]:
    answer = client.get("/api/files", params=asked)
    assert answer.status_code == 200, answer.text
    return [file["name"] for file in answer.json()["data"]]


def filled(serve: Serve, folder: Path) -> httpx.Client:
    folder.mkdir(exist_ok=True)
    (folder / "gpu_metrics_20251101.csv.gz").write_bytes(gzip.compress(b"timestamp\n"))
    (folder / "notes_20251101.csv").write_text("not ours")
    client = serve()
    rows = [sample(timestamp=YESTERYEAR), full_sample(pods=[pod(labels={"team": "a"})])]
    client.post("/api/receive-data", json=rows).raise_for_status()
    return client


def test_files_are_listed_by_day_with_what_they_are(serve: Serve, tmp_path: Path) -> None:
    client = filled(serve, tmp_path / "data")
    client.post("/api/receive-data", json=sample(timestamp=to_wire(now()))).raise_for_status()
    today = f"gpu_metrics_{datetime.now(UTC):%Y%m%d}.csv"
    found = {file["name"]: file for file in client.get("/api/files").json()["data"]}
    assert list(found) == [
        "gpu_metrics_20251101.csv.gz",
        "gpu_metrics_20251124.csv",
        "gpu_metrics_20261124.csv",
        "pod_usage_20261124.csv",
        "pods_20261124.csv",
        today,
    ]
    assert found["gpu_metrics_20251124.csv"] | {"modified": ""} == {
        "name": "gpu_metrics_20251124.csv",
        "table": "samples",
        "day": "2025-11-24",
        "part": 0,
        "compressed": False,
        "bytes": (tmp_path / "data" / "gpu_metrics_20251124.csv").stat().st_size,
        "modified": "",
        "open": False,
    }
    assert found["gpu_metrics_20251124.csv"]["modified"][:10] == f"{datetime.now(UTC):%Y-%m-%d}"
    assert found["gpu_metrics_20251101.csv.gz"]["compressed"]
    assert found[today]["open"]
    assert [found[name]["table"] for name in list(found)[3:5]] == ["pod_usage", "pod_labels"]


def test_files_are_asked_for_by_table_and_day(serve: Serve, tmp_path: Path) -> None:
    client = filled(serve, tmp_path / "data")
    assert listed(client, table="pod_usage") == ["pod_usage_20261124.csv"]
    assert listed(client, table="samples", start="2025-11-02") == [
        "gpu_metrics_20251124.csv",
        "gpu_metrics_20261124.csv",
    ]
    assert listed(client, end="2025-11-24") == ["gpu_metrics_20251101.csv.gz", "gpu_metrics_20251124.csv"]


@pytest.mark.parametrize(
    "asked",
    [{"table": "x"}, {"start": "2026-13-01"}, {"start": "2026-11-02", "end": "2026-11-01"}, {"day": "1"},
     {"start": "0"}, {"end": "2026-11-02T08:00"}],
)  # fmt: skip
def test_a_question_that_can_not_be_is_said(serve: Serve, asked: dict[str, str]) -> None:
    answer = serve().get("/api/files", params=asked)
    assert (answer.status_code, answer.json()["error_code"]) == (422, "VALIDATION_ERROR")


def test_a_file_is_given_out_byte_for_byte(serve: Serve, tmp_path: Path) -> None:
    client = filled(serve, tmp_path / "data")
    answer = client.get("/api/files/gpu_metrics_20251124.csv")
    assert answer.content == (tmp_path / "data" / "gpu_metrics_20251124.csv").read_bytes()
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="gpu_metrics_20251124.csv"'
    assert int(answer.headers["content-length"]) == len(answer.content)
    packed = client.get("/api/files/gpu_metrics_20251101.csv.gz")
    assert packed.headers["content-type"] == "application/gzip"
    assert gzip.decompress(packed.content) == b"timestamp\n"
    head = client.head("/api/files/gpu_metrics_20251124.csv")
    assert (head.content, head.headers["content-length"]) == (b"", answer.headers["content-length"])


@pytest.mark.parametrize("split", ["compressed", "hourly", "compressed parts"])
def test_a_day_can_be_had_by_its_plain_name_whatever_files_it_is_in(
    serve: Serve, tmp_path: Path, split: str
) -> None:
    client = serve(storage={"file_split_mode": "daily" if split == "compressed" else "hourly"})
    rows = [sample(timestamp=f"2025-11-24 {hour:02}:00:00", gpu_id=hour) for hour in (0, 10, 17)]
    client.post("/api/receive-data", json=rows).raise_for_status()
    if split == "hourly":
        (tmp_path / "data" / "gpu_metrics_20251124.csv").rename(tmp_path / "data" / "gpu_metrics_20251124.001.csv")
    for path in list((tmp_path / "data").glob("gpu_metrics_20251124*.csv")) if "compressed" in split else ():
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    answer = client.get("/api/files/gpu_metrics_20251124.csv")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/csv; charset=utf-8")
    assert [line.split(",")[1] for line in answer.text.splitlines()] == ["gpu_id", "0", "10", "17"]
    head = client.head("/api/files/gpu_metrics_20251124.csv")
    assert (head.status_code, head.content) == (200, b"")
    assert client.get("/api/files/gpu_metrics_20251123.csv").status_code == 404
    foreign = tmp_path / "data" / "gpu_metrics_20251122.csv.gz"
    foreign.write_bytes(gzip.compress(b"timestamp,gpu_id,client_name\n1,2,3"))
    assert client.get("/api/files/gpu_metrics_20251122.csv").content == b"timestamp,gpu_id,client_name\n1,2,3\n"
    foreign.write_bytes(foreign.read_bytes()[:9])
    answer = client.get("/api/files/gpu_metrics_20251122.csv")
    assert (answer.status_code, str(tmp_path) in answer.text) == (503, False), answer.text
    (tmp_path / "data" / "gpu_metrics_20251124.023.csv").write_text("gpu_id,timestamp,client_name\n")
    if split != "compressed":
        answer = client.get("/api/files/gpu_metrics_20251124.csv")
        assert (answer.status_code, "columns" in answer.json()["detail"]) == (404, True)


@pytest.mark.parametrize(
    "name",
    ["notes_20251101.csv", "gpu_metrics_20251125.csv", "..%2Fdata%2Fgpu_metrics_20251124.csv",
     "%2e%2e/gpu_metrics_20251124.csv", ".gpumon%2Fstore.duckdb", "gpu_metrics_20251124.csv%0a", "x" * 300],
)  # fmt: skip
def test_nothing_but_the_files_of_days_is_given_out(serve: Serve, tmp_path: Path, name: str) -> None:
    client = filled(serve, tmp_path / "data")
    answer = client.get(f"/api/files/{name}")
    assert (answer.status_code, answer.json()["error_code"]) == (404, "HTTP_404")
    assert str(tmp_path) not in answer.text


def test_bytes_that_are_not_committed_are_not_given_out(serve: Serve, tmp_path: Path) -> None:
    client = filled(serve, tmp_path / "data")
    path = tmp_path / "data" / "gpu_metrics_20251124.csv"
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b"2025-11-24 12:00:05,0,NVID")
    assert client.get(f"/api/files/{path.name}").content == whole
    (found,) = (file for file in client.get("/api/files").json()["data"] if file["name"] == path.name)
    assert found["bytes"] == len(whole)


def test_a_file_that_grows_and_is_deleted_while_it_is_read_comes_as_it_was(serve: Serve, tmp_path: Path) -> None:
    client = filled(serve, tmp_path / "data")
    rows = [sample(timestamp=YESTERYEAR, gpu_name="x" * 200, gpu_id=n % 1000) for n in range(60_000)]
    for start in range(0, len(rows), 20_000):
        client.post("/api/receive-data", json=rows[start : start + 20_000]).raise_for_status()
    path = tmp_path / "data" / "gpu_metrics_20251124.csv"
    before = path.read_bytes()
    assert len(before) > 12e6, "more than the socket's buffers hold"
    with client.stream("GET", f"/api/files/{path.name}") as answer:
        blocks = answer.iter_bytes(4096)
        got = bytearray(next(blocks))
        client.post("/api/receive-data", json=sample(timestamp=YESTERYEAR)).raise_for_status()
        assert path.stat().st_size > len(before)
        path.unlink()
        for block in blocks:
            got += block
    assert got == before


@pytest.mark.parametrize(
    ("asked", "first", "last"), [("bytes=0-9", 0, 9), ("bytes=100-", 100, None), ("bytes=-20", -20, None)]
)
def test_a_part_of_a_file_can_be_asked_for(
    serve: Serve, tmp_path: Path, asked: str, first: int, last: int | None
) -> None:
    client = filled(serve, tmp_path / "data")
    whole = (tmp_path / "data" / "gpu_metrics_20251124.csv").read_bytes()
    answer = client.get("/api/files/gpu_metrics_20251124.csv", headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == whole[first : None if last is None else last + 1]
    begin = first % len(whole)
    end = begin + len(answer.content) - 1
    assert answer.headers["content-range"] == f"bytes {begin}-{end}/{len(whole)}"


def test_a_part_beyond_the_end_is_refused_and_what_is_no_range_is_answered_by_all(
    serve: Serve, tmp_path: Path
) -> None:
    client = filled(serve, tmp_path / "data")
    whole = (tmp_path / "data" / "gpu_metrics_20251124.csv").read_bytes()
    beyond = client.get("/api/files/gpu_metrics_20251124.csv", headers={"Range": f"bytes={len(whole)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(whole)}")
    for odd in ("bytes=5-2", "bytes=a-b", "bytes=-", "bytes=0-1,3-4", "lines=0-1"):
        answer = client.get("/api/files/gpu_metrics_20251124.csv", headers={"Range": odd})
        assert (answer.status_code, answer.content) == (200, whole), odd
