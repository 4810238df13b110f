"""Where log lines go, and that a set-up leaves nothing behind."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpumon import logs
from gpumon.logs import Trouble

log = logging.getLogger("gpumon.somewhere")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    assert (root.handlers, root.level) == (handlers, level)


def set_up(file: Path | None, **settings: Any) -> logs.Logs:
    given: dict[str, Any] = {"level": "INFO", "console": False, "max_size_mb": 1.0, "backup_count": 2}
    return logs.set_up(file="" if file is None else str(file), **(given | settings))


def test_an_event_is_one_line_with_its_instant_in_utc(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "agent.log"
    handlers = set_up(file)
    log.info("nvml_opened gpus=%d", 8)
    log.debug("not asked for")
    handlers.close()

    line = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO gpumon\.somewhere nvml_opened gpus=8\n"
    assert re.fullmatch(line, file.read_text())


def test_a_traceback_and_a_line_break_from_outside_stay_on_the_line(tmp_path: Path) -> None:
    file = tmp_path / "agent.log"
    handlers = set_up(file)
    try:
        raise ValueError("bad\n2026-01-01T00:00:00.000Z INFO gpumon forged")
    except ValueError:
        log.exception("task_failed")
    handlers.close()

    (line,) = file.read_text().splitlines()
    assert "task_failed | Traceback" in line
    assert " | ValueError: bad | 2026-01-01" in line


def test_a_file_is_rotated_at_its_size_and_the_oldest_goes(tmp_path: Path) -> None:
    handlers = set_up(tmp_path / "agent.log", max_size_mb=0.001, backup_count=2)
    for number in range(100):
        log.info("event number=%d", number)
    handlers.close()

    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["agent.log", "agent.log.1", "agent.log.2"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert "number=99" in (tmp_path / "agent.log").read_text()


def test_without_backups_the_file_is_begun_anew_at_its_size(tmp_path: Path) -> None:
    handlers = set_up(tmp_path / "agent.log", max_size_mb=0.001, backup_count=0)
    for number in range(100):
        log.info("event number=%d", number)
    handlers.close()

    (file,) = tmp_path.iterdir()
    assert file.stat().st_size <= 1000
    assert "number=99" in file.read_text()


def test_a_file_that_cannot_be_written_is_a_warning_on_the_console_which_takes_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    handlers = set_up(tmp_path / "logs" / "agent.log", console=False)
    log.warning("still said")
    handlers.close()

    said = capsys.readouterr().err
    assert "log_file_unwritable" in said
    assert "[LOGGING] log_file" in said
    assert "still said" in said


def test_a_disk_that_fills_up_is_told_once_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    handlers = set_up(full)
    log.info("first")
    log.info("second")
    handlers.close()

    assert capsys.readouterr().err.count("log lines are lost") == 1


def test_console_alone_and_nothing_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    handlers = set_up(None, console=True)
    log.info("said")
    handlers.close()
    handlers = set_up(None)
    log.error("not said")
    handlers.close()

    captured = capsys.readouterr()
    assert ("said" in captured.err, "not said" in captured.err, captured.out) == (True, False, "")


def test_requests_of_libraries_are_not_logged_unless_they_fail(tmp_path: Path) -> None:
    file = tmp_path / "agent.log"
    handlers = set_up(file, level="DEBUG")
    logging.getLogger("httpx").info("HTTP Request: POST")
    logging.getLogger("httpx").warning("trouble")
    handlers.close()

    assert [line.split()[-1] for line in file.read_text().splitlines()] == ["trouble"]
    assert logging.getLogger("httpx").level == logging.NOTSET


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_fifty_set_ups_leave_no_file_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        set_up(tmp_path / "agent.log", console=True).close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert sys.stderr.closed is False


def test_trouble_is_logged_when_it_starts_changes_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    seconds = iter([10.0, 100.0, 130.0, 131.0])
    trouble = Trouble(log, "nvml", monotonic=lambda: next(seconds))
    with caplog.at_level(logging.INFO):
        trouble.ended()
        trouble.occurred("no library", do="install the driver")
        trouble.occurred("no library")
        trouble.occurred("no driver")
        trouble.ended()
        trouble.ended()
        trouble.occurred("no driver")

    assert [record.getMessage() for record in caplog.records] == [
        "trouble nvml reason='no library' do='install the driver'",
        "trouble nvml reason='no driver'",
        "recovered nvml after_seconds=90.0 times=3 reason='no driver'",
        "trouble nvml reason='no driver'",
    ]
