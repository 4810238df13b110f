"""The cells of a range: those that are kept, and those of the raw rows at its edges, made for the question.

`cells` has the range in cells, and of the day before it who was there: those have buckets before `$start`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from gpumon.server.accounts import rolling, slices
from gpumon.server.accounts.cells import CELL_COLUMNS, CREATE_CELLS, FINE, HOUR
from gpumon.server.accounts.desk import Reading, Run, merged
from gpumon.server.accounts.pieces import pieces_of_length
from gpumon.server.accounts.plan import Plan, plan
from gpumon.server.accounts.ranges import Span
from gpumon.server.accounts.slices import GPU_KEY, KNOWN_FOR, PLACE, utc

MOST_SAMPLES: Final = 100_000
"""Of raw rows about so many are divided at once, to bound the memory that it takes: some 1.5 KB for each, and for
each pod's row."""
_FEW_PIECES: Final = 20
"""No more are made where rows are dense in a small part of the stretches: each costs, also without a row."""
_REACHES: Final = 4
"""Pieces are not shorter than so many times what is read beside them."""
_SHORTEST: Final = timedelta(seconds=10)

_CELL: Final = ", ".join(CELL_COLUMNS)
_OF_PLACE: Final = f"{{{', '.join(f'{name!r}: {name}' for name in PLACE)}}}"

FLEET: Final = f"""
    seen AS (
        SELECT {", ".join(f"any_value({name}) AS {name}" for name in PLACE)}, max(last_at) AS last_at,
               coalesce(sum(covered) FILTER (bucket >= $start), 0) AS covered
        FROM cells WHERE kind = 'place' GROUP BY subject
    ),
    fleet AS MATERIALIZED (
        SELECT unnest(newest), covered, gpu_key
        FROM (SELECT {GPU_KEY} AS gpu_key, sum(covered) AS covered,
                     arg_min({_OF_PLACE}, (last_at IS NULL, -epoch_us(last_at), {_OF_PLACE})) AS newest
              FROM seen GROUP BY gpu_key)
    )"""
"""The GPUs that are accounted for, each at its newest place, with the seconds that samples cover."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """`relations` is SQL for WITH: `cells` and `fleet`; `parameters` are theirs. `before` and `within` say which
    cells these are, `pieces` which stretches of raw rows are a cell each. `reach` is how far from them rows
    matter."""

    relations: str
    parameters: dict[str, Any]
    before: Plan
    within: Plan
    pieces: Sequence[Run]
    reach: timedelta

    def bucket_from(self, begin: datetime) -> Run:
        """The bucket that begins then, which is one of the range's."""
        for of, to in (*self.within.days, *self.pieces):
            if of == begin:
                return of, to
        length = HOUR if any(of <= begin < to for of, to in self.within.hours) else FINE
        return begin, begin + length

    def by_hours(self, days: Sequence[Run]) -> Gathered:
        """The same, with these of its days in hours."""
        whole = [day for day in self.within.days if day not in days]
        within = replace(self.within, days=whole, hours=sorted([*self.within.hours, *days]))
        return _gathered(self.before, within, self.pieces, self.parameters, self.reach)


def gather(
    reading: Reading,
    span: Span,
    stale_after: timedelta,
    kinds: frozenset[str],
    fine_from: datetime = datetime.max,
) -> Gathered:
    """Makes the cells that are not kept, of these kinds at least, in a temporary table `edge_cells`, where there
    are such. From `fine_from` on (naive UTC) the span has fine cells where it can."""
    start, end = utc(span.start), utc(span.end)
    known = reading.coverage(start - KNOWN_FOR, end, fine_from)
    before = plan(start - KNOWN_FOR, start, known)
    within = plan(start, end, known, fine_from)
    if _has_edges(before, within):
        reading.select(f"CREATE OR REPLACE TEMP TABLE edge_cells {CREATE_CELLS}")
    raw = list(pieces_of_length(within.raw, _length_of_pieces(reading, within.raw)))
    for piece in raw:
        rolling.roll(
            reading.select, piece, reading.reach, stale_after, "edge_cells", kinds | {"place"}, reading.rows_in
        )
    rolling.sight(reading.select, before.raw, "edge_cells", reading.rows_in)
    parameters: dict[str, Any] = {"start": start, "end": end, "wall": span.seconds, "labels_end": end + KNOWN_FOR}
    return _gathered(before, within, [run for piece in raw for run in piece], parameters, reading.reach)


def _gathered(
    before: Plan, within: Plan, pieces: Sequence[Run], parameters: Mapping[str, Any], reach: timedelta
) -> Gathered:
    values = dict(parameters)
    chosen = " UNION ALL ".join(
        [
            *_chosen("day_cells", [*before.days, *within.days], values),
            *_chosen("hour_cells", [*before.hours, *within.hours], values),
            *_chosen("fine_cells", [*before.fine, *within.fine], values),
            *([f"SELECT {_CELL} FROM edge_cells"] if _has_edges(before, within) else []),
        ]
    )
    return Gathered(f"cells AS NOT MATERIALIZED ({chosen}), {FLEET}", values, before, within, pieces, reach)


def _has_edges(before: Plan, within: Plan) -> bool:
    return bool(before.raw or within.raw)


def _chosen(table: str, runs: Sequence[Run], parameters: dict[str, Any]) -> list[str]:
    conditions = []
    for number, (of, to) in enumerate(merged(runs)):
        parameters |= {f"{table}_of_{number}": of, f"{table}_to_{number}": to}
        conditions.append(f"bucket >= ${table}_of_{number} AND bucket < ${table}_to_{number}")
    return [f"SELECT {_CELL} FROM {table} WHERE ({' OR '.join(conditions)})"] if conditions else []


def _length_of_pieces(reading: Reading, stretches: Sequence[Run]) -> timedelta:
    whole = sum((to - of for of, to in stretches), timedelta())
    if not whole:
        return whole
    cuts = slices.cuts_of(stretches, {"samples": ("sampled_at",)}, reading.rows_in)
    sql = f"SELECT count(*), min(sampled_at), max(sampled_at) FROM ({slices.rows('samples', 'sampled_at', cuts)})"
    values = slices.parameters(stretches, cuts, timedelta())
    ((samples, first, last),) = reading.select(sql, slices.bound_values(sql, values))
    if samples <= MOST_SAMPLES:
        return whole
    dense = (last - first) / samples * MOST_SAMPLES
    few = whole / max(samples / MOST_SAMPLES, _FEW_PIECES)
    length: timedelta = max(dense, few, _REACHES * reading.reach, _SHORTEST)
    return length
