"""The CSV files that can't be read, each left out of the answers by itself until it looks different, or may have
been mended."""

from __future__ import annotations

import time
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_AGAIN_SECONDS: Final = 600.0
"""After so long a file that looks the same is tried again: it may have been the disk."""

State = tuple[int, int, int] | None
"""What a file looks like: its size, and when (ns) it was written and changed, the latter also by new rights. None
of one that is gone."""


@dataclass(frozen=True, slots=True)
class _File:
    state: State
    reason: str
    at: float


class LeftOut:
    """Those of a folder, by name. Changed by one thread at a time; `reasons` from any."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, _File] = {}

    def __contains__(self, name: str) -> bool:
        """Whether a file is to be left out now."""
        file = self._files.get(name)
        if file is None:
            return False
        if file.state == self.state(name) and time.monotonic() < file.at + _AGAIN_SECONDS:
            return True
        del self._files[name]
        return False

    def add(self, name: str, state: State, reason: str) -> None:
        """A file could not be read when it looked like that."""
        self._files[name] = _File(state, reason, time.monotonic())

    def keep(self, there: Container[str]) -> None:
        """Forgets those that are not there any more."""
        self._files = {name: file for name, file in self._files.items() if name in there}

    def reasons(self) -> dict[str, str]:
        """Why each is left out."""
        return {name: file.reason for name, file in self._files.copy().items()}

    def states(self) -> dict[str, State]:
        """What each looks like now."""
        return {name: self.state(name) for name in self._files.copy()}

    def state(self, name: str) -> State:
        """What a file looks like now."""
        try:
            status = (self._folder / name).stat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns
