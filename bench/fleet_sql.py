"""What `bench.fleet` is made of, as SQL: GPUs, the jobs that run on them, their samples and users, labels.

Variables `gpus`, `step` (seconds) and `seed` are set before; a chunk is the samples of the ticks (multiples of the
step since 1970) from `$first` to before `$last`. Each relation has the columns of its table that are not always
empty, and `place`, the order in which a server would get the rows.
"""

from __future__ import annotations

NODE_GPUS = 8
COUNTERS = ("energy_mj", "pcie_rx_kib", "pcie_tx_kib", "nvlink_rx_kib", "nvlink_tx_kib")

SETUP = f"""
CREATE MACRO noise(a, b, salt) AS (hash(a, b, salt, getvariable('seed')) >> 11) / 9007199254740992.0;
CREATE MACRO identity(a, b, salt) AS regexp_replace(
    md5(concat_ws('/', a, b, salt, getvariable('seed'))), '(.{{8}})(.{{4}})(.{{4}})(.{{4}})(.*)',
    '\\1-\\2-\\3-\\4-\\5');
CREATE TABLE gpus AS
SELECT gpu, gpu % {NODE_GPUS} AS gpu_id, gpu // {NODE_GPUS} AS node_number,
       printf('gpu-node-%03d', node_number) AS node, 'GPU-' || identity(gpu, 0, 'gpu') AS gpu_uuid,
       printf('00000000:%02X:00.0', 24 + gpu_id) AS pci_bus_id,
       CASE WHEN gpu % 20 IN (0, 7) THEN 'shared' WHEN gpu % 20 = 13 THEN 'idle'
            WHEN gpu % 20 = 19 THEN 'free' ELSE 'exclusive' END AS kind,
       CASE WHEN kind = 'exclusive' THEN gpu - gpu_id % ([1, 1, 2, 4])[1 + node_number % 4] ELSE gpu END
           AS job_group,
       CAST(CASE kind WHEN 'exclusive' THEN 10800 + noise(job_group, 1, 'period') * 28800
                      ELSE 172800 + noise(job_group, 1, 'period') * 172800 END AS BIGINT) AS period,
       CAST(noise(job_group, 2, 'offset') * 86400 AS BIGINT) AS shift,
       CAST(floor(noise(node_number, 0, 'phase') * 990 * getvariable('step')) AS BIGINT) AS phase_ms
FROM range(getvariable('gpus')) AS numbers(gpu);
CREATE TABLE counters AS
SELECT gpu, {", ".join(f"CAST(noise(gpu, 0, '{name}') * 1e12 AS BIGINT) AS {name}" for name in COUNTERS)}
FROM gpus;
CREATE TABLE labelled (client_name VARCHAR, pod_uid VARCHAR);
"""
"""`noise` is in [0, 1). A job is who runs on a group of GPUs in one of its periods."""

JOBS = """
CREATE OR REPLACE TABLE jobs AS
SELECT kind, job_group, slot, k, 'main' AS container, identity(job, k, 'pod') AS pod_uid,
       CASE kind WHEN 'exclusive' THEN 'Job' WHEN 'idle' THEN 'StatefulSet' ELSE 'Deployment' END AS owner_kind,
       CASE kind WHEN 'exclusive' THEN 'train-' WHEN 'idle' THEN 'notebook-' ELSE 'serve-' END
           || (['bert', 'llama', 'resnet', 'whisper', 'unet'])[CAST(1 + hash(job, k, 'app') % 5 AS INTEGER)]
           AS app,
       app || '-' || md5(concat(job, k))[:6] AS owner_name,
       owner_name || '-' || CASE kind WHEN 'idle' THEN '0' WHEN 'exclusive' THEN md5(concat(job, 'pod'))[:5]
           ELSE md5(concat(job, k, 'replicas'))[:9] || '-' || md5(concat(job, k, 'pod'))[:5] END AS pod,
       (['vision', 'speech', 'nlp', 'research', 'ads', 'search', 'maps', 'robotics', 'fraud', 'genomics',
         'weather', 'playground'])[CAST(1 + hash(job, k, 'team') % 12 AS INTEGER)] AS namespace,
       CASE kind WHEN 'exclusive' THEN 0.8 + 0.17 * noise(job, 0, 'length') ELSE 1 END AS length,
       CASE WHEN noise(job, 1, 'light') > 0.85 THEN 15 ELSE 58 + 40 * noise(job, 2, 'level') END AS level,
       200 + CAST(job % 400 AS BIGINT) AS wave,
       CASE kind WHEN 'idle' THEN 28676 WHEN 'shared' THEN 42000 + CAST(job % 9000 AS BIGINT)
                 ELSE 18000 + CAST(job % 52000 AS BIGINT) END AS memory,
       CASE kind WHEN 'shared' THEN ([0.5, 0.3, 0.15])[k + 1]::DOUBLE ELSE 1 END AS share,
FROM (SELECT DISTINCT kind, job_group, unnest(range(($first * getvariable('step') + shift) // period,
                                                    ($last * getvariable('step') + shift) // period + 1)) AS slot
      FROM gpus WHERE kind <> 'free') AS slots,
     range(3) AS parts(k), LATERAL (SELECT hash(job_group, slot, getvariable('seed')) AS job)
WHERE k = 0 OR kind = 'shared'
"""
"""Who runs in some ticks: `k` numbers those that share a GPU."""

CHUNK = """
CREATE OR REPLACE TABLE chunk AS
WITH moments AS (
    SELECT gpus.*, tick, tick * getvariable('step') AS second, (second + shift) // period AS slot,
           (second + shift) % period / period AS progress, noise(gpu, tick, 'reading') AS n,
           noise(gpu, tick, 'joule') AS m, phase_ms + CAST(noise(node_number, tick, 'late') > 0.8 AS BIGINT) AS ms,
           phase_ms + CAST(noise(node_number, tick - 1, 'late') > 0.8 AS BIGINT) AS ms_before
    FROM range($first, $last) AS numbers(tick), gpus
    WHERE noise(node_number, second // 3600, 'silence') > 0.0014
),
ticks AS (
    SELECT moments.*, jobs.* EXCLUDE (kind, job_group, slot), coalesce(progress < length, false) AS held,
           round(getvariable('step') + (ms - ms_before) / 1000, 3) AS seconds,
           CASE WHEN NOT held OR moments.kind = 'idle' THEN 0
                WHEN moments.kind = 'shared' THEN 40 + 20 * sin(second / 4000 + gpu) + 8 * sin(second / 90 + gpu)
                WHEN noise(gpu, second // 60, 'pause') > 0.985 THEN 4
                ELSE level + 9 * sin(second / wave + gpu) + 4 * sin(second / 37 + gpu) END AS smooth
    FROM moments LEFT JOIN jobs ON jobs.job_group = moments.job_group AND jobs.slot = moments.slot
                               AND jobs.kind = moments.kind AND k = 0
),
busies AS (
    SELECT *, CASE WHEN smooth > 0 THEN CAST(greatest(0, least(100, round(smooth + 8 * n - 4))) AS BIGINT) ELSE 0
              END AS busy
    FROM ticks
),
means AS (
    SELECT *, CASE WHEN smooth > 0 THEN round(greatest(0, least(100, busy + 5 * m - 2.5)), 2) ELSE 0 END AS mean
    FROM busies
),
loads AS (
    SELECT *, round(CASE WHEN held THEN 118 + 5.6 * mean ELSE 70 END + 6 * n, 3) AS watts,
           CASE WHEN held THEN memory + CASE kind WHEN 'exclusive' THEN CAST(9000 * progress AS BIGINT) ELSE 0 END
                ELSE 4 END AS used,
           CAST(busy * seconds * (900 + 300 * n) AS BIGINT) AS traffic
    FROM means
),
drawn AS (SELECT *, CAST(round(1000 * watts * seconds + 500 * m) AS BIGINT) AS millijoules FROM loads),
counted AS (
    SELECT *, CAST(sum(millijoules) OVER so_far AS BIGINT) AS energy,
           CAST(sum(traffic) OVER so_far AS BIGINT) AS moved,
           make_timestamp((second * 1000 + ms) * 1000) AS instant, held AND kind <> 'shared' AS alone
    FROM drawn WINDOW so_far AS (PARTITION BY gpu ORDER BY tick)
)
SELECT strftime(instant, '%Y-%m-%d %H:%M:%S') AS timestamp, gpu_id, 'NVIDIA H100 80GB HBM3' AS gpu_name,
       CAST(busy AS DOUBLE) AS utilization_gpu, CAST(busy * 55 // 100 AS DOUBLE) AS utilization_memory,
       81559 AS memory_total, used AS memory_used, 81559 - 551 - used AS memory_free,
       CAST(29 + watts / 16 AS INTEGER) AS temperature, watts AS power_draw, CAST(700 AS DOUBLE) AS power_limit,
       node AS client_name, strftime(instant, '%Y-%m-%dT%H:%M:%S.%gZ') AS sampled_at, seconds AS interval_seconds,
       node, gpu_uuid, pci_bus_id, 551 AS memory_reserved, CAST(38 + watts / 15 AS INTEGER) AS temperature_memory,
       CASE WHEN busy = 0 THEN 345 ELSE 1980 - 15 * CAST(n * busy / 10 AS INTEGER) END AS sm_clock,
       2619 AS memory_clock, counters.energy_mj + energy AS energy_mj, counters.pcie_rx_kib + moved AS pcie_rx_kib,
       counters.pcie_tx_kib + moved // 2 AS pcie_tx_kib, counters.nvlink_rx_kib + moved * 11 AS nvlink_rx_kib,
       counters.nvlink_tx_kib + moved * 11 AS nvlink_tx_kib, 0 AS ecc_uncorrected,
       CASE WHEN busy = 0 THEN 1 WHEN watts > 640 THEN 4 ELSE 0 END AS clock_event_reasons,
       CASE WHEN held THEN 0 ELSE 8 END AS pstate, CAST(0 AS DOUBLE) AS encoder_utilization,
       CAST(0 AS DOUBLE) AS decoder_utilization, round(mean * (0.9 + 0.05 * n), 2) AS sm_active,
       round(mean * (0.4 + 0.05 * n), 2) AS sm_occupancy, round(mean * (0.47 + 0.06 * n), 2) AS tensor_active,
       round(mean * (0.54 + 0.05 * n), 2) AS dram_active,
       CASE WHEN NOT held THEN 0 WHEN kind = 'shared' THEN 3 ELSE 1 END AS process_count, 'ok' AS state,
       CASE WHEN alone THEN namespace END AS namespace, CASE WHEN alone THEN pod END AS pod,
       CASE WHEN alone THEN container END AS container, CASE WHEN alone THEN pod_uid END AS pod_uid,
       CASE WHEN alone THEN owner_kind END AS owner_kind, CASE WHEN alone THEN owner_name END AS owner_name,
       CAST(millijoules AS DOUBLE) AS interval_energy_mj, process_count AS holder_count,
       CASE WHEN held THEN CASE kind WHEN 'shared' THEN 'process' ELSE 'exclusive' END END AS attribution,
       mean AS utilization_mean, gpu, kind, held, job_group, slot, second * 1000 + phase_ms AS place
FROM counted JOIN counters USING (gpu)
ORDER BY place, gpu
"""
"""The samples of some ticks in the order in which a server would get them (`place`), after `counters`."""

USERS = """
CREATE OR REPLACE TABLE users AS
SELECT timestamp, gpu_id, gpu_name, client_name, sampled_at, interval_seconds, node, gpu_uuid, jobs.*, held,
       attribution AS method, CASE kind WHEN 'shared' THEN 0.333333333::DOUBLE ELSE 1 END AS gpu_share,
       round(utilization_mean * share, 4) AS utilization,
       CAST(CASE kind WHEN 'shared' THEN memory_used // 4 + k * 1000 ELSE memory_used - 4 END AS DOUBLE)
           AS memory_used,
       round(interval_energy_mj * share, 1) AS energy_mj, 1 AS process_count, utilization_mean AS gpu_utilization,
       place, gpu
FROM chunk JOIN jobs USING (kind, job_group, slot)
WHERE held
ORDER BY place, gpu, k
"""

LABELS = """
CREATE OR REPLACE TABLE labels AS
WITH pods AS (
    SELECT min(row(place, gpu, k, timestamp, sampled_at)) AS seen, client_name, namespace, pod, pod_uid, app
    FROM users GROUP BY client_name, namespace, pod, pod_uid, app
),
nodes AS (
    SELECT min(row(place, gpu, 9, timestamp, sampled_at)) AS seen, client_name FROM chunk GROUP BY client_name
),
told AS (
    SELECT *, 0 AS number, 'app' AS label, app AS value FROM pods
    UNION ALL BY NAME SELECT *, 1 AS number, 'team' AS label, namespace AS value FROM pods
    UNION ALL BY NAME SELECT *, 2 AS number, 'node.kubernetes.io/instance-type' AS label, 'p5.48xlarge' AS value
    FROM nodes
)
SELECT * EXCLUDE (seen), seen[4] AS timestamp, seen[5] AS sampled_at, client_name AS node
FROM told WHERE NOT EXISTS (FROM labelled WHERE labelled.client_name = told.client_name
                            AND labelled.pod_uid IS NOT DISTINCT FROM told.pod_uid)
ORDER BY seen, number
"""
"""Labels that do not stand in the day's file yet."""

CARRY_ON = f"""
UPDATE counters SET {", ".join(f"{name} = newest.{name}" for name in COUNTERS)}
FROM (SELECT {", ".join(f"max({name}) AS {name}" for name in COUNTERS)}, gpu FROM chunk GROUP BY gpu) AS newest
WHERE counters.gpu = newest.gpu;
INSERT INTO labelled SELECT DISTINCT client_name, pod_uid FROM labels;
"""
