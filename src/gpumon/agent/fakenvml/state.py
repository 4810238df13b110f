"""What the simulated library holds: the node's GPUs as they are now, open handles, and what it was told to do.

`refresh` brings it up to date: at most once a second with the scenario if its file has changed and the processes
of the node if the scenario looks for some; and whenever a process begins or ends by its time. A scenario that
became wrong is logged and the last good one stays. Handles are opaque numbers; a handle of a GPU that was lost
stays dead, as on hardware, until a new one is asked for.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from ctypes import c_uint, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpumon.agent.fakenvml import scenario_file
from gpumon.agent.fakenvml.abi import Return
from gpumon.agent.fakenvml.identity import node_entry
from gpumon.agent.fakenvml.scenario import NodeEntry, Scenario, instant
from gpumon.agent.fakenvml.simgpu import MigInstance, SimGpu
from gpumon.agent.fakenvml.simnode import Running, find_running, make_gpus, unchanged_within
from gpumon.errors import SettingsError

log = logging.getLogger(__name__)

REFRESH_SECONDS = 1.0
_FIRST_HANDLE, _HANDLE_STEP = 0x7F00_0000_1000, 0x40


@dataclass(slots=True)
class GpuHandle:
    """What a device handle stands for: a GPU, or one of its MIG instances."""

    uuid: str
    mig: int | None = None
    dead: bool = False


@dataclass(slots=True)
class EventSet:
    """GPUs whose Xids are waited for, each with the instant up to which they were gathered; and what was
    gathered but not given out yet, as (instant, GPU, xid)."""

    gathered: dict[str, float] = field(default_factory=dict)
    waiting: list[tuple[float, str, int]] = field(default_factory=list)


class State:
    """The library between calls. Calls come from many threads: `lock` guards what changes."""

    def __init__(
        self,
        scenario: Scenario,
        path: Path | None,
        node: str,
        calls: Collection[str],
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        proc: Path,
    ) -> None:
        t = clock()
        self.node = node
        self.path = path
        self.calls = calls
        self.clock = clock
        self.sleep = sleep
        self.proc = proc
        self.started = t
        self.lock = threading.RLock()
        self.references = 0
        self.gpus: Sequence[SimGpu] = ()
        self.entry: NodeEntry | None = None
        self._by_uuid: dict[str, SimGpu] = {}
        self._objects: dict[int, Any] = {}
        self._addresses = itertools.count(_FIRST_HANDLE, _HANDLE_STEP)
        self._looked_at = t
        self._mtime = _mtime(path)
        self._running: list[Running] = []
        self._unchanged_within = (t, t)
        self._wanted = node_entry(scenario, node)
        self._adopt(self._wanted, self._find(self._wanted), t)

    def refresh(self, t: float) -> None:
        """Looks at the file and the processes, if that was a second ago. A clock set back counts, too."""
        if abs(t - self._looked_at) < REFRESH_SECONDS and self._holds_at(t):
            return
        with self.lock:
            entry, running, changed = self.entry, self._running, not self._holds_at(t)
            if abs(t - self._looked_at) >= REFRESH_SECONDS:
                self._looked_at = t
                reloaded = self._reload()
                entry = self._wanted
                if reloaded or _searches(entry):
                    running = self._find(entry)
                changed = changed or reloaded or running != self._running
            if changed:
                self._adopt(entry, running, t)

    def put(self, pointer: Any, target: Any) -> int:
        """Stores an object, and its new handle in the pointer that a call was handed to fill."""
        with self.lock:
            address = next(self._addresses)
            self._objects[address] = target
        c_void_p.from_buffer(pointer).value = address
        return Return.SUCCESS

    def put_gpu(self, pointer: Any, gpu: SimGpu, t: float, mig: int | None = None) -> int:
        """Stores the handle of a GPU or MIG instance: the one it has, as long as that lives."""
        if gpu.is_lost(t):
            self._bury(gpu.uuid)
            return Return.GPU_IS_LOST
        handle = GpuHandle(gpu.uuid, mig)
        with self.lock:
            address = next((a for a, target in self._objects.items() if target == handle), None)
        if address is None:
            return self.put(pointer, handle)
        c_void_p.from_buffer(pointer).value = address
        return Return.SUCCESS

    def put_known(self, pointer: Any, uuid: str) -> None:
        """Stores the handle under which a GPU is known already, dead or alive."""
        with self.lock:
            c_void_p.from_buffer(pointer).value = next(
                address
                for address, target in reversed(self._objects.items())
                if isinstance(target, GpuHandle) and target.uuid == uuid and target.mig is None
            )

    def target(self, handle: Any) -> Any:
        """What a handle stands for; None for NULL, a foreign or a freed one."""
        try:
            return self._objects.get(c_void_p.from_buffer(handle).value or 0)
        except TypeError:
            return None

    def free(self, handle: Any) -> None:
        """Forgets a handle."""
        with self.lock:
            self._objects.pop(c_void_p.from_buffer(handle).value or 0, None)

    def forget_handles(self) -> None:
        """Every handle dies."""
        with self.lock:
            self._objects.clear()

    def gpu(self, handle: Any, t: float) -> tuple[SimGpu, MigInstance | None] | Return:
        """The GPU that answers for a device handle, or why none does."""
        target = self.target(handle)
        if not isinstance(target, GpuHandle):
            return Return.INVALID_ARGUMENT
        gpu = self._by_uuid.get(target.uuid)
        if gpu is None or target.dead:
            return Return.GPU_IS_LOST
        if gpu.lost and gpu.is_lost(t):
            self._bury(gpu.uuid)
            return Return.GPU_IS_LOST
        if target.mig is None:
            return gpu, None
        instance = gpu.instances[target.mig] if target.mig < len(gpu.instances) else None
        return (gpu, instance) if instance is not None else Return.INVALID_ARGUMENT

    def gpu_by_uuid(self, uuid: str) -> SimGpu | None:
        """The GPU of a uuid."""
        return self._by_uuid.get(uuid)

    def index_in(self, args: Sequence[Any]) -> int | None:
        """Index of the GPU that a call is about: its first argument is a handle or an index. None: of none."""
        if not args:
            return None
        first = args[0]
        if isinstance(first, c_uint):
            return first.value
        target = self.target(first)
        gpu = self._by_uuid.get(target.uuid) if isinstance(target, GpuHandle) else None
        return None if gpu is None else gpu.index

    def events(self, gpu: SimGpu, after: float, until: float) -> Iterator[tuple[float, int]]:
        """Xid errors of a GPU within a time, as (instant, xid)."""
        for event in self.entry.events if self.entry is not None else ():
            if event.gpu != gpu.index:
                continue
            at = instant(event.at, self.started)
            if event.every_seconds is not None and at <= after:
                at += ((after - at) // event.every_seconds + 1) * event.every_seconds
            while after < at <= until:
                yield at, event.xid
                if event.every_seconds is None:
                    break
                at += event.every_seconds

    def _bury(self, uuid: str) -> None:
        with self.lock:
            for target in self._objects.values():
                if isinstance(target, GpuHandle) and target.uuid == uuid:
                    target.dead = True

    def _reload(self) -> bool:
        mtime = _mtime(self.path)
        if self.path is None or mtime == self._mtime:
            return False
        self._mtime = mtime
        try:
            self._wanted = node_entry(scenario_file.load(self.path, self.calls), self.node)
        except SettingsError as error:
            log.warning("scenario_kept reason=%s", error)
            return False
        log.info("scenario_reloaded path=%s", self.path)
        return True

    def _holds_at(self, t: float) -> bool:
        """Whether the same processes run at an instant as when the GPUs were made."""
        start, end = self._unchanged_within
        return start <= t < end

    def _find(self, entry: NodeEntry | None) -> list[Running]:
        return [] if entry is None else find_running(entry, self.proc)

    def _adopt(self, entry: NodeEntry | None, running: list[Running], t: float) -> None:
        """Makes the GPUs anew. Counters go on from where they are, and what was done is remembered, unless the
        driver was loaded anew: then they begin, every handle is dead, and the library wants to be
        initialised."""
        gpus = [] if entry is None else list(make_gpus(self.node, entry, running, self.started, t))
        before, known = self.entry, self._by_uuid
        if before is not None and entry is not None and before.driver_loaded_at != entry.driver_loaded_at:
            self.references = 0
            self.forget_handles()
        else:
            gpus = [gpu.after(known[gpu.uuid], t) if gpu.uuid in known else gpu for gpu in gpus]
        self.entry, self._running = entry, running
        self._unchanged_within = unchanged_within(running, self.started, t)
        self._by_uuid = {gpu.uuid: gpu for gpu in gpus}
        self.gpus = gpus


def _searches(entry: NodeEntry | None) -> bool:
    """Whether a node's processes have to be looked for."""
    return entry is not None and any(process.cmdline is not None for process in entry.processes)


def _mtime(path: Path | None) -> int:
    """When a file was changed, in ns; 0 where there is none, as while a ConfigMap is swapped."""
    try:
        return path.stat().st_mtime_ns if path is not None else 0
    except OSError:
        return 0
