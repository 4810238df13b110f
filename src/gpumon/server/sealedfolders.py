"""Which of the folders below `.gpumon/sealed` count (see `manifest`); the others are deleted. At a start, and
before all is made anew."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from pathlib import Path

import msgspec

from gpumon.server import manifest
from gpumon.server.manifest import DAY_FORM, MANIFEST, CellsManifest, Kind, RawManifest, Stamps

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """What there is of a day."""

    folder: Path
    raw: RawManifest
    cells_folder: Path | None
    cells: CellsManifest | None


def find(root: Path, stamps: Stamps) -> dict[date, Found]:
    """What is sealed with the stamps that are wanted. All else below the root is deleted: it was being made when
    the server was killed, has been replaced, is damaged or of another version. Only the rollups of days whose rows
    are gone stay in any case, since nobody could make them again; they count whatever becomes of the rows' form,
    and of the setting by which they were made."""
    found: dict[date, Found] = {}
    for place in sorted(root.iterdir()) if root.is_dir() else ():
        try:
            day = datetime.strptime(place.name, DAY_FORM).date()
        except ValueError:
            continue
        raw_folder, raw = _newest(place, "raw", RawManifest, partial(_counts, stamps))
        if raw_folder is None or raw is None:
            if _is_precious(place):
                log.warning("sealed_day_of_another_version day=%s: its rollups are kept, and not used", place.name)
                continue
            cells_folder = cells = None
            kept: set[Path | None] = set()
        else:
            cells_folder, cells = _newest(
                place, "cells", CellsManifest, partial(_cells_count, stamps, raw_folder.name, raw)
            )
            kept = {raw_folder, cells_folder}
            if not raw.has_rows and cells is None and (others := list(_folders(place, "cells"))):
                log.warning("accounts_of_another_version day=%s: they are kept, and not used", place.name)
                kept |= set(others)
        for other in place.iterdir():
            if other not in kept:
                log.info("sealed_folder_deleted folder=%s/%s", place.name, other.name)
                shutil.rmtree(other, ignore_errors=True)
        if raw_folder is not None and raw is not None:
            found[day] = Found(raw_folder, raw, cells_folder, cells)
    return found


def discard(root: Path) -> None:
    """Deletes all that is sealed and can be made again. Raises OSError."""
    for place in root.iterdir() if root.is_dir() else ():
        if not _is_precious(place):
            shutil.rmtree(place)


def _counts(stamps: Stamps, raw: RawManifest, wrong: str | None) -> bool:
    """Where the rows are gone, a damaged rollup counts, too: the store may have it."""
    return raw.readings_stamp == stamps.readings and (
        not raw.has_rows or (raw.stamp == stamps.rows and wrong is None)
    )


def _cells_count(stamps: Stamps, folder: str, raw: RawManifest, cells: CellsManifest, wrong: str | None) -> bool:
    alike = cells.stale_after == stamps.stale_after and wrong is None
    return cells.raw == folder and cells.stamp == stamps.cells and (alike or not raw.has_rows)


def _newest(
    place: Path, kind: str, of: type[Kind], counts: Callable[[Kind, str | None], bool]
) -> tuple[Path, Kind] | tuple[None, None]:
    for folder in _folders(place, kind):
        try:
            said = manifest.read(folder, of)
        except (OSError, msgspec.DecodeError) as error:
            log.warning("sealed_manifest_unreadable folder=%s/%s error=%s", place.name, folder.name, error)
            continue
        wrong = manifest.fault(folder, said.outputs, quick=True)
        if counts(said, wrong):
            return folder, said
        log.warning(
            "sealed_folder_left folder=%s/%s reason=%s", place.name, folder.name, wrong or "of another version"
        )
    return None, None


def _is_precious(place: Path) -> bool:
    for folder in _folders(place, "raw"):
        try:
            said = msgspec.json.decode((folder / MANIFEST).read_bytes())  # of any version
            if isinstance(said, dict) and said.get("has_rows") is False:
                return True
        except (OSError, msgspec.DecodeError):
            continue
    return False


def _folders(place: Path, kind: str) -> Iterator[Path]:
    folders = [path for path in place.glob(f"{kind}-*") if path.suffix != ".new" and (path / MANIFEST).exists()]
    yield from sorted(folders, key=lambda path: path.name, reverse=True)
