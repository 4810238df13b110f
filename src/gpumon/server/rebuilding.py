"""Makes all that is derived anew from the CSV files, and tells what it found: `gpumon server --rebuild`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gpumon import clock
from gpumon.errors import StorageError
from gpumon.server import manifest
from gpumon.server.days import FileNames
from gpumon.server.engine import Engine
from gpumon.server.settings import ServerSettings
from gpumon.server.store import discard

Tell = Callable[[str], None]


@dataclass(slots=True)
class Report:
    """What was found and made. `files` and `bytes` of CSV; `sealed_bytes` of what was made of them, `days` sealed;
    `kept_days` are those of which only rollups are left, and stay."""

    files: int = 0
    bytes: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    damaged_lines: int = 0
    unreadable: list[str] = field(default_factory=list)
    days: int = 0
    kept_days: int = 0
    sealed_bytes: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every file could be read, and every line."""
        return not self.damaged_lines and not self.unreadable

    def text(self) -> str:
        """The report for people."""
        rows = ", ".join(f"{count:,} {name}" for name, count in self.rows.items())
        lines = [
            f"{self.files} CSV files, {self.bytes / 1e6:,.1f} MB: {rows or 'no rows'}",
            f"{self.days} days sealed, {self.sealed_bytes / 1e6:,.1f} MB, in {self.seconds:.1f} s",
        ]
        if self.kept_days:
            lines.append(f"{self.kept_days} days of which only the rollups are left were kept as they are")
        if self.damaged_lines:
            lines.append(f"{self.damaged_lines} damaged lines were left out: see .gpumon/quarantine/*.damaged.csv")
        lines += [f"could not be read, and is left out: {reason}" for reason in self.unreadable]
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
    manifest.discard(folder / ".gpumon" / "sealed")
    engine.open(upkeep=False)
    try:
        if engine.closed_because is not None:
            raise StorageError(engine.closed_because)
        engine.settle(tell)
        has = engine.contents()
    finally:
        engine.close()
    report = Report(
        rows=has.rows,
        damaged_lines=has.damaged_lines,
        unreadable=has.unreadable,
        days=has.days,
        kept_days=has.kept_days,
        seconds=time.monotonic() - began,
    )
    names = FileNames(settings.storage.csv_filename_prefix)
    for path in folder.iterdir():
        if names.parse(path.name) is not None:
            report.files += 1
            report.bytes += path.stat().st_size
    report.sealed_bytes = sum(path.stat().st_size for path in (folder / ".gpumon" / "sealed").rglob("*.parquet"))
    return report
