"""From the CSV files of a day to tables on disk, by the server's own rules, piece by piece.

A piece is some megabytes of whole lines: so no second copy of a large file is made, and one damaged line costs the
slow way of reading for its piece, not for the day. Files come in the order of their names, and rows keep their
order: `rowid` is the order in which they arrived.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from gpumon.errors import StorageError
from gpumon.server.damage import Damage, set_aside
from gpumon.server.database import Database, DatabaseError
from gpumon.server.days import DayFile, FileNames
from gpumon.server.disk import seen
from gpumon.server.loading import load_piece
from gpumon.server.manifest import SealedFile
from gpumon.server.sources import UNREADABLE, UnreadableSource, open_csv, read_header, reading

log = logging.getLogger(__name__)

PIECE_BYTES: Final = 64 * 2**20
_BLOCK: Final = 2**20


class WantedFile(msgspec.Struct, frozen=True):
    """A CSV file to seal up to `bytes` of it as it stands on the disk: of a compressed file its size. `mtime_ns`
    is from when that was looked up."""

    name: str
    bytes: int
    mtime_ns: int


class FilesChanged(StorageError):
    """A file is not what it was when the job was given: the day is to be sealed at another time."""


def fill(
    database: Database,
    data: Path,
    names: FileNames,
    wanted: Sequence[WantedFile],
    zone: ZoneInfo,
    work: Path,
) -> tuple[list[SealedFile], int]:
    """Fills the tables of the database from CSV files in the folder `data`; `work` takes pieces. Gives what became
    of each file, and how many lines are damaged; these are set aside. A file that can't be read is left out, with
    the reason. Raises FilesChanged, DatabaseError where the database can't be written, OSError."""
    files, damaged = [], 0
    for file in sorted(wanted, key=lambda file: file.name):
        day_file = names.parse(file.name)
        if day_file is None:
            raise FilesChanged(f"{file.name} is not the name of a day's file")
        damage, lines, left_out, refused = Damage(), 0, None, False
        try:
            lines = _load(database, data / file.name, file, day_file, zone, work, damage)
        except (*UNREADABLE, DatabaseError) as error:
            if isinstance(error, DatabaseError) and not error.about_input:
                raise
            database.execute(f"DELETE FROM {day_file.table.name} WHERE starts_with(file, ?)", [_mark(file.name)])
            lines, left_out = 0, str(error) or type(error).__name__
            refused = isinstance(error, UnreadableSource)
            log.error("csv_file_left_out file=%s error=%r", file.name, error)
        else:
            set_aside(data / ".gpumon" / "quarantine", file.name, damage, lines=lines)
            damaged += damage.count
        _check_unchanged(data / file.name, file)
        files.append(SealedFile(file.name, file.bytes, file.mtime_ns, lines, left_out, refused))
    return files, damaged


def _load(
    database: Database,
    path: Path,
    file: WantedFile,
    day_file: DayFile,
    zone: ZoneInfo,
    work: Path,
    damage: Damage,
) -> int:
    """Loads a file; gives the number of its lines without the header."""
    columns, done = read_header(path, day_file.table), 0
    piece = work / "piece.csv"
    for number, lines in enumerate(_pieces(path, file.bytes, piece)):
        source = f"{_mark(file.name)}{number}"
        found = load_piece(database.execute, day_file.table.name, piece, lines, columns, day_file, zone, source)
        damage.take(found, done)
        done += lines
    return done


def _mark(name: str) -> str:
    """How the pieces of a file are marked in the tables, before their numbers: no file name has a slash."""
    return f"{name}/"


def _pieces(path: Path, length: int, piece: Path) -> Iterator[int]:
    """Writes the lines of a file without its header, of a plain one up to `length`, into `piece`, some megabytes
    of them at a time; gives the number of lines of each."""
    with open_csv(path) as source:
        left = None if path.suffix == ".gz" else length
        header = source.readline(-1 if left is None else left)
        if left is not None:
            left -= len(header)
        while True:
            lines = written = 0
            last = b"\n"
            with piece.open("wb") as target:
                while written < PIECE_BYTES or not last.endswith(b"\n"):
                    size = _BLOCK if left is None else min(_BLOCK, left)
                    with reading(path):
                        block = source.read(size) if written < PIECE_BYTES else source.readline(size)
                    if not block:
                        break
                    if left is not None:
                        left -= len(block)
                    lines += block.count(b"\n")
                    written += len(block)
                    last = block
                    target.write(block)
            if not written:
                return
            yield lines if last.endswith(b"\n") else lines + 1


def _check_unchanged(path: Path, file: WantedFile) -> None:
    """Raises FilesChanged where the bytes that were read may not be those that were meant: more may have been
    appended, nothing else."""
    now = seen(path)
    if now is None or now[0] < file.bytes or (now[0] == file.bytes and now[1] != file.mtime_ns):
        raise FilesChanged(f"{file.name} was changed while its day was being sealed")
