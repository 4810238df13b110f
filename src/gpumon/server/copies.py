"""The CSV files of a folder that count. Where a file of a day stands there plain and compressed and one holds no
line that the other has not, as when somebody unpacked it to look into it (`gunzip -k`), it counts once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container
from pathlib import Path
from typing import Final

from gpumon.server.days import DayFile, FileNames
from gpumon.server.disk import seen
from gpumon.server.sources import UNREADABLE, open_csv

log = logging.getLogger(__name__)

_BLOCK: Final = 1 << 20

Seen = tuple[int, int] | None


class CountedFiles:
    """Those of one folder. `committed_sizes` has the names of those that the server appends to."""

    def __init__(self, folder: Path, names: FileNames, committed_sizes: Callable[[], Container[str]]) -> None:
        self._folder = folder
        self._names = names
        self._committed_sizes = committed_sizes
        self._compared: dict[str, tuple[tuple[Seen, Seen], str | None]] = {}

    def there(self) -> dict[str, tuple[DayFile, int, int]]:
        """Each file that counts by its name: of what day, its size, and when (ns) it was written. Raises
        OSError."""
        found: dict[str, tuple[DayFile, int, int]] = {}
        for path in self._folder.iterdir():
            day_file = self._names.parse(path.name)
            state = None if day_file is None else seen(path)
            if day_file is not None and state is not None:
                found[path.name] = (day_file, *state)
        compared: dict[str, tuple[tuple[Seen, Seen], str | None]] = {}
        for packed in [name for name in found if name.endswith(".gz") and name[:-3] in found]:
            plain = packed[:-3]
            is_ours = plain in self._committed_sizes()  # one that the server appends to always counts
            # What was compared of a file that is appended to stays as it is.
            states = found[packed][1:], None if is_ours else found[plain][1:]
            known = self._compared.get(packed)
            if known is None or known[0] != states:
                known = (states, self._copy_of(plain, packed, is_ours=is_ours))
            compared[packed] = known
            if known[1] is not None:
                found.pop(known[1], None)
        self._compared = compared
        return found

    def _copy_of(self, plain: str, packed: str, *, is_ours: bool) -> str | None:
        """Which of the two has nothing of its own; None where each has, or one can't be read."""
        try:
            with (self._folder / plain).open("rb") as one, open_csv(self._folder / packed) as other:
                while True:
                    left, right = one.read(_BLOCK), other.read(_BLOCK)
                    if len(left) < _BLOCK or len(right) < _BLOCK or left != right:
                        break
        except (OSError, *UNREADABLE):
            return None
        shorter = min(len(left), len(right))
        if left[:shorter] != right[:shorter]:
            return None
        if is_ours:
            copy = packed if len(right) <= len(left) else None
        else:
            copy = plain if len(left) <= len(right) else packed
        if copy is not None:
            log.warning("csv_file_is_copy file=%s of=%s", copy, plain if copy == packed else packed)
        return copy
