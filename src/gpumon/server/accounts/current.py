"""Which GPUs, pods and nodes there are now; pure. Made of the newest sample of each GPU and its users.

What is older than `stale_after` is flagged, not left out: its readings are the last that is known. After a day it
is taken as removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from gpumon.clock import to_wire
from gpumon.server.accounts import slices
from gpumon.server.queries import Query

Row = Mapping[str, Any]

_READINGS: Final = (
    "utilization_gpu", "utilization_mean", "utilization_memory", "memory_total", "memory_used", "memory_free",
    "temperature", "power_draw", "power_limit", "sm_clock", "sm_active", "tensor_active", "dram_active",
    "process_count",
)  # fmt: skip
_IDENTITY: Final = ("gpu_uuid", "node", "client_name", "gpu_id", "gpu_name")
_USER: Final = (
    "mig_uuid", "namespace", "pod", "container", "pod_uid", "owner_kind", "owner_name", "process_name", "held",
    "method", "gpu_share", "utilization", "memory_used", "process_count",
)  # fmt: skip
_LABELS_FOR: Final = timedelta(days=2)
"""Labels are written anew every day."""


def select_labels(now: datetime) -> Query:
    """(client, namespace, pod, label, newest value) of what was seen lately; of a node's label, namespace and pod
    are NULL."""
    sql = """
        SELECT CASE WHEN pod IS NULL THEN client_name END AS client, namespace, pod, label,
               arg_max_null(value, (sampled_at, rowid))
        FROM pod_labels WHERE sampled_at >= $since GROUP BY client, namespace, pod, label
        ORDER BY client, namespace, pod, label"""
    return slices.bound(sql, {"since": slices.utc(now - _LABELS_FOR)})


def labels_by_owner(rows: Iterable[tuple[Any, ...]]) -> dict[tuple[Any, ...], dict[str, str | None]]:
    """Labels of each (client, None, None) and (None, namespace, pod)."""
    found: dict[tuple[Any, ...], dict[str, str | None]] = {}
    for *owner, label, value in rows:
        found.setdefault(tuple(owner), {})[label] = value
    return found


def gpus(
    samples: Iterable[Row], users: Iterable[Row], now: datetime, stale_after: timedelta
) -> list[dict[str, Any]]:
    """Each GPU once, by node and index, with its users at its newest sample. A GPU that has changed its index or
    node is where it was seen last."""
    newest: dict[str, Row] = {}
    for sample in sorted(samples, key=lambda sample: sample["sampled_at"]):
        newest[sample["gpu_uuid"] or f"{sample['client_name']}/{sample['gpu_id']}"] = sample
    by_sample: dict[tuple[Any, ...], list[Row]] = {}
    for user in users:
        by_sample.setdefault(_sample_of(user), []).append(user)
    listed = [
        _gpu(sample, by_sample.get(_sample_of(sample), ()), now, stale_after)
        for sample in newest.values()
        if now - _aware(sample) <= slices.KNOWN_FOR
    ]
    return sorted(listed, key=lambda gpu: (gpu["node"], gpu["client_name"], gpu["gpu_id"]))


def pods(listed: Iterable[dict[str, Any]], labels: Mapping[tuple[Any, ...], Any]) -> list[dict[str, Any]]:
    """Each pod with what it has of which GPUs, by namespace and name."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for gpu in listed:
        for user in gpu["pods"]:
            if user["pod"] is None:
                continue
            pod = found.setdefault(
                (user["namespace"] or "", user["pod"]),
                {name: user[name] for name in ("namespace", "pod", "pod_uid", "owner_kind", "owner_name")}
                | {"labels": labels.get((None, user["namespace"], user["pod"]), {}), "gpus": []},
            )
            about = (
                "container",
                "mig_uuid",
                "held",
                "method",
                "gpu_share",
                "utilization",
                "memory_used",
                "process_count",
            )
            where = {name: gpu[name] for name in (*_IDENTITY, "state", "stale", "age_seconds")}
            pod["gpus"].append(where | {name: user[name] for name in about})
    for pod in found.values():
        pod["gpu_share"] = _sum(part["gpu_share"] for part in pod["gpus"] if part["held"])
        pod["utilization"] = _sum(part["utilization"] for part in pod["gpus"])
        pod["memory_used"] = _sum(part["memory_used"] for part in pod["gpus"])
        pod["stale"] = all(part["stale"] for part in pod["gpus"])
    return [found[key] for key in sorted(found)]


def nodes(listed: Iterable[dict[str, Any]], labels: Mapping[tuple[Any, ...], Any]) -> list[dict[str, Any]]:
    """Each node with its GPUs summed up, by name. Sums are over the GPUs that are not stale."""
    found: dict[str, list[dict[str, Any]]] = {}
    for gpu in listed:
        found.setdefault(gpu["node"], []).append(gpu)
    return [_node(name, found[name], labels) for name in sorted(found)]


def _gpu(sample: Row, users: Sequence[Row], now: datetime, stale_after: timedelta) -> dict[str, Any]:
    age = now - _aware(sample)
    return {
        **{name: sample[name] for name in _IDENTITY},
        "node": sample["node"] or sample["client_name"],
        "state": sample["state"] or "ok",
        "stale": age > stale_after,
        "age_seconds": max(0.0, round(age.total_seconds(), 3)),
        "sampled_at": to_wire(_aware(sample)),
        **{name: sample[name] for name in _READINGS},
        "unhealthy": sample["unhealthy"],
        "holder_count": sample["holder_count"],
        "attribution": sample["attribution"],
        "attribution_note": sample["attribution_note"],
        "source": sample["source"],
        "pods": [{name: user[name] for name in _USER} for user in users],
    }


def _node(name: str, of: Sequence[dict[str, Any]], labels: Mapping[tuple[Any, ...], Any]) -> dict[str, Any]:
    fresh = [gpu for gpu in of if not gpu["stale"]]
    known = [gpu for gpu in fresh if gpu["holder_count"] is not None]
    free = [1 - _held(gpu) if gpu["state"] == "ok" and gpu["unhealthy"] is None else 0.0 for gpu in known]
    told: dict[str, Any] = {}
    for client in sorted({gpu["client_name"] for gpu in of}):
        told |= labels.get((client, None, None), {})
    youngest = min(of, key=lambda gpu: gpu["age_seconds"])
    return {
        "node": name,
        "client_names": sorted({gpu["client_name"] for gpu in of}),
        "gpus": len(of),
        "gpus_by_state": {
            state: sum(gpu["state"] == state for gpu in fresh) for state in ("ok", "lost", "unknown")
        }
        | {"stale": len(of) - len(fresh)},
        "gpus_unhealthy": sum(gpu["unhealthy"] is not None or gpu["state"] == "lost" for gpu in fresh),
        "models": sorted({gpu["gpu_name"] for gpu in of if gpu["gpu_name"]}),
        "gpus_held": _sum(map(_held, known)),
        "gpus_unknown": len(fresh) - len(known),
        "gpus_active": _sum(_busy(gpu) for gpu in fresh),
        "gpus_free": _sum(free),
        "power_draw": _sum(gpu["power_draw"] for gpu in fresh),
        "memory_used": _sum(gpu["memory_used"] for gpu in fresh),
        "memory_total": _sum(gpu["memory_total"] for gpu in fresh),
        "labels": told,
        "stale": not fresh,
        "last_seen": youngest["sampled_at"],
        "age_seconds": youngest["age_seconds"],
    }


def _held(gpu: dict[str, Any]) -> float:
    equal = 1 / max(gpu["holder_count"] or 1, 1)
    shares = (equal if user["gpu_share"] is None else user["gpu_share"] for user in gpu["pods"] if user["held"])
    return float(min(1.0, sum(shares)))


def _busy(gpu: dict[str, Any]) -> float | None:
    """How much of the GPU works: its own reading, or what its MIG instances tell."""
    percent = gpu["utilization_gpu"] if gpu["utilization_mean"] is None else gpu["utilization_mean"]
    if percent is None:
        percent = _sum(user["utilization"] for user in gpu["pods"])
    return None if percent is None else float(min(1.0, percent / 100))


def _sum(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) if there else None


def _sample_of(row: Row) -> tuple[Any, ...]:
    return row["client_name"], row["gpu_id"], row["sampled_at"]


def _aware(row: Row) -> datetime:
    instant: datetime = row["sampled_at"]
    return instant.replace(tzinfo=UTC)
