"""Keeps up with who holds the GPUs: asks the kubelet, seldom, and tells the answer in GPUs of this node.

The kubelet has no way to say that something changed, so it is asked every `interval_seconds`, and at once when
there is reason to: a pod of this node changed, a process appeared that no known holder explains, a GPU is new.
Never more than once a second: its API allows 100 calls a second for all clients of the node together.

What it said last is believed for a minute after it has fallen silent, since a kubelet that restarts keeps its
pods. After that nobody knows who holds what: that is None, and not "nobody".
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpumon import clock
from gpumon.agent.counts import HoldersCounts
from gpumon.agent.deviceids import Devices, KnownGpu
from gpumon.agent.holdings import Holder, Holdings, holdings
from gpumon.agent.ports import ContainerDevices, PodDirectory, PodResources
from gpumon.clock import Monotonic
from gpumon.errors import KubeletUnavailable
from gpumon.logs import Trouble

log = logging.getLogger(__name__)

BELIEVED_SECONDS = 60.0
PAUSE_SECONDS = 1.0
ALLOCATABLE_SECONDS = 60.0
"""How often it is asked what there is to hold: that changes when a device plugin starts or a GPU breaks."""


@dataclass(frozen=True, slots=True)
class Known:
    """The holders of `gpus`, and the monotonic moment at which the kubelet was asked for them."""

    holdings: Holdings
    gpus: frozenset[KnownGpu]
    asked_at: float

    def of(self, gpu: KnownGpu) -> tuple[Holder, ...] | None:
        """The holders of a GPU; None where it, or the way it is split, was not known when the kubelet was
        asked."""
        return self.holdings.by_gpu.get(gpu.uuid, ()) if gpu in self.gpus else None


class Holders:
    """The kubelet's answer of this node. `known` and the notes to it come from any thread, `run` is a task."""

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
        self._gpus: tuple[KnownGpu, ...] = ()
        self._known: Known | None = None
        self._allocatable: Mapping[str, frozenset[str]] | None = None
        self._allocatable_due = 0.0
        self._wanted = threading.Event()
        self._trouble = Trouble(log, "kubelet", monotonic=monotonic)

    @property
    def known(self) -> Known | None:
        """The newest answer; None where there is none, or none that can still be believed."""
        known = self._known
        if known is None or self._monotonic() - known.asked_at > BELIEVED_SECONDS + self._interval:
            return None
        return known

    def have(self, gpus: tuple[KnownGpu, ...]) -> None:
        """Takes note of the GPUs of this node; others have the kubelet asked at once."""
        if gpus != self._gpus:
            self._gpus = gpus
            self.ask_soon()

    def ask_soon(self) -> None:
        """Has the kubelet asked as soon as its pause is over."""
        self._wanted.set()

    def run(self, stop: threading.Event) -> None:
        """Asks until stopped."""
        while not stop.is_set():
            self._wanted.wait(self._interval)
            self._wanted.clear()
            if stop.is_set():
                break
            self.refresh()
            stop.wait(PAUSE_SECONDS)
        self._kubelet.close()

    def wake(self) -> None:
        """Lets `run` look at its stop event."""
        self._wanted.set()

    def refresh(self) -> None:
        """Asks the kubelet once. Trouble is logged and counted; the last answer stays."""
        asked_at, gpus = self._monotonic(), self._gpus
        try:
            containers = self._containers()
            allocatable = self._what_there_is(asked_at)
        except KubeletUnavailable as error:
            self._counts.trouble = str(error)
            self._counts.failures += 1
            self._trouble.occurred(str(error))
            return
        self._counts.trouble = None
        self._trouble.ended()
        found = holdings(containers, allocatable, Devices(gpus), self._pods, self._resource_names)
        self._known = Known(found, frozenset(gpus), asked_at)

    def _containers(self) -> Sequence[ContainerDevices]:
        self._counts.calls += 1
        return self._kubelet.list_containers()

    def _what_there_is(self, now: float) -> Mapping[str, frozenset[str]] | None:
        if now >= self._allocatable_due:
            self._counts.calls += 1
            self._allocatable = self._kubelet.list_allocatable()
            self._allocatable_due = now + ALLOCATABLE_SECONDS
        return self._allocatable
