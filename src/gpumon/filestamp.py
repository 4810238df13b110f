"""What tells that a file has changed: it was written, replaced, or the symbolic link to it was.

Kubernetes renews mounted Secrets by pointing a link at another folder, so the file that a path leads to counts.
"""

from __future__ import annotations

import os
from pathlib import Path

FileStamp = tuple[int, int, int, int]


def stamp_of(file: Path) -> FileStamp | None:
    """What changes when the file does; None where it can't be looked at."""
    try:
        return stamped(file.stat())
    except OSError:
        return None


def stamped(found: os.stat_result) -> FileStamp:
    """The same of a file that has been looked at, such as an open one."""
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
