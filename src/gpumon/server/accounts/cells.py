"""The shape of a cell; pure.

A cell is what the accounts of one bucket of wall time come to, kept: because a sample's seconds are clipped to the
bucket, the cells of adjacent buckets add up to the accounts of the whole, and what is highest in one of them is
highest in all. Buckets are of UTC, of 5 minutes (fine) or an hour. The kinds of rows:

claim   what a user, nobody, or users unknown had of a GPU at one place. `level` is the finest at which another
        claim
        shares the GPU with it in the bucket: there the peaks are those of the joint row
joint   peaks of several claims together on a GPU, at a level of LEVELS
place   that a GPU was seen at a place: `covered` seconds, the last instant
whole   peaks of all claims together on a GPU
holder  what a container that holds a GPU, or a MIG instance, had of it, whether or not it used it
note    what agents could not ask
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from gpumon.server.accounts.slices import PLACE

FINE: Final = timedelta(minutes=5)
HOUR: Final = timedelta(hours=1)

LEVELS: Final = {"namespace": 1, "owner": 2, "pod": 3, "container": 4}
"""What claims are together as, by the columns of LEVEL_KEYS up to there."""

LEVEL_KEYS: Final = (("who", "namespace"), ("owner_kind", "owner_name"), ("pod",), ("container",))
CLAIM: Final = (*(name for names in LEVEL_KEYS for name in names), "method")
HOLDER: Final = ("mig_uuid", "namespace", "pod", "container")

REASONS: Final = ("activity_unmeasured", "allocation_unknown", "not_readable", "not_sampled")
"""Why a part of the wall time is no data."""

PARTS: Final = ("active", "held_idle", "used_without_allocation", "free", "unhealthy", *REASONS)
"""Seconds, together the wall time. In cells there is no `not_sampled`: it is what is left of a range."""

CELL_PARTS: Final = PARTS[:-1]


@dataclass(frozen=True, slots=True)
class Column:
    """`adds` is how the cells of several buckets become one: `sum`, `min`, `max`, or None of what tells cells
    apart."""

    name: str
    sql_type: str
    adds: str | None = None


COLUMNS: Final = (
    Column("bucket", "TIMESTAMP"),
    Column("kind", "VARCHAR"),
    Column("level", "TINYINT"),
    *(Column(name, "BIGINT" if name == "gpu_id" else "VARCHAR") for name in PLACE),
    *(Column(name, "VARCHAR") for name in CLAIM),
    Column("mig_uuid", "VARCHAR"),
    Column("share", "DOUBLE"),
    Column("note", "VARCHAR"),
    Column("subject", "UBIGINT"),
    *(Column(name, "DOUBLE", "sum") for name in CELL_PARTS),
    Column("allocated", "DOUBLE", "sum"),
    Column("allocated_measured", "DOUBLE", "sum"),
    Column("active_of_held", "DOUBLE", "sum"),
    Column("used", "DOUBLE", "sum"),
    Column("seconds", "DOUBLE", "sum"),
    Column("memory", "DOUBLE", "sum"),
    Column("energy", "DOUBLE", "sum"),
    Column("there", "DOUBLE", "sum"),
    Column("active_peak", "DOUBLE", "max"),
    Column("memory_peak", "DOUBLE", "max"),
    Column("begins", "TIMESTAMP", "min"),
    Column("ends", "TIMESTAMP", "max"),
    Column("covered", "DOUBLE", "sum"),
    Column("last_at", "TIMESTAMP", "max"),
    Column("measured", "DOUBLE", "sum"),
    Column("unmeasured", "DOUBLE", "sum"),
    Column("weighed", "DOUBLE", "sum"),
    Column("utilization_max", "DOUBLE", "max"),
    Column("samples", "BIGINT", "sum"),
    Column("unmeasured_samples", "BIGINT", "sum"),
)
"""All kinds in one table. `seconds` of claims, `measured` and `unmeasured` of holders are presence; `used` is what
was active and could be measured; `memory` is MiB s, `energy` mJ, `weighed` % s, the peaks of a GPU and MiB.
`subject` is a hash of all that tells cells of a kind apart but the bucket and the level: to group by, quickly, and
no more."""

CELL_COLUMNS: Final = tuple(column.name for column in COLUMNS)
CREATE_CELLS: Final = f"({', '.join(f'{column.name} {column.sql_type}' for column in COLUMNS)})"
"""For CREATE TABLE; Parquet files have the same columns."""
