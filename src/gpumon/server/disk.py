"""What the operating system needs to be told so that bytes are really on the disk, on Linux and Windows."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

_RESERVE_BYTES = 2**20
_TOO_MANY_OPEN = (
    "too many files and connections are open; raise the limit of open files (ulimit -n, LimitNOFILE of systemd), "
    "and see who has so many connections to the server"
)


def append_fully(file: BinaryIO, data: bytes, *, at: int) -> None:
    """Appends all of `data` to an unbuffered file of length `at`. On trouble (disk full) the file is cut back
    to `at`, and the OSError goes on."""
    try:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
    except OSError:
        file.truncate(at)
        raise


def sync_file(file: BinaryIO) -> None:
    """Returns when the file's data is on the disk."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(file.fileno())
    else:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes a new or renamed file's name durable. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seen(path: Path) -> tuple[int, int] | None:
    """(size, mtime in ns) of a file; None of anything else, or when it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: aside, synced, renamed."""
    aside = path.with_name(path.name + ".new")
    with aside.open("wb", buffering=0) as file:
        append_fully(file, data, at=0)
        sync_file(file)
    aside.replace(path)
    sync_folder(path.parent)


def try_to_write(folder: Path) -> None:
    """Raises OSError where no file can be made in the folder."""
    trial = folder / "trial.new"
    trial.touch()
    trial.unlink(missing_ok=True)


def keep_reserve(state: Path) -> None:
    """Keeps some room in a file, for when the disk is full: who deletes has to write first what it deletes. Where
    there is little room, there is none to keep."""
    path = state / "reserve"
    with contextlib.suppress(OSError):
        if not path.exists() and not _is_short(state):
            replace_file(path, os.urandom(_RESERVE_BYTES))  # there are file systems that keep no zeros


def use_reserve(state: Path) -> None:
    """Gives that room away, if it is needed."""
    with contextlib.suppress(OSError):
        if _is_short(state):
            (state / "reserve").unlink(missing_ok=True)


def _is_short(state: Path) -> bool:
    return shutil.disk_usage(state).free < 2 * _RESERVE_BYTES


def cannot_write(error: OSError, folder: Path) -> str:
    """Says why the data folder can't be written and what to do. Has no path of this machine: it goes out over
    HTTP."""
    said = f"can't write to the data folder, [STORAGE] output_directory ({error.strerror or error})"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{said}: {_whose(error, folder)}"
    advice = {
        errno.ENOSPC: "free some space, or set [STORAGE] data_retention_days or max_disk_mb",
        errno.EDQUOT: "raise the quota, or set [STORAGE] data_retention_days or max_disk_mb",
        errno.EMFILE: _TOO_MANY_OPEN,
        errno.ENFILE: _TOO_MANY_OPEN,
        errno.EROFS: "the file system is mounted read-only; mount it writable",
    }
    return f"{said}: {advice.get(error.errno or 0, 'check the disk')}"


def _whose(error: OSError, folder: Path) -> str:
    """Who the server is, whose that is which it may not write, and what to do about it."""
    place, status = _refusing(Path(error.filename) if isinstance(error.filename, str) else folder)
    if os.name == "nt" or status is None:
        return "make the folder writable for the user the server runs as"
    what = "the folder"
    if place != folder:
        inside = place.is_relative_to(folder)
        what = f"{place.relative_to(folder)} in it" if inside else "the folder that it is to be made in"
    user, groups = os.geteuid(), sorted({os.getegid(), *os.getgroups()})
    numbers = ", ".join(map(str, groups))
    whose = (
        f"the server runs as user {user}, group{'s' if len(groups) > 1 else ''} {numbers}, and {what} belongs to "
        f"user {status.st_uid}, group {status.st_gid}, mode {stat.S_IMODE(status.st_mode):04o}"
    )
    if _lets_write(status, user, groups):
        return f"{whose}, which lets it; see what else forbids it, such as SELinux, chattr +i, root_squash of NFS"
    return (
        f"{whose}; on Kubernetes set the chart value server.persistence.fixPermissions to true (fsGroup is not "
        "applied to hostPath volumes), else chown the folder and all in it"
    )


def _refusing(path: Path) -> tuple[Path, os.stat_result | None]:
    """What it is that refused: the file where it may not be written, else the nearest folder that is there."""
    for place in (path, *path.parents):
        try:
            status = place.stat()
        except OSError:
            continue
        if stat.S_ISDIR(status.st_mode) or not os.access(place, os.W_OK):
            return place, status
    return path, None


def _lets_write(status: os.stat_result, user: int, groups: Iterable[int]) -> bool:
    """Whether owner and mode let a user without capabilities write: a file by w, a folder by w and x."""
    needed = stat.S_IWOTH | stat.S_IXOTH if stat.S_ISDIR(status.st_mode) else stat.S_IWOTH
    shift = 6 if status.st_uid == user else 3 if status.st_gid in groups else 0
    return (status.st_mode >> shift) & needed == needed
