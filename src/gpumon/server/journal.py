"""The journal of commits: which batches are stored, and how long each CSV file was after the last of them.

One line of JSON is appended and synced after the rows are on disk and before the batch is acknowledged:

    {"files": {"gpu_metrics_20261124.csv": 18211}, "batches": ["node-1/6f1c/42"], "at": 1795541603}

So after a crash, bytes of a CSV beyond its journaled length belong to no acknowledged batch: they are cut,
and the agent, which got no answer, sends the batch again. After a clean stop (`"clean": true`) nothing is
cut, since then another program may have appended rows.

Batches of one run of an agent count up from 1, so a run is remembered as a few intervals, however long it
was. Runs that fell silent longer ago than any agent may send again are forgotten.
"""

from __future__ import annotations

import contextlib
import io
import logging
import time
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from gpumon.model.sample import BatchId
from gpumon.server.disk import append_fully, replace_file, sync_file

log = logging.getLogger(__name__)

_COMPACT_AT_BYTES = 8 * 2**20


class Run:
    """The sequence numbers of one agent's run that are stored, as disjoint ascending intervals."""

    __slots__ = ("_ends", "_starts", "at")

    def __init__(self, intervals: Iterable[tuple[int, int]] = (), at: float = 0.0) -> None:
        pairs = list(intervals)
        self._starts = [start for start, _ in pairs]
        self._ends = [end for _, end in pairs]
        self.at = at

    def __contains__(self, sequence: int) -> bool:
        place = bisect_right(self._starts, sequence) - 1
        return place >= 0 and sequence <= self._ends[place]

    def add(self, sequence: int) -> None:
        """Adds a number; harmless when it is there."""
        if sequence in self:
            return
        place = bisect_right(self._starts, sequence)
        joins_left = place > 0 and self._ends[place - 1] == sequence - 1
        joins_right = place < len(self._starts) and self._starts[place] == sequence + 1
        if joins_left and joins_right:
            self._ends[place - 1] = self._ends.pop(place)
            self._starts.pop(place)
        elif joins_left:
            self._ends[place - 1] = sequence
        elif joins_right:
            self._starts[place] = sequence
        else:
            self._starts.insert(place, sequence)
            self._ends.insert(place, sequence)

    def intervals(self) -> list[tuple[int, int]]:
        """The intervals, both ends included."""
        return list(zip(self._starts, self._ends, strict=True))


class Journal:
    """Opened by the one writer; not shared between threads, but for `sizes`, of which every commit makes a new
    one."""

    def __init__(self, path: Path, forget_after_seconds: float) -> None:
        self._path = path
        self._forget_after = forget_after_seconds
        self._runs: dict[tuple[str, str], Run] = {}
        self._file: BinaryIO | None = None
        self._bytes = 0
        self._torn = False
        self._compact_at = _COMPACT_AT_BYTES
        self.sizes: dict[str, int] = {}
        self.clean = True

    def open(self) -> None:
        """Reads what is there. `sizes` then holds the committed length of each file, `clean` whether the
        last stop was orderly. A torn last line is a commit that was never acknowledged: ignored."""
        self.clean = True
        if self._path.exists():
            for line in self._path.read_bytes().split(b"\n"):
                try:
                    self._apply(msgspec.json.decode(line))
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # torn by a crash; what it would have said was not acknowledged
        horizon = time.time() - self._forget_after
        self._runs = {key: run for key, run in self._runs.items() if run.at >= horizon}

    def begin(self) -> None:
        """Starts to write: a compact snapshot in place of the old lines, then commits as they come. Raises
        OSError; what was there before then still is."""
        lines: list[dict[str, Any]] = [{"files": self.sizes}]
        lines += [
            {"run": f"{agent}/{boot}", "stored": run.intervals(), "at": round(run.at)}
            for (agent, boot), run in self._runs.items()
        ]
        if self._file is not None:
            self._file.close()
        try:
            replace_file(self._path, b"".join(map(_line, lines)))
        finally:
            self._file = self._path.open("ab", buffering=0)
            self._bytes = self._file.seek(0, io.SEEK_END)
        self.clean = False

    def __contains__(self, batch: BatchId) -> bool:
        run = self._runs.get((batch.agent, batch.boot))
        return run is not None and batch.sequence in run

    def commit(self, sizes: dict[str, int], batches: list[BatchId], *, sync: bool = True) -> None:
        """Makes a commit durable. Raises OSError; then nothing is remembered and the rows must be cut."""
        at = round(time.time())
        entry: dict[str, Any] = {"files": sizes, "at": at}
        if batches:
            entry["batches"] = [str(batch) for batch in batches]
        self._append(entry, sync=sync)
        for batch in batches:
            self._remember(batch, at)
        if self._bytes > self._compact_at:
            try:
                self.begin()
            except OSError as error:
                log.warning("journal_not_compacted bytes=%d error=%s", self._bytes, error)
            self._compact_at = max(_COMPACT_AT_BYTES, 2 * self._bytes)

    def _append(self, entry: dict[str, Any], *, sync: bool) -> None:
        assert self._file is not None
        line = _line(entry)
        try:
            if self._torn:
                self._file.truncate(self._bytes)
                self._torn = False
            append_fully(self._file, line, at=self._bytes)
            if sync:
                sync_file(self._file)
        except OSError:
            # The line must not survive: on the next start it would name batches that are not stored.
            self._torn = True
            with contextlib.suppress(OSError):
                self._file.truncate(self._bytes)
            raise
        self._bytes += len(line)
        self._apply_sizes(entry)

    def sync(self) -> None:
        """Puts on disk what `commit(sync=False)` left with the operating system."""
        assert self._file is not None
        sync_file(self._file)

    def forget(self, name: str) -> None:
        """A file was deleted or replaced on purpose. Raises OSError."""
        if name in self.sizes:
            self._append({"forget": name}, sync=True)

    def close(self) -> None:
        """Marks the stop as orderly."""
        if self._file is None:
            return
        try:
            self._append({"clean": True}, sync=True)
        finally:
            self._file.close()
            self._file = None

    def _apply(self, entry: dict[str, Any]) -> None:
        self._apply_sizes(entry)
        at = entry.get("at", 0)
        for text in entry.get("batches", ()):
            self._remember(BatchId.parse(text), at)
        if "run" in entry:
            agent, _, boot = entry["run"].partition("/")
            self._runs[agent, boot] = Run(map(tuple, entry["stored"]), at)

    def _apply_sizes(self, entry: dict[str, Any]) -> None:
        self.clean = entry.get("clean", False)
        if "files" in entry:
            self.sizes = {**self.sizes, **entry["files"]}  # a new one: who reads the old sees no half of a commit
        if entry.get("forget") in self.sizes:
            self.sizes = {name: size for name, size in self.sizes.items() if name != entry["forget"]}

    def _remember(self, batch: BatchId, at: float) -> None:
        run = self._runs.setdefault((batch.agent, batch.boot), Run())
        run.add(batch.sequence)
        run.at = max(run.at, at)


def _line(entry: dict[str, Any]) -> bytes:
    return msgspec.json.encode(entry) + b"\n"
