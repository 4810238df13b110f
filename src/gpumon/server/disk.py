"""What the operating system needs to be told so that bytes are really on the disk, on Linux and Windows."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO


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


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: aside, synced, renamed."""
    aside = path.with_name(path.name + ".new")
    with aside.open("wb", buffering=0) as file:
        append_fully(file, data, at=0)
        sync_file(file)
    aside.replace(path)
    sync_folder(path.parent)


def cannot_write(error: OSError) -> str:
    """Says what is wrong with the data folder and what to do. Which folder it is, the log says: this goes out over
    HTTP."""
    advice = {
        "ENOSPC": "free some space, or set [STORAGE] data_retention_days or max_disk_mb",
        "EACCES": "make the folder writable for the user the server runs as",
        "EROFS": "the file system is mounted read-only; mount it writable",
    }
    name = errno.errorcode.get(error.errno or 0, "")
    return (
        f"can't write to the data folder, [STORAGE] output_directory ({error.strerror or error}): "
        f"{advice.get(name, 'check the disk')}"
    )
