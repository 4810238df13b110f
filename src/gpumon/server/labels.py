"""Which labels stand in the files already: a label is written once a day, and again when its value has changed.

Samples carry their pods' labels each time, so that none depends on an earlier one; the files need each but once.
What is remembered here was committed in this run. A restart, and a file that was deleted or compressed, let a
label be written once more, which harms nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import NamedTuple

from gpumon.server.tables import POD_LABELS, DatedRow, Row

_MOST_OWNERS = 100_000
"""Pods and nodes, over all days, whose labels are remembered: some 100 MB."""

_Owner = tuple[str | None, ...]
Remembered = dict[date, dict[_Owner, Mapping[str, str]]]


class Labels(NamedTuple):
    """The chosen labels of one pod, or of one node (no pod), at one instant. `head` is the row's beginning, up to
    `pod_uid`."""

    day: date
    hour: int
    head: Row
    labels: Mapping[str, str]


class KnownLabels:
    """Owned by the writer's thread."""

    def __init__(self, most_owners: int = _MOST_OWNERS) -> None:
        self._most_owners = most_owners
        self._known: Remembered = {}
        self._files: dict[date, set[Path]] = {}

    def fresh(self, seen: Iterable[Labels]) -> tuple[list[DatedRow], Remembered]:
        """The rows of labels that do not stand in the day's files as they are now, and what to `remember` once
        they do."""
        rows: list[DatedRow] = []
        news: Remembered = {}
        for day, hour, head, labels in seen:
            if day not in news:
                self._forget_if_gone(day)
                news[day] = {}
            owner = (head[1], *head[3:])  # all but the two times
            known = news[day].get(owner) or self._known.get(day, {}).get(owner) or {}
            if known == labels:
                continue
            rows += (
                (POD_LABELS, day, hour, (*head, label, value))
                for label, value in labels.items()
                if known.get(label) != value
            )
            news[day][owner] = {**known, **labels}
        return rows, news

    def remember(self, news: Remembered, files: Iterable[tuple[date, Path]]) -> None:
        """Takes note of what was committed, and into which day's files."""
        for day, path in files:
            self._files.setdefault(day, set()).add(path)
        for day, owners in news.items():
            if owners:
                self._known.setdefault(day, {}).update(owners)
        while sum(map(len, self._known.values())) > self._most_owners:
            self._forget(min(self._known))

    def _forget_if_gone(self, day: date) -> None:
        if not all(path.exists() for path in self._files.get(day, ())):
            self._forget(day)

    def _forget(self, day: date) -> None:
        self._known.pop(day, None)
        self._files.pop(day, None)
