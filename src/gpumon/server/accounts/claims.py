"""Whose the seconds of a sample are, as SQL; pure. What `ledger` and `usage` add up.

Each wall second of a GPU is divided into parts: active by somebody, held idle by somebody, used without
allocation, free, unhealthy, and no data with its reason. Whatever the rows say (shares that add up to too much,
users listed twice, values out of bounds), the parts of a sample add up to the seconds it stands for, and with
`not_sampled` to the wall time of the GPU. What could not be measured is no data, never idle.
"""

from __future__ import annotations

from typing import Final

from gpumon.server.accounts.slices import PLACES, SLICES, uses, within
from gpumon.server.tables import POD_KEY

REASONS: Final = ("activity_unmeasured", "allocation_unknown", "not_readable", "not_sampled")
"""Why a part of the wall time is no data."""

PARTS: Final = ("active", "held_idle", "used_without_allocation", "free", "unhealthy", *REASONS)
"""Columns of `accounts`, in seconds: together the wall time."""

_FATES: Final = ("free", "unhealthy", "activity_unmeasured", "allocation_unknown", "not_readable")
"""What the part of a second that nobody used or held may be."""

NOBODY: Final = 0
UNRESOLVED: Final = -1
"""Claimants without a row: nobody, and a user whom no row names."""

_ROUNDING: Final = 1e-4
"""Of a GPU. What the users' rounded percents lack to the GPU's own is no use by somebody unknown."""

_USER = (*POD_KEY, "owner_kind", "owner_name")

_WHO: Final = ", ".join(name for name in POD_KEY if name not in {"held", "method"})
"""A user, whatever is said of it."""

_SAME_USER: Final = " AND ".join(f"told.{name} IS NOT DISTINCT FROM users.{name}" for name in _USER)

_CLAIMANTS: Final = f"""
    users AS MATERIALIZED (
        SELECT row_number() OVER () AS claimant, *, dense_rank() OVER (ORDER BY {_WHO}) AS identity
        FROM (SELECT DISTINCT {", ".join(_USER)} FROM pod_usage
              WHERE sampled_at > $start AND sampled_at <= $reach_end)
    ),
    claimants AS MATERIALIZED (
        SELECT claimant, method,
               CASE WHEN pod IS NOT NULL THEN 'pod'
                    WHEN method = 'unresolved' OR pod_uid IS NOT NULL OR process_name IS NULL THEN 'unresolved'
                    ELSE 'host' END AS who,
               CASE WHEN pod IS NOT NULL THEN namespace END AS namespace, pod,
               CASE WHEN pod IS NOT NULL THEN container END AS container,
               CASE WHEN pod IS NOT NULL AND owner_name IS NULL THEN 'Pod'
                    WHEN pod IS NOT NULL THEN owner_kind END AS owner_kind,
               CASE WHEN pod IS NOT NULL THEN coalesce(owner_name, pod) END AS owner_name
        FROM users
        UNION ALL BY NAME SELECT {NOBODY} AS claimant, 'nobody' AS who
        UNION ALL BY NAME SELECT {UNRESOLVED} AS claimant, 'unresolved' AS who
    ),
    once AS (
        SELECT sample, max(told.rowid) AS use, arg_max(claimant, told.rowid) AS claimant
        {uses("told")} JOIN users ON {_SAME_USER}
        GROUP BY sample, identity
    )"""
"""Who appears at all, by number, so that what follows carries numbers only. A user that is listed twice for one
sample counts once, the later row."""

_CLAIMS: Final = f"""
    stated AS NOT MATERIALIZED (
        SELECT sample, claimant, busy, readable, held, pod_usage.mig_uuid IS NOT NULL AS is_mig,
               CASE WHEN held THEN greatest(0, least(coalesce(gpu_share, 1 / greatest(holder_count, 1)), 1))
                    ELSE 0 END AS share,
               CASE WHEN readable THEN {within("utilization", "0", "100")} / 100 END AS used,
               {within("pod_usage.memory_used", "0")} AS memory, {within("energy_mj * portion", "0")} AS energy
        FROM once JOIN pod_usage ON pod_usage.rowid = once.use JOIN slices USING (sample)
    ),
    claims AS MATERIALIZED (
        SELECT sample, claimant, held, is_mig, share, used, memory, energy,
               CASE WHEN held IS NOT TRUE OR used IS NULL THEN 0
                    WHEN is_mig THEN greatest(0, share - used)
                    ELSE coalesce(share * (1 - busy), 0) END AS idle,
               CASE WHEN held AND readable AND (used IS NULL OR (busy IS NULL AND NOT is_mig))
                    THEN share ELSE 0 END AS unmeasured
        FROM stated
    ),
    claimed AS (
        SELECT sample, bool_or(is_mig) AS is_mig, sum(used) AS used, sum(idle + unmeasured) AS unused,
               sum(memory) AS memory, sum(energy) AS energy, sum(share) AS share, count(*) FILTER (held) AS holders
        FROM claims GROUP BY sample
    ),
    whole AS MATERIALIZED (
        SELECT sample, place, ends, seconds, holder_count = 0 AS unheld,
               least(coalesce(claimed.used, 0), coalesce(busy, 1)) AS claimed_use,
               CASE WHEN busy - claimed_use > {_ROUNDING} THEN busy - claimed_use ELSE 0 END AS unclaimed_use,
               greatest(0, 1 - claimed_use - unclaimed_use) AS room,
               greatest(0, room - coalesce(claimed.unused, 0)) AS rest,
               least(1, coalesce(busy, 1) / nullif(claimed.used, 0)) AS of_use,
               least(1, room / nullif(claimed.unused, 0)) AS of_unused, least(1, 1 / nullif(claimed.share, 0)) AS
               of_share, least(1, slices.memory / nullif(claimed.memory, 0)) AS of_memory,
               least(1, slices.energy / nullif(claimed.energy, 0)) AS of_energy,
               {within("slices.memory - coalesce(claimed.memory, 0)", "0")} AS rest_memory,
               {within("slices.energy - coalesce(claimed.energy, 0)", "0")} AS rest_energy,
               CAST(CASE WHEN lost THEN 'unhealthy'
                         WHEN NOT readable THEN 'not_readable'
                         WHEN holder_count IS NULL OR holder_count > coalesce(claimed.holders, 0)
                              THEN 'allocation_unknown'
                         WHEN busy IS NULL AND NOT coalesce(claimed.is_mig, false) AND holder_count = 0
                              AND coalesce(process_count, 1) > 0 THEN 'activity_unmeasured'
                         WHEN is_unhealthy THEN 'unhealthy'
                         ELSE 'free' END AS ENUM ({", ".join(f"'{part}'" for part in _FATES)})) AS fate,
               readable AND (busy IS NOT NULL OR fate IN ('free', 'unhealthy')) AS measured
        FROM slices LEFT JOIN claimed USING (sample)
    )"""
"""Use is bounded by what the GPU was busy; what is held and not used, by the room that is then left of it; shares
by the GPU; memory and energy by the GPU's own. A holder whose share is not told has an equal part; one of whom no
row tells may have the rest. `rest` is what nobody held or used, and `fate` what becomes of it."""

_SHARES: Final = f"""
    shares AS NOT MATERIALIZED (
        SELECT sample, place, ends, seconds, claimant, used IS NOT NULL AS measured,
               share * of_share * seconds AS allocated,
               CASE WHEN held THEN used * of_use * seconds END AS active_of_held,
               CASE WHEN held IS DISTINCT FROM false THEN used * of_use * seconds END AS active,
               idle * of_unused * seconds AS held_idle,
               CASE WHEN held = false THEN used * of_use * seconds END AS used_without_allocation,
               unmeasured * of_unused * seconds AS activity_unmeasured,
               memory * of_memory AS memory, energy * of_energy AS energy
        FROM claims JOIN whole USING (sample)
        UNION ALL BY NAME
        SELECT sample, place, ends, seconds, {UNRESOLVED} AS claimant, true AS measured,
               CASE WHEN unheld IS NOT TRUE THEN unclaimed_use * seconds END AS active,
               CASE WHEN unheld THEN unclaimed_use * seconds END AS used_without_allocation
        FROM whole WHERE unclaimed_use > 0
        UNION ALL BY NAME
        SELECT sample, place, ends, seconds, {NOBODY} AS claimant, measured,
               {", ".join(f"CASE WHEN fate = '{part}' THEN rest * seconds END AS {part}" for part in _FATES)},
               rest_memory AS memory, rest_energy AS energy
        FROM whole
    ),
    fleet AS MATERIALIZED (
        SELECT gpu, any_value(place) FILTER (is_newest) AS place, coalesce(any_value(covered), 0) AS covered
        FROM places LEFT JOIN (SELECT gpu, sum(seconds) AS covered FROM spans GROUP BY gpu) USING (gpu)
        WHERE known OR covered > 0 GROUP BY gpu
    ),
    accounts AS NOT MATERIALIZED (
        SELECT * FROM shares
        UNION ALL BY NAME
        SELECT place, {NOBODY} AS claimant, greatest(0, $wall - covered) AS not_sampled FROM fleet
    )"""
"""`shares`: each claimant's part of each slice, in seconds, MiB and mJ; what is left of it is unresolved or
nobody's. `fleet`: the GPUs that are accounted for. `accounts` adds the time of which there is no sample."""

ACCOUNTS: Final = ",".join((PLACES, SLICES, _CLAIMANTS, _CLAIMS, _SHARES))
