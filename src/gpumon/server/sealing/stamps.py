"""What a sealed day depends on beside its rows; see `manifest.Stamps`."""

from __future__ import annotations

from datetime import timedelta

from gpumon.server import readings
from gpumon.server.accounts.cells import CREATE_CELLS
from gpumon.server.manifest import Stamps, stamp
from gpumon.server.relations import SEALABLE

_CELLS = "2"
"""Counts up when the same rows come to other cells."""


def sealing_stamps(zone_key: str, stale_after: timedelta) -> Stamps:
    """Instants of rows that give only local time, and the rollup by local hour, hold for one zone. What becomes of
    rows has their stamp in the folder of rows of which it was made."""
    return Stamps(
        rows=stamp(zone_key, *(table.create for table in SEALABLE)),
        readings=stamp(zone_key, readings.CREATE),
        cells=stamp(_CELLS, CREATE_CELLS),
        stale_after=stale_after.total_seconds(),
    )
