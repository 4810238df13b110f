"""Takes bytes of CSV files into the store: rows, rollups, and what these rows make invalid; all or nothing.

First each stretch of bytes becomes a temporary table, line by line as tolerant as need be; then one transaction
moves all of them in. So of a commit that went to several files a query sees everything or nothing.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

from gpumon.server.damage import set_aside
from gpumon.server.days import DayFile
from gpumon.server.loading import load_piece
from gpumon.server.readings import COLUMNS, PLACE, added_up, readings_of
from gpumon.server.relations import SEALABLE, hot
from gpumon.server.sealedtables import Known, note_file
from gpumon.server.sources import copy_lines, read_header
from gpumon.server.store import Store
from gpumon.server.tables import SAMPLES
from gpumon.server.touched import Touched

log = logging.getLogger(__name__)

_FEW_READINGS: Final = 20_000
"""Rows that may be added to the rollup before it is put together; more when it is larger than that by itself."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """The bytes from `start` to `end` of a file, whose modification time is then `mtime_ns`; `lines` come before,
    and are `sealed`."""

    name: str
    day_file: DayFile
    start: int
    end: int
    mtime_ns: int
    lines: int = 0
    sealed: bool = False


class Arrivals:
    """Called by `catchup` and `shelf` alone, from one thread at a time."""

    def __init__(self, store: Store, folder: Path, zone: ZoneInfo, touched: Touched) -> None:
        self._store = store
        self._folder = folder
        self._zone = zone
        self._touched = touched
        self._piece = folder / ".gpumon" / "piece.csv"
        self._quarantine = folder / ".gpumon" / "quarantine"
        self._readings = 0
        self._readings_wanted = _FEW_READINGS
        self.damaged: Counter[str] = Counter()

    def clean(self) -> None:
        """Removes what a server that was killed left."""
        for left in (self._piece, self._piece.with_name("cleaned.csv")):
            with contextlib.suppress(OSError):
                left.unlink()

    def read(self, stretch: Stretch, number: int) -> Stretch:
        """Reads a stretch into the temporary table of that number; gives it with the lines that there are then.
        Raises DatabaseError, or one of `sources.UNREADABLE`."""
        path, table = self._folder / stretch.name, stretch.day_file.table
        target = f"arriving_{number}"
        try:
            columns = read_header(path, table)
            lines = copy_lines(path, self._piece, stretch.start, stretch.end)
            self._store.execute(f"CREATE OR REPLACE TEMP TABLE {target} {table.create}")
            damage = load_piece(
                self._store.execute,
                target,
                self._piece,
                lines,
                columns,
                stretch.day_file,
                self._zone,
                stretch.name,
            )
        finally:
            self._piece.unlink(missing_ok=True)
        set_aside(
            self._quarantine,
            stretch.name,
            damage,
            before=stretch.lines + 1,
            lines=None if stretch.start == 0 else lines,
        )
        if damage.count:
            self.damaged[stretch.name] += damage.count
            log.warning("csv_lines_left_out file=%s lines=%d of=%d", stretch.name, damage.count, lines)
        log.debug("read file=%s lines=%d bytes=%d-%d", stretch.name, lines, stretch.start, stretch.end)
        return replace(stretch, lines=stretch.lines + lines)

    def move_in(self, stretches: Sequence[Stretch], *, known: bool = False) -> None:
        """Moves the temporary tables 0, 1, … into the store, inside the caller's transaction. `known`: these rows
        have been in the store before, so that no rollup of the accounts is out of date by them."""
        for number, stretch in enumerate(stretches):
            table, arriving = stretch.day_file.table, f"arriving_{number}"
            self._store.execute(f"INSERT INTO {hot(table)} SELECT * FROM {arriving}")
            if table is SAMPLES:
                columns = ", ".join(COLUMNS)
                self._readings += self._store.execute(
                    f"INSERT INTO readings ({columns}, file) SELECT *, ? FROM ({readings_of(arriving)})",
                    [stretch.name],
                )[0][0]
            if table in SEALABLE and not known:
                self._touched.by(arriving, of_samples=table is SAMPLES)
            note_file(
                self._store, stretch.name, Known(stretch.end, stretch.mtime_ns, stretch.lines, stretch.sealed)
            )

    def after(self, stretches: Sequence[Stretch]) -> None:
        """What the transaction can't do: `live` is another database."""
        for number, stretch in enumerate(stretches):
            if stretch.day_file.table is SAMPLES:
                self._store.note_latest(f"arriving_{number}")
            self._store.execute(f"DROP TABLE arriving_{number}")
        if self._readings > self._readings_wanted:
            self._add_readings_up()

    def _add_readings_up(self) -> None:
        """Each load adds a row for each GPU, in a day as many as there are samples: they become one for each hour
        again."""
        store = self._store
        with store.transaction():
            together = added_up("readings", (*PLACE, "file"))
            store.execute(f"CREATE OR REPLACE TEMP TABLE together AS {together}")
            store.execute("DELETE FROM readings")
            (rows,) = store.execute("INSERT INTO readings BY NAME FROM together")[0]
        store.execute("DROP TABLE together")
        self._readings, self._readings_wanted = 0, max(_FEW_READINGS, rows)
