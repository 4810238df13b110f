"""Reading a process's files in a /proc, in as few calls as possible: hundreds are read at each sample."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_STAT = re.compile(rb"\d+ \((?P<comm>.*)\) \S (-?\d+ ){5}(?P<flags>\d+) (-?\d+ ){12}(?P<start>\d+) ", re.DOTALL)
"""Fields 1 to 22. The name may hold anything, parentheses too: it ends at the last one that numbers follow."""
_STAT_BYTES = 1024  # more than fields 1 to 22 can have
_FILE_BYTES = 65536
_PF_EXITING = 0x4


@dataclass(frozen=True, slots=True)
class Stat:
    """What is used of a process's `stat`: its command's name; when it began, in clock ticks since the machine did,
    which with its pid says which process it is; whether it is ending."""

    comm: bytes
    start: bytes
    ending: bool


class ProcFiles:
    """The files under `root`. Every method raises OSError where a file can't be read: FileNotFoundError or
    ProcessLookupError where the process is gone, PermissionError where it is hidden."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)

    def stat(self, process: int | str) -> Stat:
        """A process's `stat`, by pid."""
        match = _STAT.match(self.read(f"{process}/stat", _STAT_BYTES))
        if match is None:
            raise OSError(f"{self.root}/{process}/stat does not read as Linux writes it")
        return Stat(match["comm"], match["start"], bool(int(match["flags"]) & _PF_EXITING))

    def cgroup(self, process: int | str) -> str:
        """A process's `cgroup`, by pid or `self`."""
        return self.read(f"{process}/cgroup").decode("utf-8", "replace")

    def read(self, name: str, most: int = _FILE_BYTES) -> bytes:
        """Up to `most` bytes of a file; the kernel gives so much at once."""
        file = os.open(f"{self.root}/{name}", os.O_RDONLY)
        try:
            return os.read(file, most)
        finally:
            os.close(file)
