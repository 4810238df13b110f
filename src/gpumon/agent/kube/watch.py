"""Keeps the records of this node's pods: one list, then one watch that tells every change. Nothing is polled.

The watch asks the API to end it after some minutes, and goes on where it was; with each, the node is read once.
Where the API no longer knows the place (410), the pods are listed anew, not older than the last that was seen.
Any other trouble leaves the records as they are, says what it is, and is tried again after a while that grows
to a minute; credentials and addresses are read again with it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import msgspec
from msgspec import Raw

from gpumon.agent.kube.client import Client, HttpError
from gpumon.agent.kube.labels import LabelChoice
from gpumon.agent.kube.objects import PodObject, read_event, read_node, read_pod, read_status, read_versioned
from gpumon.agent.kube.records import PodRecords
from gpumon.agent.ports import NodeInfo
from gpumon.clock import Monotonic
from gpumon.errors import KubernetesUnavailable
from gpumon.logs import Trouble

log = logging.getLogger(__name__)

NO_NODE = "it is not known which node this is: set NODE_NAME to the node's name, in a pod by its spec.nodeName"
NOT_YET = "the Kubernetes API has not answered yet"

WATCH_SECONDS = 300.0
SLACK_SECONDS = 30.0
"""A watch that says nothing for so much longer than it should last is dead."""
FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 60.0
_TOO_SHORT_SECONDS = 0.5

_PODS = "/api/v1/pods"
_EXPIRED = 410
_TOO_NEW = 504
"""What a list is answered that shall not be older than something the API has not reached: it was restored."""


class PodWatch:
    """Watches until stopped; `run` is a task's work."""

    def __init__(
        self,
        node: str,
        records: PodRecords,
        node_labels: LabelChoice,
        open_client: Callable[[], Client],
        *,
        watch_seconds: float,
        slack_seconds: float,
        first_delay_seconds: float,
        monotonic: Monotonic,
        chance: Callable[[], float],
    ) -> None:
        self.trouble: str | None = NOT_YET
        self.node_trouble: str | None = None
        self.node: NodeInfo | None = None
        self.accepted = False  # whether a watch ever was: pods and node have been asked for then
        self._node_name = node
        self._records = records
        self._node_labels = node_labels
        self._open_client = open_client
        self._watch_seconds = watch_seconds
        self._slack_seconds = slack_seconds
        self._first_delay = first_delay_seconds
        self._monotonic = monotonic
        self._chance = chance
        self._client: Client | None = None
        self._version = ""
        self._must_list = True
        self._must_read_node = False
        self._failures = 0
        self._log = Trouble(log, "kubernetes", monotonic=monotonic)
        self._node_log = Trouble(log, "kubernetes_node", monotonic=monotonic)
        self._pod_log = Trouble(log, "kubernetes_pod", monotonic=monotonic)

    def run(self, stop: threading.Event) -> None:
        """Keeps the records until `stop` is set; `interrupt` then ends what it waits for."""
        if not self._node_name:
            self._failed(NO_NODE)
            return
        try:
            while not stop.is_set():
                pause = self._turn(stop)
                if pause:
                    stop.wait(pause)
        finally:
            self._close()

    def interrupt(self) -> None:
        """Ends a watch or list that is going on; to be called from another thread when `run` shall stop."""
        client = self._client
        if client is not None:
            client.interrupt()

    def _turn(self, stop: threading.Event) -> float:
        """One list, if there has to be one, and one watch. Gives the seconds to wait before the next."""
        try:
            if self._client is None:
                self._client = self._open_client()
            client = self._client
            if self._must_list and not stop.is_set():
                self._list(client)
            if self._must_read_node and not stop.is_set():
                self._read_node(client)
            if not stop.is_set():
                self._watch(client)
            return 0.0
        except KubernetesUnavailable as error:
            if stop.is_set():
                return 0.0
            expired = isinstance(error, HttpError) and error.status == _EXPIRED
            self._must_list |= expired
            if expired and not self._failures:
                self._failures = 1
                return 0.0
            self._close()
            self._failed(str(error))
            return self._pause()

    def _list(self, client: Client) -> None:
        try:
            self._take_list(client, self._version or "0")
        except HttpError as error:
            if error.status not in (_EXPIRED, _TOO_NEW):
                raise
            self._take_list(client, "")
        self._must_list, self._must_read_node = False, True
        self._succeeded()

    def _take_list(self, client: Client, not_older_than: str) -> None:
        """Without a version, the API asks its store for the newest state; that is dear, and rarely needed."""
        query = self._selector()
        if not_older_than:
            query["resourceVersion"] = not_older_than
        pods: list[PodObject | None] = []
        version = ""
        for page in client.pages(_PODS, query):
            pods += map(self._pod, page.items or ())
            version = page.metadata.resource_version
        if None not in pods:
            self._pod_log.ended()
        self._records.replace(pod for pod in pods if pod is not None)
        self._version = version

    def _watch(self, client: Client) -> None:
        seconds = max(1, round(self._watch_seconds * (0.8 + 0.4 * self._chance())))
        query = self._selector() | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(seconds),
        }
        began, events = self._monotonic(), 0
        with client.lines(_PODS, query, seconds + self._slack_seconds) as lines:
            self._succeeded()
            self.accepted = True
            for line in lines:
                self._take(line)
                events += 1
                self._failures = 0
        self._must_read_node = True
        if events or self._monotonic() - began >= _TOO_SHORT_SECONDS:
            self._failures = 0
            return
        self._failures += 1
        if self._failures > 1:
            raise KubernetesUnavailable(
                "the Kubernetes API ends every watch at once; see what lies between it and here"
            )

    def _take(self, line: bytes) -> None:
        """Takes over what an event tells."""
        try:
            event = read_event(line)
            if event.type == "ERROR":
                status = read_status(event.object)
                raise HttpError(f"the Kubernetes API has ended the watch of pods: {status.message}", status.code)
            version = read_versioned(event.object).metadata
        except msgspec.MsgspecError as error:
            raise KubernetesUnavailable(
                f"the Kubernetes API's watch is cut, or not understood: {error}"
            ) from error
        if event.type == "DELETED":
            self._records.remove(version.uid)
        elif event.type in ("ADDED", "MODIFIED"):
            pod = self._pod(event.object)
            if pod is not None:
                self._records.put(pod)
        self._version = version.resource_version or self._version

    def _pod(self, item: Raw) -> PodObject | None:
        try:
            return read_pod(item)
        except msgspec.MsgspecError as error:
            self._pod_log.occurred(str(error), do="a pod of this node has no name here; tell gpumon's authors")
            return None

    def _read_node(self, client: Client) -> None:
        """What can't be read of the node costs nothing of the pods."""
        self._must_read_node = False
        try:
            node = read_node(client.get(f"/api/v1/nodes/{self._node_name}"))
        except (KubernetesUnavailable, msgspec.MsgspecError) as error:
            self.node_trouble = str(error)
            self._node_log.occurred(self.node_trouble)
            return
        self.node_trouble = None
        self._node_log.ended()
        spec = node.spec
        self.node = NodeInfo(
            labels=self._node_labels.of(node.metadata.labels),
            unschedulable=bool(spec is not None and spec.unschedulable),
        )

    def _selector(self) -> dict[str, str]:
        return {"fieldSelector": f"spec.nodeName={self._node_name}"}

    def _succeeded(self) -> None:
        self.trouble = None
        self._log.ended()

    def _failed(self, reason: str) -> None:
        self.trouble = reason
        self._log.occurred(reason)

    def _pause(self) -> float:
        """Seconds until the next try, of which a random part of up to a half is left out: the agents of a
        cluster shall not come back all at once."""
        delay = min(self._first_delay * 2.0 ** min(self._failures, 16), LONGEST_DELAY_SECONDS)
        self._failures += 1
        return delay * (1 - self._chance() / 2)

    def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()
