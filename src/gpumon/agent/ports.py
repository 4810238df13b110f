"""The agent's doors, as Protocols. Stages and doors know only this file and the model; `run` wires them.

GpuLibrary ──readings──▶ sampler ──samples──▶ Spool ──batches──▶ BatchSink
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from gpumon.model.sample import BatchId

Reading = dict[str, Any]
"""Catalogue field → value, for one GPU at one instant. A reading that could not be had is left out."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML enumerates it. `uuid` identifies; `index` is for people."""

    index: int
    uuid: str
    name: str
    pci_bus_id: str | None
    minor_number: int | None


class GpuLibrary(Protocol):
    """NVML, real or fake. Every method may block; `read` is called from one thread per GPU."""

    def open(self) -> Sequence[Gpu]:
        """Loads and initialises the library and gives its GPUs. Raises NvmlUnavailable with where the library
        was looked for. May be called again, also while the library is open: GPUs that answer are not
        disturbed by that."""

    @property
    def left_out(self) -> Sequence[int]:
        """The indices of the GPUs that the library counted when it was opened last, but that could not be
        addressed: they are there, but not among those that `open` gave."""

    def close(self) -> None:
        """Gives the library back. Harmless when it is not open."""

    def read(self, gpu: Gpu) -> Reading:
        """Takes one sample of one GPU, in as few calls as possible. Raises GpuLost for this GPU alone, and
        NvmlUnavailable when the library as a whole has to be opened anew."""

    def find_again(self, gpu: Gpu) -> bool:
        """Tries to get a lost GPU's handle anew by its UUID. True when it answers again."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What is POSTed: a JSON list of samples, already encoded, with its id for ever."""

    id: BatchId
    samples: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a delivery: `delivered`, `retry` (keep it; not before `after_seconds` where the server
    said so), or `poison` (the server will never take it, `reason` says why)."""

    kind: Literal["delivered", "retry", "poison"]
    reason: str = ""
    after_seconds: float | None = None


class BatchSink(Protocol):
    """Where batches go."""

    def deliver(self, batch: Batch) -> Outcome:
        """Tries once. Never raises for trouble on the way: that is an Outcome."""

    def close(self) -> None:
        """Closes its connections."""
