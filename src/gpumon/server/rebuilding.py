"""Makes all that is derived anew from the CSV files, and tells what it found: `gpumon server --rebuild`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gpumon import clock
from gpumon.errors import StorageError
from gpumon.server import sealedfolders
from gpumon.server.days import FileNames
from gpumon.server.engine import Engine
from gpumon.server.index import Contents
from gpumon.server.settings import ServerSettings
from gpumon.server.store import discard

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Report:
    """What was found and made: `files` and `bytes` of CSV, what the store has of them, `sealed_bytes` of
    Parquet."""

    files: int
    bytes: int
    has: Contents
    sealed_bytes: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every file could be read, and every line."""
        return not self.has.damaged_lines and not self.has.unreadable

    def text(self) -> str:
        """The report for people."""
        rows = ", ".join(f"{count:,} {name}" for name, count in self.has.rows.items())
        lines = [
            f"{self.files} CSV files, {self.bytes / 1e6:,.1f} MB: {rows or 'no rows'}",
            f"{self.has.days} days sealed, {self.sealed_bytes / 1e6:,.1f} MB, in {self.seconds:.1f} s",
        ]
        if self.has.kept_days:
            lines.append(f"{self.has.kept_days} days of which only the rollups are left were kept as they are")
        if self.has.damaged_lines:
            lines.append(
                f"{self.has.damaged_lines} damaged lines were left out: see .gpumon/quarantine/*.damaged.csv"
            )
        lines += [f"could not be read, and is left out: {reason}" for reason in self.has.unreadable]
        return "\n".join(lines)


def rebuild(settings: ServerSettings, tell: Tell, now: clock.Now = clock.now) -> Report:
    """Does it; `tell` gets a line for each day. Raises StorageError where another server has the folder, or the
    disk takes nothing."""
    folder = Path(settings.storage.output_directory)
    if not folder.is_dir():
        raise StorageError(f"there is no folder {folder}; set [STORAGE] output_directory")
    began = time.monotonic()
    at_once = msgspec.structs.replace(settings.performance, seal_after_minutes=0.0)
    engine = Engine(msgspec.structs.replace(settings, performance=at_once), now)
    discard(folder)
    sealedfolders.discard(folder / ".gpumon" / "sealed")
    engine.open(upkeep=False)
    try:
        if engine.closed_because is not None:
            raise StorageError(engine.closed_because)
        engine.index.settle(tell)
        has = engine.index.contents()
    finally:
        engine.close()
    names = FileNames(settings.storage.csv_filename_prefix)
    sizes = [path.stat().st_size for path in folder.iterdir() if names.parse(path.name) is not None]
    sealed = (folder / ".gpumon" / "sealed").rglob("*.parquet")
    return Report(
        files=len(sizes),
        bytes=sum(sizes),
        has=has,
        sealed_bytes=sum(path.stat().st_size for path in sealed),
        seconds=time.monotonic() - began,
    )
