"""The pods of this node as they are known now: written by one thread, read by any.

Readers take no lock: each change makes new tables, and the last act is to put them in the place of the old.
A node has tens of pods, at most a few hundred; that costs microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gpumon.agent.kube.labels import LabelChoice
from gpumon.agent.kube.objects import PodObject
from gpumon.agent.kube.pods import KnownPod, known_pod
from gpumon.agent.ports import Pod


@dataclass(frozen=True, slots=True)
class _Tables:
    version: int = 0
    by_uid: Mapping[str, Pod] = field(default_factory=dict)
    by_static_hash: Mapping[str, Pod] = field(default_factory=dict)
    by_name: Mapping[tuple[str, str], Pod] = field(default_factory=dict)
    by_group: Mapping[str, Sequence[Pod]] = field(default_factory=dict)


class PodRecords:
    """See `gpumon.agent.ports.PodDirectory` for what the answers mean."""

    def __init__(self, choice: LabelChoice) -> None:
        self._choice = choice
        self._known: dict[str, KnownPod] = {}
        self._tables = _Tables()

    @property
    def version(self) -> int:
        """Grows with every change that can be seen here; what else changes of a pod does not count."""
        return self._tables.version

    @property
    def count(self) -> int:
        """How many pods there are."""
        return len(self._tables.by_uid)

    def by_uid(self, uid: str) -> Pod | None:
        """By UID or static hash. A UID goes first: anyone may write a hash on a pod of his own."""
        tables = self._tables
        return tables.by_uid.get(uid) or tables.by_static_hash.get(uid)

    def by_name(self, namespace: str, name: str) -> Pod | None:
        """By name."""
        return self._tables.by_name.get((namespace, name))

    def in_gpu_group(self, group: str) -> Sequence[Pod]:
        """By GPU group."""
        return self._tables.by_group.get(group, ())

    def replace(self, pods: Iterable[PodObject]) -> None:
        """These are all: what is not among them is gone."""
        known = {}
        for given in pods:
            pod = known_pod(given, self._choice, self._known.get(given.metadata.uid))
            if pod is not None:
                known[pod.pod.uid] = pod
        self._publish(known)

    def put(self, given: PodObject) -> None:
        """A pod has appeared or changed."""
        pod = known_pod(given, self._choice, self._known.get(given.metadata.uid))
        if pod is not None:
            self._publish(self._known | {pod.pod.uid: pod})

    def remove(self, uid: str) -> None:
        """A pod is gone."""
        self._publish({other: pod for other, pod in self._known.items() if other != uid})

    def _publish(self, known: dict[str, KnownPod]) -> None:
        if known == self._known:
            return
        by_name: dict[tuple[str, str], Pod] = {}
        by_group: dict[str, list[Pod]] = {}
        for entry in known.values():
            pod = entry.pod
            other = by_name.get((pod.namespace, pod.name))
            if other is None or other.finished or not pod.finished:
                by_name[pod.namespace, pod.name] = pod
            if not pod.finished and not pod.reserves:
                for group in entry.gpu_groups:
                    by_group.setdefault(group, []).append(pod)
        self._known = known
        self._tables = _Tables(
            version=self._tables.version + 1,
            by_uid={uid: entry.pod for uid, entry in known.items()},
            by_static_hash={e.static_hash: e.pod for e in known.values() if e.static_hash},
            by_name=by_name,
            by_group=by_group,
        )
