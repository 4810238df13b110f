"""Sets aside what a crash leaves at the end of a CSV file, so that it ends with a whole, acknowledged line."""

from __future__ import annotations

import logging
from pathlib import Path

from gpumon.server.days import FileNames

log = logging.getLogger(__name__)

_TAIL_BLOCK = 1 << 16


def heal(path: Path, unacknowledged_from: int | None, quarantine: Path, *, worthless: bytes) -> int:
    """Cuts what stands from `unacknowledged_from` on (None: nothing), and then a torn last line; gives the length
    that is left. What is cut is kept in `quarantine`, unless it is `worthless`. Raises OSError."""
    size = path.stat().st_size
    keep = _last_line_end(path, size if unacknowledged_from is None else min(size, unacknowledged_from))
    if keep == size:
        return size
    with path.open("r+b") as file:
        file.seek(keep)
        cut = file.read()
        aside = quarantine / f"{path.name}.{keep}"
        if cut != worthless:
            aside.write_bytes(cut)
        file.truncate(keep)
    log.warning("csv_healed file=%s cut_bytes=%d kept_in=%s", path.name, len(cut), aside)
    return keep


def finish_compressions(folder: Path, names: FileNames) -> None:
    """Ends a compression that a kill interrupted (see `retention`): a compressed file whose plain one is gone is
    whole and gets its name, any other is thrown away. Raises OSError."""
    for aside in sorted(folder.iterdir()):
        target = aside.with_suffix("")
        if aside.suffix != ".new" or names.parse(target.name) is None:
            continue
        if target.with_suffix("").exists() or target.exists():
            aside.unlink()
        else:
            aside.replace(target)


def _last_line_end(path: Path, size: int) -> int:
    """The length of a file's part that ends with a newline, looking at the first `size` bytes."""
    with path.open("rb") as file:
        end = size
        while end > 0:
            start = max(0, end - _TAIL_BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
