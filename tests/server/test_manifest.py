"""What is sealed counts when it is whole, and only then."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path

import pytest

from gpumon.server import manifest
from gpumon.server.manifest import CellsManifest, RawManifest, SealedFile, Stamps
from gpumon.server.sealedfolders import find

DAY = date(2026, 11, 24)
STAMPS = Stamps("raw", "readings", "cells", 120.0)


def raw_folder(root: Path, content: bytes = b"rows", stamp: str = "raw", number: int = 1) -> Path:
    """A sealed day whose files are of any content."""
    folder = root / "20261124" / f"raw-{number}.new"
    folder.mkdir(parents=True)
    for name in (*manifest.RAW_ROWS, "readings.parquet"):
        (folder / name).write_bytes(content)
    said = RawManifest(
        stamp=stamp,
        readings_stamp="readings",
        day=DAY,
        files=[SealedFile("gpu_metrics_20261124.csv", 10, 20, 1)],
        damaged=0,
        rows={"samples": 1, "pod_usage": 1},
        first_at=datetime(2026, 11, 24, 1, 2, 3, 4000),
        last_at=None,
        longest_interval=10.0,
        unstated=False,
        outputs=manifest.outputs_of(folder),
    )
    published = manifest.publish(folder, said)
    assert manifest.read(published, RawManifest) == said
    return published


def cells_folder(root: Path, raw: str) -> Path:
    folder = root / "20261124" / "cells-9.new"
    folder.mkdir(parents=True)
    (folder / "fine.parquet").write_bytes(b"cells")
    run = (datetime(2026, 11, 24), datetime(2026, 11, 24, 1))
    said = CellsManifest(
        stamp="cells",
        stale_after=120.0,
        day=DAY,
        raw=raw,
        fine=[run],
        hours=[run],
        outputs=manifest.outputs_of(folder),
    )
    return manifest.publish(folder, said)


def test_a_flipped_bit_is_noticed_by_the_checksum_and_a_missing_end_at_a_glance(tmp_path: Path) -> None:
    folder = raw_folder(tmp_path, bytes(3_000_000))
    said = manifest.read(folder, RawManifest)
    assert manifest.fault(folder, said.outputs) is None
    damaged = bytearray(3_000_000)
    damaged[2_500_000] = 1
    (folder / "samples.parquet").write_bytes(damaged)
    assert manifest.fault(folder, said.outputs, quick=True) is None
    assert manifest.fault(folder, said.outputs) == "samples.parquet has another checksum"
    (folder / "samples.parquet").write_bytes(damaged[:-1])
    assert manifest.fault(folder, said.outputs, quick=True) == "samples.parquet has another size"
    (folder / "samples.parquet").unlink()
    assert "samples.parquet can't be read" in str(manifest.fault(folder, said.outputs, quick=True))


def test_what_a_kill_left_and_what_was_replaced_is_removed(tmp_path: Path) -> None:
    raw_folder(tmp_path, number=1)
    newest = raw_folder(tmp_path, number=2)
    (tmp_path / "20261124" / "raw-3.new" / "work").mkdir(parents=True)
    (tmp_path / "20261124" / "raw-4").mkdir()  # its manifest was never written
    cells = cells_folder(tmp_path, newest.name)
    found = find(tmp_path, STAMPS)[DAY]
    assert (found.folder, found.cells_folder) == (newest, cells)
    assert set((tmp_path / "20261124").iterdir()) == {newest, cells}


def test_cells_of_other_rows_do_not_count(tmp_path: Path) -> None:
    raw = raw_folder(tmp_path, number=2)
    cells_folder(tmp_path, "raw-1")
    found = find(tmp_path, STAMPS)[DAY]
    assert (found.folder, found.cells_folder, found.cells) == (raw, None, None)
    assert list((tmp_path / "20261124").iterdir()) == [raw]


@pytest.mark.parametrize("harm", ["another version", "cut", "no manifest", "manifest of nonsense"])
def test_a_folder_that_cannot_be_relied_on_is_thrown_away(tmp_path: Path, harm: str) -> None:
    folder = raw_folder(tmp_path, stamp="older" if harm == "another version" else "raw")
    if harm == "cut":
        (folder / "readings.parquet").write_bytes(b"")
    elif harm == "no manifest":
        manifest.spoil(folder)
    elif harm == "manifest of nonsense":
        (folder / manifest.MANIFEST).write_bytes(b'{"stamp": 1')
    assert find(tmp_path, STAMPS) == {}
    assert not folder.exists()


def test_a_day_whose_rows_retention_has_deleted_is_still_whole(tmp_path: Path) -> None:
    folder = raw_folder(tmp_path)
    said = manifest.without_rows(folder, manifest.read(folder, RawManifest), deleting=False)
    for name in manifest.RAW_ROWS:
        (folder / name).unlink()
    assert list(said.outputs) == ["readings.parquet"]
    assert find(tmp_path, STAMPS)[DAY].raw == said


@pytest.mark.parametrize(
    ("wanted", "raw_counts", "cells_count"),
    [
        (Stamps("other columns", "readings", "cells", 120.0), True, True),
        (Stamps("raw", "readings", "cells", 300.0), True, True),
        (Stamps("raw", "readings", "other cells", 120.0), True, False),
        (Stamps("raw", "other readings", "cells", 120.0), False, False),
    ],
)
def test_rollups_that_nobody_could_make_again_stay_whatever_changes_and_count_where_they_can(
    tmp_path: Path, wanted: Stamps, raw_counts: bool, cells_count: bool
) -> None:
    folder = raw_folder(tmp_path)
    cells = cells_folder(tmp_path, folder.name)
    manifest.without_rows(folder, manifest.read(folder, RawManifest), deleting=False)
    for name in manifest.RAW_ROWS:
        (folder / name).unlink()
    found = find(tmp_path, wanted)
    assert (DAY in found) == raw_counts
    if raw_counts:
        assert (found[DAY].cells_folder is not None) == cells_count
    assert find(tmp_path, STAMPS)[DAY].cells_folder == cells, "all of it is still there"


@pytest.mark.parametrize(
    "wanted",
    [Stamps("raw", "readings", "cells", 300.0), Stamps("raw", "readings", "other cells", 120.0)],
)
def test_accounts_that_can_be_made_again_are_where_they_would_be_others(tmp_path: Path, wanted: Stamps) -> None:
    folder = raw_folder(tmp_path)
    cells = cells_folder(tmp_path, folder.name)
    found = find(tmp_path, wanted)[DAY]
    assert (found.folder, found.cells) == (folder, None)
    assert not cells.exists()


def test_a_file_that_was_compressed_is_known_by_its_new_name(tmp_path: Path) -> None:
    folder = raw_folder(tmp_path)
    name = "gpu_metrics_20261124.csv"
    manifest.renamed(folder, manifest.read(folder, RawManifest), name, f"{name}.gz", 5, 6)
    assert manifest.read(folder, RawManifest).files == [SealedFile(f"{name}.gz", 5, 6, 1)]
