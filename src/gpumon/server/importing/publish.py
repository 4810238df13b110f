"""A new part of a day, made beside a running server: written aside, synced, then given a name that no file has.

At no moment does the folder show a part that is not whole, and no existing file is touched. Imports number their
parts from 500, so that they are never in the way of the server's own.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from gpumon.errors import StorageError
from gpumon.server.days import DayFile, FileNames
from gpumon.server.disk import sync_file, sync_folder

FIRST_PART = 500


class AsideGone(Exception):
    """What was written aside was removed, as a server does that starts: write it again."""


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other import is at the folder. Raises StorageError where one is, and OSError."""
    state = folder / ".gpumon"
    state.mkdir(parents=True, exist_ok=True)
    with (state / "import.lock").open("ab") as lock:
        try:
            _lock(lock.fileno())
        except OSError as error:
            raise StorageError("another import into this data folder is under way; wait for its end") from error
        for left in state.glob("import-*.new"):  # of one that was killed
            left.unlink(missing_ok=True)
        yield


def publish(folder: Path, names: FileNames, day_file: DayFile, header: bytes, lines: Iterable[bytes]) -> str:
    """Makes a part of the lines; gives its name. Raises OSError or AsideGone, and then there is no such part."""
    aside = folder / ".gpumon" / f"import-{os.getpid()}.new"
    try:
        with aside.open("wb") as file:
            file.write(header)
            file.writelines(lines)
            file.flush()
            sync_file(file)
        return _named(folder, names, day_file, aside)
    finally:
        aside.unlink(missing_ok=True)


def _named(folder: Path, names: FileNames, day_file: DayFile, aside: Path) -> str:
    part = FIRST_PART
    while True:
        name = names.of(replace(day_file, part=part))
        part += 1
        if (folder / name).exists() or (folder / f"{name}.gz").exists():
            continue
        try:
            _give_name(aside, folder / name)
        except FileExistsError:
            continue
        except FileNotFoundError as error:
            raise AsideGone from error
        sync_folder(folder)
        return name


def _give_name(aside: Path, target: Path) -> None:
    try:
        os.link(aside, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without links: the name is taken first, and stands empty for a moment
        target.open("xb").close()
        try:
            aside.replace(target)
        except OSError:
            target.unlink()
            raise


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
