"""Looks up whose a process is, in the /proc of this node.

A pid alone says nothing for long: when its process has ended, another one gets it. So a process is known by its
pid and the time at which it began, and that time is read before and after its cgroup: where the two differ, the
pid has changed hands in between, and what was read is of no use. A process that has ended since NVML listed it
stays what it was when it was last seen, for `memory_seconds`, unless something else has got its pid.

What is not known is `unresolved`, not `host`. A process that is ending has left its cgroups under cgroup v1 (its
path is `/`), while NVML may list it until its memory is given back: that path does not make it the host's.

For one thread, the sampler's; but `trouble`, `forms` and `own_form` may be asked from any.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gpumon import clock
from gpumon.agent.ports import Occupant
from gpumon.agent.processes import cgroups
from gpumon.agent.processes.files import ProcFiles, Stat
from gpumon.agent.processes.visibility import find_trouble
from gpumon.clock import Monotonic
from gpumon.logs import Trouble

log = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 60.0
NO_POD = "no pod"
NOT_UNDERSTOOD = "not understood"
_UNRESOLVED = Occupant("unresolved")


@dataclass(frozen=True, slots=True)
class Form:
    """A way in which cgroup paths are written on this node: how many processes had it, and the path of the last
    one, with its line's beginning."""

    processes: int
    example: str


@dataclass(slots=True)
class _Known:
    """A process that was looked up. `seen_at`: when it was last there, on the monotonic clock."""

    stat: Stat
    occupant: Occupant
    seen_at: float


class ProcProcesses:
    """The processes under `root`.

    `in_cluster`: the agent runs in a pod. `memory_seconds`: how long a process is remembered after it was last
    seen. NVML tells once more of what has ended since the last sample, so two sampling intervals are right."""

    def __init__(
        self,
        root: Path = Path("/proc"),
        *,
        in_cluster: bool,
        memory_seconds: float = 10.0,
        monotonic: Monotonic = clock.monotonic,
    ) -> None:
        self._files = ProcFiles(root)
        self._in_cluster = in_cluster
        self._memory_seconds = memory_seconds
        self._monotonic = monotonic
        self._known: dict[int, _Known] = {}
        self._swept_at = float("-inf")
        self._forms: dict[str, Form] = {}
        self._looking = threading.Lock()
        self._looked_at = float("-inf")
        self._reason: str | None = None
        self._trouble = Trouble(log, "processes", monotonic=monotonic)

    @property
    def trouble(self) -> str | None:
        """Why processes can't be told apart by pod, as a sentence with what to do; None when they can. Found out
        once a minute."""
        with self._looking:
            now = self._monotonic()
            if now - self._looked_at >= LOOK_AGAIN_SECONDS:
                self._looked_at = now
                self._reason = find_trouble(self._files, in_cluster=self._in_cluster)
                if self._reason is None:
                    self._trouble.ended()
                else:
                    self._trouble.occurred(self._reason)
            return self._reason

    @property
    def forms(self) -> Mapping[str, Form]:
        """The forms of cgroup paths that were seen since the start. NO_POD and NOT_UNDERSTOOD, a pod's that can't
        be told, are among them."""
        return dict(self._forms)

    @property
    def own_form(self) -> str | None:
        """The form of the agent's own path; "private namespace" where it is in a pod that is hidden from it; None
        where it is in no pod, or can't see itself."""
        try:
            place = cgroups.parse(self._files.cgroup("self"))
        except OSError:
            return None
        if place is not None:
            return place.form
        return "private namespace" if self._in_cluster else None

    def occupants(self, pids: Collection[int]) -> Mapping[int, Occupant]:
        """Whose each process is, for every pid that was asked; unresolved, all of them, while there is trouble."""
        if self.trouble is not None:
            return dict.fromkeys(pids, _UNRESOLVED)
        now = self._monotonic()
        if now - self._swept_at >= self._memory_seconds:
            self._swept_at = now
            self._known = {pid: known for pid, known in self._known.items() if self._remembers(known, now)}
        return {pid: self._occupant(pid, now) for pid in pids}

    def _remembers(self, known: _Known, now: float) -> bool:
        return now - known.seen_at <= self._memory_seconds

    def _occupant(self, pid: int, now: float) -> Occupant:
        known = self._known.get(pid)
        try:
            stat = self._files.stat(pid)
        except (FileNotFoundError, ProcessLookupError):
            return known.occupant if known is not None and self._remembers(known, now) else _UNRESOLVED
        except OSError:
            return _UNRESOLVED
        if known is None or known.stat.start != stat.start:
            self._known.pop(pid, None)
            known = self._look_up(pid, stat)
            if known is None:
                return _UNRESOLVED
            self._known[pid] = known
        elif known.stat.comm != stat.comm:  # the same process, in the same place, runs another program now
            known.stat, known.occupant = stat, replace(known.occupant, name=_name(stat))
        known.seen_at = now
        return known.occupant

    def _look_up(self, pid: int, before: Stat) -> _Known | None:
        """What a process is that was not known. None where it can't be told now."""
        try:
            text = self._files.cgroup(pid)
            stat = self._files.stat(pid)
        except OSError:
            return None
        place = cgroups.parse(text)
        if stat.start != before.start or (place is None and stat.ending):
            return None
        name = _name(stat)
        if place is not None:
            form, occupant = place.form, Occupant("pod", place.pod_uid, place.container_id, name)
        elif cgroups.is_in_some_pod(text, in_cluster=self._in_cluster):
            form, occupant = NOT_UNDERSTOOD, Occupant("unresolved", name=name)
        else:
            form, occupant = NO_POD, Occupant("host", name=name)
        times = self._forms[form].processes if form in self._forms else 0
        self._forms[form] = Form(times + 1, max(text.split("\n"), key=len))
        return _Known(stat, occupant, float("-inf"))


def _name(stat: Stat) -> str:
    """A command's name. Any process may call itself anything: what can't be printed becomes a question mark."""
    text = stat.comm.decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)
