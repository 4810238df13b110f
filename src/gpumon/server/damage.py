"""Damaged lines: those of a CSV file that are no CSV, or whose time, GPU or client can't be read.

They are left out of every answer, and set aside for a person to look at: the first of them of each file, in
`.gpumon/quarantine/<file>.damaged.csv`, each with its line number, the reason, and the line as it stands.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

from gpumon.server.disk import replace_file

log = logging.getLogger(__name__)

MAX_KEPT: Final = 10_000
"""Of a file more damaged lines than these are counted only: it is another kind of file, or broken as a whole."""
_SHOWN_CHARACTERS: Final = 1000
_COLUMNS: Final = ("line", "reason", "text")


@dataclass(slots=True)
class Damage:
    """The damaged lines of some bytes of a file: how many, and of the first of them by number (from 1 on; 0 is
    the file's header) the reason and the text."""

    count: int = 0
    lines: dict[int, tuple[str, str]] = field(default_factory=dict)

    def add(self, number: int, reason: str, line: bytes) -> None:
        """Counts a line, and keeps it if not too many are kept."""
        self.count += 1
        if len(self.lines) < MAX_KEPT:
            self.lines[number] = (reason, _shown(line))

    def take(self, other: Damage, offset: int) -> None:
        """Adds the damage of bytes that begin `offset` lines later."""
        self.count += other.count
        for number, entry in other.lines.items():
            if len(self.lines) < MAX_KEPT:
                self.lines[number + offset if number else 0] = entry


def copy_sound_lines(source: BinaryIO, target: BinaryIO, damage: Damage) -> int:
    """Copies the lines that are CSV by themselves, each after its number and a comma; gives how many. The others
    are added to the damage; empty ones are neither."""
    sound = 0
    for number, line in enumerate(source, 1):
        stripped = line.rstrip(b"\r\n")
        if not stripped:
            continue
        reason = _fault(stripped)
        if reason is None:
            target.write(b"%d,%b\n" % (number, stripped))
            sound += 1
        else:
            damage.add(number, reason, stripped)
    return sound


def note_unplaced(source: BinaryIO, reasons: Mapping[int, str | None], damage: Damage) -> None:
    """Adds lines that are CSV but no rows, by their numbers. Where the reason is None, DuckDB gave none."""
    for number, line in enumerate(source, 1):
        if number in reasons and number not in damage.lines:
            stripped = line.rstrip(b"\r\n")
            if stripped and _fault(stripped) is None:
                damage.add(number, reasons[number] or "can't be read as a row", stripped)


def set_aside(quarantine: Path, name: str, damage: Damage, *, before: int = 1, lines: int | None = None) -> None:
    """Writes down the damaged lines of a CSV file, or of the part of it that begins after `before` lines (with the
    header) and has `lines` (None: all that follow), in place of what was known of that part. Trouble with the disk
    is logged: these lines are a help, the file itself still has them."""
    path = quarantine / f"{name.removesuffix('.gz')}.damaged.csv"
    if not damage.lines and (before > 1 or not path.exists()):
        return
    try:
        first, last = before + 1, float("inf") if lines is None else before + lines
        entries = {line: entry for line, entry in _read(path).items() if 1 < line < first or line > last}
        entries |= {before + number if number else 1: entry for number, entry in damage.lines.items()}
        if entries:
            quarantine.mkdir(parents=True, exist_ok=True)
            replace_file(path, _rendered(entries))
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("damaged_lines_not_set_aside file=%s lines=%d error=%s", name, damage.count, error)


def _fault(line: bytes) -> str | None:
    """Why a line is no CSV; None where it is."""
    try:
        text = line.decode()
        if "\x00" in text:
            return "holds a NUL character"
        next(csv.reader([text], strict=True))
    except UnicodeDecodeError:
        return "is not UTF-8"
    except csv.Error as error:
        return f"is no CSV: {error}"
    return None


def _shown(line: bytes) -> str:
    text = line[: 4 * _SHOWN_CHARACTERS].decode(errors="backslashreplace").replace("\x00", "\\x00")
    return text[:_SHOWN_CHARACTERS]


def _read(path: Path) -> dict[int, tuple[str, str]]:
    entries: dict[int, tuple[str, str]] = {}
    with (
        contextlib.suppress(FileNotFoundError, ValueError, csv.Error),
        path.open(encoding="utf-8", newline="") as file,
    ):
        for line, reason, text in islice(csv.reader(file), 1, None):
            entries[int(line)] = (reason, text)
    return entries


def _rendered(entries: Mapping[int, tuple[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows((line, *entries[line]) for line in sorted(entries)[:MAX_KEPT])
    return text.getvalue().encode()
