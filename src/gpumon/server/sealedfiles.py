"""What `retention` asks of the sealed days before it deletes or compresses their CSV files, and tells after."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from pathlib import Path

from gpumon.server import manifest
from gpumon.server.days import FileNames
from gpumon.server.relations import SEALABLE, hot
from gpumon.server.sealedtables import Known, note_file, rename_file
from gpumon.server.shelf import Shelf
from gpumon.server.store import Store


class SealedFiles:
    """Used by whoever has store and folder for itself (see `CatchUp.exclusively`)."""

    def __init__(self, store: Store, shelf: Shelf, names: FileNames) -> None:
        self._store = store
        self._shelf = shelf
        self._names = names

    def rows_of(self, day: date) -> list[Path] | None:
        """The files with the rows of a day that is sealed together with its rollups; None of any other."""
        shelf = self._shelf
        if day not in shelf.days or not shelf.days[day].has_rows or day not in shelf.cells or day in shelf.spoiled:
            return None
        return [shelf.folders[day] / name for name in manifest.RAW_ROWS]

    def awaits_rollups(self, day: date, names: Iterable[str]) -> bool:
        """Whether what outlives the rows of a day's files is still to be made: the day is not sealed, or rows have
        come since. Of a day whose rows are gone nothing is made."""
        shelf = self._shelf
        raw = shelf.days.get(day)
        if raw is not None and not raw.has_rows:
            return False
        if day in shelf.deferred or day in shelf.without_cells():
            return True
        return any(not self._is_sealed(name) for name in names)

    def hasten(self, day: date) -> None:
        """It is to be made now, whether or not further rows may come."""
        self._shelf.urgent.add(day)

    def _is_sealed(self, name: str) -> bool:
        """Whether all of a file is sealed, or need not be."""
        day_file, known = self._names.parse(name), self._shelf.files.get(name)
        if day_file is None or day_file.table not in SEALABLE:
            return True
        return known is not None and known.sealed and self._shelf.sealed_bytes(name) == known.size

    def is_leaving(self, day: date) -> bool:
        """Whether a deletion of a day's rows has begun, and its rollups are all that counts."""
        raw = self._shelf.days.get(day)
        return raw is not None and raw.deleting

    def drop_rows(self, day: date) -> None:
        """The rows of a day that `rows_of` knows are about to be deleted with its CSV files: its rollups stay. A
        server that is killed meanwhile ends it at its next start. Raises DatabaseError or OSError."""
        shelf = self._shelf
        shelf.days[day] = manifest.without_rows(shelf.folders[day], shelf.days[day], deleting=True)
        shelf.forget_rows(day)
        self._store.remember_latest()
        shelf.retire(*(shelf.folders[day] / name for name in manifest.RAW_ROWS))

    def dropped(self, day: date) -> None:
        """They are deleted. Raises OSError."""
        shelf = self._shelf
        shelf.days[day] = manifest.without_rows(shelf.folders[day], shelf.days[day], deleting=False)

    def may_compress(self, name: str, size: int) -> bool:
        """Whether all of a file's bytes are in the store in one way, hot or sealed."""
        known = self._shelf.files.get(name)
        if known is None or known.size != size:
            return False
        return not known.sealed or self._shelf.sealed_bytes(name) == size

    def renamed(self, old: str, new: str, size: int, mtime_ns: int) -> None:
        """A file was compressed: its rows are the same. Raises DatabaseError or OSError."""
        shelf = self._shelf
        known = shelf.files.pop(old, None)
        if known is None:
            return
        day_file = self._names.parse(old)
        assert day_file is not None
        renamed = Known(size, mtime_ns, known.lines, known.sealed)
        with self._store.transaction():
            rename_file(self._store, hot(day_file.table), old, new)
            note_file(self._store, new, renamed)
        shelf.files[new] = renamed
        folder, raw = shelf.folders.get(day_file.day), shelf.days.get(day_file.day)
        if known.sealed and folder is not None and raw is not None:
            shelf.days[day_file.day] = manifest.renamed(folder, raw, old, new, size, mtime_ns)
