"""A soak: hours of a fleet's samples against one server, on a clock so fast that a day is over in minutes.

    python -m bench.soak [--seconds 3600] [--rows-per-second 2000] [--day-seconds 300] [--gpus 1000]

The server is a process of its own, as `gpumon server` starts it, but for its clock: days end, are sealed, rolled
up and deleted while samples come in. Another process posts by a timetable, whatever the server does: batches of
80, every field and a pod on each GPU, stamped by the fast clock; a batch that fails is sent again under its id, as
an agent does. This process posts a marker twice a second and asks for the GPUs until it is there, scrapes /metrics
and asks for the last day's usage every 30 s, and watches the server's memory and descriptors.

The work of a day (five-minute rollups, sealing, retention) is done in `--day-seconds`, so it stands in the way of
the other that many times as often as on a real clock. A batch is what the whole fleet sampled since the one
before, seconds of the fast clock: ten samples of a node, as an agent sends them, would come 20 minutes late by it.

A latency counts from when a batch was due. What stands in the way of a batch before it is sent is the load
generator's own, and printed apart. Linux only (/proc; a monotonic clock that processes share).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from bench.agent import cpu_seconds, resident_mib
from bench.ingest import STATISTICS, percentile
from bench.served import Asked, fetch, machine, size_of
from bench.soak_probes import MARKER_SECONDS, Marking, Watch, counters
from bench.soaking import (
    BATCH_ROWS,
    LATE_SECONDS,
    SEAL_AFTER_MINUTES,
    Plan,
    command,
    plan_of,
    serving,
)

MEMORY_MIB = 600
_FLAT = 1.1
"""Memory is flat when the last quarter's median is at most so many times the first quarter's."""
_SETTLE_SECONDS = 120
_MORE_DESCRIPTORS = 4
"""Around midnight the files of two days are open."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a run has found."""

    sent: dict[str, float]
    markers: Marking
    watch: Watch
    highest_mib: float
    cpu_seconds: float
    days_over: int
    days_sealed: int
    days_with_accounts: int
    counters: dict[str, float]
    samples: int
    log: Counter[str]
    disk_bytes: int
    load: tuple[float, float]

    @property
    def acknowledged(self) -> int:
        """Samples that were answered 200."""
        return int(self.sent["rows"]) + self.markers.rows

    @property
    def undisturbed(self) -> list[float]:
        """Seconds until markers were seen while neither a scrape nor a question was under way."""
        seen = zip(self.markers.at, self.markers.seconds, strict=True)
        return [
            took
            for at, took in seen
            if not any(begin < at + took and at < end for begin, end in self.watch.asking)
        ]

    @property
    def stored(self) -> int:
        """Samples that the server says it has stored."""
        return int(self.counters["rows_stored_total"])


def run(plan: Plan, folder: Path) -> Found:
    """Runs it to the end of the timetable, and until what was due by then is sealed."""
    with serving(plan, folder) as process:
        load_before = os.getloadavg()[0]
        sender = subprocess.Popen(command("send", plan), stdout=subprocess.PIPE, text=True)
        try:
            with closing(Marking(plan)) as markers, Watch(plan, process.pid) as watch:
                while sender.poll() is None:
                    if process.poll() is not None:
                        raise SystemExit(f"the server has ended with {process.returncode}")
                    next_marker = time.monotonic() + MARKER_SECONDS
                    markers.mark()
                    time.sleep(max(0.0, next_marker - time.monotonic()))
                load = load_before, os.getloadavg()[0]
                cpu, days_over = cpu_seconds(process.pid), _days_over(plan, markers.began)
                _settle(folder, days_over)
        finally:
            if sender.poll() is None:
                sender.kill()
            told, _ = sender.communicate()
        if sender.returncode:
            raise SystemExit(f"the sender has ended with {sender.returncode}")
        return Found(
            sent=json.loads(told),
            markers=markers,
            watch=watch,
            highest_mib=resident_mib(process.pid, "VmHWM"),
            cpu_seconds=cpu,
            days_over=days_over,
            days_sealed=_sealed(folder, "*"),
            days_with_accounts=_sealed(folder, "cells"),
            counters=counters(plan.port),
            samples=fetch(plan.port, Asked("POST", STATISTICS, "{}"))["data"]["samples"],
            log=_troubles(folder / "server.log"),
            disk_bytes=size_of(folder / "data", "*"),
            load=load,
        )


def _days_over(plan: Plan, began: datetime) -> int:
    """Days with samples that have been over long enough to be sealed, when the sender was started at `began`: its
    first batch reaches back."""
    first = began - plan.interval
    return max(0, ((plan.now() - timedelta(minutes=SEAL_AFTER_MINUTES)).date() - first.date()).days)


def _sealed(folder: Path, what: str) -> int:
    """Days of which something is sealed. The rows are first; the accounts (`cells`) outlive them."""
    sealed = folder / "data" / ".gpumon" / "sealed"
    return sum(any(day.glob(f"{what}-*/manifest.json")) for day in sealed.glob("*"))


def _settle(folder: Path, days: int) -> None:
    """Waits until the rows of so many days are sealed, though not for ever."""
    end = time.monotonic() + _SETTLE_SECONDS
    while _sealed(folder, "*") < days and time.monotonic() < end:
        time.sleep(0.2)


def _troubles(file: Path) -> Counter[str]:
    """Events of the server's log that are warnings or worse."""
    lines = (line.split(" ", 4) for line in file.read_text().splitlines())
    return Counter(f"{line[1]} {line[3]}" for line in lines if len(line) > 3 and line[1] not in ("INFO", "DEBUG"))


def table(plan: Plan, found: Found) -> str:
    """All that was measured, with what was aimed at."""
    sent, watch, told = found.sent, found.watch, found.counters
    seen, unseen = found.markers.seconds or [math.inf], found.markers.failed + found.markers.never_seen
    bad = [int(sent[name]) for name in ("late", "failed", "lost")]
    resident = [mib for _, mib in watch.resident]
    (first, last), (few, many) = map(_medians, (resident, watch.descriptors))
    slope = statistics.linear_regression(*zip(*watch.resident[len(resident) // 4 :], strict=True)).slope * 3600
    trouble = [int(told[f"{name}_total"]) for name in ("sealing_failures", "sealed_days_damaged")]
    rows = (found.acknowledged, found.stored, found.samples)
    days = (found.days_over, found.days_sealed, found.days_with_accounts)
    lines = [
        _line("ms from 200 to visible: p50 / p99 / max", _ms(*_spread(seen)), "p99 < 1000", _spread(seen)[1] < 1),
        _line("  while nothing was asked: p50 / p99 / max", _ms(*_spread(found.undisturbed or [math.inf]))),
        _line("markers: seen / not", _whole(len(found.markers.seconds), unseen), "none not", not unseen),
        _line("ms from due to 200: p50 / p99 / max", _ms(sent["p50"], sent["p99"], sent["max"])),
        _line("  of it before it was sent: p99 / max", _ms(sent["lag_p99"], sent["lag_max"])),
        _line("batches / late / failed / lost", _whole(sent["batches"], *bad), "none", not any(bad)),
        _line("rows: acknowledged / stored / in answers", _whole(*rows), "equal", len({*rows}) == 1),
        _line("MiB: at first / 1st / last quarter", _whole(resident[0], first, last), "flat",
              last <= first * _FLAT),
        _line("  slope after the 1st quarter, MiB/h", _whole(slope)),
        _line("  highest", _whole(found.highest_mib), f"< {MEMORY_MIB}", found.highest_mib < MEMORY_MIB),
        _line("  sealing workers / server with them", _whole(watch.workers_mib, watch.together_mib)),
        _line("descriptors: 1st / last quarter / most", _whole(few, many, max(watch.descriptors)), "no growth",
              many <= few + _MORE_DESCRIPTORS),
        _line("days: over / sealed / with accounts", _whole(*days), "all, all but 1",
              days[1] >= days[0] <= days[2] + 1),
        _line("sealing failures / damaged days", _whole(*trouble), "none", not any(trouble)),
        *(_line(f"ms {path[:34]}: p50 / max", _ms(percentile(taken, 0.5), max(taken)))
          for path, taken in watch.asked_seconds.items() if taken),
        _line("questions failed", _whole(watch.questions_failed), "none", not watch.questions_failed),
    ]  # fmt: skip
    return "\n".join(
        [
            machine(),
            f"{plan.gpus:,} GPUs, {plan.rows_per_second:,.0f} rows/s for {plan.seconds:,.0f} s in batches of "
            f"{BATCH_ROWS}; a day in {plan.day_seconds:g} s, files kept for {plan.keep_days or 'all'} days",
            f"{'':<44} {'found':>30}  aim",
            *lines,
            f"the server used {found.cpu_seconds / plan.seconds:.2f} cores, its folder has "
            f"{found.disk_bytes / 1e6:,.0f} MB; warnings in its log: {dict(found.log) or 'none'}",
            f"load of the machine {found.load[0]:.1f} before, {found.load[1]:.1f} after; generator and prober run "
            "on it, too. Late is more than "
            f"{LATE_SECONDS:g} s after it was due; flat, that the last quarter's median is at most {_FLAT} times "
            "the first's (in a run of minutes the server is still warming up).",
        ]
    )


def _line(name: str, found: str, aim: str = "", ok: bool | None = None) -> str:
    return f"{name:<44} {found:>30}  {aim:<15}{'' if ok is None else 'ok' if ok else 'MISSED'}".rstrip()


def _ms(*seconds: float) -> str:
    return " / ".join(f"{value * 1000:,.1f}" for value in seconds)


def _whole(*values: float) -> str:
    return " / ".join(f"{value:,.0f}" for value in values)


def _spread(values: list[float]) -> tuple[float, float, float]:
    return percentile(values, 0.5), percentile(values, 0.99), max(values)


def _medians(values: Sequence[float]) -> tuple[float, float]:
    """Of the first quarter and of the last."""
    part = max(1, len(values) // 4)
    return statistics.median(values[:part]), statistics.median(values[-part:])


def main() -> None:
    """Runs it and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--rows-per-second", type=float, default=2000)
    parser.add_argument("--day-seconds", type=float, default=300)
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--keep-days", type=int, default=3, help="data_retention_days; 0 keeps all")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started here is stopped
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(**vars(options))
        print(table(plan, run(plan, Path(folder))))


if __name__ == "__main__":
    main()
