"""What a sealed day depends on beside its rows; see `manifest.stamp`."""

from __future__ import annotations

from datetime import timedelta

from gpumon.server import readings
from gpumon.server.accounts.cells import CREATE_CELLS
from gpumon.server.manifest import stamp
from gpumon.server.relations import SEALABLE


def sealing_stamps(zone_key: str, stale_after: timedelta) -> tuple[str, str]:
    """The stamps of the rows and of the cells."""
    rows = stamp(zone_key, readings.CREATE, *(table.create for table in SEALABLE))
    return rows, stamp(rows, CREATE_CELLS, str(stale_after.total_seconds()))
