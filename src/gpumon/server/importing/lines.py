"""One line of a CSV file: the day it belongs to, and by what it is the same as another; pure.

Two lines are the same when their cells are, column by column: the header's order, missing columns and quoting
don't count, nor does a `sampled_at` that says no more than `timestamp`, as an export of an old row has it. Where
`sampled_at`, the exact instant, can be read, `timestamp` is told in this server's zone, whoever's it was.
"""

from __future__ import annotations

import csv
import io
import os
import re
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from typing import BinaryIO, NamedTuple
from zoneinfo import ZoneInfo

from gpumon.clock import to_wire
from gpumon.server.days import FIRST_DAY, LAST_DAY
from gpumon.server.tables import Table

_LONGEST = 1 << 20
_AT_REST_SECONDS = 60.0
_INSTANTS = 1000
_INSTANT = re.compile(rb"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d{1,9})?")
_EXACT = re.compile(rb"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d{1,9})?Z?")
_OTHER_FORM = re.compile(
    rb"\s*(\d{4})[-/](\d{1,2})[-/](\d{1,2})[ T]+(\d{1,2}):(\d\d)(?::(\d\d)(?:\.\d*)?)?\s*(Z|[+-]\d\d:?\d\d)?\s*"
)
"""What a spreadsheet makes of a timestamp when it saves the file, or another program writes."""
_SECONDS = 19
"""So long is an instant in whole seconds, without a zone."""
_WHOLE = re.compile(rb"\d{1,18}(?:\.0*)?")


class Line(NamedTuple):
    """A sound line: its day, its cells in the catalogue's order up to the last that is not empty, their number,
    what it has in common with its equals only, and whether its `timestamp` was `moved` here from another zone."""

    day: date
    text: bytes
    cells: int
    key: int
    moved: bool


class _Local(NamedTuple):
    """A local time: its day, the `sampled_at` that says no more than it, this to the second, and how it is written
    where it stands in another form."""

    day: date
    exact: bytes
    second: bytes
    written: bytes = b""


class Lines:
    """Reads the lines of files of one table with the same header."""

    def __init__(self, table: Table, columns: Sequence[str], zone: ZoneInfo) -> None:
        self._table = table
        self._columns = list(columns)
        self._zone = zone
        self._ordered = tuple(columns) == table.columns
        self._identity = [(table.columns.index(name), name) for name in table.identity]
        self._last = max(place for place, _ in self._identity)
        self._sampled_at = table.columns.index("sampled_at")
        self._cuts = max(self._last, self._sampled_at) + 1
        self._locals: dict[bytes, _Local | None] = {}

    def read(self, raw: bytes) -> Line | None:
        """The line; None when it is damaged: no CSV, or its time, GPU or client can't be read."""
        if not raw.endswith(b"\n"):  # still being written (see `lines_of`), or far too long
            return None
        if not self._ordered or b'"' in raw:
            return self._with_quotes(raw.rstrip(b"\r\n"))
        text = raw.rstrip(b",\r\n")
        if b"\x00" in text or b"\r" in text or not (text.isascii() or _is_utf8(text)):
            return None
        cells = text.split(b",", self._cuts)
        if len(cells) <= self._last or raw.count(b",") >= len(self._columns):
            return None
        for place, name in self._identity:
            if not _sound(name, cells[place]):
                return None
        sampled_at = cells[self._sampled_at] if len(cells) > self._sampled_at else b""
        return self._line(cells[0], sampled_at, text, text.count(b",") + 1)

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
        sampled_at = cells[self._sampled_at].encode()
        while not cells[-1]:
            cells.pop()
        rendered = io.StringIO(newline="")
        csv.writer(rendered, lineterminator="").writerow(cells)
        return self._line(named["timestamp"].encode(), sampled_at, rendered.getvalue().encode(), len(cells))

    def _line(self, timestamp: bytes, sampled_at: bytes, text: bytes, cells: int) -> Line | None:
        """The line with this text, which begins with its timestamp; None when that is no time."""
        local = self._locals.get(timestamp) or self._local_of(timestamp)
        moved = False
        if local is not None and local.written:
            text, timestamp = local.written + text[len(timestamp) :], local.written
        if local is not None and sampled_at and not sampled_at.startswith(local.second):
            here = self._here(sampled_at)
            moved = here is not None and here != timestamp[:_SECONDS].replace(b"T", b" ")
            if here is not None and moved:
                text = here + text[len(timestamp) :]
                local = self._local_of(here)
        if local is None:
            return None
        same = text.replace(b"," + sampled_at, b",", 1).rstrip(b",") if sampled_at == local.exact else text
        return Line(local.day, text, cells, hash(same), moved)

    def _local_of(self, timestamp: bytes) -> _Local | None:
        """A local time of this zone; None where there is no such time."""
        if timestamp not in self._locals:
            if len(self._locals) > _INSTANTS:
                self._locals.clear()
            self._locals[timestamp] = self._read_local(timestamp)
        return self._locals[timestamp]

    def _read_local(self, timestamp: bytes) -> _Local | None:
        try:
            written = b"" if _INSTANT.fullmatch(timestamp) else self._usual_form(timestamp)
            local = datetime.fromisoformat((written or timestamp)[:_SECONDS].decode())
            if not FIRST_DAY <= local.date() <= LAST_DAY:
                return None
            exact = to_wire(local.replace(tzinfo=self._zone)).encode()
        except (ValueError, OverflowError):
            return None
        return _Local(local.date(), exact, exact[:_SECONDS], written)

    def _usual_form(self, timestamp: bytes) -> bytes:
        """A timestamp of another form as this program writes it. Raises ValueError where it is none."""
        match = _OTHER_FORM.fullmatch(timestamp)
        if match is None:
            raise ValueError(timestamp)
        *numbers, offset = match.groups()
        local = datetime(*(int(number or 0) for number in numbers))  # type: ignore[arg-type]
        if offset is not None:
            local = datetime.fromisoformat(local.isoformat() + offset.decode()).astimezone(self._zone)
        return local.isoformat(" ", "seconds")[:_SECONDS].encode()

    def _here(self, sampled_at: bytes) -> bytes | None:
        """The `timestamp` that an exact instant has in this zone; None where it can't be read."""
        try:
            if _EXACT.fullmatch(sampled_at) is None:
                return None
            instant = datetime.fromisoformat(sampled_at[:_SECONDS].decode()).replace(tzinfo=UTC)
            return instant.astimezone(self._zone).isoformat(" ", "seconds")[:_SECONDS].encode()
        except (ValueError, OverflowError):
            return None


def lines_of(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines after the header that are not empty, with their numbers. One that is longer than a mebibyte comes
    without its end: it is no line of ours. So does the last one without a line break, as long as somebody may be
    writing it; where the file is at rest it is given one."""
    number = 1
    at_rest = time.time() - os.fstat(file.fileno()).st_mtime > _AT_REST_SECONDS
    file.readline()
    while line := file.readline(_LONGEST):
        if len(line) == _LONGEST and not line.endswith(b"\n"):
            while (rest := file.readline(_LONGEST)) and not rest.endswith(b"\n"):
                pass
        elif at_rest and not line.endswith(b"\n"):
            line += b"\n"
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
