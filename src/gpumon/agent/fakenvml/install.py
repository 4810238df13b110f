"""A simulated NVML under the real binding, for machines without a GPU.

`install` puts it where pynvml keeps the library it loads, so everything above (function lookup, ctypes
structures, versions, error classes) is the real binding. Its answers come from a scenario (`scenario`).
A function that it does not have is missing as in an old driver: the binding raises FunctionNotFound.

    binding ──nvmlDeviceGetPowerUsage(handle, byref(c_uint))──▶ dispatch ──▶ calls ──▶ simgpu
                                         counts, faults, handle, "not supported" ┘

A process can install and uninstall it as often as it likes; it stands alone for the time that it is installed.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pynvml

from gpumon import clock
from gpumon.agent.fakenvml import calls, events, fields, gpm, library, lists, mig, scenario_file
from gpumon.agent.fakenvml.abi import ERRORS, Return
from gpumon.agent.fakenvml.library import WITHOUT_INIT
from gpumon.agent.fakenvml.mig import MIG_CALLS, NOT_ON_MIG_PARENT
from gpumon.agent.fakenvml.scenario import FaultEntry, Scenario
from gpumon.agent.fakenvml.state import State
from gpumon.clock import Now

Function = Callable[..., Any]


def _functions(*modules: ModuleType) -> dict[str, Function]:
    """Functions by NVML's name: whatever is called nvml… in a module is an answer."""
    return {
        name: function for module in modules for name, function in vars(module).items() if name.startswith("nvml")
    }


GPU_CALLS: Final = _functions(calls, lists, fields, mig)
LIBRARY_CALLS: Final = _functions(library, gpm, events)
CALLS: Final = frozenset(GPU_CALLS) | frozenset(LIBRARY_CALLS)
"""Every NVML function that the simulated library has."""


def install(
    scenario_path: Path,
    node: str,
    *,
    now: Now = clock.now,
    sleep: Callable[[float], None] = time.sleep,
    proc: Path = Path("/proc"),
) -> FakeNvml:
    """Puts a simulated NVML under the binding, with the GPUs that the scenario gives to this node.

    `sleep` is what delays and event waits sleep with, and `proc` where processes are looked for. Raises
    SettingsError for a scenario that is wrong; one that is edited later and wrong is logged, not raised."""
    scenario = scenario_file.load(scenario_path, CALLS)
    fake = FakeNvml(scenario, node, path=scenario_path, now=now, sleep=sleep, proc=proc)
    fake.install()
    return fake


class FakeNvml:
    """The library object: attributes are NVML's functions. `state` is what it simulates."""

    def __init__(
        self,
        scenario: Scenario,
        node: str,
        *,
        path: Path | None = None,
        now: Now = clock.now,
        sleep: Callable[[float], None] = time.sleep,
        proc: Path = Path("/proc"),
    ) -> None:
        self.state = State(scenario, path, node, CALLS, clock=lambda: now().timestamp(), sleep=sleep, proc=proc)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._added: list[FaultEntry] = []
        self._faults: dict[str, list[tuple[FaultEntry, Iterator[int]]]] = {}
        self._faults_of: object = None
        self._before: tuple[Any, dict[str, Any], int] | None = None
        missing = self.state.entry.missing_calls if self.state.entry is not None else []
        self._functions: dict[str, Function] = {
            name: self._gpu_call(name) if name in GPU_CALLS else self._library_call(name)
            for name in CALLS
            if not any(fnmatchcase(name, pattern) for pattern in missing)
        }

    @classmethod
    def from_text(cls, text: str, node: str, **doors: Any) -> FakeNvml:
        """A library from the text of a scenario instead of a file; not yet installed. Raises SettingsError."""
        return cls(scenario_file.parse(text, "scenario", CALLS), node, **doors)

    def __getattr__(self, name: str) -> Function:
        try:
            return self.__dict__["_functions"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(f"undefined symbol: {name}") from None

    @property
    def calls(self) -> Counter[str]:
        """How often each function was called, a copy."""
        with self._lock:
            return Counter(self._counts)

    def install(self) -> None:
        """Puts itself where the binding keeps its library; another simulated one that is there gives way."""
        if isinstance(pynvml.nvmlLib, FakeNvml):
            pynvml.nvmlLib.uninstall()
        with pynvml.libLoadLock:
            pointers = pynvml._nvmlGetFunctionPointer_cache
            self._before = pynvml.nvmlLib, dict(pointers), pynvml._nvmlLib_refcount
            pointers.clear()
            setattr(pynvml, "nvmlLib", self)  # noqa: B010  mypy has inferred the type None for it
            pynvml._nvmlLib_refcount = 0

    def uninstall(self) -> None:
        """Gives the binding back what it had. Harmless when it is not installed."""
        if self._before is None:
            return
        with pynvml.libLoadLock:
            pynvml.nvmlLib, pointers, pynvml._nvmlLib_refcount = self._before
            pynvml._nvmlGetFunctionPointer_cache.clear()
            pynvml._nvmlGetFunctionPointer_cache.update(pointers)
            self._before = None

    def fail(
        self,
        call: str,
        error: str | None = None,
        *,
        delay_seconds: float = 0,
        every: int = 1,
        gpu: int | None = None,
    ) -> None:
        """Adds a fault to those of the scenario: see `scenario.FaultEntry`. Raises ValueError for names that
        are not known."""
        if not any(fnmatchcase(name, call) for name in CALLS) or not (error is None or error in ERRORS):
            raise ValueError(f"no such function or error: {call} {error}")
        self._added.append(FaultEntry(call=call, error=error, delay_seconds=delay_seconds, every=every, gpu=gpu))
        self._faults_of = None

    def clear_faults(self) -> None:
        """Takes back what `fail` added."""
        self._added.clear()
        self._faults_of = None

    def _gpu_call(self, name: str) -> Function:
        state, answer, of_instance = self.state, GPU_CALLS[name], MIG_CALLS.get(name)
        not_on_parent = name in NOT_ON_MIG_PARENT
        enter = self._enter

        def call(*args: Any) -> int:
            t = enter(name, args)
            if isinstance(t, Return):
                return t
            found = state.gpu(args[0], t)
            if isinstance(found, Return):
                return found
            gpu, instance = found
            if instance is not None:
                if of_instance is None:
                    return Return.NOT_SUPPORTED
                return of_instance(gpu, instance, t, *args[1:])
            if name in gpu.model.unsupported_calls or (not_on_parent and gpu.instances):
                return Return.NOT_SUPPORTED
            return answer(gpu, t, *args[1:])  # type: ignore[no-any-return]

        return call

    def _library_call(self, name: str) -> Function:
        state, answer = self.state, LIBRARY_CALLS[name]

        def call(*args: Any) -> Any:
            t = self._enter(name, args)
            return t if isinstance(t, Return) else answer(state, t, *args)

        return call

    def _enter(self, name: str, args: tuple[Any, ...]) -> float | Return:
        """Counts a call, brings the state up to date, and suffers its faults. The instant at which the call
        is answered, or what it returns instead of an answer."""
        with self._lock:
            self._counts[name] += 1
        state = self.state
        t = state.clock()
        state.refresh(t)
        if self._faults_of is not state.entry:
            self._collect_faults()
        if name in self._faults:
            error = self._suffer(name, args, t)
            if error is not None:
                return error
            t = state.clock()
        return t if state.references or name in WITHOUT_INIT else Return.UNINITIALIZED

    def _collect_faults(self) -> None:
        entry = self.state.entry
        faults: list[tuple[FaultEntry, Iterator[int]]] = [
            (fault, count(1)) for fault in (*(entry.faults if entry else ()), *self._added)
        ]
        self._faults = {
            name: mine for name in CALLS if (mine := [pair for pair in faults if fnmatchcase(name, pair[0].call)])
        }
        self._faults_of = entry

    def _suffer(self, name: str, args: tuple[Any, ...], t: float) -> Return | None:
        """Sleeps, outside any lock, and gives the error, as this call's faults say."""
        for fault, counter in self._faults[name]:
            if not fault.holds(t, self.state.started):
                continue
            if fault.gpu is not None and fault.gpu != self.state.index_in(args):
                continue
            if next(counter) % fault.every:
                continue
            if fault.delay_seconds:
                self.state.sleep(fault.delay_seconds)
            if fault.error is not None:
                return ERRORS[fault.error]
        return None
