"""Old days go, past days are compressed, the folder fits; answers stay what the files say."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpumon.server import disk, manifest
from gpumon.server.engine import Engine
from gpumon.server.retention import Policy, Retention, Sealed
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
    """The names and sizes of the day files after two housekeeping runs of a server, and what is due between."""
    engine = Engine(settings_for(folder, storage=storage), now=lambda: TODAY)
    engine.open(upkeep=False)
    try:
        engine.index.catchup.refresh()
        engine.tidy_now()
        engine.index.settle()
        engine.tidy_now()
    finally:
        engine.close()
    return sizes(folder)


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.glob("gpu_metrics_*"))}


def tidy(folder: Path, policy: Policy, sealed: Sealed) -> None:
    """One run without a server."""
    with opened(folder) as log:
        Retention(folder, NAMES, log, policy, lambda work: work(), sealed).tidy(TODAY.date())


def total(folder: Path) -> int:
    with serving(settings_for(folder)) as client:
        return int(client.post("/api/gpu/statistics").json()["data"]["samples"])


def test_days_older_than_the_retention_go_and_leave_their_rollups(tmp_path: Path) -> None:
    filled(tmp_path)
    names = list(tidied(tmp_path, data_retention_days=10))
    assert names == [f"gpu_metrics_202611{day}.csv" for day in range(14, 25)]
    assert total(tmp_path) == len(DAYS) * 20


@pytest.mark.parametrize("which", ["age", "cap"])
def test_a_day_waits_for_its_rollups_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    filled(tmp_path)
    keep_days, max_bytes = (3, 0) if which == "age" else (0, 1)
    policy = Policy(keep_days=keep_days, max_bytes=max_bytes, compress_after_days=None)
    sealed = NeverSealed()
    with opened(tmp_path) as log:
        retention = Retention(tmp_path, NAMES, log, policy, lambda work: work(), sealed)
        for _ in range(2):
            retention.tidy(TODAY.date())
        assert len(sizes(tmp_path)) == len(DAYS)
        assert sealed.hastened == {day.date() for day in DAYS if which == "cap" or (TODAY - day).days > 3} - {
            TODAY.date()
        }
        assert caplog.text.count("retention will delete day=2026-11-10") == 1
        monkeypatch.setattr("gpumon.server.retention._AGE_PATIENCE_SECONDS", 0.0)
        monkeypatch.setattr("gpumon.server.retention._CAP_PATIENCE_SECONDS", 0.0)
        retention.tidy(TODAY.date())
        assert len(sizes(tmp_path)) == len(DAYS) - len(sealed.hastened)


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
    everything = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    allowed = everything - 3 * sizes(tmp_path)["gpu_metrics_20261110.csv"] + 1
    tidy(tmp_path, Policy(keep_days=0, max_bytes=allowed, compress_after_days=None), NothingSealed())
    names = list(sizes(tmp_path))
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
    tidy(tmp_path, Policy(keep_days=0, max_bytes=everything, compress_after_days=None), NothingSealed())
    assert sizes(tmp_path) == before


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

    def awaits_rollups(self, _: date, __: Iterable[str]) -> bool:
        return False

    def hasten(self, day: date) -> None:
        raise AssertionError(day)

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


class NeverSealed(NothingSealed):
    """A shelf that can seal nothing."""

    def __init__(self) -> None:
        self.hastened: set[date] = set()

    def awaits_rollups(self, _: date, __: Iterable[str]) -> bool:
        return True

    def hasten(self, day: date) -> None:
        self.hastened.add(day)


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
