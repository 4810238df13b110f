"""The files of pods and labels beside those of samples: parts, housekeeping, and what people do to them."""

from __future__ import annotations

import gzip
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gpumon.errors import SettingsError
from gpumon.server.app import create_app
from gpumon.server.engine import Engine
from tests.samples import pod, sample
from tests.server.conftest import serving, settings_for
from tests.server.test_csvlog import opened
from tests.server.test_pods_storage import DAY, LABEL_HEADER, POD_HEADER, in_sql, labelled, lines, post, store


def test_by_hour_pods_have_a_part_for_each_hour_and_labels_stand_where_they_were_first_seen(
    tmp_path: Path,
) -> None:
    with opened(tmp_path, split="hourly") as log:
        for hour in (0, 13, 7, 13):
            store(log, labelled(f"24 {hour:02d}", team="a"))
    assert {path.name: path.read_bytes().count(b"\n") - 1 for path in tmp_path.glob("pod*.csv")} == {
        f"pod_usage_{DAY}.csv": 1,
        f"pod_usage_{DAY}.007.csv": 1,
        f"pod_usage_{DAY}.013.csv": 2,
        f"pods_{DAY}.csv": 1,
    }


def test_by_size_each_kind_of_file_has_parts_of_its_own(tmp_path: Path) -> None:
    for _ in range(2):
        with opened(tmp_path, split="size", max_file_bytes=1000) as log:
            for gpu in range(10):
                store(log, sample(gpu_id=gpu, pods=[pod(), pod(container="side")]))
    parts = {prefix: list(tmp_path.glob(f"{prefix}_*.csv")) for prefix in ("gpu_metrics", "pod_usage")}
    assert len(parts["pod_usage"]) > len(parts["gpu_metrics"]) > 1
    assert max(path.stat().st_size for paths in parts.values() for path in paths) < 1000 + 2 * 300
    assert Counter(row["gpu_id"] for row in lines(tmp_path, "pod_usage")) == {str(gpu): 4 for gpu in range(10)}


STRANGERS = {
    f"pods_{DAY}.csv": b"name,phase\ntrain-0,Running\n",
    f"pod_usage_{DAY}.csv": b"pod;cpu\r\ntrain-0;12",
    "pods_20200101.csv": b"timestamp,client_name\n2020-01-01 00:00:00,x\n",
    "pod_usage_20200101.csv.gz": gzip.compress(b"pod,cpu\na,1\n"),
    "pods_20200102.csv.gz": b"no gzip",
    "pod_usage_20200103.csv": b"",
}


def test_files_of_others_with_our_names_are_neither_written_nor_compressed_nor_deleted(tmp_path: Path) -> None:
    for name, content in STRANGERS.items():
        (tmp_path / name).write_bytes(content)
    storage = {"data_retention_days": 3, "enable_file_compression": True, "compress_after_days": 1,
               "max_disk_mb": 0.000001}  # fmt: skip
    for _ in range(2):
        post(tmp_path, labelled("24 10", team="a"))
    tidied(tmp_path, datetime(2026, 11, 24, tzinfo=UTC), **storage)
    assert {name: (tmp_path / name).read_bytes() for name in STRANGERS} == STRANGERS
    for name, header in ((f"pods_{DAY}.001.csv", LABEL_HEADER), (f"pod_usage_{DAY}.001.csv", POD_HEADER)):
        text = (tmp_path / name).read_text().splitlines()
        assert (text[0], len(text)) == (header, 3)
    assert in_sql(tmp_path, "SELECT count(*) FROM hot_pod_usage UNION ALL SELECT count(*) FROM pod_labels") == [
        (2,),
        (2,),
    ]


def tidied(folder: Path, now: datetime, **storage: Any) -> set[str]:
    """The names of the day files after two housekeeping runs, and what is due between."""
    engine = Engine(settings_for(folder, storage=storage), now=lambda: now)
    engine.open(upkeep=False)
    try:
        engine.index.catchup.refresh()
        engine.tidy_now()
        engine.index.settle()
        engine.tidy_now()
    finally:
        engine.close()
    return {path.name for path in folder.iterdir() if path.is_file()}


def three_days(folder: Path) -> None:
    post(folder, *(labelled(f"{day} 10", team="a") for day in (22, 23, 24)))


def of_days(*days: int, suffix: str = "") -> set[str]:
    return {f"{prefix}_202611{day}.csv{suffix}" for prefix in ("gpu_metrics", "pod_usage", "pods") for day in days}


NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def test_retention_takes_all_files_of_a_day_with_their_rows(tmp_path: Path) -> None:
    three_days(tmp_path)
    assert tidied(tmp_path, NOON, data_retention_days=1) == of_days(23, 24)
    for table in ("hot_samples", "hot_pod_usage", "pod_labels"):
        assert in_sql(tmp_path, f"SELECT DISTINCT day(timestamp) FROM {table} ORDER BY 1") == [(23,), (24,)]


def test_a_file_of_a_version_that_knew_fewer_fields_is_ours_to_delete(tmp_path: Path) -> None:
    known = ",".join(POD_HEADER.split(",")[:12])
    (tmp_path / "pod_usage_20200101.csv").write_text(f"{known}\n")
    (tmp_path / "pod_usage_20200102.csv.gz").write_bytes(gzip.compress(f"{known}\r\n".encode()))
    three_days(tmp_path)
    assert tidied(tmp_path, NOON, data_retention_days=3) == of_days(22, 23, 24)


def test_the_disk_cap_takes_whole_days_and_leaves_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is sealed of so few rows takes more room than they do.
    monkeypatch.setattr("gpumon.server.retention._CAP_PATIENCE_SECONDS", 0.0)
    three_days(tmp_path)
    tidied(tmp_path, NOON)
    used = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    one = (tmp_path / "gpu_metrics_20261122.csv").stat().st_size
    assert tidied(tmp_path, NOON, max_disk_mb=(used - one + 1) / 1e6) == of_days(23, 24)
    assert tidied(tmp_path, NOON, max_disk_mb=1e-6) == of_days(24)


def test_files_of_pods_are_compressed_too_and_late_rows_get_a_part(tmp_path: Path) -> None:
    three_days(tmp_path)
    packed = {"enable_file_compression": True, "compress_after_days": 1}
    assert tidied(tmp_path, NOON, **packed) == of_days(22, 23, suffix=".gz") | of_days(24)
    post(tmp_path, labelled("23 11", team="a"))
    assert (tmp_path / "pod_usage_20261123.001.csv").exists()
    assert (tmp_path / "pods_20261123.001.csv").exists()
    for table, rows in (("hot_samples", 4), ("hot_pod_usage", 4), ("pod_labels", 4)):
        assert in_sql(tmp_path, f"SELECT count(*) FROM {table}") == [(rows,)]


def test_a_compression_of_a_file_of_pods_that_was_killed_is_finished(tmp_path: Path) -> None:
    three_days(tmp_path)
    path = tmp_path / "pod_usage_20261122.csv"
    path.with_name(path.name + ".gz.new").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    post(tmp_path, sample())
    assert path.with_name(path.name + ".gz").exists()
    assert in_sql(tmp_path, "SELECT count(*) FROM hot_pod_usage") == [(3,)]


def test_files_that_are_dropped_in_edited_or_taken_away_are_noticed(tmp_path: Path) -> None:
    three_days(tmp_path)
    path = tmp_path / "pod_usage_20261122.csv"
    path.rename(tmp_path / "pod_usage_20261101.csv")
    (tmp_path / "pods_20261122.csv").unlink()
    edited = tmp_path / "pods_20261123.csv"
    edited.write_text(edited.read_text().replace(",a\n", ",edited\n"))
    # An older version knew fewer fields; and rows may have come in any order of columns.
    (tmp_path / "pod_usage_20261102.csv").write_text(
        "pod,gpu_id,timestamp,client_name,held,rack\nby-hand,3,2026-11-02 10:00:00,n,yes,7\n"
    )
    post(tmp_path, sample())
    assert in_sql(tmp_path, "SELECT file, pod, held FROM hot_pod_usage ORDER BY file") == [
        ("pod_usage_20261101.csv", "train-0", True),
        ("pod_usage_20261102.csv", "by-hand", True),
        ("pod_usage_20261123.csv", "train-0", True),
        ("pod_usage_20261124.csv", "train-0", True),
    ]
    assert in_sql(tmp_path, "SELECT file, value FROM pod_labels ORDER BY file") == [
        ("pods_20261123.csv", "edited"),
        ("pods_20261124.csv", "a"),
    ]


@pytest.mark.parametrize("damage", [b"\x00\x00\n", b"no row\n", b',,"never closed\n', b",,,,,,,,\n"])
def test_a_damaged_line_is_left_out_and_counted_and_the_others_are_served(tmp_path: Path, damage: bytes) -> None:
    three_days(tmp_path)
    (tmp_path / ".gpumon" / "store.duckdb").unlink()
    for name in ("pod_usage_20261122.csv", "pods_20261122.csv"):
        whole = (tmp_path / name).read_bytes().splitlines(keepends=True)
        (tmp_path / name).write_bytes(whole[0] + damage + whole[1])
    with serving(settings_for(tmp_path)) as client:
        assert "gpumon_server_csv_lines_damaged_total 2.0" in client.get("/metrics").text
    assert in_sql(tmp_path, "SELECT count(*) FROM hot_pod_usage UNION ALL SELECT count(*) FROM pod_labels") == [
        (3,),
        (3,),
    ]


def test_a_cell_that_is_neither_true_nor_false_is_absent_and_its_row_stays(tmp_path: Path) -> None:
    cells = ("true", "false", "", "N/A", "True", "FALSE")
    (tmp_path / "pod_usage_20261101.csv").write_text(
        "timestamp,gpu_id,client_name,held\n"
        + "".join(f"2026-11-01 10:00:00,{n},n,{c}\n" for n, c in enumerate(cells))
    )
    post(tmp_path, sample())
    assert in_sql(tmp_path, "SELECT held FROM hot_pod_usage ORDER BY gpu_id") == [
        (True,), (False,), (None,), (None,), (True,), (False,),
    ]  # fmt: skip


@pytest.mark.parametrize("prefix", ["pods", "pod_usage", "Pods", "POD_USAGE"])
def test_samples_may_not_have_the_name_of_the_files_of_pods(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(SettingsError, match=r"csv_filename_prefix = .* write another"):
        create_app(settings_for(tmp_path, storage={"csv_filename_prefix": prefix}))


def test_a_prefix_that_is_a_pattern_or_close_to_another_is_taken_as_it_is(tmp_path: Path) -> None:
    for prefix in ("pods.", "pod", "(xy)+"):
        post(tmp_path / prefix, labelled("24 10", team="a"), storage={"csv_filename_prefix": prefix})
        assert {path.name for path in (tmp_path / prefix).glob("*.csv")} == {
            f"{prefix}_{DAY}.csv",
            f"pod_usage_{DAY}.csv",
            f"pods_{DAY}.csv",
        }
        assert in_sql(tmp_path / prefix, "SELECT count(*) FROM hot_samples") == [(1,)]
