"""Keeps up with who holds the GPUs: asks the kubelet, seldom, and tells the answer in GPUs of this node.

The kubelet has no way to say that something changed, so it is asked every `interval_seconds`, and at once when
there is reason to: a pod of this node changed, a process appeared that no known holder explains.
Never more than once a second: its API allows 100 calls a second for all clients of the node together.

What it said last is believed for an interval and a minute, since a kubelet that restarts keeps its pods. After
that nobody knows who holds what: that is None, and not "nobody".
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpumon import clock
from gpumon.agent.attribution.deviceids import Devices, KnownGpu
from gpumon.agent.attribution.holdings import Holdings, holdings
from gpumon.agent.counts import HoldersCounts
from gpumon.agent.ports import ContainerDevices, PodDirectory, PodResources
from gpumon.clock import Monotonic
from gpumon.errors import KubeletUnavailable
from gpumon.logs import Trouble

log = logging.getLogger(__name__)

BELIEVED_SECONDS = 60.0
RETRY_SECONDS = 10.0
"""A kubelet that did not answer is asked again so soon, however long the interval."""
PAUSE_SECONDS = 1.0
ALLOCATABLE_SECONDS = 60.0
"""How often it is asked what there is to hold: that changes when a device plugin starts or a GPU breaks."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the kubelet said, and the monotonic moment at which it was asked."""

    containers: Sequence[ContainerDevices]
    allocatable: Mapping[str, frozenset[str]] | None
    asked_at: float


class Holders:
    """The kubelet's answer of this node. `run` is a task; `told` and `ask_soon` are for any thread, the rest for
    the one that attributes samples. `tried` is set once the kubelet has been asked, whatever came of it."""

    def __init__(
        self,
        kubelet: PodResources,
        pods: PodDirectory,
        counts: HoldersCounts,
        *,
        resource_names: Sequence[str],
        interval_seconds: float,
        monotonic: Monotonic = clock.monotonic,
    ) -> None:
        self._kubelet = kubelet
        self._pods = pods
        self._counts = counts
        self._resource_names = resource_names
        self._interval = interval_seconds
        self._monotonic = monotonic
        self.tried = threading.Event()
        self._told: Told | None = None
        self._derived_from: tuple[Told, tuple[KnownGpu, ...], int] | None = None
        self._holdings = Holdings()
        self._allocatable: Mapping[str, frozenset[str]] | None = None
        self._allocatable_due = 0.0
        self._strange: set[str] = set()
        self._wanted = threading.Event()
        self._trouble = Trouble(log, "kubelet", monotonic=monotonic)

    @property
    def told(self) -> Told | None:
        """The newest answer; None where there is none, or none that can still be believed."""
        told = self._told
        if told is None or self._monotonic() - told.asked_at > BELIEVED_SECONDS + self._interval:
            return None
        return told

    def holdings(self, told: Told, gpus: tuple[KnownGpu, ...]) -> Holdings:
        """Who holds these GPUs, by what the kubelet told and by what is known of pods now."""
        origin = (told, gpus, self._pods.version)
        before = self._derived_from
        if before is None or before[0] is not told or before[1:] != origin[1:] or self._holdings.incomplete:
            self._holdings = holdings(
                told.containers, told.allocatable, Devices(gpus), self._pods, self._resource_names
            )
            self._derived_from = origin
        return self._holdings

    def ask_soon(self) -> None:
        """Has the kubelet asked as soon as its pause is over."""
        self._wanted.set()

    def run(self, stop: threading.Event) -> None:
        """Asks at once and then until stopped."""
        while not stop.is_set():
            self._wanted.clear()
            self.refresh()
            if not stop.wait(PAUSE_SECONDS):
                failed = self._counts.trouble is not None
                self._wanted.wait(
                    (min(self._interval, RETRY_SECONDS) if failed else self._interval) - PAUSE_SECONDS
                )
        self._kubelet.close()

    def wake(self) -> None:
        """Lets `run` look at its stop event."""
        self._wanted.set()

    def refresh(self) -> None:
        """Asks the kubelet once. Trouble is logged and counted; the last answer stays."""
        asked_at = self._monotonic()
        try:
            containers = self._containers()
            told = Told(containers, self._what_there_is(containers, asked_at), asked_at)
        except KubeletUnavailable as error:
            self._counts.trouble = str(error)
            self._counts.failures += 1
            self._trouble.occurred(str(error))
        else:
            self._counts.trouble = None
            self._trouble.ended()
            self._told = told
        finally:
            self.tried.set()

    def _containers(self) -> Sequence[ContainerDevices]:
        self._counts.calls += 1
        return self._kubelet.list_containers()

    def _what_there_is(
        self, containers: Sequence[ContainerDevices], now: float
    ) -> Mapping[str, frozenset[str]] | None:
        """What could be held, as it was said last: without it holders are known all the same. Asked anew at once
        when an id is held that was not there then: a device plugin has other replicas now."""
        known = frozenset[str]().union(*(self._allocatable or {}).values())
        held = {device for container in containers for ids in container.device_ids.values() for device in ids}
        strange = held - known
        if now >= self._allocatable_due or strange - self._strange:
            self._strange = strange
            self._counts.calls += 1
            self._allocatable_due = now + ALLOCATABLE_SECONDS
            try:
                self._allocatable = self._kubelet.list_allocatable()
            except KubeletUnavailable as error:
                log.warning("kubelet_allocatable_unknown reason=%r", str(error))
        return self._allocatable
