"""What is sealed, on disk: a folder for each day below `.gpumon/sealed`, and in it what was made, with a manifest.

    .gpumon/sealed/20261124/raw-1795541603000/     samples.parquet, pod_usage.parquet, latest.parquet: the rows;
                                                   readings.parquet: their rollup; manifest.json
    .gpumon/sealed/20261124/cells-1795541610000/   fine.parquet, hours.parquet, days.parquet: rollups of the
                                                   accounts; metrics.parquet: of each metric; manifest.json

A folder is written under a name that ends in `.new`, synced and renamed, so that one with a manifest is whole. The
manifest says of which bytes of which CSV files it was made, and of each output its size and checksum. Of two
folders of a kind the one of the larger number counts."""

from __future__ import annotations

import time
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from gpumon.server.disk import replace_file, sync_file, sync_folder

DAY_FORM: Final = "%Y%m%d"
MANIFEST: Final = "manifest.json"
METRICS: Final = "metrics.parquet"
RAW_ROWS: Final = ("samples.parquet", "pod_usage.parquet", "latest.parquet")
"""What goes when retention deletes a day's rows; the rollup stays."""
LOADED: Final = ("readings.parquet", "hours.parquet", "days.parquet")
"""What is read into the store, and not again while it is there."""
_VERSION: Final = 1
_BLOCK: Final = 1 << 20


class Output(msgspec.Struct, frozen=True):
    """A file that was made: its length, and the CRC-32 of its bytes."""

    bytes: int
    crc32: int


class SealedFile(msgspec.Struct, frozen=True):
    """A CSV file that is sealed up to `bytes` of it, as it stands on the disk; with the damaged ones, `lines`
    lines without the header. `left_out` says why a file that can't be read is not in it, `refused` whether it was
    the operating system that did not give it."""

    name: str
    bytes: int
    mtime_ns: int
    lines: int
    left_out: str | None = None
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Stamps:
    """What all that is sealed depends on beside the rows of the CSV files: when any of it changes, it is made
    anew. Of the rows, their rollup by hour, and the cells; these also on `stale_after`, in seconds."""

    rows: str
    readings: str
    cells: str
    stale_after: float


class RawManifest(msgspec.Struct, frozen=True, kw_only=True):
    """Of the rows of a day. Instants are naive UTC, None where there is no row; `longest_interval` in seconds,
    None where no sample states one, `unstated` whether one states none. `taken`: the rollups of the accounts know
    that these rows are there."""

    stamp: str
    readings_stamp: str
    day: date
    files: list[SealedFile]
    damaged: int
    rows: dict[str, int]
    first_at: datetime | None
    last_at: datetime | None
    longest_interval: float | None
    unstated: bool
    outputs: dict[str, Output]
    has_rows: bool = True
    deleting: bool = False
    taken: bool = False


class CellsManifest(msgspec.Struct, frozen=True, kw_only=True):
    """Of the accounts of a day: `raw` is the folder of whose rows they are, `fine` and `hours` the runs of buckets
    (naive UTC, from up to) that count, `figures` the hours of figures; `stale_after` is the setting by which they
    were made, in seconds. `spoiled`: rows came later, by which other buckets are out of date."""

    stamp: str
    stale_after: float
    day: date
    raw: str
    fine: list[tuple[datetime, datetime]]
    hours: list[tuple[datetime, datetime]]
    outputs: dict[str, Output]
    figures: list[tuple[datetime, datetime]] = []
    spoiled: bool = False


Kind = TypeVar("Kind", RawManifest, CellsManifest)
"""What a manifest may be of."""


def stamp(*parts: str) -> str:
    """One of `Stamps`."""
    return f"{_VERSION} {zlib.crc32(' '.join(parts).encode()):08x}"


def new_folder(root: Path, day: date, kind: str) -> Path:
    """Makes a folder to write into; `publish` gives it its name."""
    folder = root / day.strftime(DAY_FORM) / f"{kind}-{time.time_ns() // 1_000_000}.new"
    folder.mkdir(parents=True)
    return folder


def outputs_of(folder: Path) -> dict[str, Output]:
    """Size and checksum of each Parquet file in a folder."""
    return {path.name: Output(path.stat().st_size, _crc32(path)) for path in sorted(folder.glob("*.parquet"))}


def publish(folder: Path, manifest: RawManifest | CellsManifest) -> Path:
    """Ends what `new_folder` began: all is on disk, and has its name. Gives the folder as it is called then."""
    for path in folder.glob("*.parquet"):
        with path.open("rb+") as file:
            sync_file(file)
    replace_file(folder / MANIFEST, msgspec.json.encode(manifest))
    target = folder.with_suffix("")
    folder.replace(target)
    sync_folder(target.parent)
    return target


def read(folder: Path, kind: type[Kind]) -> Kind:
    """The manifest in a folder. Raises OSError or msgspec.DecodeError."""
    return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=kind)


def fault(
    folder: Path, outputs: dict[str, Output], *, quick: bool = False, only: Collection[str] | None = None
) -> str | None:
    """What is wrong with the files in a folder, or `only` with some of them; None when nothing is. `quick` looks
    at their sizes alone."""
    for name, output in outputs.items():
        if only is not None and name not in only:
            continue
        path = folder / name
        try:
            if path.stat().st_size != output.bytes:
                return f"{name} has another size"
            if not quick and _crc32(path) != output.crc32:
                return f"{name} has another checksum"
        except OSError as error:
            return f"{name} can't be read ({error.strerror or error})"
    return None


def fault_of_cells(folder: Path, only: Collection[str] | None = None) -> str | None:
    """What is wrong with a folder of cells, None when nothing is."""
    try:
        return fault(folder, read(folder, CellsManifest).outputs, only=only)
    except (OSError, msgspec.DecodeError) as error:
        return f"the manifest can't be read ({error})"


def without_rows(folder: Path, raw: RawManifest, *, deleting: bool) -> RawManifest:
    """Notes that the rows are being deleted, or are; gives the manifest as it is then. Raises OSError."""
    outputs = {name: output for name, output in raw.outputs.items() if name not in RAW_ROWS}
    return _rewrite(folder, msgspec.structs.replace(raw, has_rows=False, deleting=deleting, outputs=outputs))


def taken(folder: Path, raw: RawManifest) -> RawManifest:
    """Notes that the rows are in the store, and that what they touch is known to be out of date; gives the
    manifest as it is then. Raises OSError."""
    return raw if raw.taken else _rewrite(folder, msgspec.structs.replace(raw, taken=True))


def renamed(folder: Path, raw: RawManifest, old: str, new: str, size: int, mtime_ns: int) -> RawManifest:
    """Notes that a CSV file was compressed; gives the manifest as it is then. Raises OSError."""
    files = [
        msgspec.structs.replace(file, name=new, bytes=size, mtime_ns=mtime_ns) if file.name == old else file
        for file in raw.files
    ]
    return _rewrite(folder, msgspec.structs.replace(raw, files=files))


def spoil(folder: Path) -> None:
    """Takes a folder's manifest away, so that it does not count at the next start. Raises OSError."""
    (folder / MANIFEST).unlink(missing_ok=True)
    sync_folder(folder)


def spoil_cells(folder: Path, raw: str, runs: Mapping[str, list[tuple[datetime, datetime]]]) -> None:
    """Notes of which buckets a folder of cells still holds what the rows in the folder `raw` come to: `runs` by
    the manifest's names. Where there is no room for that, none of them counts. Raises OSError."""
    try:
        said = msgspec.structs.replace(read(folder, CellsManifest), raw=raw, spoiled=True, **runs)
        replace_file(folder / MANIFEST, msgspec.json.encode(said))
    except (OSError, msgspec.DecodeError):
        spoil(folder)


def _rewrite(folder: Path, raw: RawManifest) -> RawManifest:
    replace_file(folder / MANIFEST, msgspec.json.encode(raw))
    return raw


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc
