"""What the doctor finds of each step between the GPU and the server.

Steps build on one another, so the first that is broken is the one to mend. A step that can't be judged while an
earlier one is broken is `not needed`, and its evidence says what comes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "broken", "not needed"]
OK: Status = "ok"
BROKEN: Status = "broken"
NOT_NEEDED: Status = "not needed"
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One step. `evidence` is what was seen; `fix` what to do and which setting or chart value to change, ""
    unless it is broken."""

    name: str
    status: Status
    evidence: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All steps, in the order in which they build on one another."""

    version: str
    node: str
    findings: Sequence[Finding]

    @property
    def broken(self) -> Sequence[Finding]:
        """The broken ones; the first is to be mended first."""
        return [finding for finding in self.findings if finding.status == BROKEN]

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return not self.broken


@dataclass(frozen=True, slots=True)
class Site:
    """Where the agent is set up: in Kubernetes by the chart, else by its settings file."""

    kubernetes: bool

    def setting(self, section: str, key: str) -> str:
        """What a setting is called there."""
        return f"chart value agent.config.{section}.{key}" if self.kubernetes else f"[{section.upper()}] {key}"

    def either(self, chart: str, plain: str) -> str:
        """The advice that holds there."""
        return chart if self.kubernetes else plain

    @property
    def all_gpus(self) -> str:
        """How the agent gets to see every GPU of the node."""
        return self.either(
            "let the agent see all GPUs (NVIDIA_VISIBLE_DEVICES=all, by the chart value agent.runtimeClassName)",
            "let the agent see all GPUs of this machine (in a container: --gpus all)",
        )


def after(name: str, earlier: str) -> Finding:
    """A step that can't be judged while an earlier one is broken."""
    return Finding(name, NOT_NEEDED, f"not looked at: {earlier} is broken and comes first")


def some(names: Iterable[str]) -> str:
    """The first few of many, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def counted(number: int, what: str, plural: str = "") -> str:
    """A number of things: `1 GPU`, `2 GPUs`."""
    return f"{number} {what if number == 1 else plural or what + 's'}"
