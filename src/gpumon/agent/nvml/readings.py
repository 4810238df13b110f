"""What is read from one GPU and when: the rules for every reading, without NVML.

A `Source` is one question to a GPU. A `GpuReader` asks its sources in order and builds the reading:

- A source whose fields are all settled isn't asked, so that a later source stands in for an earlier one
  that the GPU does not support (the old memory call for the new one). A source that has worked and fails
  once is not replaced for that sample: the two may count differently.
- What the GPU does not support is remembered and left out. It is asked again after an hour, because MIG
  can be switched on and off on a running Hopper.
- A slow source is asked once per `slow_interval_seconds`, or a part of it; in between its last answer is
  carried on.
- A value outside the catalogue's bounds is junk and is left out: the server would refuse the whole sample.
- A GPU of which nothing answers is lost, whatever its errors say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from gpumon.agent.ports import Reading
from gpumon.clock import Monotonic
from gpumon.errors import GpuLost
from gpumon.model.fields import BY_NAME

ASK_AGAIN_AFTER_SECONDS = 3600.0
SILENT_SOURCES = 3
"""So many sources that miss, and none that answers, make a GPU lost: one or two may be a driver's fault."""

_BOUNDS = {
    field.name: (
        float("-inf") if field.low is None else field.low,
        float("inf") if field.high is None else field.high,
    )
    for field in BY_NAME.values()
    if field.kind in {"int", "float"}
}


class Verdict(Enum):
    """What an error means for one reading."""

    UNSUPPORTED = "never will"
    REFUSED = "never will, unless it has worked before"
    MISSED = "not this time"


class NoReading(Exception):
    """One reading could not be had; the others may. Stays inside the reading of a GPU."""

    def __init__(self, reason: str, verdict: Verdict) -> None:
        super().__init__(reason)
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class Source:
    """One question to one GPU. `name` says which call it is, once per GPU. `fields` are those that `ask` can
    give; it may give fewer, and None for one that it missed this time. `ask` raises NoReading, GpuLost or
    NvmlUnavailable. `slow` is for how many slow intervals an answer is carried on; 0 is asked at each sample.
    `forget` drops what `ask` keeps from sample to sample."""

    name: str
    fields: frozenset[str]
    ask: Callable[[], Reading]
    slow: float = 0.0
    forget: Callable[[], None] | None = None


class Refusals:
    """What one GPU never answers: name → reason. It is forgotten after an hour, because MIG can be switched on
    and off on a running Hopper."""

    def __init__(self, monotonic: Monotonic) -> None:
        self.reasons: dict[str, str] = {}
        self._monotonic = monotonic
        self._forget_at = monotonic() + ASK_AGAIN_AFTER_SECONDS

    def reconsider(self) -> None:
        """Forgets what was refused, once an hour."""
        now = self._monotonic()
        if now >= self._forget_at:
            self.reasons.clear()
            self._forget_at = now + ASK_AGAIN_AFTER_SECONDS

    def note(self, name: str, error: NoReading, *, worked: bool) -> bool:
        """Remembers what is never to be had; `worked` says whether it has been had before. False where it may
        be had another time."""
        lasting = error.verdict is Verdict.UNSUPPORTED or (error.verdict is Verdict.REFUSED and not worked)
        if lasting:
            self.reasons[name] = str(error)
        return lasting


@dataclass(frozen=True, slots=True)
class Support:
    """What one GPU has told so far: the fields it gave, and why it gave the others not."""

    supported: frozenset[str]
    unsupported: Mapping[str, str]


class GpuReader:
    """Reads one GPU. Belongs to one thread at a time."""

    def __init__(self, sources: Iterable[Source], *, slow_interval_seconds: float, monotonic: Monotonic) -> None:
        self._sources = tuple(sources)
        self._slow_interval_seconds = slow_interval_seconds
        self._monotonic = monotonic
        self._given: dict[str, set[str]] = {}  # source → fields it has given; a key is a source that worked
        self._refusals = Refusals(monotonic)  # of sources
        self._carried: dict[str, tuple[float, Reading]] = {}  # slow source → when due, its last answer

    def read(self) -> Reading:
        """One sample: catalogue field → value, absent ones left out. Raises GpuLost, NvmlUnavailable."""
        try:
            return self._read(self._monotonic())
        except GpuLost:
            self.forget()
            raise

    def forget(self) -> None:
        """Drops what is kept from earlier samples, but not what is known of the GPU's abilities."""
        self._carried.clear()
        for source in self._sources:
            if source.forget is not None:
                source.forget()

    @property
    def support(self) -> Support:
        """What the GPU supports, as far as it has been asked."""
        given = frozenset().union(*self._given.values())
        reasons = {
            field: f"{source.name}: {self._refusals.reasons.get(source.name, 'no value')}"
            for source in self._sources
            for field in source.fields - given
        }
        return Support(given, reasons)

    def _read(self, now: float) -> Reading:
        self._refusals.reconsider()
        settled: dict[str, Any] = {}  # None: missed this time
        answered, missed = 0, ""
        silent = 0
        for source in self._sources:
            if source.name in self._refusals.reasons or (source.fields and settled.keys() >= source.fields):
                continue
            due, carried = self._carried.get(source.name, (now, {}))
            if now < due:
                settled.update(carried)
                continue
            try:
                answer = self._believed(source)
            except NoReading as error:
                missed = f"{source.name}: {error}"
                silent += self._note_failure(source, error)
                for field in self._given.get(source.name, ()):
                    settled.setdefault(field)
                continue
            if answer and not any(value is not None for value in answer.values()):
                missed = f"{source.name}: no value"
                silent += 1
            else:
                answered += 1
            for field, value in answer.items():
                settled.setdefault(field, value)
            if source.slow and None not in answer.values():
                self._carried[source.name] = (now + source.slow * self._slow_interval_seconds, answer)
        if silent >= SILENT_SOURCES and not answered:
            raise GpuLost(f"the GPU answers nothing any more, last {missed}")
        return {field: value for field, value in settled.items() if value is not None}

    def _believed(self, source: Source) -> Reading:
        """The source's answer. None where a field that it has given before is missing or junk."""
        answer = source.ask()
        given = self._given.setdefault(source.name, set())
        believed: Reading = {}
        for field, value in answer.items():
            low, high = _BOUNDS[field]
            if value is not None and low <= value <= high:
                given.add(field)
                believed[field] = value
            elif field in given:
                believed[field] = None
        return believed

    def _note_failure(self, source: Source, error: NoReading) -> bool:
        """Remembers what is never to be had. True where the source may answer another time."""
        lasting = self._refusals.note(source.name, error, worked=source.name in self._given)
        if lasting:
            self._given.pop(source.name, None)
        return not lasting
