"""Divides stretches of time, and GPUs, so that there is memory enough for the rows of each piece."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from gpumon.server.accounts.cells import HOUR
from gpumon.server.accounts.desk import Execute, Run
from gpumon.server.accounts.slices import GPU_KEY

MOST_ROWS: Final = 200_000
"""Of samples and pods' rows, rolled at once: some 1.5 KB each."""
_ROWS_A_GPU: Final = 10
"""What a GPU's cells of a bucket take beside its rows, in rows."""

MOST_SAMPLES: Final = 500_000
"""Of raw rows about so many are worked on at once, which bounds the memory. A day of one GPU is little."""


@dataclass(frozen=True, slots=True)
class Part:
    """What is rolled at once: buckets, and of which GPUs. These are numbered, and those whose number leaves `rest`
    when it is divided by `among` are meant."""

    buckets: Sequence[Run]
    among: int = 1
    rest: int = 0

    @property
    def of(self) -> str:
        """SQL for whether a row is of one of the GPUs."""
        return "TRUE" if self.among == 1 else f"hash({GPU_KEY}) % {self.among} = {self.rest}"

    def divided(self, by: int) -> Iterator[Part]:
        """The same in so many parts, each of some of its GPUs."""
        return (Part(self.buckets, self.among * by, self.rest + self.among * n) for n in range(by))

    def halved(self) -> Iterator[Part]:
        """The same in two parts: half of the buckets, or else of the GPUs."""
        half = len(self.buckets) // 2
        if not half:
            return self.divided(2)
        return (Part(some, self.among, self.rest) for some in (self.buckets[:half], self.buckets[half:]))


def parts_of(execute: Execute, buckets: Sequence[Run]) -> Iterator[Part]:
    """Adjacent fine buckets, in as few parts as memory allows to roll at once; by relations as `by_name` means. Of
    a bucket that has too many rows by itself, some of the GPUs after the others."""
    counted: dict[datetime, int] = {}
    for table in ("samples", "pod_usage"):
        for bucket, rows in execute(
            f"""
            SELECT time_bucket(INTERVAL 5 MINUTES, sampled_at),
                   count(*) + {_ROWS_A_GPU} * count(DISTINCT (client_name, gpu_id)) FROM {table}
            WHERE sampled_at >= $of AND sampled_at < $to GROUP BY ALL""",
            {"of": buckets[0][0], "to": buckets[-1][1]},
        ):
            counted[bucket] = counted.get(bucket, 0) + rows
    part: list[Run] = []
    size = 0
    for bucket in buckets:
        rows = counted.get(bucket[0], 0)
        if part and size + rows > MOST_ROWS:
            yield Part(part)
            part, size = [], 0
        if rows > MOST_ROWS:
            yield from Part([bucket]).divided(-(-rows // MOST_ROWS))
            continue
        part.append(bucket)
        size += rows
    if part:
        yield Part(part)


def pieces_of(run: Run, samples: Iterable[tuple[datetime, int]]) -> Iterator[Run]:
    """A stretch of time, divided so that no part has many more samples than MOST_SAMPLES, of which there are so
    many in which hours, in order."""
    begin, end = run
    together = 0.0
    for hour, rows in samples:
        if together + rows <= MOST_SAMPLES:
            together += rows
            continue
        parts = math.ceil(rows / MOST_SAMPLES)
        for cut in (hour + HOUR * part / parts for part in range(parts)):
            if begin < cut < end:
                yield begin, cut
                begin = cut
        together = rows / parts
    yield begin, end


def pieces_of_length(stretches: Sequence[Run], most: timedelta) -> Iterator[list[Run]]:
    """The stretches of time, cut and put together so that each list is at most so long in all."""
    piece: list[Run] = []
    room = most
    for of, to in stretches:
        while of < to:
            until = min(to, of + room)
            piece.append((of, until))
            room -= until - of
            of = until  # noqa: PLW2901 - the stretch that is left
            if room <= timedelta():
                yield piece
                piece, room = [], most
    if piece:
        yield piece
