"""Old days go, past days are compressed, the folder fits; answers stay what the files say."""

from __future__ import annotations

import errno
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpumon.server import disk, manifest
from gpumon.server.engine import Engine
from gpumon.server.retention import Policy, Retention
from tests.samples import sample
from tests.server import test_sealed_days as sealed_days
from tests.server.conftest import serving, settings_for
from tests.server.test_csvlog import NAMES, opened, rows_of
from tests.server.test_sealed_answers import served

DAYS = [datetime(2026, 11, day, 12, tzinfo=UTC) for day in range(10, 25)]
TODAY = DAYS[-1]
COMPRESSING = Policy(keep_days=0, max_bytes=0, compress_after_days=1)


def filled(folder: Path) -> None:
    with serving(settings_for(folder)) as client:
        rows = [sample(timestamp=day.isoformat(), gpu_id=gpu) for day in DAYS for gpu in range(20)]
        client.post("/api/receive-data", json=rows).raise_for_status()


def tidied(folder: Path, **storage: object) -> dict[str, int]:
    """The names and sizes of the day files after one housekeeping run of a server."""
    engine = Engine(settings_for(folder, storage=storage), now=lambda: TODAY)
    engine.open()
    try:
        engine.tidy_now()
    finally:
        engine.close()
    return {path.name: path.stat().st_size for path in sorted(folder.glob("gpu_metrics_*"))}


def total(folder: Path) -> int:
    with serving(settings_for(folder)) as client:
        return int(client.post("/api/gpu/statistics").json()["data"]["samples"])


def test_days_older_than_the_retention_go_with_their_rows(tmp_path: Path) -> None:
    filled(tmp_path)
    names = list(tidied(tmp_path, data_retention_days=3))
    assert names == [f"gpu_metrics_202611{day}.csv" for day in (21, 22, 23, 24)]
    assert total(tmp_path) == 4 * 20


def test_retention_0_keeps_all(tmp_path: Path) -> None:
    filled(tmp_path)
    assert len(tidied(tmp_path, data_retention_days=0)) == len(DAYS)


def test_past_days_are_compressed_and_still_answered_and_late_rows_get_a_part(tmp_path: Path) -> None:
    filled(tmp_path)
    names = list(tidied(tmp_path, enable_file_compression=True, compress_after_days=2))
    assert sum(name.endswith(".csv.gz") for name in names) == len(DAYS) - 2
    assert sum(name.endswith(".csv") for name in names) == 2
    assert total(tmp_path) == len(DAYS) * 20
    with serving(settings_for(tmp_path)) as client:
        late = sample(timestamp=(TODAY - timedelta(days=5)).isoformat())
        client.post("/api/receive-data", json=late).raise_for_status()
        assert client.post("/api/gpu/statistics").json()["data"]["samples"] == len(DAYS) * 20 + 1
    assert (tmp_path / "gpu_metrics_20261119.001.csv").exists()


def test_the_oldest_days_go_while_the_folder_is_too_large(tmp_path: Path) -> None:
    filled(tmp_path)
    sizes = tidied(tmp_path)
    everything = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    names = list(tidied(tmp_path, max_disk_mb=(everything - 3 * sizes["gpu_metrics_20261110.csv"] + 1) / 1e6))
    assert names[0] > "gpu_metrics_20261112.csv"
    assert names[-1] == "gpu_metrics_20261124.csv"


def test_no_day_goes_for_what_is_there_for_moments(tmp_path: Path) -> None:
    filled(tmp_path)
    before = tidied(tmp_path)
    everything = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    passing = ("tmp/export-1.parquet", "sealed/20261110/raw-1.new/samples.parquet", "import-1.new", "piece.csv")
    for name in passing:
        path = tmp_path / ".gpumon" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(100_000_000))
    policy = Policy(keep_days=0, max_bytes=everything, compress_after_days=None)
    with opened(tmp_path) as log:
        Retention(tmp_path, NAMES, log, policy, lambda work: work(), NothingSealed()).tidy(TODAY.date())
    assert {path.name: path.stat().st_size for path in tmp_path.glob("gpu_metrics_*")} == before


def test_a_full_disk_is_freed_by_the_retention_also_where_it_has_to_write_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve, write = tmp_path / ".gpumon" / "reserve", manifest.replace_file

    def as_on_a_full_disk(path: Path, data: bytes) -> None:
        if reserve.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    with served(tmp_path, "UTC", sealed_days.NOW) as (client, engine):
        sealed_days.filled(client, engine)
        assert reserve.stat().st_size == 2**20
        monkeypatch.setattr(manifest, "replace_file", as_on_a_full_disk)
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
        engine._retention._policy = Policy(keep_days=1, max_bytes=0, compress_after_days=None)
        engine.tidy_now()
    assert [path.name for path in tmp_path.glob("gpu_metrics_*")] == ["gpu_metrics_20261121.csv"]


def test_today_is_never_deleted_for_space(tmp_path: Path) -> None:
    filled(tmp_path)
    assert list(tidied(tmp_path, max_disk_mb=0.000001)) == ["gpu_metrics_20261124.csv"]


@pytest.mark.parametrize("compress", [True, False])
def test_the_disk_is_left_without_temporary_files(tmp_path: Path, compress: bool) -> None:
    filled(tmp_path)
    tidied(tmp_path, enable_file_compression=compress)
    left = {path.name for path in (tmp_path / ".gpumon").iterdir()}
    assert left <= {"commits.log", "store.duckdb", "quarantine", "tmp", "reserve"}
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".new"]


class NothingSealed:
    """A shelf with all files loaded and no day sealed."""

    def rows_of(self, _: date) -> None:
        return None

    def awaits_accounts(self, _: date) -> bool:
        return False

    def is_leaving(self, _: date) -> bool:
        return False

    def drop_rows(self, day: date) -> None:
        raise AssertionError(day)

    def dropped(self, day: date) -> None:
        raise AssertionError(day)

    def may_compress(self, _: str, __: int) -> bool:
        return True

    def renamed(self, *_: object) -> None:
        raise AssertionError(_)


class BeingSealed(NothingSealed):
    """A shelf with a day that is being sealed without having been loaded."""

    def may_compress(self, _: str, __: int) -> bool:
        return False


def test_a_file_whose_day_is_being_sealed_is_not_compressed_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpumon.server.retention.gzip.GzipFile", None)
    with opened(tmp_path) as log:
        log.append(rows_of(sample(timestamp="2026-11-10 12:00:00")), [])
        Retention(tmp_path, NAMES, log, COMPRESSING, lambda work: work(), BeingSealed()).tidy(TODAY.date())
    assert [path.name for path in tmp_path.glob("gpu_metrics_*")] == ["gpu_metrics_20261110.csv"]


def test_a_file_that_gets_rows_while_it_is_compressed_stays_as_it_is(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.append(rows_of(sample(timestamp="2026-11-10 12:00:00")), [])

        def a_row_comes_first(work: Callable[[], None]) -> None:
            log.append(rows_of(sample(timestamp="2026-11-10 13:00:00")), [])
            work()

        Retention(tmp_path, NAMES, log, COMPRESSING, a_row_comes_first, NothingSealed()).tidy(TODAY.date())
        assert [path.name for path in tmp_path.glob("gpu_metrics_*")] == ["gpu_metrics_20261110.csv"]
        assert (tmp_path / "gpu_metrics_20261110.csv").read_bytes().count(b"\n") == 3
