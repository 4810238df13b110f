"""Scores as lines for people, and as the table of the README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.attribution.score import Score

_BEGIN, _END = "<!-- attribution-table -->", "<!-- /attribution-table -->"
_UNTOLD = "-"


def render_lines(scores: Sequence[Score]) -> str:
    """A line for each scene, and below it what is not as it should be."""
    width = max(len(score.scene) for score in scores)
    lines = [
        f"{'scene':<{width}}  {'true s':>7} {'error s':>8} {'error':>7} {'held':>6} {'unres.':>7} {'cloned':>7} "
        f"{'last':>7} {'no data s':>9} {'adds up':>7}  methods, remark"
    ]
    for score in scores:
        lines.append(
            f"{score.scene:<{width}}  {score.true:>7.2f} {_error_seconds(score):>8} {_error(score):>7} "
            f"{_percent(score, score.held_error):>6} {_percent(score, score.unresolved):>7} "
            f"{_percent(score, score.cloned):>7} {_percent(score, score.last):>7} {score.no_data:>9.2f} "
            f"{'yes' if score.adds_up else 'NO':>7}  {', '.join(score.methods)}"
            + (f"; {score.remark}" if score.remark else "")
        )
        lines.append(f"{'':<{width}}    worst: {_name(score)} by {score.worst_error:.2f} s")
        lines += [f"{'':<{width}}    NOT AS IT SHOULD BE: {failure}" for failure in score.failures]
    return "\n".join(lines)


def render_markdown(scores: Sequence[Score], seconds: float) -> str:
    """The table for the README."""
    lines = [
        "| scene | gpumon | GPU's value for each sharer | for the last in the list | unresolved "
        "| how, and why not better |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for score in scores:
        how = ", ".join(f"`{method}`" for method in score.methods)
        lines.append(
            f"| {score.scene} | {_error(score)} | {_percent(score, score.cloned)} | {_percent(score, score.last)} "
            f"| {_percent(score, score.unresolved)} | {how}{f'; {score.remark}' if score.remark else ''} |"
        )
    lines += [
        "",
        "Error: GPU-seconds with the wrong pod or with none, as a share of the true active ones, over "
        f"{seconds:g} s at a sample every half second. The ledger's parts add up to the wall time in "
        f"{sum(score.adds_up for score in scores)} of {len(scores)} scenes.",
    ]
    return "\n".join(lines)


def write_readme(path: Path, table: str) -> None:
    """Puts the table between its markers. Raises SystemExit where they are not there."""
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise SystemExit(f"{path} has no {_BEGIN} … {_END}")
    path.write_text(f"{before}{_BEGIN}\n{table}\n{_END}{after}", encoding="utf-8")


def _error_seconds(score: Score) -> str:
    return _UNTOLD if score.measured is None else f"{score.error:.2f}"


def _error(score: Score) -> str:
    return _UNTOLD if score.measured is None else _percent(score, score.error)


def _percent(score: Score, seconds: float | None) -> str:
    return _UNTOLD if seconds is None else f"{score.percent(seconds):.1f} %"


def _name(score: Score) -> str:
    return "/".join(part for part in score.worst if part) or "host"
