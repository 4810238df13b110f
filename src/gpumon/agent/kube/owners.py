"""The workload that a pod belongs to, told by the pod alone: no other object is asked for.

| the pod's controller | and | workload |
|---|---|---|
| ReplicaSet `<name>-<hash>` | label pod-template-hash is the hash | Deployment `<name>` |
| ReplicaSet `<name>-<hash>` | label rollouts-pod-template-hash is the hash | Rollout `<name>` (Argo) |
| Job | label jobset.sigs.k8s.io/jobset-name | that JobSet |
| StatefulSet | label leaderworkerset.sigs.k8s.io/name | that LeaderWorkerSet |
| RayCluster, Job | labels ray.io/originated-from-crd and -cr-name | that RayJob or RayService |
| Job `<name>-<time>` of Kubernetes itself | the time is a schedule's, not long before the pod | CronJob `<name>` |
| Node | | none: a static pod belongs to no workload |
| anything else | | the controller itself |

A label counts only beside the controller that its owner's pods have: anyone may write labels on a pod.
"""

from __future__ import annotations

import re
from datetime import datetime

from gpumon.agent.kube.objects import Metadata, OwnerReference

_TEMPLATE_HASHES = (("pod-template-hash", "Deployment"), ("rollouts-pod-template-hash", "Rollout"))
_NAMED_BY_LABEL = {
    "Job": ("jobset.sigs.k8s.io/jobset-name", "JobSet"),
    "StatefulSet": ("leaderworkerset.sigs.k8s.io/name", "LeaderWorkerSet"),
}
_RAY_CONTROLLERS = ("RayCluster", "Job")
_RAY_KIND = "ray.io/originated-from-crd"
_RAY_NAME = "ray.io/originated-from-cr-name"

_SCHEDULED = re.compile(r"(?P<name>.+)-(?P<time>[0-9]{8,10})")
_MINUTES_DIGITS = 8
_EARLY_SECONDS = 60.0
"""Clocks of the controller and the API server may differ by so much."""
_LATE_SECONDS = 7 * 86400.0
"""A pod may come long after its time: a late start, or another try of a job that runs for days."""


def workload(metadata: Metadata) -> tuple[str, str] | None:
    """(kind, name) of the workload of a pod with this metadata; None where it belongs to none."""
    owner = next((owner for owner in metadata.owner_references or () if owner.controller), None)
    if owner is None or owner.kind == "Node" or not owner.name:
        return None
    labels = metadata.labels or {}
    if owner.kind == "ReplicaSet":
        for label, kind in _TEMPLATE_HASHES:
            ending = f"-{labels.get(label, '')}"
            if ending != "-" and owner.name.endswith(ending):
                return kind, owner.name.removesuffix(ending)
    if owner.kind in _NAMED_BY_LABEL:
        label, kind = _NAMED_BY_LABEL[owner.kind]
        if labels.get(label):
            return kind, labels[label]
    if owner.kind in _RAY_CONTROLLERS and labels.get(_RAY_KIND) and labels.get(_RAY_NAME):
        return labels[_RAY_KIND], labels[_RAY_NAME]
    cron_job = _cron_job(owner, metadata.creation_timestamp)
    return ("CronJob", cron_job) if cron_job is not None else (owner.kind, owner.name)


def _cron_job(owner: OwnerReference, created_at: datetime | None) -> str | None:
    """The name of the CronJob that made a Job. Since Kubernetes 1.21 a Job's name ends with its time in minutes
    since the epoch, before that in seconds, always of a whole minute. People end names with seconds, too."""
    if owner.kind != "Job" or not owner.api_version.startswith("batch/") or created_at is None:
        return None
    match = _SCHEDULED.fullmatch(owner.name)
    if match is None:
        return None
    time = int(match["time"])
    if len(match["time"]) > _MINUTES_DIGITS:
        if time % 60:
            return None
    else:
        time *= 60
    late = created_at.timestamp() - time
    return match["name"] if -_EARLY_SECONDS <= late <= _LATE_SECONDS else None
