"""Latency of ingest at a fixed rate, 8,000 rows a second, with all background work and a query a second.

    python -m bench.openloop [--seconds 20]

Requests are sent by a timetable, whatever the server does, and each latency counts from the time the request was
due (no coordinated omission). Before each: the same timetable of `GET /`, which does nothing, to tell what is the
machine's and the generator's own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.ingest import STATISTICS, batch, old_sample, percentile, query
from bench.load import CONNECTIONS, Load, request
from bench.served import machine, served

ROWS_PER_SECOND = 8_000
"""40,000 GPUs every 5 s."""
_NOTHING = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def timetable(rows: int, rows_per_second: float, seconds: float) -> Iterator[tuple[float, bytes]]:
    """Batches of so many rows at even distances, of nodes with 8 GPUs that take turns."""
    bodies = [
        json.dumps([old_sample(gpu) for gpu in range(first, first + rows)]).encode()
        for first in range(0, 640, rows)
    ]
    per_second = rows_per_second / rows
    for number in range(int(seconds * per_second)):
        yield number / per_second, batch(bodies[number % len(bodies)])


class Asking:
    """A query each second, over a connection of its own, while it is entered."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="asking")
        self.latencies: list[float] = []

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _ask(self) -> None:
        load = Load(self._port, 1)
        while not self._ended.wait(1):
            self.latencies += load.opened([(0.0, request(STATISTICS, b"{}"))])
        load.close()


def line(name: str, latencies: list[float]) -> str:
    """Percentiles in ms."""
    p50, p99 = (percentile(latencies, share) * 1000 for share in (0.5, 0.99))
    return f"{name:<44} p50 {p50:>7.1f} ms   p99 {p99:>7.1f} ms   max {max(latencies) * 1000:>7.1f} ms"


def measure(
    seconds: float, folder: Path, sizes: Sequence[int] = (80, 8), rows_per_second: float = ROWS_PER_SECOND
) -> dict[int, float]:
    """Prints the figures; gives p99 in seconds by rows a request."""
    found: dict[int, float] = {}
    for rows in sizes:
        with served(folder / str(rows)) as server:
            load = Load(server.port, CONNECTIONS)
            load.opened(timetable(rows, rows_per_second, min(1, seconds)))  # what starts up is done
            query(load)
            per_second = rows_per_second / rows
            nothing = load.opened(
                (number / per_second, _NOTHING) for number in range(int(min(5, seconds) * per_second))
            )
            with Asking(server.port) as asking:
                latencies = load.opened(timetable(rows, rows_per_second, seconds))
            load.close()
        found[rows] = percentile(latencies, 0.99)
        print(line(f"{per_second:,.0f} requests/s that do nothing", nothing))
        print(line(f"{rows_per_second:,.0f} rows/s, {rows} a request", latencies))
        if asking.latencies:
            print(line("  a query a second meanwhile", asking.latencies))
    return found


def main() -> None:
    """Runs everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        measure(options.seconds, Path(folder))


if __name__ == "__main__":
    main()
