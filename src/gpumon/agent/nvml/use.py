"""Who uses a GPU: its processes and how hard each works, or its MIG instances with theirs.

The lists and instances are read by sources of the GPU's reader, which counts what is on them; `read` then adds
what each process uses. What fails here is missing here: a GPU's other readings go on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from statistics import fmean
from typing import Any

import pynvml

from gpumon.agent.nvml.errors import meaning
from gpumon.agent.nvml.mig import MigInstances
from gpumon.agent.nvml.processes import ProcessLists
from gpumon.agent.nvml.readings import NoReading, Refusals
from gpumon.agent.nvml.utilization import Row, Utilization
from gpumon.agent.ports import GpuProcess, GpuUse, MigInstance, Reading
from gpumon.clock import Monotonic, Now

_LIST_MISSING = "a process list that has answered before does not answer"


class Use:
    """Who uses one GPU. Belongs to the thread that reads it."""

    def __init__(self, handle: Any, *, monotonic: Monotonic, now: Now) -> None:
        self._refusals = Refusals(monotonic)
        self._lists = ProcessLists(handle)
        self._mig = MigInstances(handle, self._refusals)
        self._utilization = Utilization(handle, self._refusals, monotonic=monotonic, now=now)
        self._listed: tuple[GpuProcess, ...] | None = None
        self._instances: tuple[MigInstance, ...] | None = None
        self._why_not = ""
        self._known: frozenset[int] = frozenset()  # pids that were listed at the last sample

    def refresh_list(self, name: str) -> Reading:
        """Reads a list that rarely changes, for the counts to come. Raises NVMLError."""
        if not self._mig.split:
            self._lists.refresh(name)
        return {}

    def refresh_instances(self) -> Reading:
        """Looks up whether the GPU is split, and into what. Raises NVMLError."""
        was_split = self._mig.split
        self._mig.refresh()
        if self._mig.split is not was_split:
            self._refusals.reasons.clear()  # split and whole, a GPU answers different questions
        return {}

    def count(self) -> Reading:
        """Reads the processes, of the GPU or of its instances, and gives the number of distinct pids; None where
        some could not be asked. Raises NVMLError, GpuLost, NvmlUnavailable."""
        self._refusals.reconsider()
        self._listed = self._instances = None
        try:
            if self._mig.split:
                self._instances = self._read_instances()
            if self._mig.split:
                instances = self._instances
                return {"process_count": None if instances is None else _count([i.processes for i in instances])}
            self._listed = self._lists.read()
        except pynvml.NVMLError as error:
            self._why_not = str(error)
            raise
        self._why_not = _LIST_MISSING
        return {"process_count": _count([self._listed])}

    def _read_instances(self) -> tuple[MigInstance, ...] | None:
        """None where they could not be had now, or the GPU is not split any more. Raises GpuLost,
        NvmlUnavailable."""
        try:
            return self._mig.read()
        except pynvml.NVMLError as error:
            reason = meaning(error)
            if not isinstance(reason, NoReading):
                raise reason from error
            self._why_not = f"its MIG instances could not be looked up: {error}"
            return None

    def read(self, *, worked: bool) -> GpuUse:
        """Who uses the GPU, by what `count` has read for this sample. `worked`: it did something since the last
        one, so that somebody has, also where nobody is listed. Raises GpuLost, NvmlUnavailable."""
        if self._instances is not None:
            self._utilization.skip()
            return GpuUse((), self._instances)
        if self._listed is None:
            self._utilization.skip()
            return GpuUse(None, why_not=self._why_not)
        known, self._known = self._known, frozenset(process.pid for process in self._listed)
        if not known and not self._known and not worked:
            self._utilization.skip()
            return GpuUse(())
        rows = self._utilization.read()
        if rows is None:
            return GpuUse(self._listed)
        if any(_believed(row) and row[0] not in known | self._known for row in rows):
            try:
                self._lists.refresh_known()
            except pynvml.NVMLError as error:
                raise meaning(error) from error
            self._listed = self._lists.again(self._listed) or self._listed
            self._known = frozenset(process.pid for process in self._listed)
        return GpuUse(tuple(_with_use(self._listed, rows)))

    def forget(self) -> None:
        """Frees what is kept in the library; the next sample is a first one again."""
        self._mig.forget()
        self._utilization.forget()
        self._known = frozenset()


def _count(lists: Iterable[tuple[GpuProcess, ...] | None]) -> int | None:
    """Distinct pids on all lists; None where one could not be asked."""
    pids: set[int] = set()
    for listed in lists:
        if listed is None:
            return None
        pids.update(process.pid for process in listed)
    return len(pids)


def _believed(row: Row) -> bool:
    """Whether a row of somebody who is not listed is one of a process that has ended. Drivers also give rows of
    nonsense, some for the pid 0 and with more than a whole GPU."""
    pid, percent = row
    return pid > 0 and percent <= 100


def _with_use(listed: Iterable[GpuProcess], rows: Iterable[Row]) -> Iterator[GpuProcess]:
    """The processes with their use, and those that worked and are not listed any more."""
    percents: dict[int, list[int]] = {process.pid: [] for process in listed}
    ended: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        pid, percent = row
        if pid in percents:
            percents[pid].append(min(percent, 100))
        elif _believed(row):
            ended[pid].append(percent)
    for process in listed:
        yield replace(process, sm_percent=fmean(percents[process.pid] or [0]))
    for pid, own in ended.items():
        yield GpuProcess(pid, memory_bytes=0, sm_percent=fmean(own))
