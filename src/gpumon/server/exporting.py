"""Rows of a table to take away: as CSV, as an Arrow IPC stream (see `exportrows`), as Parquet.

One snapshot, in no order, in bounded memory whatever the range; Parquet by a file below `.gpumon/tmp`, which is
sent from there. One export at a time: it takes a share of DuckDB's memory and threads for long.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO
from zoneinfo import ZoneInfo

from gpumon.clock import Now
from gpumon.errors import QueryError
from gpumon.server.accounts.ranges import Span, span_of
from gpumon.server.database import Reading, UnreadableFile
from gpumon.server.exportrows import BLOCK_BYTES, Wanted, arrow_blocks, csv_blocks, from_where
from gpumon.server.store import Store

WAIT_SECONDS = 5.0
"""Longest wait for the export under way."""
_WATCH_SECONDS = 1.0
_RESERVE_BYTES = 500 * 10**6
"""An export ends where less than this would be left on the disk that samples are stored on."""
_ASIDE = "export-"


class Export:
    """One export under way: its bytes, block by block, the first of which is there already. `close` it."""

    def __init__(self, blocks: Generator[bytes, None, None], thread: Executor, let_go: Callable[[], None]) -> None:
        self._made = blocks
        self._thread = thread
        self._let_go = let_go
        self._first = b""

    def begin(self) -> None:
        """Makes the first block, so that what can't be had is known before anything is sent. Raises QueryError."""
        self._first = self._next()

    def blocks(self) -> Iterator[bytes]:
        """All blocks. Raises QueryError in the middle where the rest can't be had."""
        block = self._first
        while block:
            yield block
            block = self._next()

    def close(self) -> None:
        """Ends the query, removes what was made aside, lets the next one begin."""
        try:
            self._thread.submit(self._made.close).result()
        finally:
            self._let_go()

    def _next(self) -> bytes:
        return self._thread.submit(next, self._made, b"").result()


class Exports:
    """Exports from one store."""

    def __init__(
        self,
        store: Store,
        refresh: Callable[[], None],
        folder: Path,
        zone: ZoneInfo,
        now: Now,
        *,
        max_range_days: int,
    ) -> None:
        self._store = store
        self._refresh = refresh
        self._zone = zone
        self._now = now
        self._max_range_days = max_range_days
        self._aside = folder / ".gpumon" / "tmp"
        self._turn = threading.Lock()
        # Always the same thread: the C library keeps memory for each that has made blocks.
        self._thread = ThreadPoolExecutor(1, "export")

    def clean(self) -> None:
        """Removes what a server that was killed left."""
        for left in self._aside.glob(f"{_ASIDE}*"):
            with contextlib.suppress(OSError):
                left.unlink()

    def span(self, start: str | None, end: str | None, last: str | None) -> Span:
        """The range that these words mean, also ahead of now: a row whose sender's clock is fast is one. Raises
        QueryError."""
        now, max_days = self._now(), self._max_range_days
        return span_of(start, end, last, now=now, zone=self._zone, max_days=max_days, ahead=True)

    def open(self, wanted: Wanted) -> Export:
        """Begins an export. Raises QueryError when it can't be, or another one is under way."""
        if not self._turn.acquire(timeout=WAIT_SECONDS):
            raise QueryError(
                "another export is under way, and there is one at a time; try again later", status=503
            )
        export = Export(self._made(wanted), self._thread, self._turn.release)
        try:
            self._refresh()
            export.begin()
        except BaseException:
            export.close()
            raise
        return export

    def _made(self, wanted: Wanted) -> Generator[bytes, None, None]:
        with self._store.reading([(wanted.start, wanted.end)]) as reading:
            match wanted.format:
                case "csv":
                    yield from csv_blocks(reading, wanted)
                case "arrow":
                    yield from arrow_blocks(reading, wanted)
                case "parquet":
                    with self._parquet(reading, wanted) as file:
                        while block := file.read(BLOCK_BYTES):
                            yield block

    @contextlib.contextmanager
    def _parquet(self, reading: Reading, wanted: Wanted) -> Iterator[BinaryIO]:
        """The finished file, which has no name any more where the system lets it be so."""
        try:
            self._aside.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(".parquet", _ASIDE, self._aside)
        except OSError as error:
            raise QueryError(
                f"no room for the export on the server's disk ({error.strerror})", status=503
            ) from error
        os.close(descriptor)
        path = Path(name)
        try:
            _copy(reading, wanted, path)
            with path.open("rb") as file:
                with contextlib.suppress(PermissionError):  # Windows: not while it is open
                    path.unlink()
                yield file
        finally:
            path.unlink(missing_ok=True)


def _copy(reading: Reading, wanted: Wanted, path: Path) -> None:
    """Writes a Parquet file. As long as the file grows the time limit does not strike."""
    rest, parameters = from_where(wanted)
    columns = ", ".join(wanted.columns)
    done = threading.Event()
    cramped = threading.Event()

    def watch() -> None:
        size = 0
        while not done.wait(_WATCH_SECONDS):
            if shutil.disk_usage(path.parent).free < _RESERVE_BYTES:
                cramped.set()
                reading.interrupt()
            elif path.stat().st_size > size:
                size = path.stat().st_size
                reading.renew()

    watcher = threading.Thread(target=watch, name="export-watch", daemon=True)
    watcher.start()
    target = str(path).replace("'", "''")
    try:
        reading.select(
            f"COPY (SELECT {columns} {rest}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)", parameters
        )
    except QueryError as error:
        full = isinstance(error, UnreadableFile) and "Could not write" in str(error.__cause__)
        if full or cramped.is_set():
            raise QueryError(
                "there is not enough room on the server's disk for the export; ask for a shorter range, or for "
                "csv or arrow, which need none",
                status=503,
            ) from error
        raise
    finally:
        done.set()
        watcher.join()
