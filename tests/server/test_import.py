"""`gpumon import`: every row of elsewhere exactly once, whatever happens in between."""

from __future__ import annotations

import gzip
import os
import random
import re
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from gpumon.errors import StorageError
from gpumon.model.fields import CSV_COLUMNS, SEED_COLUMNS
from gpumon.server.days import FileNames
from gpumon.server.importing import Report, effort, publish, render, take_over, takeover
from gpumon.server.tables import POD_USAGE, SAMPLES
from tests.processes import until
from tests.samples import full_sample, pod, sample
from tests.server.conftest import serving, settings_for

OLD = ",".join(SEED_COLUMNS) + "\n"
NAMES = FileNames("gpu_metrics")
TAIPEI = ZoneInfo("Asia/Taipei")
NEW = ",".join(CSV_COLUMNS) + "\n"


def row(time: str = "12:00:00", gpu: int = 0, day: str = "2026-11-24", use: Any = 50.0, client: str = "n") -> str:
    return f"{day} {time},{gpu},NVIDIA H100,{use},2.0,80000,1,2,60,400.5,700.0,,{client}\n"


def told(local: str, exact: str, gpu: int = 0, day: str = "2026-11-24") -> str:
    """A row of gpumon: its server's local time and the exact instant."""
    return f"{row(local, gpu, day).strip()},{exact}," + "," * (len(CSV_COLUMNS) - len(SEED_COLUMNS) - 2) + "\n"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    (tmp_path / "old").mkdir()
    return tmp_path / "old"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def taken(source: Path, folder: Path, zone: ZoneInfo = TAIPEI, **options: Any) -> Report:
    return take_over(source, folder, NAMES, zone, lambda _: None, **options)


def contents(folder: Path) -> dict[str, list[str]]:
    """The lines of each CSV file, without the header."""
    return {
        path.name: (gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text())
        .splitlines(keepends=True)[1:]
        for path in sorted(folder.glob("*.csv*"))
    }  # fmt: skip


def test_rows_go_to_the_file_of_their_day_with_the_configured_prefix(old: Path, data: Path) -> None:
    (old / "metrics_20261124.csv").write_text(OLD + row("23:59:59", day="2026-11-23") + row())
    (old / "metrics_20261124.001.csv").write_text(OLD + row(gpu=1))
    (old / "metrics_20261125.csv.gz").write_bytes(gzip.compress((OLD + row(day="2026-11-25")).encode()))
    report = taken(old, data)
    assert contents(data) == {
        "gpu_metrics_20261123.500.csv": [row("23:59:59", day="2026-11-23")],
        "gpu_metrics_20261124.500.csv": [row(gpu=1), row()],
        "gpu_metrics_20261125.500.csv": [row(day="2026-11-25")],
    }
    assert (report.files, report.taken, report.there) == (3, 4, 0)
    assert report.days == {date(2026, 11, 23), date(2026, 11, 24), date(2026, 11, 25)}


def test_a_second_time_nothing_is_taken_and_from_a_source_that_has_grown_only_what_is_new(
    old: Path, data: Path
) -> None:
    (old / "gpu_metrics_20261124.csv").write_text(OLD + row() + row(gpu=1))
    taken(old, data)
    before = contents(data)
    again = taken(old, data)
    assert (again.taken, again.there, again.parts) == (0, 2, [])
    assert contents(data) == before
    with (old / "gpu_metrics_20261124.csv").open("a") as file:
        file.write(row(gpu=2) + row(gpu=3)[:20])
    grown = taken(old, data)
    assert contents(data) == before | {"gpu_metrics_20261124.501.csv": [row(gpu=2)]}
    assert (grown.taken, grown.there, grown.damaged) == (1, 2, {"gpu_metrics_20261124.csv": (1, [5])})


def test_what_stands_in_other_files_of_the_day_is_not_taken_and_those_are_never_touched(
    old: Path, data: Path
) -> None:
    (old / "gpu_metrics_20261124.csv").write_text(OLD + "".join(row(gpu=gpu) for gpu in range(5)))
    there = {
        "gpu_metrics_20261124.csv": (OLD + row(gpu=0)).encode(),
        "gpu_metrics_20261124.001.csv.gz": gzip.compress((OLD + row(gpu=1)).encode()),
        "gpu_metrics_20261124.500.csv": (
            ",".join(CSV_COLUMNS) + "\n" + row(gpu=2).strip() + "," * 39 + "\n"
        ).encode(),
        "gpu_metrics_20261125.csv": (OLD + row(gpu=3)).encode(),  # the old program filed late rows by arrival
    }
    for name, content in there.items():
        (data / name).write_bytes(content)
    taken(old, data)
    assert {name: (data / name).read_bytes() for name in there} == there
    assert contents(data)["gpu_metrics_20261124.501.csv"] == [row(gpu=4)]
    assert len(contents(data)) == 5


def test_columns_are_compared_by_name_and_unknown_ones_left_out_with_a_note(old: Path, data: Path) -> None:
    turned = "extra,client_name,gpu_id,timestamp,utilization_gpu,gpu_name\n"
    (old / "a_20261124.csv").write_text(turned + 'x,n,0,2026-11-24 12:00:00,50.0,"NVIDIA H100"\n')
    (data / "gpu_metrics_20261124.csv").write_text(
        "timestamp,gpu_id,gpu_name,utilization_gpu,client_name\n2026-11-24 12:00:00,0,NVIDIA H100,50.0,n\n"
    )
    report = taken(old, data)
    assert (report.taken, report.there, report.unknown) == (0, 1, {"a_20261124.csv": ["extra"]})
    (old / "a_20261124.csv").write_text(turned + 'x,n,1,2026-11-24 12:00:00,50.0,"A ""b"", c"\n')
    assert taken(old, data).taken == 1
    (line,) = contents(data)["gpu_metrics_20261124.500.csv"]
    assert line == '2026-11-24 12:00:00,1,"A ""b"", c",50.0,,,,,,,,,n\n'


def test_the_same_row_twice_in_the_source_is_taken_once(old: Path, data: Path) -> None:
    for name in ("a_20261124.csv", "b_20261124.csv"):
        (old / name).write_text(OLD + row() + row())
    assert (taken(old, data).taken, contents(data)["gpu_metrics_20261124.500.csv"]) == (1, [row()])


def test_damaged_lines_are_named_and_the_others_are_taken(old: Path, data: Path) -> None:
    lines = [
        row(gpu=0),
        "\n",
        "2026-11-24 12:00:00,0,NVID\n",
        row(gpu=1).replace("2026-11-24", "2026-11-31"),
        row(gpu=2).replace(",2,", ",two,"),
        row(gpu=3, client=""),
        row(gpu=4).replace("NVIDIA", '"NVIDIA'),
        row(gpu=5).replace("H100", "H\x00"),
        row(gpu=6).replace("\n", "," * 60 + "\n"),
        row(gpu=7, use="N/A"),
        row(gpu=8).replace("\n", "\r\n"),
    ]
    raw = (
        (OLD + "".join(lines)).encode() + row(gpu=9).encode().replace(b"H100", b"\xff") + b"x" * 3_000_000 + b"\n"
    )
    (old / "a_20261124.csv").write_bytes(raw + row(gpu=10).encode())
    report = taken(old, data)
    assert report.damaged == {"a_20261124.csv": (9, [4, 5, 6, 7, 8, 9, 10, 13, 14])}
    assert contents(data)["gpu_metrics_20261124.500.csv"] == [
        row(gpu=0), row(gpu=7, use="N/A"), row(gpu=8), row(gpu=10)
    ]  # fmt: skip


def test_what_can_not_be_read_is_named(old: Path, data: Path) -> None:
    (old / "a_20261124.csv").write_text(OLD + row())
    (old / "b_20261124.csv.gz").write_bytes(gzip.compress((OLD + row(gpu=1) * 1000).encode())[:-20])
    (old / "c_20261124.csv").write_text("name,price\nx,1\n")
    report = taken(old, data)
    assert report.unreadable.keys() == {"b_20261124.csv.gz", "c_20261124.csv"}
    assert report.taken == 1


_GZIPPED = gzip.compress((OLD + "".join(row(gpu=gpu, use=gpu * 7919 % 1000) for gpu in range(9_000))).encode())
_DAMAGED = {
    "cut short": (_GZIPPED[: len(_GZIPPED) // 2], "end-of-stream"),
    "hardly begun": (_GZIPPED[:8], "end"),
    "corrupt": (_GZIPPED[:12] + bytes(40) + _GZIPPED[60:], "decompressing"),
    "wrong checksum": (_GZIPPED[:-8] + bytes(8), "CRC"),
    "not gzip": (b"plain", "Not a gzipped file"),
    "no CSV": (gzip.compress(b"x" * 200_000), "field larger"),
}


@pytest.mark.parametrize("day", ["20261123", "20261124", "20261125"])
@pytest.mark.parametrize("damage", _DAMAGED)
def test_a_damaged_file_in_the_data_folder_is_left_alone_and_named_and_its_rows_count_as_not_there(
    old: Path, data: Path, damage: str, day: str
) -> None:
    content, reason = _DAMAGED[damage]
    damaged = data / f"gpu_metrics_{day}.csv.gz"
    damaged.write_bytes(content)
    (old / "a_20261124.csv").write_text(OLD + row(gpu=0, use=0) + row(gpu=1))
    report = taken(old, data)
    assert (report.taken, report.there, report.unreadable) == (2, 0, {})
    assert report.left_alone.keys() == {damaged.name}
    assert re.search(reason, report.left_alone[damaged.name])
    assert damaged.read_bytes() == content
    assert (data / "gpu_metrics_20261124.500.csv").read_text() == OLD + row(gpu=0, use=0) + row(gpu=1)
    assert (taken(old, data).taken, taken(old, data).there) == (0, 2)


def test_what_is_not_given_out_in_the_data_folder_is_named_in_the_report(old: Path, data: Path) -> None:
    (data / "gpu_metrics_20261124.csv").mkdir()
    (old / "a_20261124.csv").write_text(OLD + row())
    report = taken(old, data)
    assert report.taken == 1
    said = render(report, date(2026, 11, 25), 0, dry_run=False)
    assert "left alone: gpu_metrics_20261124.csv in the data folder can't be read (" in said


def test_rows_of_a_server_in_another_zone_are_told_in_this_ones_once_and_for_all(old: Path, data: Path) -> None:
    (old / "gpu_metrics_20261124.csv").write_text(
        NEW
        + told("15:59:59", "2026-11-24T15:59:59.999Z", gpu=0)
        + told("16:00:00", "2026-11-24T16:00:00.000Z", gpu=1)
        + told("20:00:00", "2026-11-24T20:00:00.250Z", gpu=2).replace("NVIDIA H100", '"A ""b"", c"')
    )
    for _ in range(2):
        report = taken(old, data)
        assert contents(data) == {
            "gpu_metrics_20261124.500.csv": [told("23:59:59", "2026-11-24T15:59:59.999Z", gpu=0)],
            "gpu_metrics_20261125.500.csv": [
                told("00:00:00", "2026-11-24T16:00:00.000Z", gpu=1, day="2026-11-25"),
                told("04:00:00", "2026-11-24T20:00:00.250Z", gpu=2, day="2026-11-25").replace(
                    "NVIDIA H100", '"A ""b"", c"'
                ),
            ],
        }
    assert (report.taken, report.there) == (0, 3)


def test_a_row_keeps_its_bytes_where_its_time_is_this_zones_or_its_instant_can_not_be_read(
    old: Path, data: Path
) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    kept = [
        told("02:30:00", "2026-10-25T00:30:00.500Z", day="2026-10-25"),
        told("02:30:00", "2026-10-25T01:30:00.500Z", day="2026-10-25"),  # the hour that comes twice
        told("12:00:00.25", "2026-10-25 11:00:00.250000", day="2026-10-25"),
        told("12:00:00", "2026-10-25T12:00:00+01:00", day="2026-10-25"),
        told("12:00:00", "soon", day="2026-10-25"),
        told("12:00:00", "2026-10-32T12:00:00.000Z", day="2026-10-25"),
        told("12:00:00", "0000-01-01T00:00:00.000Z", day="2026-10-25"),
        row("12:00:00", day="2026-10-25"),
    ]
    foreign = told("00:30:00", "2026-10-25T00:30:00.750Z", day="2026-10-25")
    (old / "gpu_metrics_20261025.csv").write_text(NEW + "".join(kept) + foreign)
    taken(old, data, berlin)
    here = told("02:30:00", "2026-10-25T00:30:00.750Z", day="2026-10-25")
    kept[-1] = kept[-1].strip() + "," * (len(CSV_COLUMNS) - len(SEED_COLUMNS)) + "\n"
    assert contents(data) == {"gpu_metrics_20261025.500.csv": [*kept, here]}


def test_a_row_that_stands_under_the_day_of_another_zone_is_not_taken_again(old: Path, data: Path) -> None:
    """As after a change of [SERVER] timezone: Pago Pago is up to two days behind Kiritimati."""
    theirs = NEW + told("23:30:00", "2026-11-24T10:30:00.125Z", day="2026-11-23")
    (old / "gpu_metrics_20261123.csv").write_text(theirs)
    (data / "gpu_metrics_20261123.csv").write_text(theirs)
    report = taken(old, data, ZoneInfo("Pacific/Kiritimati"))
    assert report.days == {date(2026, 11, 25)}
    assert (report.taken, report.there) == (0, 1)


def test_all_tables_of_a_server_in_another_zone_answer_by_this_ones_days_and_hours(
    tmp_path: Path, data: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    instant = "2026-11-23T20:00:00.250Z"
    taken_at = full_sample(timestamp=instant, sampled_at=instant, pods=[pod(labels={"team": "a"})])
    with serving(settings_for(elsewhere)) as client:
        client.post("/api/receive-data", json=taken_at).raise_for_status()
    parts = taken(elsewhere, data).parts
    assert sorted(parts) == [
        "gpu_metrics_20261124.500.csv", "pod_usage_20261124.500.csv", "pods_20261124.500.csv"
    ]  # fmt: skip
    with serving(settings_for(data, server={"timezone": "Asia/Taipei"})) as client:
        asked = {"start_date": "2026-11-24", "end_date": "2026-11-24"}
        hours = client.post("/api/gpu/hourly-usage", json=asked).json()["data"]["chart_data"]
        assert [hour["hour"] for hour in hours if hour["samples"]] == [4]
        assert client.post("/api/gpu/list").json()["data"][0]["last_update"] == "2026-11-24 04:00:00"


@pytest.mark.parametrize("day", ["0026-11-10", "9999-12-31", "1699-12-31", "2200-01-01"])
def test_a_line_of_another_age_is_damaged(old: Path, data: Path, day: str) -> None:
    (old / "gpu_metrics_20261110.csv").write_text(OLD + row(day=day) + row(day="2026-11-10"))
    report = taken(old, data)
    assert (report.parts, report.damaged) == (
        ["gpu_metrics_20261110.500.csv"],
        {"gpu_metrics_20261110.csv": (1, [2])},
    )


def test_all_three_tables_of_gpumon_come_over_and_answer_the_same(tmp_path: Path, data: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    samples = [
        full_sample(gpu_id=gpu, client_name=f"n{gpu}", pods=[pod(labels={"team": "a"}), pod(pod="b")])
        for gpu in range(20)
    ]
    with serving(settings_for(elsewhere, server={"timezone": "Asia/Taipei"})) as client:
        client.post("/api/receive-data", json=samples).raise_for_status()
        asked = "/api/usage?group_by=pod,label:team&start=2026-11-24&end=2026-11-24"
        usage = client.get(asked).json()["data"]
        statistics = client.post("/api/gpu/statistics").json()["data"]
        assert usage["groups"]
    report = taken(elsewhere, data)
    assert sorted(report.parts) == [
        "gpu_metrics_20261124.500.csv", "pod_usage_20261124.500.csv", "pods_20261124.500.csv"
    ]  # fmt: skip
    for name in report.parts:
        assert (data / name).read_bytes() == (elsewhere / name.replace(".500", "")).read_bytes()
    with serving(settings_for(data, server={"timezone": "Asia/Taipei"})) as client:
        assert client.get(asked).json()["data"] == usage
        assert client.post("/api/gpu/statistics").json()["data"] == statistics


@pytest.mark.parametrize("table", [SAMPLES, POD_USAGE])
def test_what_is_exported_can_be_imported_and_is_known_where_it_came_from(
    tmp_path: Path, old: Path, data: Path, table: Any
) -> None:
    old_row = sample(timestamp="2026-11-24 01:02:03", client_name="an old client")
    with serving(settings_for(data, server={"timezone": "Asia/Taipei"})) as client:
        client.post("/api/receive-data", json=[full_sample(pods=[pod()])]).raise_for_status()
        (data / "gpu_metrics_20261123.csv").write_text(OLD + row(day="2026-11-23"))
        client.post("/api/receive-data", json=old_row).raise_for_status()
        answer = client.get(
            "/api/export", params={"table": table.name, "start": "2026-11-23", "end": "2026-11-25"}
        )
        name = answer.headers["content-disposition"].split('"')[1]
        (old / name).write_bytes(answer.content)
    count = answer.content.count(b"\n") - 1
    assert count == (3 if table is SAMPLES else 1)
    assert (taken(old, data).taken, taken(old, data).there) == (0, count)
    assert taken(old, tmp_path / "fresh").taken == count


def test_a_running_server_answers_from_what_was_imported(old: Path, data: Path) -> None:
    with serving(settings_for(data)) as client:
        client.post("/api/receive-data", json=sample()).raise_for_status()
        (old / "gpu_metrics_20261124.csv").write_text(OLD + "".join(row(gpu=gpu) for gpu in range(50)))
        taken(old, data)
        assert client.post("/api/gpu/statistics").json()["data"]["samples"] == 51
        client.post("/api/receive-data", json=sample(gpu_id=3)).raise_for_status()
        assert client.post("/api/gpu/statistics").json()["data"]["samples"] == 52
    assert not list((data / ".gpumon").glob("*.new"))


def test_a_dry_run_says_what_would_be_done_and_does_nothing(old: Path, tmp_path: Path) -> None:
    (old / "gpu_metrics_20261124.csv").write_text(OLD + row())
    report = taken(old, tmp_path / "none", dry_run=True)
    assert (report.taken, report.parts) == (1, [])
    assert not (tmp_path / "none").exists()


def test_many_lines_of_a_day_are_taken_in_rounds(old: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "_LINES_AT_ONCE", 100)
    rows = [row(gpu=gpu) for gpu in range(450)]
    (old / "gpu_metrics_20261124.csv").write_text(OLD + "".join(rows + rows[:50]))
    report = taken(old, data)
    assert (report.taken, report.there, len(report.parts)) == (450, 50, 5)
    assert sorted(line for lines in contents(data).values() for line in lines) == sorted(rows)
    assert taken(old, data).taken == 0


def test_a_server_that_starts_meanwhile_tidies_up_and_the_day_is_written_again(
    old: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old / "gpu_metrics_20261124.csv").write_text(OLD + row())
    tidied = []
    give_name = publish._give_name

    def after_tidying(aside: Path, target: Path) -> None:
        if not tidied:
            tidied.append(aside.unlink())
        give_name(aside, target)

    monkeypatch.setattr(publish, "_give_name", after_tidying)
    assert taken(old, data).taken == 1
    assert tidied
    assert contents(data) == {"gpu_metrics_20261124.500.csv": [row()]}


@pytest.mark.parametrize(
    ("written", "day", "taken_as"),
    [
        ("2026/11/24 8:05", "20261124", "2026-11-24 08:05:00"),
        ("2026/1/4 08:05:09", "20260104", "2026-01-04 08:05:09"),
        (" 2026-11-24 08:05 ", "20261124", "2026-11-24 08:05:00"),
        ("2026-11-24T23:30:00Z", "20261125", "2026-11-25 07:30:00"),
        ("2026-11-24 23:30:00+01:00", "20261125", "2026-11-25 06:30:00"),
        ("2026/13/24 8:05", None, None),
        ("24.11.2026 08:05", None, None),
    ],
)
def test_timestamps_as_a_spreadsheet_saves_them_are_taken_in_our_form(
    old: Path, data: Path, written: str, day: str | None, taken_as: str | None
) -> None:
    (old / "metrics_20261124.csv").write_text(OLD + row().replace("2026-11-24 12:00:00", written))
    report = taken(old, data)
    if day is None:
        assert (report.taken, report.damaged) == (0, {"metrics_20261124.csv": (1, [2])})
        return
    expected = row().replace("2026-11-24 12:00:00", taken_as or "")
    assert contents(data) == {f"gpu_metrics_{day}.500.csv": [expected]}
    (old / "metrics_20261124.csv").write_text(OLD + expected)
    assert taken(old, data).taken == 0, "the same row"


def test_a_last_line_without_its_end_is_taken_once_nobody_writes_it(old: Path, data: Path) -> None:
    path = old / "metrics_20261124.csv"
    path.write_text(OLD + row() + row(gpu=1).rstrip())
    assert taken(old, data).taken == 1
    os.utime(path, (1_795_000_000, 1_795_000_000))
    assert taken(old, data).taken == 1
    (data / "gpu_metrics_20261124.csv").write_bytes(path.read_bytes())
    os.utime(data / "gpu_metrics_20261124.csv", (1_795_000_000, 1_795_000_000))
    for part in data.glob("*.5*.csv"):
        part.unlink()
    assert taken(old, data).taken == 0


def test_without_links_the_name_is_taken_first(old: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (old / "gpu_metrics_20261124.csv").write_text(OLD + row())
    taken(old, data)
    assert contents(data) == {"gpu_metrics_20261124.500.csv": [row()]}


def test_progress_is_told_to_the_end(old: Path, data: Path) -> None:
    (old / "a_20261124.csv").write_text(OLD + row() + row(gpu=1, day="2026-11-25"))
    told: list[int] = []
    take_over(old, data, NAMES, TAIPEI, told.append)
    assert abs(sum(told) - effort(old)) <= 2


def test_what_can_not_be_is_said_in_a_sentence(old: Path, data: Path) -> None:
    with pytest.raises(StorageError, match="named like a daily CSV file"):
        taken(old, data)
    (old / "gpu_metrics_20261124.csv").write_text(OLD)
    with pytest.raises(StorageError, match="stand in the data folder already"):
        taken(old, old)
    (data / "file").write_text("")
    with pytest.raises(StorageError, match="can't write to the data folder"):
        taken(old, data / "file")
    with publish.alone(data), pytest.raises(StorageError, match="another import"):
        taken(old, data)


def command(source: Path, folder: Path, *options: str) -> list[str]:
    config = folder.parent / "server.ini"
    config.write_text(f"[STORAGE]\noutput_directory = {folder}\ndata_retention_days = 30\n")
    return [sys.executable, "-m", "gpumon", "import", str(source), "--config", str(config), *options]


def test_the_command_reports_and_its_exit_code_tells_of_files_that_could_not_be_read(
    old: Path, data: Path
) -> None:
    (old / "gpu_metrics_20201124.csv").write_text(OLD + row(day="2020-11-24") + "x\n")
    ended = subprocess.run(command(old, data), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    for words in ("1 files of 1 days, 2020-11-24", "1 rows taken, 0 already there, 1 damaged lines",
                  "damaged: gpu_metrics_20201124.csv line 3", "1 new files, gpu_metrics_20201124.500.csv",
                  "data_retention_days = 30"):  # fmt: skip
        assert words in ended.stdout
    (old / "b_20201124.csv").write_text("nothing\n")
    ended = subprocess.run(
        command(old, data, "--dry-run"), capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert "not read: b_20201124.csv" in ended.stdout
    assert "0 rows to take, 1 already there" in ended.stdout


def test_a_kill_at_any_moment_leaves_nothing_torn_and_the_next_run_ends_it(old: Path, data: Path) -> None:
    rows = [
        row(f"{hour:02d}:{minute:02d}:00", gpu, f"2026-11-{day}")
        for day in range(10, 16)
        for hour in range(24)
        for minute in range(60)
        for gpu in range(8)
    ]
    for day in range(10, 16):
        of_day = [line for line in rows if line.startswith(f"2026-11-{day}")]
        (old / f"gpu_metrics_202611{day}.csv").write_text(OLD + "".join(of_day))
    chance = random.Random(7)
    for _ in range(4):
        process = subprocess.Popen(command(old, data), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        aside = data / ".gpumon" / f"import-{process.pid}.new"
        wanted = chance.randrange(200_000)
        until(lambda: process.poll() is not None or (aside.exists() and _size(aside) >= wanted))  # noqa: B023
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        for lines in contents(data).values():
            assert len(lines) == len(rows) / 6
    assert subprocess.run(command(old, data), capture_output=True, timeout=100, check=False).returncode == 0
    assert sorted(line for lines in contents(data).values() for line in lines) == sorted(rows)
    assert not list((data / ".gpumon").glob("*.new"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
