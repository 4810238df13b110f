"""People and other programs put files into the data folder, edit them, take them away: no harm to either side."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from gpumon.server import pace, sources
from gpumon.server.engine import Engine
from tests.samples import sample
from tests.server.conftest import Serve, serving, settings_for
from tests.server.test_sealed_answers import NEVER, served
from tests.server.test_sealed_days import seal_here
from tests.server.test_store import SEED, figures, old_line, put

TODAY = "gpu_metrics_20261124.csv"


def post(client: httpx.Client, *rows: dict[str, object]) -> None:
    client.post("/api/receive-data", json=list(rows)).raise_for_status()


@pytest.mark.parametrize(
    "content",
    [
        f"{SEED}\n{old_line(10)}\n{old_line(11)}".encode(),  # no newline at the end
        f"{SEED}\r{old_line(10)}\r".encode(),
        SEED.encode(),
        f"{SEED}\n{old_line(10)}\n".encode("utf-16"),
        bytes(range(256)) * 20,
    ],
)
def test_a_file_that_gpumon_did_not_write_is_never_changed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / TODAY).write_bytes(content)
    for _ in range(2):
        with serving(settings_for(tmp_path)) as client:
            post(client, sample())
            figures(client)
    assert (tmp_path / TODAY).read_bytes() == content


def test_an_old_file_without_a_last_newline_is_read_whole(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / TODAY).write_text(f"{SEED}\n{old_line(10)}\n{old_line(11, utilization='60')}")
    assert figures(serve()) == (2, 50.0)


def bad_files() -> dict[str, Callable[[Path], object]]:
    whole = gzip.compress(f"{SEED}\n{old_line(1)}\n".encode() * 50)
    return {
        "truncated gzip": lambda p: p.with_suffix(".csv.gz").write_bytes(whole[:-20]),
        "corrupt gzip": lambda p: p.with_suffix(".csv.gz").write_bytes(whole[:12] + b"\x00" * 40 + whole[60:]),
        "no gzip": lambda p: p.with_suffix(".csv.gz").write_bytes(b"plain"),
        "endless header": lambda p: p.write_text("a" * 300_000 + "\n1\n"),
        "a folder": lambda p: p.mkdir(),
        "a folder like a compressed file": lambda p: p.with_suffix(".csv.gz").mkdir(),
        "an input/output error": lambda p: p.symlink_to("/proc/self/mem"),
        "a link to nowhere": lambda p: p.symlink_to("/nowhere/at/all"),
    }


@pytest.mark.parametrize("kind", bad_files())
@pytest.mark.parametrize("when", ["before the start", "while running"])
def test_a_file_that_can_not_be_read_stops_neither_the_server_nor_the_files_after_it(
    serve: Serve, tmp_path: Path, kind: str, when: str
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    if when == "before the start":
        bad_files()[kind](folder / "gpu_metrics_20200101.csv")
    client = serve()
    post(client, sample(utilization_gpu=40.0))
    if when == "while running":
        bad_files()[kind](folder / "gpu_metrics_20200101.csv")
    put(folder, "gpu_metrics_20261123.csv", SEED, old_line(10))
    assert figures(client) == (2, 40.0)
    assert client.get("/health").status_code == 200
    assert client.get("/metrics").status_code == 200


def test_a_folder_with_todays_name_makes_a_further_part(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "data" / TODAY).mkdir(parents=True)
    client = serve()
    post(client, sample())
    assert figures(client) == (1, 50.0)


@pytest.mark.parametrize("header", [f"{SEED},", f"{SEED},gpu_id", f"{SEED},GPU_ID,,"])
def test_columns_without_a_name_or_with_one_twice_do_no_harm(serve: Serve, tmp_path: Path, header: str) -> None:
    put(tmp_path / "data", "gpu_metrics_20200101.csv", header, old_line(10) + ",7")
    put(tmp_path / "data", TODAY, SEED, old_line(11))
    assert figures(serve()) == (2, 40.0)


def cut_the_last_newline(path: Path, aside: Path) -> None:
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))


def save_without_the_last_newline(path: Path, aside: Path) -> None:
    aside.write_bytes(path.read_bytes().removesuffix(b"\n"))
    aside.replace(path)


def move_away(path: Path, aside: Path) -> None:
    path.replace(aside)


def replace_by_one_of_the_old_program(path: Path, aside: Path) -> None:
    put(aside.parent, aside.name, SEED, old_line(10), old_line(11))
    aside.replace(path)


def compress(path: Path, aside: Path) -> None:
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


@pytest.mark.parametrize(
    ("hand", "left"),
    [
        (cut_the_last_newline, 1),
        (save_without_the_last_newline, 1),
        (move_away, 0),
        (replace_by_one_of_the_old_program, 2),
        (compress, 1),
    ],
)
def test_what_a_hand_does_to_todays_file_costs_no_row_that_comes_after(
    tmp_path: Path, hand: Callable[[Path, Path], None], left: int
) -> None:
    data = tmp_path / "data"
    for restarted in (False, True):
        with serving(settings_for(data)) as client:
            if not restarted:
                post(client, sample())
                figures(client)
                hand(data / TODAY, tmp_path / "aside")
                kept = [path.read_bytes() for path in data.glob(f"{TODAY}*")]
                post(client, sample(gpu_id=1), sample(gpu_id=2))
                post(client, sample(gpu_id=3))
            assert figures(client)[0] == left + 3
            assert "gpumon_server_csv_lines_damaged_total 0.0" in client.get("/metrics").text
    now = [path.read_bytes() for path in data.glob("gpu_metrics_*")]
    assert all(any(there.startswith(whole) for there in now) for whole in kept)


def test_a_file_that_can_be_read_again_is_no_longer_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        if path.name == "gpu_metrics_20200101.csv":
            raise PermissionError(13, "Permission denied")
        return opened(path)

    opened = sources.open_csv
    with serving(settings_for(tmp_path)) as client:
        with monkeypatch.context() as patched:
            patched.setattr(sources, "open_csv", refuse)
            put(tmp_path, "gpu_metrics_20200101.csv", SEED, old_line(10))
            assert figures(client)[0] == 0
            assert "gpumon_server_csv_files_unreadable 1.0" in client.get("/metrics").text
            (tmp_path / "gpu_metrics_20200101.csv").chmod(0o640)
            assert figures(client)[0] == 0
        (tmp_path / "gpu_metrics_20200101.csv").chmod(0o644)
        assert figures(client)[0] == 1
        assert "gpumon_server_csv_files_unreadable 0.0" in client.get("/metrics").text


def test_a_blank_line_is_no_damage(serve: Serve, tmp_path: Path) -> None:
    put(tmp_path / "data", TODAY, SEED, old_line(10), "", old_line(11), "")
    client = serve()
    assert figures(client) == (2, 40.0)
    assert "gpumon_server_csv_lines_damaged_total 0.0" in client.get("/metrics").text


@pytest.mark.parametrize("edited", [b"10.0", b"90.0", b"100.0"])
def test_a_file_of_gpumon_that_was_edited_while_the_server_was_down_is_read_anew(
    tmp_path: Path, edited: bytes
) -> None:
    with serving(settings_for(tmp_path)) as client:
        post(client, sample(utilization_gpu=10.0))
        figures(client)
    path = tmp_path / TODAY
    path.write_bytes(path.read_bytes().replace(b",10.0,", b"," + edited + b","))
    with serving(settings_for(tmp_path)) as client:
        assert figures(client) == (1, float(edited))
        post(client, sample(utilization_gpu=float(edited)))
        assert figures(client) == (2, float(edited))


def test_after_todays_file_was_deleted_new_rows_are_seen_and_kept(tmp_path: Path) -> None:
    with serving(settings_for(tmp_path)) as client:
        post(client, sample())
        assert figures(client) == (1, 50.0)
        (tmp_path / TODAY).unlink()
        post(client, sample(utilization_gpu=70.0))
        assert figures(client) == (1, 70.0)
    with serving(settings_for(tmp_path)) as client:
        assert figures(client) == (1, 70.0)


def test_rows_that_another_program_appends_meanwhile_stay_and_count(tmp_path: Path) -> None:
    with serving(settings_for(tmp_path)) as client:
        post(client, sample(utilization_gpu=10.0))
        with (tmp_path / TODAY).open("a") as file:
            file.write(old_line(13, utilization="40") + "\n")
        post(client, sample(utilization_gpu=70.0))
        assert figures(client) == (3, 40.0)
    with serving(settings_for(tmp_path)) as client:
        assert figures(client) == (3, 40.0)


def test_another_zone_is_another_reading_of_old_rows(tmp_path: Path) -> None:
    put(tmp_path, TODAY, SEED, old_line(10))
    ages = []
    for zone in ("UTC", "Asia/Taipei"):
        with serving(settings_for(tmp_path, server={"timezone": zone})) as client:
            ages.append(client.post("/api/gpu/list").json()["data"][0]["age_seconds"])
    assert abs(ages[1] - ages[0] - 8 * 3600) < 60


def test_a_stranger_ending_in_new_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.new").write_text("mine")
    (tmp_path / "gpu_metrics_notes.csv.gz.new").write_text("mine")
    with serving(settings_for(tmp_path)) as client:
        post(client, sample())
    assert {path.name for path in tmp_path.glob("*.new")} == {"notes.new", "gpu_metrics_notes.csv.gz.new"}


def compressing(folder: Path) -> None:
    storage = {"enable_file_compression": True, "compress_after_days": 1}
    engine = Engine(settings_for(folder, storage=storage), now=lambda: datetime(2026, 11, 30, tzinfo=UTC))
    engine.open()
    engine.tidy_now()
    engine.close()


def test_compression_overwrites_nothing(tmp_path: Path) -> None:
    put(tmp_path, TODAY, SEED, old_line(10, utilization="90"))
    (tmp_path / f"{TODAY}.gz").write_bytes(gzip.compress(f"{SEED}\n{old_line(11, utilization='10')}\n".encode()))
    before = {path.name: path.read_bytes() for path in tmp_path.glob("gpu_metrics_*")}
    compressing(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("gpu_metrics_*")} == before
    with serving(settings_for(tmp_path)) as client:
        assert figures(client) == (2, 50.0)


@pytest.mark.parametrize("killed", ["while compressing", "before the new name"])
def test_a_compression_that_was_killed_counts_nothing_twice_and_loses_nothing(tmp_path: Path, killed: str) -> None:
    content = f"{SEED}\n{old_line(10)}\n".encode()
    aside = tmp_path / f"{TODAY}.gz.new"
    if killed == "while compressing":
        (tmp_path / TODAY).write_bytes(content)
        aside.write_bytes(gzip.compress(content)[:-9])
    else:
        aside.write_bytes(gzip.compress(content))
    with serving(settings_for(tmp_path)) as client:
        assert figures(client) == (1, 40.0)
    assert not aside.exists()
    if killed == "before the new name":
        assert zlib.decompress((tmp_path / f"{TODAY}.gz").read_bytes(), 31) == content


def test_retention_deletes_nothing_at_once_and_says_what_it_will(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "gpu_metrics_20250101.csv", SEED, old_line(10))
    with serving(settings_for(tmp_path, storage={"data_retention_days": 30})) as client:
        figures(client)
    assert (tmp_path / "gpu_metrics_20250101.csv").exists()
    said = [record.getMessage() for record in caplog.records if "retention will delete" in record.getMessage()]
    assert len(said) == 1
    assert "gpu_metrics_20250101.csv" in said[0]
    assert "data_retention_days=0" in said[0]


def test_a_small_body_that_unpacks_to_millions_of_objects_is_refused_at_once(serve: Serve) -> None:
    body = gzip.compress(b"[" + b"{}," * 5_000_000 + b"{}]")
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = serve().post("/api/receive-data", content=body, headers=headers)
    assert (answer.status_code, answer.json()["success"]) == (413, False)


@pytest.mark.parametrize("then", ["unsealed", "sealed"])
@pytest.mark.parametrize(
    ("edited", "found"), [(b",90.0,", (2, 50.0, 90.0)), (b",7.0,", (2, 7.0, 50.0)), (None, (1, 50.0, 50.0))]
)
def test_a_file_of_gpumon_that_is_edited_while_the_server_runs_is_read_anew(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    then: str,
    edited: bytes | None,
    found: tuple[int, float, float],
) -> None:
    """None: its last line goes."""
    monkeypatch.setattr(pace, "_LOOK_SECONDS", 0.0)
    seal_here(monkeypatch)
    now = datetime(2026, 11, 25, 3, tzinfo=UTC)
    with served(tmp_path, "UTC", now) as (client, engine):
        for gpu, utilization in enumerate((50.0, 10.0)):
            row = sample(gpu_id=gpu, utilization_gpu=utilization)
            assert client.post("/api/receive-data", json=[row]).status_code == 200
        engine.index.catchup.refresh()
        if then == "sealed":
            engine.index.sealer.seal_rows(now.date() - timedelta(days=1), NEVER)
        path = tmp_path / TODAY
        text = path.read_bytes()
        lines = text.splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:-1]) if edited is None else text.replace(b",10.0,", edited))
        data = client.post("/api/gpu/statistics", json={}).json()["data"]
        assert (data["samples"], data["min_utilization"], data["max_utilization"]) == found


def test_what_is_appended_between_two_looks_at_a_file_is_not_taken_for_an_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path, "UTC", datetime(2026, 11, 24, 18, tzinfo=UTC)) as (client, engine):
        engine._upkeep.stop(10)
        catchup = engine.index.catchup
        committed_sizes, forgotten, posted = catchup._committed_sizes, list[str](), list[int]()

        def when_the_folder_has_been_looked_at() -> dict[str, int]:
            posted.append(len(posted))
            if len(posted) == 2:
                client.post("/api/receive-data", json=[sample(gpu_id=1)])
            return committed_sizes()

        client.post("/api/receive-data", json=[sample()])
        catchup.refresh()
        monkeypatch.setattr(catchup, "_forget", forgotten.append)
        with monkeypatch.context() as patched:
            patched.setattr(catchup, "_committed_sizes", when_the_folder_has_been_looked_at)
            catchup.refresh()
        catchup.refresh()
        assert len(posted) == 2
        assert client.post("/api/gpu/statistics", json={}).json()["data"]["samples"] == 2
        assert forgotten == []
