"""Makes cells: of raw rows, and of finer cells. Pure but for the statements that it runs.

Relations, each a step, named `cell_...`: what is carried from one to the next is numbers. The names of places and
users join in at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

from gpumon.server.accounts import claims, slices
from gpumon.server.accounts.cells import (
    CELL_PARTS,
    CLAIM,
    HOLDER,
    LEVEL_KEYS,
)  # fmt: skip
from gpumon.server.accounts.desk import Execute, Run
from gpumon.server.accounts.slices import GPU_KEY, PLACE, PLACE_HASH, RowsIn, by_name, cuts_of

KINDS: Final = frozenset({"claim", "joint", "place", "whole", "holder", "note"})

RANKS: Final = tuple(range(1, len(LEVEL_KEYS) + 1))

_PLACES: Final = (
    f"SELECT place, {', '.join(f'any_value({n}) AS {n}' for n in PLACE)} FROM cell_ticks GROUP BY place"
)

_BUCKET: Final = "make_timestamp(lower) AS bucket"
_OF_PLACE: Final = ", ".join(PLACE)

_CLAIMED: Final = f"""
    SELECT lower, place, claim,
           {", ".join(f"sum({part} * seconds) AS {part}" for part in CELL_PARTS)},
           sum(allocated * seconds) AS allocated, sum(allocated_measured * seconds) AS allocated_measured,
           sum(active_of_held * seconds) AS active_of_held, sum(used * seconds) AS used,
           sum(users * seconds) AS seconds, sum(memory * seconds) AS memory, sum(energy * portion) AS energy,
           sum(seconds) FILTER (measured) AS there, max(used) AS active_peak, max(memory) AS memory_peak,
           make_timestamp(min(begins)) AS begins, make_timestamp(max(ends)) AS ends
    FROM cell_shares JOIN cell_spans USING (sample) GROUP BY lower, place, claim"""

_LEVEL: Final = "CASE " + " ".join(
    f"WHEN len(list_filter(all_{rank}, lambda other: other = level_{rank})) > 1 THEN {rank}"
    for rank in reversed(RANKS)
) + " ELSE 0 END"  # fmt: skip

_LEVELS: Final = f"""
    SELECT lower, place, claim, [{", ".join(f"level_{rank}" for rank in RANKS)}] AS level_keys, {_LEVEL} AS level
    FROM cell_claimed JOIN cell_claims USING (claim)
    JOIN (SELECT lower, place, {", ".join(f"list(level_{rank}) AS all_{rank}" for rank in RANKS)}
          FROM cell_claimed JOIN cell_claims USING (claim) GROUP BY lower, place) USING (lower, place)"""

_NO_LEVELS: Final = "SELECT lower, place, claim, CAST(NULL AS TINYINT) AS level FROM cell_claimed LIMIT 0"

_CLAIM_ROWS: Final = f"""
    SELECT {_BUCKET}, 'claim' AS kind, level, {_OF_PLACE}, {", ".join(CLAIM)}, hash(place, claim) AS subject,
           claimed.* EXCLUDE (lower, place, claim)
               REPLACE (CASE WHEN who <> 'nobody' THEN there END AS there,
                        CASE WHEN who <> 'nobody' THEN active_peak END AS active_peak,
                        CASE WHEN who <> 'nobody' THEN memory_peak END AS memory_peak)
    FROM cell_claimed AS claimed JOIN cell_claims USING (claim) JOIN cell_places USING (place)
    LEFT JOIN (SELECT lower, place, claim, level FROM cell_levels) USING (lower, place, claim)"""

_KEPT: Final = ", ".join(
    f"CASE WHEN level >= {rank} THEN {name} END AS {name}"
    for rank, names in enumerate(LEVEL_KEYS, 1)
    for name in names
)

_JOINT_ROWS: Final = f"""
    SELECT {_BUCKET}, 'joint' AS kind, level, {_OF_PLACE}, {_KEPT},
           hash(place, level, level_key) AS subject, there, active_peak, memory_peak
    FROM (SELECT lower, place, level, level_key, any_value(claim) AS claim, max(used) AS active_peak,
                 max(memory) AS memory_peak, sum(seconds) FILTER (used IS NOT NULL) AS there
          FROM (SELECT lower, place, sample, level, level_key, any_value(claim) AS claim,
                       any_value(seconds) AS seconds, sum(used) AS used, sum(memory) AS memory
                FROM (SELECT lower, place, claim, unnest(range(1, level + 1)) AS level,
                             unnest(level_keys[:level]) AS level_key
                      FROM cell_levels WHERE level > 0)
                JOIN cell_spans USING (lower, place) JOIN cell_shares USING (sample, claim)
                GROUP BY lower, place, sample, level, level_key)
          GROUP BY lower, place, level, level_key)
    JOIN cell_claims USING (claim) JOIN cell_places USING (place)"""

_SEEN: Final = f"""
    SELECT lower, place, max(sampled_at) AS last_at
    FROM cell_ticks JOIN ({slices.INTERVALS}) ON moment > lower AND moment <= upper GROUP BY lower, place"""

_PLACE_ROWS: Final = f"""
    SELECT {_BUCKET}, 'place' AS kind, {_OF_PLACE}, place AS subject, covered, last_at
    FROM (SELECT lower, place, sum(seconds) AS covered FROM cell_spans GROUP BY lower, place)
    FULL JOIN ({_SEEN}) USING (lower, place) JOIN cell_places USING (place)"""

_WHOLE_ROWS: Final = f"""
    SELECT {_BUCKET}, 'whole' AS kind, {_OF_PLACE}, place AS subject, there, active_peak, memory_peak
    FROM (SELECT lower, place, sum(seconds) FILTER (used IS NOT NULL) AS there, max(used) AS active_peak,
                 max(memory) AS memory_peak
          FROM cell_spans JOIN (SELECT sample, sum(used) AS used, sum(memory) AS memory
                                FROM cell_shares GROUP BY sample) USING (sample)
          GROUP BY lower, place)
    JOIN cell_places USING (place)"""

HOLDINGS: Final = f"""
    SELECT cell_users.sample, place, {", ".join((*PLACE, *HOLDER))}, {GPU_KEY} AS gpu_key, energy_mj,
           greatest(0, least(coalesce(gpu_share, 1), 1)) AS share,
           CASE WHEN readable THEN utilization END AS utilization,
           pod_uid, owner_kind, owner_name, method, cell_users.memory AS memory_used, processes AS process_count
    FROM cell_users JOIN cell_slices USING (sample) JOIN cell_places USING (place)
    WHERE row_id IN (SELECT max(row_id) FROM cell_users WHERE held GROUP BY sample, {", ".join(HOLDER)})"""
"""SQL for what each holder has of a sample; see `holding`."""

COLUMNS: Final = {"samples": (*slices.TICK_COLUMNS, *claims.SAMPLE_COLUMNS), "pod_usage": claims.USER_COLUMNS}
"""What `roll` takes of the raw rows, by table."""

HOLDINGS_COLUMNS: Final = {"samples": (*slices.TICK_COLUMNS, "state"), "pod_usage": claims.HOLDING_COLUMNS}
"""What `holding` takes of the raw rows, by table."""

_HOLDER_ROWS: Final = f"""
    SELECT {_BUCKET}, 'holder' AS kind, {_OF_PLACE}, {", ".join(HOLDER)}, share,
           hash(place, {", ".join(HOLDER)}, share) AS subject, make_timestamp(min(begins)) AS begins,
           make_timestamp(max(ends)) AS ends,
           sum(seconds) FILTER (utilization IS NOT NULL) AS measured,
           sum(seconds) FILTER (utilization IS NULL) AS unmeasured,
           sum(utilization * seconds) AS weighed, max(utilization) AS utilization_max,
           count(*) FILTER (own AND utilization IS NOT NULL) AS samples,
           count(*) FILTER (own AND utilization IS NULL) AS unmeasured_samples,
           sum(energy_mj * portion) FILTER (utilization IS NOT NULL) AS energy
    FROM ({HOLDINGS}) JOIN cell_spans USING (sample, place)
    GROUP BY lower, {", ".join(["place", *PLACE, *HOLDER])}, share"""

_NOTE_ROWS: Final = f"""
    SELECT {_BUCKET}, 'note' AS kind, attribution_note AS note, hash(attribution_note) AS subject,
           count(*) AS samples
    FROM cell_ticks JOIN ({slices.INTERVALS}) ON moment > lower AND moment <= upper
    WHERE attribution_note IS NOT NULL GROUP BY lower, attribution_note"""

_CLAIMING: Final = {
    "claims": claims.CLAIMS,
    "told": claims.TOLD,
    "whole": claims.WHOLE,
    "shares": claims.SHARES,
    "claimed": _CLAIMED,
}
_ROWS: Final = {
    "claim": _CLAIM_ROWS,
    "joint": _JOINT_ROWS,
    "place": _PLACE_ROWS,
    "whole": _WHOLE_ROWS,
    "holder": _HOLDER_ROWS,
    "note": _NOTE_ROWS,
}


def roll(
    execute: Execute,
    buckets: Sequence[Run],
    reach: timedelta,
    stale_after: timedelta,
    into: str,
    kinds: frozenset[str] = KINDS,
    rows_in: RowsIn = by_name,
    of: str = "TRUE",
) -> None:
    """Adds the cells of some disjoint stretches of time to a table, from raw rows: those from `reach` before each
    to `reach` after it have to be there. Memory is taken for all these rows at once: an hour of them is enough.
    `of` is a condition on a GPU: the cells of some and those of the others are the cells of all.

    In one statement, since for the few rows at the edges of a range a statement for each step costs more than the
    steps."""
    cuts = cuts_of(slices.windows_of(buckets, reach), COLUMNS, rows_in, of)
    values = slices.parameters(buckets, cuts, stale_after)
    steps = _steps(cuts, ", ".join(claims.SAMPLE_COLUMNS), claims.SLICES, claims.users(cuts))
    if kinds & {"claim", "joint", "whole"}:
        levels = _LEVELS if "joint" in kinds else _NO_LEVELS
        steps |= _CLAIMING | {"levels": levels}
    # Together first: to insert the kinds one by one takes twice as long.
    steps["rows"] = " UNION ALL BY NAME ".join(f"({sql})" for kind, sql in _ROWS.items() if kind in kinds)
    insert = f"WITH {_with(steps)} INSERT INTO {into} BY NAME FROM cell_rows"
    execute(insert, slices.bound_values(insert, values))


def holding(cuts: Sequence[slices.Cut]) -> str:
    """SQL for WITH: what `HOLDINGS` takes, and `cell_spans`. Its values are of `slices.parameters`."""
    return _with(_steps(cuts, "state", claims.READABLE, claims.holders(cuts)))


def _steps(cuts: Sequence[slices.Cut], columns: str, divided: str, users: str) -> dict[str, str]:
    return {
        "ticks": slices.ticks(cuts, columns),
        "places": _PLACES,
        "stands": slices.stands(),
        "spans": slices.SPANS,
        "slices": divided,
        "users": users,
    }


def _with(steps: Mapping[str, str]) -> str:
    return ", ".join(f"cell_{name} AS MATERIALIZED ({sql})" for name, sql in steps.items())


def sight(execute: Execute, stretches: Sequence[Run], into: str, rows_in: RowsIn) -> None:
    """Adds cells that tell only which GPUs were seen in some stretches of time, the last time."""
    for of, to in stretches:
        seen = rows_in("samples", (of, to), (*PLACE, "sampled_at"))
        sql = f"""
            INSERT INTO {into} BY NAME
            SELECT CAST($of AS TIMESTAMP) AS bucket, 'place' AS kind, {_OF_PLACE}, place AS subject, last_at
            FROM (SELECT {PLACE_HASH} AS place, any_value(client_name) AS client_name, any_value(gpu_id) AS gpu_id,
                         any_value(gpu_uuid) AS gpu_uuid, any_value(gpu_name) AS gpu_name,
                         any_value(coalesce(node, client_name)) AS node, max(sampled_at) AS last_at
                  FROM {seen} WHERE sampled_at > $of AND sampled_at <= $to GROUP BY place)"""
        execute(sql, {"of": of, "to": to})
