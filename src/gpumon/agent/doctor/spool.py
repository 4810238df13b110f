"""Where samples wait while the server is away: whether the folder takes files, and what is in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from gpumon.agent.doctor.finding import BROKEN, NOT_NEEDED, OK, Finding, Site, counted

SPOOL = "spool"
_MB = 1e6


@dataclass(frozen=True, slots=True)
class SeenSpool:
    """The folder of this agent. `trouble` says why it takes no file; `exists` is false where the agent would have
    to make it. `files` and `waiting_bytes` are the batches in it."""

    folder: Path
    trouble: str | None = None
    exists: bool = True
    files: int = 0
    waiting_bytes: int = 0
    free_bytes: int = 0


def see_spool(folder: Path) -> SeenSpool:
    """Tries to write without leaving anything: a file without a name, where the system has such."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    exists = there == folder
    try:
        if not there.is_dir():
            return SeenSpool(folder, f"{there} is no folder", exists)
        with tempfile.TemporaryFile(dir=there, prefix=".gpumon-doctor-") as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
        sizes = [path.stat().st_size for path in folder.glob("*.batch")] if exists else []
        return SeenSpool(folder, None, exists, len(sizes), sum(sizes), shutil.disk_usage(there).free)
    except OSError as error:
        return SeenSpool(folder, f"{there}: {error.strerror or error}", exists)


def check_spool(seen: SeenSpool | None, site: Site, *, limit_bytes: float) -> Finding:
    """Whether samples outlive an outage. None: there is no disk, by the settings."""
    if seen is None:
        return Finding(SPOOL, NOT_NEEDED, "batches wait in memory only, by the settings")
    if seen.trouble is not None:
        return Finding(
            SPOOL,
            BROKEN,
            seen.trouble,
            f"make it a folder that the agent may write, or set {site.setting('spool', 'directory')} to another; "
            "until then samples wait in memory only",
        )
    free = f"{seen.free_bytes / _MB:.0f} MB free"
    if not seen.exists:
        return Finding(SPOOL, OK, f"{seen.folder} can be made; {free}")
    waiting = f"{counted(seen.files, 'batch', 'batches')} of {seen.waiting_bytes / _MB:.2f} MB wait"
    room = limit_bytes - seen.waiting_bytes
    if seen.free_bytes < room:
        waiting += f", room for {room / _MB:.0f} MB more by {site.setting('spool', 'disk_mb')}"
    return Finding(SPOOL, OK, f"{seen.folder} can be written; {waiting}; {free}")
