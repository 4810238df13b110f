"""What of a day stands in the data folder already.

A file there that can't be read is left alone and reported. The server answers nothing from it either, so nothing
in it counts, not even what comes before the damage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from zoneinfo import ZoneInfo

from gpumon.server.days import FileNames
from gpumon.server.importing.lines import Lines, lines_of
from gpumon.server.importing.report import Report, reason_of
from gpumon.server.sources import UNREADABLE, open_csv, read_header, reading
from gpumon.server.tables import Table

_DAYS_OF_AN_INSTANT = 2
"""So far apart are the days of one instant in two zones: UTC+14 is 26 hours ahead of UTC-12."""


@dataclass(frozen=True, slots=True)
class DataFolder:
    """Where rows are taken to: the folder, how its files are named, and whose days they are of."""

    path: Path
    names: FileNames
    zone: ZoneInfo

    def strike_out(self, keys: set[int], table: Table, day: date, report: Report, *, moved: bool) -> None:
        """Takes out of `keys`, of lines of a day, those that stand in a file here. What was `moved` from another
        zone may stand under the day that it had there: a server's zone may change, and older imports left it as it
        was. Raises FileNotFoundError where a file goes meanwhile, OSError where the folder can't be read."""
        if not self.path.exists():
            return
        for path in self._files_near(table, day, _DAYS_OF_AN_INSTANT if moved else 1):
            try:
                if moved or self._may_hold(path, table, day):
                    self._strike_out(keys, path, table)
            except UNREADABLE as error:
                report.left_alone[path.name] = reason_of(error)
            if not keys:
                break

    def _files_near(self, table: Table, day: date, distance: int) -> Iterator[Path]:
        """The files of a table whose days are so many days at most from a day, by name."""
        for path in sorted(self.path.iterdir()):
            there = self.names.parse(path.name)
            if there is not None and there.table is table and abs((there.day - day).days) <= distance:
                yield path

    def _may_hold(self, path: Path, table: Table, day: date) -> bool:
        """Whether rows of a day may stand in a file: the old program filed them by when they arrived; in our files
        they are where they belong. Raises one of UNREADABLE."""
        there = self.names.parse(path.name)
        return (there is not None and there.day == day) or not _is_ours(path, table)

    def _strike_out(self, keys: set[int], path: Path, table: Table) -> None:
        """Takes out the keys of a file's lines, or none where one of UNREADABLE is raised."""
        lines = Lines(table, read_header(path, table), self.zone)
        struck: set[int] = set()
        try:
            with reading(path), open_csv(path) as file:
                for _, raw in lines_of(file):
                    line = lines.read(raw)
                    if line is not None and line.key in keys:
                        keys.remove(line.key)
                        struck.add(line.key)
        except UNREADABLE:
            keys |= struck
            raise


def _is_ours(path: Path, table: Table) -> bool:
    with reading(path), open_csv(path) as file:
        return file.read(len(table.header)) == table.header
