"""Batches as files: one batch, one file, whole or not at all.

A name carries what the spool has to know without reading: `000000000042-10-1f2e3d4c.batch` is the 42nd, with
10 samples, written by the run 1f2e3d4c…, so a second agent on the same folder overwrites nothing. The first
line of the file repeats the id and has the body's length and CRC-32; what does not match is torn.

Files are written aside and renamed. They are not synced: they outlive the process, however it dies, but the
last seconds may be torn by a power cut. What is set aside as torn or refused goes to the folder `quarantine`,
as JSON with the reason, the newest of it only.
"""

from __future__ import annotations

import contextlib
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gpumon import clock
from gpumon.agent.ports import Batch
from gpumon.clock import Now
from gpumon.model.sample import BatchId

QUARANTINE_FILES = 100
QUARANTINE_BYTES = 5_000_000
FIRST_LINE_BYTES = 400
"""More than the first line of a file ever takes."""
_MAGIC = "gpumon-batch-1"
_NAME = re.compile(r"(\d{12,})-(\d+)-[A-Za-z0-9]+\.batch")


class Torn(ValueError):
    """A file is not a whole batch. The message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch's file, as far as its name and size tell."""

    name: str
    order: int
    samples: int
    size_bytes: int


def file_name(batch: Batch, order: int) -> str:
    """What a batch's file is called."""
    return f"{order:012d}-{batch.samples}-{batch.id.boot.replace('-', '')[:8]}.batch"


class BatchFiles:
    """The files of one agent in one folder. Every method may raise OSError."""

    def __init__(self, folder: Path, *, now: Now = clock.now) -> None:
        self.folder = folder
        self._now = now
        self._quarantine = folder / "quarantine"

    def make_folder(self) -> None:
        """Makes the folder where it is missing."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def list_stored(self) -> list[StoredBatch]:
        """The batches that are there, in their order. Removes what was being written when a run died."""
        found = []
        for path in self.folder.iterdir():
            if path.suffix == ".new":
                path.unlink(missing_ok=True)
            elif match := _NAME.fullmatch(path.name):
                found.append(StoredBatch(path.name, int(match[1]), int(match[2]), path.stat().st_size))
        return sorted(found, key=lambda stored: (stored.order, stored.name))

    def write(self, batch: Batch, order: int) -> StoredBatch:
        """Writes one batch, whole or not at all."""
        name = file_name(batch, order)
        first_line = f"{_MAGIC} {batch.id} {batch.samples} {len(batch.body)} {zlib.crc32(batch.body):08x}\n"
        data = first_line.encode() + batch.body
        aside = self.folder / (name + ".new")
        try:
            aside.write_bytes(data)
            aside.replace(self.folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise
        return StoredBatch(name, order, batch.samples, len(data))

    def read(self, stored: StoredBatch) -> Batch:
        """Reads one batch back. Raises Torn, and OSError where the file can't be read or is gone."""
        first_line, _, body = (self.folder / stored.name).read_bytes().partition(b"\n")
        try:
            magic, batch_id, samples, length, crc = first_line.decode("ascii").split(" ")
            batch = Batch(BatchId.parse(batch_id), int(samples), body)
            whole = len(body) == int(length) and zlib.crc32(body) == int(crc, 16)
        except ValueError as error:
            raise Torn(f"its first line is not a batch's: {error}") from error
        if magic != _MAGIC or not whole:
            raise Torn(f"{len(body)} bytes of body where the first line says {length}, or another checksum")
        return batch

    def remove(self, stored: StoredBatch) -> None:
        """Removes a batch's file; harmless when it is gone."""
        (self.folder / stored.name).unlink(missing_ok=True)

    def quarantine(self, name: str, reason: str, batch: Batch | None) -> None:
        """Sets a batch aside for people to look at, with the reason. Without `batch`, what is set aside is the
        file `name` itself, for as much as can be read of it."""
        content = batch.body if batch is not None else self._readable(name)
        record = {
            "reason": reason,
            "batch": str(batch.id) if batch is not None else None,
            "file": name,
            "set_aside_at": clock.to_wire(self._now()),
            "body": content.decode("utf-8", errors="replace"),
        }
        self._quarantine.mkdir(parents=True, exist_ok=True)
        (self._quarantine / (name + ".json")).write_bytes(msgspec.json.encode(record))
        self._prune()

    def _readable(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError:
            return b""

    def _prune(self) -> None:
        """Keeps the newest of what was set aside."""
        files = [(path.stat(), path) for path in self._quarantine.glob("*.json")]
        files.sort(key=lambda found: (found[0].st_mtime_ns, found[1].name), reverse=True)
        total_bytes = 0
        for place, (stat, path) in enumerate(files):
            total_bytes += stat.st_size
            if place >= QUARANTINE_FILES or total_bytes > QUARANTINE_BYTES:
                path.unlink(missing_ok=True)
