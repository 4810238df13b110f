"""The door to the Kubernetes API: the pods of this node by name, UID and GPU group, from memory.

Two threads keep it: one watches pods (and reads the node), the other asks for ResourceSlices when a device by
claim turns up. Trouble never raises here: the last that is known stays, and `trouble` says why it may be old.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from gpumon import clock
from gpumon.agent.kube.claims import INTERVAL_SECONDS, Claims
from gpumon.agent.kube.client import open_client
from gpumon.agent.kube.labels import LabelChoice
from gpumon.agent.kube.records import PodRecords
from gpumon.agent.kube.watch import FIRST_DELAY_SECONDS, NOT_YET, SLACK_SECONDS, WATCH_SECONDS, PodWatch
from gpumon.agent.ports import ClaimedDevice, NodeInfo, Pod
from gpumon.clock import Monotonic
from gpumon.kubeaccess import SERVICE_ACCOUNT
from gpumon.tasks import Task


class KubeDirectory:
    """Implements `gpumon.agent.ports.PodDirectory`. `kubeconfig` is a file, empty for the service account of this
    pod; labels are chosen by patterns, in which * stands for anything."""

    def __init__(
        self,
        node: str,
        *,
        kubeconfig: str,
        pod_labels: Sequence[str],
        node_labels: Sequence[str],
        dynamic_resources: bool,
        service_account: Path = SERVICE_ACCOUNT,
        watch_seconds: float = WATCH_SECONDS,
        slack_seconds: float = SLACK_SECONDS,
        first_delay_seconds: float = FIRST_DELAY_SECONDS,
        slices_interval_seconds: float = INTERVAL_SECONDS,
        monotonic: Monotonic = clock.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        connect = partial(open_client, kubeconfig, service_account=service_account)
        self._records = PodRecords(LabelChoice(pod_labels))
        self._watch = PodWatch(
            node,
            self._records,
            LabelChoice(node_labels),
            connect,
            watch_seconds=watch_seconds,
            slack_seconds=slack_seconds,
            first_delay_seconds=first_delay_seconds,
            monotonic=monotonic,
            chance=chance,
        )
        self._claims = (
            Claims(node, connect, interval_seconds=slices_interval_seconds) if dynamic_resources else None
        )
        self._tasks = [(Task("kubernetes", self._watch.run), self._watch.interrupt)]
        if self._claims is not None:
            self._tasks.append((Task("kubernetes-slices", self._claims.run), self._claims.interrupt))

    def start(self) -> KubeDirectory:
        """Starts to ask; returns at once, and gives the directory itself back."""
        for task, _ in self._tasks:
            task.start()
        return self

    def stop(self, timeout_seconds: float) -> bool:
        """Ends the threads, also in the middle of a watch. False where one waits for an answer to begin and is
        still there after the timeout; it dies with the process."""
        deadline = clock.monotonic() + timeout_seconds
        for task, interrupt in self._tasks:
            task.stopping.set()
            interrupt()
        ended = [task.stop(max(0.0, deadline - clock.monotonic())) for task, _ in self._tasks]
        return all(ended)

    @property
    def trouble(self) -> str | None:
        """Why nothing, or nothing new, is known of pods."""
        return self._watch.trouble

    @property
    def node_trouble(self) -> str | None:
        """Why nothing, or nothing new, is known of the node's labels; pods are not concerned."""
        return self._watch.node_trouble

    @property
    def slices_trouble(self) -> str | None:
        """Why it can't be told which GPUs are held by claim; None as long as nobody has asked."""
        return self._claims.trouble if self._claims is not None else None

    @property
    def settled(self) -> bool:
        """Whether the API has answered all there is to ask at the start, up to the watch, or has refused."""
        return self._watch.accepted or self._watch.trouble not in (None, NOT_YET)

    @property
    def pod_count(self) -> int:
        """How many pods are known."""
        return self._records.count

    @property
    def version(self) -> int:
        """Grows whenever a pod of this node appears, changes or goes."""
        return self._records.version

    @property
    def node(self) -> NodeInfo | None:
        """This node, as it was some minutes ago at most; None while it is not known."""
        return self._watch.node

    def by_uid(self, uid: str) -> Pod | None:
        """The pod with this UID, or the static pod with this hash."""
        return self._records.by_uid(uid)

    def by_name(self, namespace: str, name: str) -> Pod | None:
        """The pod of this name; of two, the one that has not finished."""
        return self._records.by_name(namespace, name)

    def in_gpu_group(self, group: str) -> Sequence[Pod]:
        """The pods of a GPU group that have not finished, without those that reserve it."""
        return self._records.in_gpu_group(group)

    def claimed_uuid(self, device: ClaimedDevice) -> str | None:
        """The UUID of a device by claim; None while it is not known."""
        return self._claims.uuid(device) if self._claims is not None else None


class NoPodDirectory:
    """Implements `gpumon.agent.ports.PodDirectory` where the API is not asked: nothing is known. `trouble` says
    why; None where there is nothing to know, outside of Kubernetes."""

    version = 0
    node: NodeInfo | None = None

    def __init__(self, trouble: str | None = None) -> None:
        self.trouble = trouble

    def by_uid(self, uid: str) -> Pod | None:
        """None."""

    def by_name(self, namespace: str, name: str) -> Pod | None:
        """None."""

    def in_gpu_group(self, group: str) -> Sequence[Pod]:
        """Nothing."""
        return ()

    def claimed_uuid(self, device: ClaimedDevice) -> str | None:
        """None."""
