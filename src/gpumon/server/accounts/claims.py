"""Whose the seconds of a sample are, as SQL; pure. What cells sum up.

Each wall second of a GPU is divided into parts: active by somebody, held idle by somebody, used without
allocation, free, unhealthy, and no data with its reason. Whatever the rows say (shares that add up to too much,
users listed twice, values out of bounds), the parts of a sample add up to the seconds it stands for, and with
`not_sampled` to the wall time of the GPU. What could not be measured is no data, never idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gpumon.server.accounts.cells import CLAIM, HOLDER, LEVEL_KEYS
from gpumon.server.accounts.slices import SOURCE, Cut, rows, within
from gpumon.server.tables import POD_KEY

FATES: Final = ("free", "unhealthy", "activity_unmeasured", "allocation_unknown", "not_readable")
"""What the part of a second that nobody used or held may be."""

_ROUNDING: Final = 1e-4
"""Of a GPU. What the users' rounded percents lack to the GPU's own is no use by somebody unknown."""

_WHO: Final = ", ".join(name for name in POD_KEY if name not in {"held", "method"})
"""A user, whatever is said of it."""

SAMPLE_COLUMNS: Final = (
    "state", "holder_count", "process_count", "unhealthy", "utilization_mean", "utilization_gpu", "memory_used",
    "interval_energy_mj", "power_draw", "attribution_note",
)  # fmt: skip
"""What `ticks` are to carry for this."""

HOLDING_COLUMNS: Final = (
    "client_name", "gpu_id", "gpu_uuid", "sampled_at", *HOLDER, "pod_uid", "owner_kind", "owner_name", "method",
    "held", "gpu_share", "utilization", "memory_used", "energy_mj", "process_count",
)  # fmt: skip
"""What `holders` takes of a row of `pod_usage`."""

USER_COLUMNS: Final = tuple(dict.fromkeys([*HOLDING_COLUMNS, *POD_KEY]))
"""What `users` takes of it."""

_READABLE: Final = "coalesce(state, 'ok') = 'ok'"

READABLE: Final = f"""
    SELECT sample, place, source, sampled_at, {_READABLE} AS readable
    FROM cell_ticks WHERE sample IN (SELECT sample FROM cell_spans)"""
"""Of `SLICES` what users' own rows need; of samples it takes the state alone."""

SLICES: Final = f"""
    SELECT sample, place, source, sampled_at, {_READABLE} AS readable,
           coalesce(state = 'lost', false) AS lost, holder_count, process_count,
           unhealthy IS NOT NULL AS is_unhealthy,
           CASE WHEN {_READABLE}
                THEN {within("coalesce(utilization_mean, utilization_gpu)", "0", "100")} / 100 END AS busy,
           {within("memory_used", "0")} AS memory,
           {within("coalesce(interval_energy_mj, power_draw * total / 1e3)", "0")} AS energy
    FROM cell_ticks
    JOIN (SELECT sample, any_value(total) AS total FROM cell_spans GROUP BY sample) USING (sample)"""
"""What there is to divide, of the samples that stand for anything: the energy of all of a sample's own
interval."""


def users(cuts: Sequence[Cut]) -> str:
    """SQL for the users of `cell_slices`: rows of `pod_usage`, as they were told; `claim` is as whom they are
    summed up."""
    is_pod = "pod IS NOT NULL"
    keys = {
        "who": f"CASE WHEN {is_pod} THEN 'pod' WHEN method = 'unresolved' OR pod_uid IS NOT NULL "
        "OR process_name IS NULL THEN 'unresolved' ELSE 'host' END",
        "namespace": f"CASE WHEN {is_pod} THEN namespace END",
        "owner_kind": f"CASE WHEN {is_pod} AND owner_name IS NULL THEN 'Pod' WHEN {is_pod} THEN owner_kind END",
        "owner_name": f"CASE WHEN {is_pod} THEN coalesce(owner_name, pod) END",
        "pod": "pod",
        "container": f"CASE WHEN {is_pod} THEN container END",
        "method": "method",
    }
    named = ", ".join(f"{keys[name]} AS claim_{name}" for name in CLAIM)
    selected = f"""
        row_id, {SOURCE} AS source, sampled_at, hash({_WHO}) AS identity, {named},
        hash({", ".join(f"claim_{name}" for name in CLAIM)}) AS claim, mig_uuid, namespace, pod, container,
        pod_uid, owner_kind, owner_name, method, held, gpu_share, utilization, memory_used AS memory, energy_mj,
        process_count AS processes"""
    return _of_slices(selected, cuts)


def holders(cuts: Sequence[Cut]) -> str:
    """SQL for those of `users` that hold something, without as whom they are summed up."""
    selected = f"""
        row_id, {SOURCE} AS source, sampled_at, {", ".join(HOLDER)}, pod_uid, owner_kind, owner_name, method, held,
        gpu_share, utilization, memory_used AS memory, energy_mj, process_count AS processes"""
    return f"{_of_slices(selected, cuts)} WHERE held"


def _of_slices(selected: str, cuts: Sequence[Cut]) -> str:
    return f"""
        SELECT * FROM ({rows("pod_usage", selected, cuts)}) AS told
        JOIN (SELECT sample, source, sampled_at FROM cell_slices) USING (source, sampled_at)"""


def _claim(who: str) -> str:
    return f"hash('{who}'{', CAST(NULL AS VARCHAR)' * (len(CLAIM) - 1)})"


CLAIMS: Final = f"""
    SELECT *, {
    ", ".join(
        f"hash({', '.join(name for names in LEVEL_KEYS[:rank] for name in names)}) AS level_{rank}"
        for rank in range(1, len(LEVEL_KEYS) + 1)
    )
}
    FROM (SELECT claim, {", ".join(f"any_value(claim_{name}) AS {name}" for name in CLAIM)}
          FROM cell_users GROUP BY claim
          UNION ALL BY NAME SELECT {_claim("nobody")} AS claim, 'nobody' AS who
          UNION ALL BY NAME SELECT {_claim("unresolved")} AS claim, 'unresolved' AS who
          WHERE NOT EXISTS (FROM cell_users WHERE claim = {_claim("unresolved")}))"""
"""Who appears in `cell_users` at all, nobody, and users whom no row names."""

TOLD: Final = f"""
    SELECT sample, claim, held, is_mig, share, used, memory, energy,
           CASE WHEN held IS NOT TRUE OR used IS NULL THEN 0
                WHEN is_mig THEN greatest(0, share - used)
                ELSE coalesce(share * (1 - busy), 0) END AS idle,
           CASE WHEN held AND readable AND (used IS NULL OR (busy IS NULL AND NOT is_mig))
                THEN share ELSE 0 END AS unmeasured
    FROM (SELECT sample, claim, busy, readable, held, mig_uuid IS NOT NULL AS is_mig,
                 CASE WHEN held
                      THEN greatest(0, least(coalesce(gpu_share, 1 / greatest(holder_count, 1)), 1))
                      ELSE 0 END AS share,
                 CASE WHEN readable THEN {within("utilization", "0", "100")} / 100 END AS used,
                 {within("cell_users.memory", "0")} AS memory, {within("energy_mj", "0")} AS energy
          FROM cell_users JOIN cell_slices USING (sample)
          WHERE row_id IN (SELECT max(row_id) FROM cell_users GROUP BY sample, identity))"""
"""What each user says that it has of a sample. One that is listed twice for a sample counts once, the later row. A
holder whose share is not told has an equal part."""

WHOLE: Final = f"""
    SELECT sample, holder_count = 0 AS unheld, unclaimed_use,
           greatest(0, room - coalesce(claimed_unused, 0)) AS rest,
           least(1, coalesce(busy, 1) / nullif(claimed_used, 0)) AS of_use,
           least(1, room / nullif(claimed_unused, 0)) AS of_unused,
           least(1, 1 / nullif(claimed_share, 0)) AS of_share,
           least(1, memory / nullif(claimed_memory, 0)) AS of_memory,
           least(1, energy / nullif(claimed_energy, 0)) AS of_energy,
           {within("memory - coalesce(claimed_memory, 0)", "0")} AS rest_memory,
           {within("energy - coalesce(claimed_energy, 0)", "0")} AS rest_energy,
           fate, readable AND (busy IS NOT NULL OR (fate IN ('free', 'unhealthy')
                               AND coalesce(claimed_unmeasured, 0) = 0)) AS measured
    FROM (SELECT *, greatest(0, 1 - claimed_use - unclaimed_use) AS room
          FROM (SELECT *, CASE WHEN busy - claimed_use > {_ROUNDING} THEN busy - claimed_use ELSE 0 END
                              AS unclaimed_use
                FROM (SELECT *, least(coalesce(claimed_used, 0), coalesce(busy, 1)) AS claimed_use,
                             CASE WHEN lost THEN 'unhealthy'
                                  WHEN NOT readable THEN 'not_readable'
                                  WHEN holder_count IS NULL OR holder_count > coalesce(claimed_holders, 0)
                                       THEN 'allocation_unknown'
                                  WHEN busy IS NULL AND NOT coalesce(claimed_mig, false) AND holder_count = 0
                                       AND coalesce(process_count, 1) > 0 THEN 'activity_unmeasured'
                                  WHEN is_unhealthy THEN 'unhealthy'
                                  ELSE 'free' END AS fate
                      FROM cell_slices LEFT JOIN (
                          SELECT sample, bool_or(is_mig) AS claimed_mig, sum(used) AS claimed_used,
                                 sum(idle + unmeasured) AS claimed_unused,
                                 sum(unmeasured) AS claimed_unmeasured, sum(memory) AS claimed_memory,
                                 sum(energy) AS claimed_energy, sum(share) AS claimed_share,
                                 count(*) FILTER (held) AS claimed_holders
                          FROM cell_told GROUP BY sample) USING (sample))))"""
"""How that fits into the sample. Use is bounded by what the GPU was busy; what is held and not used, by the room
that is then left of it; shares by the GPU; memory and energy by the GPU's own. A holder of whom no row tells may
have the rest. `rest` is what nobody held or used, and `fate` what becomes of it; that nobody used it is `measured`
where the GPU's use is, or that of all who hold it."""

SHARES: Final = f"""
    SELECT sample, claim, bool_or(measured) AS measured, sum(allocated) AS allocated,
           sum(allocated) FILTER (measured) AS allocated_measured, sum(active_of_held) AS active_of_held,
           sum(active) AS active, sum(held_idle) AS held_idle,
           sum(used_without_allocation) AS used_without_allocation,
           {", ".join(f"sum({part}) AS {part}" for part in FATES)},
           sum(coalesce(active, 0) + coalesce(used_without_allocation, 0)) FILTER (measured) AS used,
           count(*) AS users, sum(memory) AS memory, sum(energy) AS energy
    FROM (SELECT sample, claim, used IS NOT NULL AS measured, share * of_share AS allocated,
                 CASE WHEN held THEN used * of_use END AS active_of_held,
                 CASE WHEN held IS DISTINCT FROM false THEN used * of_use END AS active,
                 idle * of_unused AS held_idle,
                 CASE WHEN held = false THEN used * of_use END AS used_without_allocation,
                 unmeasured * of_unused AS activity_unmeasured, memory * of_memory AS memory,
                 energy * of_energy AS energy
          FROM cell_told JOIN cell_whole USING (sample)
          UNION ALL BY NAME
          SELECT sample, {_claim("unresolved")} AS claim, true AS measured,
                 CASE WHEN unheld IS NOT TRUE THEN unclaimed_use END AS active,
                 CASE WHEN unheld THEN unclaimed_use END AS used_without_allocation
          FROM cell_whole WHERE unclaimed_use > 0
          UNION ALL BY NAME
          SELECT sample, {_claim("nobody")} AS claim, measured,
                 {", ".join(f"CASE WHEN fate = '{part}' THEN rest END AS {part}" for part in FATES)},
                 rest_memory AS memory, rest_energy AS energy
          FROM cell_whole)
    GROUP BY sample, claim"""
"""What each claim has of a sample: shares of its seconds, MiB, and mJ of its own interval. What is left of use is
that of users unknown."""
