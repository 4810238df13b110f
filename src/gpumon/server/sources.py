"""The bytes of CSV files, plain or compressed, as whoever loads, seals or imports them needs them: the header's
names, copies of stretches of lines; and what a file that can't be read raises."""

from __future__ import annotations

import contextlib
import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, cast

from gpumon.server.tables import Table

_BLOCK: Final = 1 << 20


class UnreadableSource(Exception):
    """The operating system does not give a CSV file's bytes; the text says why."""


UNREADABLE: Final = (EOFError, zlib.error, csv.Error, gzip.BadGzipFile, UnreadableSource)
"""What is raised, beside DatabaseError, where a file is not what its name says, or can't be read."""


def read_header(path: Path, table: Table) -> list[str]:
    """The names of a file's columns. The beginning of the catalogue stands for all of it, because newer rows may
    follow an older header. An empty name, or one that comes twice, gets a name that means nothing."""
    with reading(path), open_csv(path) as file:
        line = file.readline().decode("utf-8-sig", errors="replace")
    names = next(csv.reader([line.rstrip("\r\n")]), [])
    if tuple(names) == table.columns[: len(names)]:
        return list(table.columns)
    seen: set[str] = set()
    for place, name in enumerate(names):
        if not name or name.lower() in seen:
            names[place] = f"unnamed {place}"
        seen.add(names[place].lower())
    return names


def open_csv(path: Path) -> BinaryIO:
    """A file's bytes, decompressed where it is compressed."""
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What the operating system refuses inside is that file's fault: raises UnreadableSource, but for one that is
    gone."""
    try:
        yield
    except (FileNotFoundError, gzip.BadGzipFile):
        raise
    except OSError as error:
        raise UnreadableSource(f"{path.name} can't be read ({error.strerror or error})") from error


def is_given(path: Path) -> bool:
    """Whether the operating system gives a file's bytes, as far as its first one shows."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError:
        return False
    return True


def copy_lines(path: Path, target: Path, start: int, end: int) -> int:
    """Copies the lines of a byte range without the header; gives their number."""
    lines = 0
    last = b"\n"
    with target.open("wb") as piece:
        for block in _blocks(path, start, end):
            lines += block.count(b"\n")
            last = block
            piece.write(block)
    return lines if last.endswith(b"\n") else lines + 1


def _blocks(path: Path, start: int, end: int) -> Iterator[bytes]:
    with reading(path), open_csv(path) as source:
        if start == 0:
            start = len(source.readline())
        source.seek(start)
        left = end - start if path.suffix != ".gz" else None
        while block := source.read(_BLOCK if left is None else min(_BLOCK, left)):
            yield block
            if left is not None:
                left -= len(block)
