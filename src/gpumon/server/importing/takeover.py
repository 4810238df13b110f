"""Takes the rows of daily CSV files in one folder into the data folder, as far as they are not there yet.

First every file is read once, to see what it is and which days its rows are of; then day by day the rows that
stand in no file of that day are written to a new part. So it may be ended at any moment, run again, and run again
when the source has grown. The source is only read. In memory is a number for each of two million lines at most.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from zoneinfo import ZoneInfo

from gpumon.errors import StorageError
from gpumon.server.days import DayFile, FileNames
from gpumon.server.disk import cannot_write
from gpumon.server.importing.lines import Line, Lines, lines_of
from gpumon.server.importing.publish import AsideGone, alone, publish
from gpumon.server.importing.report import NAMED_LINES, Report, reason_of
from gpumon.server.importing.standing import DataFolder
from gpumon.server.sources import UNREADABLE, open_csv, read_header
from gpumon.server.tables import POD_LABELS, POD_USAGE, SAMPLES, Table

_DAILY = re.compile(r".+_\d{8}(?:[._-].*)?\.csv(?:\.gz)?", re.IGNORECASE)
_UNREADABLE = (OSError, *UNREADABLE)
_LINES_AT_ONCE = 2_000_000
"""Their numbers take some 200 MB, and 130 MB more while those that stand in a file already are struck out."""
_OLD_COLUMNS = 13
_TRIES = 5

Advance = Callable[[int], None]


@dataclass(slots=True)
class _Source:
    """A file to take from: how many sound lines it has of each day, how many cells the longest of them has, and
    the days to which some were `moved` from another zone."""

    path: Path
    table: Table
    columns: list[str]
    lines: Counter[date] = field(default_factory=Counter)
    cells: dict[date, int] = field(default_factory=dict)
    moved: set[date] = field(default_factory=set)


def effort(source: Path) -> int:
    """How much `advance` will be told of in all. Raises StorageError where there is nothing to take."""
    return sum(2 * path.stat().st_size for path in _sources_in(source))


def take_over(
    source: Path, folder: Path, names: FileNames, zone: ZoneInfo, advance: Advance, *, dry_run: bool = False
) -> Report:
    """Takes over; gives what was done, or would be in a dry run. `advance` is told of bytes: each file's size
    twice. Raises StorageError; the days that were done until then stay."""
    if folder.exists() and source.resolve() == folder.resolve():
        raise StorageError(
            "these files stand in the data folder already; there they are answered from as they are"
        )
    paths = _sources_in(source)
    report = Report()
    try:
        with contextlib.nullcontext() if dry_run else alone(folder):
            looked = [found for path in paths if (found := _look(path, zone, report, advance)) is not None]
            by_day: dict[tuple[date, str], list[_Source]] = defaultdict(list)
            for file in looked:
                for day in file.lines:
                    by_day[day, file.table.name].append(file)
            for (day, _), files in sorted(by_day.items()):
                _take_day(day, files, DataFolder(folder, names, zone), report, dry_run=dry_run)
                report.days.add(day)
                for file in files:
                    advance(file.path.stat().st_size * file.lines[day] // file.lines.total())
    except OSError as error:
        raise StorageError(cannot_write(error, folder)) from error
    return report


def _sources_in(folder: Path) -> list[Path]:
    """The files in a folder that are named like daily CSV files. Raises StorageError where there are none."""
    try:
        found = sorted(path for path in folder.iterdir() if _DAILY.fullmatch(path.name) and path.is_file())
    except OSError as error:
        raise StorageError(f"can't read the folder {folder} ({error.strerror}); name another") from error
    if not found:
        raise StorageError(
            f"nothing in {folder} is named like a daily CSV file, as gpu_metrics_20261124.csv; name the folder "
            "that the files are in"
        )
    return found


def _look(path: Path, zone: ZoneInfo, report: Report, advance: Advance) -> _Source | None:
    """Reads a file once; None when nothing can be taken from it."""
    size = path.stat().st_size
    try:
        table = _table_of(path)
        if table is None:
            report.unreadable[path.name] = "its header has no timestamp, gpu_id and client_name"
            return None
        source = _Source(path, table, read_header(path, table))
        lines = Lines(table, source.columns, zone)
        bad: list[int] = []
        damaged = 0
        with open_csv(path) as file:
            for number, raw in lines_of(file):
                line = lines.read(raw)
                if line is None:
                    damaged += 1
                    if len(bad) < NAMED_LINES:
                        bad.append(number)
                    continue
                source.lines[line.day] += 1
                source.cells[line.day] = max(line.cells, source.cells.get(line.day, 0))
                if line.moved:
                    source.moved.add(line.day)
    except _UNREADABLE as error:
        report.unreadable[path.name] = reason_of(error)
        return None
    finally:
        advance(size)
    report.files += 1
    if damaged:
        report.damaged[path.name] = damaged, bad
    unknown = [name for name in source.columns if name not in table.columns]
    if unknown:
        report.unknown[path.name] = unknown
    return source


def _table_of(path: Path) -> Table | None:
    """Which table a file is of, by its header; None where it is of none."""
    columns = set(read_header(path, SAMPLES))
    if set(POD_LABELS.identity) <= columns:
        return POD_LABELS
    if not set(SAMPLES.identity) <= columns:
        return None
    return POD_USAGE if {"held", "gpu_share"} <= columns else SAMPLES


def _take_day(day: date, files: list[_Source], folder: DataFolder, report: Report, *, dry_run: bool) -> None:
    """Takes the rows of a day, in as many rounds as the memory needs."""
    table = files[0].table
    total = sum(file.lines[day] for file in files)
    rounds = math.ceil(total / _LINES_AT_ONCE)
    longest = max(file.cells[day] for file in files)
    width = _OLD_COLUMNS if table is SAMPLES and longest <= _OLD_COLUMNS else len(table.columns)
    header = (",".join(table.columns[:width]) + "\n").encode()
    taken = 0
    for turn in range(rounds):
        for tries_left in reversed(range(_TRIES)):
            try:
                wanted = _wanted(day, files, folder, report, turn, rounds)
                new = len(wanted)
                if wanted and not dry_run:
                    rows = _rows(day, files, folder.zone, wanted, width)
                    part = publish(folder.path, folder.names, DayFile(table, day), header, rows)
                    report.parts.append(part)
            except (AsideGone, FileNotFoundError):
                # A server has just started and tidied up, or compressed or deleted a file that was being read.
                if not tries_left:
                    raise
            else:
                taken += new
                break
    report.taken += taken
    report.there += total - taken


def _wanted(
    day: date, files: list[_Source], folder: DataFolder, report: Report, turn: int, rounds: int
) -> set[int]:
    """The keys of this round's lines of the day that stand nowhere in the data folder."""
    keys = {line.key for line in _of_day(files, day, folder.zone) if line.key % rounds == turn}
    moved = any(day in file.moved for file in files)
    folder.strike_out(keys, files[0].table, day, report, moved=moved)
    return keys


def _rows(day: date, files: list[_Source], zone: ZoneInfo, wanted: set[int], width: int) -> Iterator[bytes]:
    """The lines with these keys, each once, filled up to `width` cells."""
    for line in _of_day(files, day, zone):
        if line.key in wanted:
            wanted.remove(line.key)
            yield line.text + b"," * (width - line.cells) + b"\n"


def _of_day(files: list[_Source], day: date, zone: ZoneInfo) -> Iterator[Line]:
    for source in files:
        lines = Lines(source.table, source.columns, zone)
        with open_csv(source.path) as file:
            for _, raw in lines_of(file):
                line = lines.read(raw)
                if line is not None and line.day == day:
                    yield line
