"""One line of a CSV file: the day it belongs to, and by what it is the same as another; pure.

Two lines are the same when their cells are, column by column: the header's order, missing columns and quoting
don't count, nor does a `sampled_at` that says no more than `timestamp`, as an export of an old row has it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from typing import BinaryIO, NamedTuple
from zoneinfo import ZoneInfo

from gpumon.clock import to_wire
from gpumon.server.tables import Table

_LONGEST = 1 << 20
_INSTANTS = 1000
_INSTANT = re.compile(rb"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d{1,9})?")
_WHOLE = re.compile(rb"\d{1,18}(?:\.0*)?")


class Line(NamedTuple):
    """A sound line: its day, its cells in the catalogue's order up to the last that is not empty, their number,
    and what it has in common with its equals only."""

    day: date
    text: bytes
    cells: int
    key: int


class Lines:
    """Reads the lines of files of one table with the same header."""

    def __init__(self, table: Table, columns: Sequence[str], zone: ZoneInfo) -> None:
        self._table = table
        self._columns = list(columns)
        self._zone = zone
        self._ordered = tuple(columns) == table.columns
        self._identity = [(table.columns.index(name), name) for name in table.identity]
        self._last = max(place for place, _ in self._identity)
        self._instants: dict[bytes, tuple[date, bytes] | None] = {}

    def read(self, raw: bytes) -> Line | None:
        """The line; None when it is damaged: no CSV, or its time, GPU or client can't be read."""
        if not raw.endswith(b"\n"):  # still being written, or far too long
            return None
        if not self._ordered or b'"' in raw:
            return self._with_quotes(raw.rstrip(b"\r\n"))
        text = raw.rstrip(b",\r\n")
        if b"\x00" in text or b"\r" in text or not (text.isascii() or _is_utf8(text)):
            return None
        cells = text.split(b",", self._last + 1)
        if len(cells) <= self._last or raw.count(b",") >= len(self._columns):
            return None
        for place, name in self._identity:
            if not _sound(name, cells[place]):
                return None
        return self._line(cells[0], text, text.count(b",") + 1)

    def _with_quotes(self, text: bytes) -> Line | None:
        try:
            found = next(csv.reader([text.decode()], strict=True), [])
        except (UnicodeDecodeError, csv.Error):
            return None
        if b"\x00" in text or len(found) > len(self._columns):
            return None
        named = dict(zip(self._columns, found, strict=False))
        cells = [named.get(name, "") for name in self._table.columns]
        if not all(_sound(name, named.get(name, "").encode()) for name in self._table.identity):
            return None
        while not cells[-1]:
            cells.pop()
        rendered = io.StringIO(newline="")
        csv.writer(rendered, lineterminator="").writerow(cells)
        return self._line(named["timestamp"].encode(), rendered.getvalue().encode(), len(cells))

    def _line(self, instant: bytes, text: bytes, cells: int) -> Line | None:
        if instant not in self._instants:
            if len(self._instants) > _INSTANTS:
                self._instants.clear()
            self._instants[instant] = self._known(instant)
        known = self._instants[instant]
        if known is None:
            return None
        day, exact = known
        same = text.replace(exact, b",", 1).rstrip(b",") if exact in text else text
        return Line(day, text, cells, hash(same))

    def _known(self, instant: bytes) -> tuple[date, bytes] | None:
        """The day of a local time, and the cell that its instant would be; None where there is no such time."""
        try:
            if _INSTANT.fullmatch(instant) is None:
                return None
            local = datetime.fromisoformat(instant[:19].decode())
            return local.date(), f",{to_wire(local.replace(tzinfo=self._zone))}".encode()
        except (ValueError, OverflowError):
            return None


def lines_of(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines after the header that are not empty, with their numbers. One that is longer than a mebibyte comes
    without its end: it is no line of ours."""
    number = 1
    file.readline()
    while line := file.readline(_LONGEST):
        if len(line) == _LONGEST and not line.endswith(b"\n"):
            while (rest := file.readline(_LONGEST)) and not rest.endswith(b"\n"):
                pass
        number += 1
        if line.strip():
            yield number, line


def _sound(name: str, cell: bytes) -> bool:
    """Whether a cell of the identity can be read; of a time, this is known when it has been looked at."""
    return bool(cell) and (name != "gpu_id" or cell.isdigit() or _WHOLE.fullmatch(cell) is not None)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
