"""The CSV files: all of a commit or nothing, nothing torn, nothing of the user's touched."""

from __future__ import annotations

import csv
import errno
import io
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpumon.errors import StorageError
from gpumon.model.fields import CSV_COLUMNS, FIELDS
from gpumon.model.sample import BatchId
from gpumon.server.accept import Accepted, Acceptor
from gpumon.server.csvlog import CsvLog, render
from gpumon.server.days import FileNames
from gpumon.server.journal import Journal
from gpumon.server.tables import SAMPLES, DatedRow
from tests.samples import NOON, full_sample, sample

DAY = date(2026, 11, 24)
ACCEPTOR = Acceptor(ZoneInfo("UTC"), timedelta(days=40_000), timedelta(days=40_000))
NAMES = FileNames("gpu_metrics")
HEADER = SAMPLES.header


def accepted_of(*samples: dict[str, Any]) -> Accepted:
    return ACCEPTOR.accept(msgspec.json.encode(list(samples)), NOON)


def rows_of(*samples: dict[str, Any]) -> list[DatedRow]:
    return accepted_of(*samples).rows


@contextmanager
def opened(folder: Path, **options: Any) -> Iterator[CsvLog]:
    journal = Journal(folder / ".gpumon" / "commits.log", 1e10)
    log = CsvLog(folder, NAMES, journal, **options)
    log.open()
    try:
        yield log
    finally:
        log.close()


def crashed(folder: Path, *commits: Accepted) -> None:
    """Leaves `folder` as a server that was killed after the commits leaves it."""
    live = folder / "live"
    with opened(live) as log:
        for accepted in commits:
            log.append(accepted.rows, [], accepted.labels)
        shutil.copytree(live, folder, dirs_exist_ok=True)
    shutil.rmtree(live)


def number(kind: str, low: float, high: float) -> st.SearchStrategy[Any]:
    return st.integers(int(low), int(high)) if kind == "int" else st.floats(low, high, allow_nan=False)


printable = st.text(st.characters(exclude_categories=["C", "Zl", "Zp", "Zs"]), min_size=1, max_size=30).filter(
    lambda text: not text.startswith(("=", "+", "-", "@"))
)
any_sample = st.fixed_dictionaries(
    {
        field.name: st.just("2026-11-24 12:00:00")
        if field.name == "timestamp"
        else st.datetimes(datetime(2000, 1, 1), datetime(2080, 1, 1)).map(
            lambda at: at.replace(tzinfo=UTC).isoformat(timespec="milliseconds")
        )
        if field.kind == "instant"
        else st.none() | st.sampled_from(field.choices)
        if field.choices
        else st.none() | st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,20}[a-z0-9])?", fullmatch=True)
        if field.kubernetes_name
        else (printable if field.required else st.none() | printable)
        if field.kind == "text"
        else (number(field.kind, field.low or 0, field.high or 0) if field.required
              else st.none() | number(field.kind, field.low or 0, field.high or 0))
        for field in FIELDS
    }
)  # fmt: skip


@given(st.lists(any_sample, min_size=1, max_size=5))
def test_what_is_written_is_read_back_the_same(samples: list[dict[str, Any]]) -> None:
    accepted = ACCEPTOR.accept(msgspec.json.encode(samples), NOON)
    assert accepted.faults.found == []
    text = (HEADER + render([row for *_, row in accepted.rows])).decode()
    assert text.count("\n") == 1 + len(samples), "a row is a line"
    casts = {"int": int, "float": float, "text": str, "instant": str}
    for sent, line in zip(samples, csv.DictReader(io.StringIO(text, newline="")), strict=True):
        for field in FIELDS:
            read = casts[field.kind](line[field.name]) if line[field.name] else None
            if field.name == "sampled_at":
                assert datetime.fromisoformat(str(read)) == datetime.fromisoformat(sent["sampled_at"])
            elif field.name != "timestamp":
                assert read == sent[field.name], field.name


def test_rows_go_to_the_file_of_their_day_with_one_header(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.append(rows_of(sample(), sample(timestamp="2026-11-23 23:59:59")), [])
        log.append(rows_of(sample(gpu_id=1)), [])
    lines = (tmp_path / "gpu_metrics_20261124.csv").read_bytes().splitlines(keepends=True)
    assert lines[0] == HEADER
    assert len(lines) == 3
    assert (tmp_path / "gpu_metrics_20261123.csv").read_bytes().count(b"\n") == 2


def test_by_size_a_day_gets_further_parts_and_a_restart_goes_on_in_the_last(tmp_path: Path) -> None:
    for _ in range(2):
        with opened(tmp_path, split="size", max_file_bytes=1000) as log:
            for gpu in range(10):
                log.append(rows_of(full_sample(gpu_id=gpu)), [])
    names = sorted(path.name for path in tmp_path.glob("*.csv"))
    assert names[:2] == ["gpu_metrics_20261124.001.csv", "gpu_metrics_20261124.002.csv"]
    assert names[-1] == "gpu_metrics_20261124.csv"
    sizes = [path.stat().st_size for path in tmp_path.glob("*.csv")]
    assert max(sizes) < 1000 + 2 * 200
    assert sum(path.read_bytes().count(b"\n") - 1 for path in tmp_path.glob("*.csv")) == 20


def test_by_hour_each_hour_is_a_part_also_for_late_rows(tmp_path: Path) -> None:
    with opened(tmp_path, split="hourly") as log:
        for hour in (0, 13, 7, 13):
            log.append(rows_of(sample(timestamp=f"2026-11-24 {hour:02d}:30:00")), [])
    assert {path.name: path.read_bytes().count(b"\n") - 1 for path in tmp_path.glob("*.csv")} == {
        "gpu_metrics_20261124.csv": 1,
        "gpu_metrics_20261124.007.csv": 1,
        "gpu_metrics_20261124.013.csv": 2,
    }


def test_a_file_of_the_old_program_is_never_touched(tmp_path: Path) -> None:
    old = tmp_path / "gpu_metrics_20261124.csv"
    text = ",".join(CSV_COLUMNS[:13]) + "\r\n" + "2026-11-24 10:00:00,0,Old,1,2,3,4,5,6,7,8,9,n\r\n"
    old.write_bytes(text.encode())
    with opened(tmp_path) as log:
        log.append(rows_of(sample()), [])
    assert old.read_bytes() == text.encode()
    assert (tmp_path / "gpu_metrics_20261124.001.csv").read_bytes().startswith(HEADER)


def test_a_torn_last_line_is_set_aside(tmp_path: Path) -> None:
    crashed(tmp_path, accepted_of(sample()))
    path = tmp_path / "gpu_metrics_20261124.csv"
    whole = path.read_bytes()
    path.write_bytes(whole + b"2026-11-24 12:00:01,0,NVID")
    with opened(tmp_path):
        assert path.read_bytes() == whole
    aside = list((tmp_path / ".gpumon" / "quarantine").iterdir())
    assert [file.read_bytes() for file in aside] == [b"2026-11-24 12:00:01,0,NVID"]


def test_after_a_crash_whole_lines_that_were_not_acknowledged_are_cut_too(tmp_path: Path) -> None:
    crashed(tmp_path, accepted_of(sample()))
    path = tmp_path / "gpu_metrics_20261124.csv"
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines(keepends=True)[-1])
    with opened(tmp_path):
        assert path.read_bytes() == whole


def test_after_an_orderly_stop_rows_that_another_program_appended_stay(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.append(rows_of(sample()), [])
    path = tmp_path / "gpu_metrics_20261124.csv"
    path.write_bytes(path.read_bytes() + b"2026-11-24 13:00:00,0,Old,1,2,3,4,5,6,7,8,9,n\n")
    with opened(tmp_path) as log:
        log.append(rows_of(sample(gpu_id=1)), [])
    assert path.read_bytes().count(b"\n") == 4


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The operating system refuses to let a file of this process grow beyond `size`, as a full disk does."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_when_the_disk_takes_no_more_nothing_of_the_commit_stays_in_any_file_and_it_goes_on_later(
    tmp_path: Path,
) -> None:
    two_days = [sample(timestamp="2026-11-23 12:00:00"), *(sample(gpu_id=n) for n in range(60))]
    batch = BatchId("n", "b", 1)
    with opened(tmp_path) as log:
        log.append(rows_of(sample(timestamp="2026-11-23 11:00:00"), sample()), [])
        before = {path: path.read_bytes() for path in tmp_path.glob("*.csv")}
        with largest_file(3000), pytest.raises(StorageError, match="can't write to"):
            log.append(rows_of(*two_days), [batch])
        assert {path: path.read_bytes() for path in tmp_path.glob("*.csv")} == before
        log.append(rows_of(*two_days), [batch])
    assert sum(path.read_bytes().count(b"\n") - 1 for path in tmp_path.glob("*.csv")) == 2 + len(two_days)


def test_when_only_the_journal_fails_the_rows_are_cut_and_the_batch_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    batch = BatchId("n", "b", 1)
    with opened(tmp_path) as log:
        log.append(rows_of(sample()), [])
        before = (tmp_path / "gpu_metrics_20261124.csv").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr("gpumon.server.journal.sync_file", full)
            with pytest.raises(StorageError, match="free some space"):
                log.append(rows_of(sample(gpu_id=1)), [batch])
        assert (tmp_path / "gpu_metrics_20261124.csv").read_bytes() == before
    journal = Journal(tmp_path / ".gpumon" / "commits.log", 1e10)
    journal.open()
    assert batch not in journal


def test_a_folder_that_can_not_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a file")
    with pytest.raises(StorageError, match=r"can't write to .*x"), opened(tmp_path / "x"):
        pass
