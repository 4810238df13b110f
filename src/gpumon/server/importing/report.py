"""What an import did, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date

NAMED_LINES = 20
"""So many damaged lines of a file are named; all are counted."""


@dataclass(slots=True)
class Report:
    """`files` were read, `taken` rows taken; `there` were there already, or twice in the source. `parts` are the
    files that were made. By name of the source's file: how many lines are damaged and the numbers of the first
    few, why it is `unreadable`, and its columns that gpumon does not know. `left_alone` says of files of the data
    folder, by name, why they can't be read."""

    files: int = 0
    taken: int = 0
    there: int = 0
    days: set[date] = field(default_factory=set)
    parts: list[str] = field(default_factory=list)
    damaged: dict[str, tuple[int, list[int]]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, list[str]] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)


def reason_of(error: Exception) -> str:
    """Why a file can't be read, in the words of what was raised; without its name."""
    return getattr(error.__cause__ or error, "strerror", None) or str(error) or "it ends too soon"


def render(report: Report, today: date, keep_days: int, *, dry_run: bool) -> str:
    """The report in sentences. `keep_days` is [STORAGE] data_retention_days."""
    verb = "to take" if dry_run else "taken"
    days = sorted(report.days)
    damaged = sum(count for count, _ in report.damaged.values())
    lines = [
        f"{report.files} files of {len(days)} days" + (f", {days[0]} to {days[-1]}" if days else ""),
        f"{report.taken} rows {verb}, {report.there} already there, {damaged} damaged lines left out",
    ]
    if report.parts:
        lines.append(f"{len(report.parts)} new files, {report.parts[0]} to {report.parts[-1]}")
    for name, (count, numbers) in report.damaged.items():
        more = f" and {count - len(numbers)} more" if count > len(numbers) else ""
        lines.append(f"damaged: {name} line {', '.join(map(str, numbers))}{more}")
    lines += [f"not known, left out: {name} columns {', '.join(c)}" for name, c in report.unknown.items()]
    lines += [f"not read: {name}: {reason}" for name, reason in report.unreadable.items()]
    lines += [
        f"left alone: {name} in the data folder can't be read ({reason}), by the server neither: what is in it "
        "counts as not there"
        for name, reason in report.left_alone.items()
    ]
    doomed = [day for day in days if keep_days and (today - day).days > keep_days]
    if doomed:
        lines.append(
            f"{len(doomed)} of these days are older than [STORAGE] data_retention_days = {keep_days}: the server "
            "will delete them soon; to keep them set 0 or more days, restart it, and import again"
        )
    return "\n".join(lines)
