"""A report for people, as a table that fits their terminal, and for programs, as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import msgspec

from gpumon.agent.doctor.finding import Finding, Report, Status

Paint = Callable[[str, Status], str]
"""Gives a text in the colour of a status, or as it is."""
_STATUS_WIDTH = len("not needed")
_GAP = "  "
_LEAST_WIDTH = 40


def render_json(report: Report) -> bytes:
    """The report with all its findings, and `ok`."""
    return msgspec.json.encode(
        {"ok": report.ok, "version": report.version, "node": report.node, "findings": report.findings}
    )


def render_text(report: Report, *, width: int, paint: Paint = lambda text, _: text) -> str:
    """One step a line, or more where its evidence is long; below a broken one what to do; the verdict last."""
    name_width = max(len(finding.name) for finding in report.findings)
    lines = [f"gpumon {report.version} doctor on {report.node}", ""]
    for finding in report.findings:
        lines += _rows(finding, name_width, width, paint)
    return "\n".join([*lines, "", *_verdict(report, width, paint)])


def _rows(finding: Finding, name_width: int, width: int, paint: Paint) -> list[str]:
    status = f"{finding.status:<{_STATUS_WIDTH}}"
    margin = name_width + _STATUS_WIDTH + 2 * len(_GAP)
    room = max(_LEAST_WIDTH, width - margin)
    first, *more = [*_wrapped(finding.evidence, room), *_wrapped(finding.fix, room, "do: ")]
    begin = f"{finding.name:<{name_width}}{_GAP}{paint(status, finding.status)}{_GAP}"
    return [f"{begin}{first}", *(" " * margin + line for line in more)]


def _wrapped(text: str, room: int, mark: str = "") -> list[str]:
    """Long words, as paths are, stay whole: they are to be copied."""
    return textwrap.wrap(
        mark + text if text else "",
        room,
        subsequent_indent=" " * len(mark),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _verdict(report: Report, width: int, paint: Paint) -> list[str]:
    if report.ok:
        return [paint("Nothing is broken.", "ok")]
    first, *others = report.broken
    which = f"{first.name} first, and {len(others)} more" if others else first.name
    return [paint(f"Broken: {which}: {_short(first.evidence, width - len(which))}", "broken")]


def _short(text: str, width: int) -> str:
    return textwrap.shorten(text, max(_LEAST_WIDTH, width - len("Broken: : ")), placeholder=" …")
