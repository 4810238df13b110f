"""A sealed day says what its CSV files say, row by row."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import threading
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import msgspec
import pytest

from gpumon.model.fields import CSV_COLUMNS
from gpumon.server import manifest
from gpumon.server.accounts import hourly, rolling
from gpumon.server.accounts.desk import Run
from gpumon.server.accounts.rolling import Execute
from gpumon.server.database import DatabaseError
from gpumon.server.manifest import RawManifest, Stamps
from gpumon.server.relations import SEALABLE
from gpumon.server.sealedfolders import find
from gpumon.server.sealing import cells as cells_module
from gpumon.server.sealing import filling, sorting
from gpumon.server.sealing.cells import CellsJob, seal_cells
from gpumon.server.sealing.filling import FilesChanged, WantedFile
from gpumon.server.sealing.raw import RawJob, seal_raw
from gpumon.server.tables import POD_USAGE, SAMPLES, Table

DAY = date(2026, 11, 24)
SAMPLES_FILE = "gpu_metrics_20261124.csv"
PODS_FILE = "pod_usage_20261124.csv"
SEED = CSV_COLUMNS[:13]
ZONE = "Asia/Kolkata"  # half an hour off


def line(table: Table = SAMPLES, columns: tuple[str, ...] | None = None, **cells: Any) -> str:
    base = {"timestamp": "2026-11-24 10:00:00", "gpu_id": 0, "client_name": "node-1"} | cells
    return ",".join(str(base.get(name, "")) for name in columns or table.columns)


def text(*lines: str, table: Table = SAMPLES, header: tuple[str, ...] | None = None) -> bytes:
    return "".join(f"{each}\n" for each in (",".join(header or table.columns), *lines)).encode()


def put(folder: Path, name: str, content: bytes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)


STAMPS = Stamps("s", "r", "c", 120.0)


def job_for(folder: Path, *, lengths: dict[str, int] | None = None, **more: Any) -> RawJob:
    files = [
        WantedFile(path.name, (lengths or {}).get(path.name, path.stat().st_size), path.stat().st_mtime_ns)
        for path in folder.glob("*_20261124*")
    ]
    root = str(folder / ".gpumon" / "sealed")
    job: dict[str, Any] = {"day": DAY, "data": str(folder), "files": files, "prefix": "gpu_metrics", "root": root}
    job |= {"stamp": STAMPS.rows, "readings_stamp": STAMPS.readings, "zone": ZONE}
    return RawJob(**job | more)


def seal(folder: Path, **more: Any) -> tuple[Path, RawManifest]:
    answer = seal_raw(job_for(folder, **more))
    sealed = Path(answer["folder"])
    return sealed, manifest.read(sealed, RawManifest)


def rows_in(path: Path, columns: str = "*") -> list[tuple[Any, ...]]:
    with duckdb.connect() as database:
        return database.execute(
            f"SELECT {columns} FROM read_parquet('{path}', file_row_number = true) ORDER BY file_row_number"
        ).fetchall()


def expected(table: Table, *contents: bytes) -> list[tuple[Any, ...]]:
    """What the csv module finds in files of a table, sorted as sealed rows are."""
    rows = []
    for content in contents:
        header, *lines = csv.reader(content.decode().splitlines())
        for cells in lines:
            found = dict(zip(table.columns if len(cells) > len(header) else header, cells, strict=False))
            row = {field.name: _value(field.kind, found.get(field.name, "")) for field in table.fields}
            if row["sampled_at"] is None:
                local = row["timestamp"].replace(tzinfo=ZoneInfo(ZONE))
                row["sampled_at"] = local.astimezone(UTC).replace(tzinfo=None)
            rows.append(row)
    rows.sort(
        key=lambda row: (
            row["sampled_at"].replace(minute=0, second=0, microsecond=0),
            row["client_name"],
            row["gpu_id"],
            row["sampled_at"],
        )
    )
    return [tuple(row.values()) for row in rows]


def _value(kind: str, cell: str) -> Any:
    if not cell:
        return None
    read = {
        "int": int,
        "float": float,
        "text": str,
        "bool": lambda cell: cell == "true",
        "instant": lambda cell: datetime.fromisoformat(cell.removesuffix("Z")),
    }
    return read[kind](cell)


def a_day(folder: Path) -> dict[str, bytes]:
    """Old rows, new rows, both in one file, a compressed part, two clients, and pods."""
    new = [
        line(
            timestamp=f"2026-11-24 {hour:02d}:{minute:02d}:00",
            sampled_at=f"2026-11-24T{(hour - 5):02d}:{minute:02d}:00.125Z",
            interval_seconds=10.0,
            gpu_id=gpu,
            client_name=client,
            utilization_gpu=f"{(7 * minute + gpu) % 101}.0",
            energy_mj=hour * 1000 + minute,
            gpu_uuid=f"GPU-{client}-{gpu}",
            node=client,
        )
        for hour in (6, 7)
        for minute in (0, 29, 30, 31)
        for client in ("node-2", "node-1")
        for gpu in (1, 0)
    ]
    old = [line(columns=SEED, timestamp=f"2026-11-24 0{h}:15:00", utilization_gpu=40.5) for h in range(3)]
    contents = {
        "gpu_metrics_20261124.001.csv": text(*new[::2]),
        SAMPLES_FILE: text(old[0], new[1], old[1], *new[3::2], old[2], header=SEED),
        PODS_FILE: text(
            *(
                line(POD_USAGE, timestamp=f"2026-11-24 1{n}:00:00", pod=f"train-{n}", held="true", gpu_share=0.5)
                for n in (3, 1, 2)
            ),
            table=POD_USAGE,
        ),
    }
    for name, content in contents.items():
        put(folder, name, content)
    compressed = text(line(client_name="node-0", gpu_name="a, b", utilization_gpu="").replace("a, b", '"a, b"'))
    put(folder, "gpu_metrics_20261124.002.csv.gz", gzip.compress(compressed))
    return contents | {"gpu_metrics_20261124.002.csv.gz": compressed}


def in_order(contents: dict[str, bytes], prefix: str) -> list[bytes]:
    return [contents[name] for name in sorted(contents) if name.startswith(prefix)]


@pytest.mark.parametrize("piecewise", [False, True])
def test_the_sealed_rows_are_those_of_the_csv_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piecewise: bool
) -> None:
    if piecewise:
        monkeypatch.setattr(filling, "PIECE_BYTES", 300)
        monkeypatch.setattr(filling, "_BLOCK", 64)
        monkeypatch.setattr(sorting, "_PASS_ROWS_A_MB", 0)
    contents = a_day(tmp_path)
    folder, said = seal(tmp_path)
    samples = expected(SAMPLES, *in_order(contents, "gpu_metrics"))
    assert rows_in(folder / "samples.parquet", ", ".join(SAMPLES.columns)) == samples
    pods = expected(POD_USAGE, *in_order(contents, "pod_usage"))
    assert rows_in(folder / "pod_usage.parquet", ", ".join(POD_USAGE.columns)) == pods
    assert said.rows == {"samples": len(samples), "pod_usage": 3}
    assert (said.first_at, said.last_at) == (datetime(2026, 11, 23, 18, 45), datetime(2026, 11, 24, 7, 30))
    assert (said.longest_interval, said.unstated, said.damaged) == (10.0, True, 0)
    assert {file.name: file.lines for file in said.files} == {
        name: content.count(b"\n") - 1 for name, content in contents.items()
    }
    assert manifest.fault(folder, said.outputs) is None
    assert {path.name for path in folder.iterdir()} == {*said.outputs, "manifest.json"}


def test_only_the_bytes_that_were_asked_for_are_sealed(tmp_path: Path) -> None:
    content = text(line(utilization_gpu=1.0), line(utilization_gpu=2.0))
    put(tmp_path, SAMPLES_FILE, content + line(utilization_gpu=3.0).encode())
    folder, said = seal(tmp_path, lengths={SAMPLES_FILE: len(content)})
    assert rows_in(folder / "samples.parquet", "utilization_gpu") == [(1.0,), (2.0,)]
    assert (said.files[0].bytes, said.files[0].lines) == (len(content), 2)


def test_of_rows_of_the_same_instant_the_later_is_last_and_the_newest(tmp_path: Path) -> None:
    put(tmp_path, SAMPLES_FILE, text(*(line(utilization_gpu=float(n)) for n in (60, 10, 90, 30))))
    put(
        tmp_path,
        "gpu_metrics_20261124.001.csv",
        text(line(utilization_gpu=70.0), line(gpu_id=1, gpu_name="x" * 999)),
    )
    folder, _ = seal(tmp_path)
    in_order_of_arrival = [(0, 70.0), (0, 60.0), (0, 10.0), (0, 90.0), (0, 30.0), (1, None)]
    assert rows_in(folder / "samples.parquet", "gpu_id, utilization_gpu") == in_order_of_arrival
    assert rows_in(folder / "latest.parquet", "gpu_id, utilization_gpu") == [(0, 30.0), (1, None)]


def test_readings_add_up_each_hour_of_local_time_and_of_utc(tmp_path: Path) -> None:
    readings = {"10:10": 20.0, "10:20": 20.0, "10:40": 50.0, "11:05": ""}
    put(
        tmp_path,
        SAMPLES_FILE,
        text(*(line(timestamp=f"2026-11-24 {at}:00", utilization_gpu=value) for at, value in readings.items())),
    )
    folder, _ = seal(tmp_path)
    columns = "hour, utc_hour, rows, total, readings, low, high, minutes, histogram"
    assert rows_in(folder / "readings.parquet", columns) == [
        (10, datetime(2026, 11, 24, 4), 2, 40.0, 2, 20.0, 20.0, 1 << 10 | 1 << 20, {20.0: 2}),
        (10, datetime(2026, 11, 24, 5), 1, 50.0, 1, 50.0, 50.0, 1 << 40, {50.0: 1}),
        (11, datetime(2026, 11, 24, 5), 1, None, 0, None, None, 0, None),
    ]


def test_a_file_that_cannot_be_read_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "PIECE_BYTES", 1000)
    monkeypatch.setattr(filling, "_BLOCK", 100)
    names = (sha256(bytes([n])).hexdigest() for n in range(250))  # so that half of the file is some of the lines
    packed = gzip.compress(text(*(line(gpu_name=name) for name in names)))
    put(tmp_path, "gpu_metrics_20261124.001.csv.gz", packed[: len(packed) // 2])
    put(tmp_path, SAMPLES_FILE, text(line(utilization_gpu=5.0)))
    folder, said = seal(tmp_path)
    assert rows_in(folder / "samples.parquet", "utilization_gpu") == [(5.0,)]
    left_out, sealed = said.files
    assert (sealed.lines, sealed.left_out) == (1, None)
    assert left_out.lines == 0
    assert left_out.left_out is not None and "end-of-stream" in left_out.left_out


def test_a_day_without_a_row_is_sealed_as_such(tmp_path: Path) -> None:
    put(tmp_path, SAMPLES_FILE, text())
    folder, said = seal(tmp_path)
    assert (said.rows, said.first_at, said.longest_interval) == ({"samples": 0, "pod_usage": 0}, None, None)
    for name in said.outputs:
        assert rows_in(folder / name) == []


@pytest.mark.parametrize("change", ["cut", "edited"])
def test_files_that_are_not_what_they_were_are_not_sealed_and_nothing_is_left(tmp_path: Path, change: str) -> None:
    put(tmp_path, SAMPLES_FILE, text(line(utilization_gpu=5.0)))
    job = job_for(tmp_path)
    put(tmp_path, SAMPLES_FILE, text(line(utilization_gpu=6.0)) if change == "edited" else text())
    if change == "edited":
        os.utime(tmp_path / SAMPLES_FILE, ns=(0, job.files[0].mtime_ns + 1))
    with pytest.raises(FilesChanged, match=SAMPLES_FILE):
        seal_raw(job)
    assert list((tmp_path / ".gpumon" / "sealed" / "20261124").iterdir()) == []


def cells_of(folder: Path, rows: Path, of: str) -> dict[str, list[tuple[Any, ...]]]:
    """Seals the accounts of `a_day`, and gives what is in each file, whatever its order."""
    target = folder / of
    target.mkdir()
    with duckdb.connect() as database:
        for table in SEALABLE:
            none = f"SELECT * FROM read_parquet('{rows / f'{table.name}.parquet'}') LIMIT 0"
            database.execute(f"COPY ({none}) TO '{target / f'other_{table.name}.parquet'}'")
    begin = datetime(2026, 11, 23, 18, 30)
    seal_cells(
        CellsJob(
            day=DAY, rows=str(rows), folder=str(target), stamp="s", begin=begin, end=begin + timedelta(days=1),
            reach=120.0, stale_after=120.0, memory_mb=160,
        )
    )  # fmt: skip
    return {
        name: sorted(map(repr, rows_in(target / f"{name}.parquet", "* EXCLUDE (file_row_number)")))
        for name in ("fine", "hours", "days")
    }


def test_accounts_that_need_more_memory_than_there_is_are_made_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_day(tmp_path)
    rows, _ = seal(tmp_path)
    at_once = cells_of(tmp_path, rows, "at-once")
    refused = []

    def roll(execute: Execute, buckets: list[Run], *given: Any, **named: Any) -> None:
        if len(buckets) > 2:
            refused.append(buckets)
            raise DatabaseError(duckdb.OutOfMemoryException("failed to allocate"))
        rolling.roll(execute, buckets, *given, **named)

    monkeypatch.setattr(cells_module, "roll", roll)
    monkeypatch.setattr(hourly, "MOST_CELLS", 2)
    assert all(at_once.values())
    assert cells_of(tmp_path, rows, "by-pieces") == at_once
    assert refused


def run_worker(job: Any) -> subprocess.Popen[bytes]:
    worker = subprocess.Popen(
        [sys.executable, "-m", "gpumon.server.sealing.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert worker.stdin is not None
    worker.stdin.write(job if isinstance(job, bytes) else json.dumps(job).encode())
    worker.stdin.close()
    return worker


def as_json(job: RawJob) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(job)
    return built


def ended(worker: subprocess.Popen[bytes]) -> tuple[int, dict[str, Any]]:
    assert worker.stdout is not None
    with worker.stdout as stdout:
        said = stdout.read()
    return worker.wait(30), json.loads(said)


@pytest.mark.parametrize("moment", ["work/day.duckdb", "work/samples-0.parquet", "latest.parquet"])
def test_a_worker_that_is_killed_leaves_nothing_that_counts_and_the_next_succeeds(
    tmp_path: Path, moment: str
) -> None:
    put(tmp_path, SAMPLES_FILE, text(*(line(utilization_gpu=float(n % 100)) for n in range(3000))))
    job = job_for(tmp_path)
    root, place = Path(job.root), Path(job.root) / "20261124"
    worker = run_worker(as_json(job))
    pause = threading.Event()
    while worker.poll() is None and not list(place.glob(f"*.new/{moment}")):
        pause.wait(0.002)
    worker.kill()
    worker.wait(30)
    assert worker.stdout is not None
    worker.stdout.close()
    for folder in place.iterdir():  # it may have been quicker than we
        assert (
            folder.suffix == ".new" or manifest.fault(folder, manifest.read(folder, RawManifest).outputs) is None
        )
    whole = [folder for folder in place.iterdir() if folder.suffix != ".new"]
    assert [found.folder for found in find(root, STAMPS).values()] == whole
    assert list(root.glob("**/*.parquet")) == [path for folder in whole for path in folder.glob("*.parquet")]
    code, answer = ended(run_worker(as_json(job)))
    assert (code, answer["rows"]["samples"]) == (0, 3000)
    assert list(find(root, STAMPS)) == [DAY]


def test_a_worker_ends_when_whoever_started_it_has_ended() -> None:
    server = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, subprocess, sys\n"
            "command = [sys.executable, '-m', 'gpumon.server.sealing.worker', str(os.getpid())]\n"
            "worker = subprocess.Popen(command)\n"
            "sys.stderr.write('up\\n')\n"
            "worker.wait()",
        ],
        stdin=subprocess.PIPE,  # stays open: the worker waits for its job
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert server.stdin is not None and server.stdout is not None and server.stderr is not None
    with server.stdin, server.stdout, server.stderr:
        assert server.stderr.readline() == b"up\n"
        server.kill()
        server.wait(30)
        assert server.stdout.read() == b""  # its end: the worker, which had it too, is gone


@pytest.mark.parametrize("job", [b"no json", {"do": "dance"}, {"zone": "Mars/Base"}])
def test_a_worker_that_cannot_do_its_job_says_so(tmp_path: Path, job: Any) -> None:
    put(tmp_path, SAMPLES_FILE, text(line()))
    code, answer = ended(run_worker(job if isinstance(job, bytes) else as_json(job_for(tmp_path)) | job))
    assert code == 1
    assert answer["error"]
