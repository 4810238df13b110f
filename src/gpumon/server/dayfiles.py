"""The CSV files as they are given out: which there are, the committed bytes of one, and a day by its plain name
where it stands in parts or compressed ones.

Safe beside the writer and housekeeping: a file that is being appended to is given up to its committed length, so
never with a torn or unacknowledged line, and one that is deleted or compressed meanwhile is read to its end by
whoever has it open.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from gpumon.errors import QueryError
from gpumon.server.days import DayFile, FileNames
from gpumon.server.sources import UNREADABLE, open_csv

_BLOCK = 1 << 18


@dataclass(frozen=True, slots=True)
class Listed:
    """One CSV file: what it is, its length as it would be given out, and when it was last written."""

    name: str
    day_file: DayFile
    size: int
    modified: datetime


class DayFiles:
    """The files of one data folder. From any thread."""

    def __init__(self, folder: Path, names: FileNames, committed: Callable[[str], int | None]) -> None:
        self._folder = folder
        self._names = names
        self._committed = committed

    def list(self) -> list[Listed]:
        """All files of days, by day and name. Raises QueryError where the folder can't be read."""
        found = []
        try:
            for entry in os.scandir(self._folder):
                day_file = self._names.parse(entry.name)
                if day_file is None:
                    continue
                try:
                    status = entry.stat()
                except FileNotFoundError:  # deleted or compressed since
                    continue
                if stat.S_ISREG(status.st_mode):
                    modified = datetime.fromtimestamp(status.st_mtime, UTC)
                    found.append(Listed(entry.name, day_file, self._length(entry.name, status.st_size), modified))
        except OSError as error:
            raise _cannot_read(error) from error
        return sorted(found, key=lambda file: (file.day_file.day, file.name))

    def open(self, name: str) -> tuple[BinaryIO, int]:
        """A file of that name, and how many of its bytes are to be given out, whatever is appended to it. To be
        closed. Raises QueryError, 404, where there is none."""
        there = self._names.parse(name) is not None and (self._folder / name).is_file()
        if not there:
            raise QueryError(f"there is no file {name[:80]!r}; /api/files lists them", status=404)
        try:
            file = (self._folder / name).open("rb", buffering=0)
        except FileNotFoundError as error:
            raise QueryError(
                f"{name} has just been deleted or compressed; /api/files lists them", status=404
            ) from error
        except OSError as error:
            raise _cannot_read(error) from error
        return file, self._length(name, os.fstat(file.fileno()).st_size)

    def open_day(self, name: str) -> tuple[Iterator[bytes], Callable[[], None]] | None:
        """The plain name of a day without such a file: all of its parts as one, decompressed, in blocks, and what
        closes them. None where it is another name, or there is nothing of the day. Raises QueryError: 404 where
        the parts have other columns than one another, 503 where one can't be read."""
        asked = self._names.parse(name)
        if asked is None or asked.part or asked.compressed or (self._folder / name).is_file():
            return None
        parts = [one for one in self.list() if (one.day_file.table, one.day_file.day) == (asked.table, asked.day)]
        if not parts:
            return None
        parts.sort(key=lambda one: one.day_file.part)
        with contextlib.ExitStack() as stack:
            with _reading(name):
                files = [(one, stack.enter_context(open_csv(self._folder / one.name))) for one in parts]
                headers = [file.readline().rstrip(b"\r\n") for _, file in files]
            header = max(headers, key=len)
            if not all(header.startswith(one) for one in headers):
                names = ", ".join(one.name for one in parts)
                raise QueryError(f"{name} stands in parts with different columns; take each: {names}", status=404)
            closing = stack.pop_all()
        return _joined(name, header, files), closing.close

    def _length(self, name: str, size: int) -> int:
        committed = self._committed(name)
        return size if committed is None else min(size, committed)


def _joined(name: str, header: bytes, files: Sequence[tuple[Listed, BinaryIO]]) -> Iterator[bytes]:
    yield header + b"\n"
    for listed, file in files:
        last = b"\n"
        while block := _next_block(name, listed, file):
            yield block
            last = block
        if not last.endswith(b"\n"):
            yield b"\n"


def _next_block(name: str, listed: Listed, file: BinaryIO) -> bytes:
    with _reading(name):
        if listed.day_file.compressed:
            return file.read(_BLOCK)
        return file.read(max(0, min(_BLOCK, listed.size - file.tell())))


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, *UNREADABLE) as error:
        reason = getattr(error, "strerror", None) or error
        raise QueryError(
            f"a part of {name} can't be read ({reason}); try again, or take the parts that /api/files lists",
            status=503,
        ) from error


def _cannot_read(error: OSError) -> QueryError:
    return QueryError(
        f"the server can't read its data folder ({error.strerror}); make it readable for its user", status=503
    )
