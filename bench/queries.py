"""How fast questions are answered over HTTP: the old program's and the fleet's, idle and while samples come in.

    python -m bench.queries [FOLDER] [--gpus 200] [--days 30] [--step 10] [--rows-per-second 4000] [--unsealed]

Of the data in FOLDER, or generated (`bench.fleet`) where it is empty or not given: 51.8 M samples by default,
and today's up to now. A server process is started over it; it is measured once it is ready, has sealed every
day before today and has nothing more to do. 200 requests each over one kept-alive connection, one after the
other; names, GPUs and dates change from one to the next where a user's would. Then again while the fleet goes on
as before (`bench.sending`), a request for each of its nodes every 10 s, and while it sends 4,000 rows a second.
`first` is the first answer, with nothing warm; a target is of p95.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from bench.fleet import DAYS, GPUS, STEP_SECONDS, open_fleet
from bench.sending import SAMPLES_PER_GPU
from bench.served import Asked, Latencies, Served, fetch, machine, measure, served, size_of

REQUESTS = 200
BUDGET_SECONDS = 30.0
ROWS_PER_SECOND = 4000
NAMESPACE = "search"
"""One of the fleet's."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question, what it is to take idle and under load (ms at p95, None where no aim was set), and how it is
    asked the n-th time."""

    name: str
    idle_ms: float | None
    loaded_ms: float | None
    ask: Callable[[int], Asked]


@dataclass(frozen=True, slots=True)
class Scene:
    """What there is to ask about: `days` whole days, of which `last_day` is the last, and GPUs as /api/gpu/list
    lists them."""

    last_day: date
    days: int
    gpus: Sequence[dict[str, Any]]

    def back(self, days: int) -> str:
        """The first of so many days that end with the last."""
        return str(self.last_day - timedelta(days=min(days, self.days) - 1))

    def gpu(self, number: int) -> dict[str, Any]:
        """A GPU, another for each number."""
        return self.gpus[number * 7 % len(self.gpus)]


def questions(scene: Scene) -> list[Question]:
    """All that is measured."""
    last = str(scene.last_day)

    def seed(name: str, path: str, body: Callable[[int], dict[str, Any]]) -> Question:
        return Question(name, 15, 50, lambda n: Asked("POST", f"/api/gpu/{path}", json.dumps(body(n))))

    def fleet(name: str, path: str, **words: str) -> Question:
        return Question(name, 100, None, lambda _: Asked("GET", f"/api/{path}?{urlencode(words)}"))

    def one_gpu(n: int) -> dict[str, Any]:
        gpu = scene.gpu(n)
        whole = {"start_date": scene.back(30), "end_date": last}
        return whole | {"client_name": gpu["client_name"], "gpu_id": gpu["gpu_id"]}

    def raw(path: str, **words: str) -> Question:
        def ask(n: int) -> Asked:
            begin = datetime.fromisoformat(scene.back(scene.days)).replace(tzinfo=UTC)
            begin += timedelta(hours=n * 5 % (24 * scene.days - 6))
            span = {"start": begin.isoformat(), "end": (begin + timedelta(hours=6)).isoformat()}
            return Asked(
                "GET", f"/api/{path}?{urlencode({**words, 'gpu_uuid': scene.gpu(n)['gpu_uuid'], **span})}"
            )

        return Question(f"{path.partition('/')[0]} of one GPU, raw, 6 h", 20, None, ask)

    def series(name: str, metric: str, **words: str) -> Question:
        asked = urlencode({"metric": metric, **words})
        return Question(f"series of {name}", None, None, lambda _: Asked("GET", f"/api/series?{asked}"))

    month: dict[str, str] = {"start": scene.back(30), "end": last}
    odd = datetime.fromisoformat(f"{scene.last_day}T00:17:11+00:00")  # of whole hours no row would be read
    day = {"start": (odd - timedelta(days=1)).isoformat(), "end": odd.isoformat(), "step": "5m"}
    node = scene.gpus[0]["client_name"]
    weeks = [
        {
            "start_date": str(scene.last_day - timedelta(days=6 + n)),
            "end_date": str(scene.last_day - timedelta(days=n)),
        }
        for n in range(max(1, scene.days - 6))
    ]
    return [
        seed("statistics, all there is", "statistics", lambda _: {}),
        seed("statistics, one GPU, 30 d", "statistics", one_gpu),
        seed("hourly-usage, 7 d", "hourly-usage", lambda n: weeks[n % len(weeks)]),
        seed("daily-usage, 30 d", "daily-usage", lambda _: {"start_date": scene.back(30), "end_date": last}),
        seed("list", "list", lambda _: {}),
        seed("realtime", "realtime", lambda _: {}),
        fleet("usage by namespace, 30 whole d", "usage", group_by="namespace", **month),
        fleet("usage by namespace, last 30 d", "usage", group_by="namespace", last="30d"),
        fleet("usage by owner, last 30 d", "usage", group_by="owner", last="30d"),
        fleet("ledger by node, 30 whole d", "ledger", group_by="node", **month),
        fleet("ledger, last 30 d", "ledger", last="30d"),
        fleet("idle, last 30 d", "idle", last="30d"),
        fleet("percentiles by GPU, 30 whole d", "utilization", group_by="gpu", **month),
        fleet("percentiles by GPU, last 30 d", "utilization", group_by="gpu", last="30d"),
        raw("series", metric="power_draw", step="10s"),
        raw("export", format="csv"),
        series("a node, raw, 24 h", "temperature", node=node, **day),
        series("a namespace, raw, 24 h", "utilization", namespace=NAMESPACE, **day),
        series("a node, 30 whole d", "power_draw", node=node, **month),
        series("a namespace, 30 whole d", "utilization", namespace=NAMESPACE, **month),
        series("all GPUs, 30 whole d", "power_draw", aggregate="sum", **month),
        series("all GPUs' energy, 30 whole d", "energy_mj", aggregate="sum", **month),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table."""

    name: str
    target_ms: float | None
    found: Latencies

    def __str__(self) -> str:
        name, target = f"{self.name:<32}", "     -" if self.target_ms is None else f"{self.target_ms:>6.0f}"
        if self.found.status != 200:
            return f"{name} {target}  answer {self.found.status}  MISSED"
        p95 = self.found.percentile(0.95)
        verdict = "" if self.target_ms is None else f"{p95 / self.target_ms:>7.2f}  "
        if self.target_ms is not None:
            verdict += "ok" if p95 <= self.target_ms else "MISSED"
        figures = (self.found.percentile(0.5), p95, self.found.sorted_ms[-1], self.found.first)
        return (
            f"{name} {target} {''.join(f'{ms:>9.1f}' for ms in figures)} {len(self.found.sorted_ms):>5} {verdict}"
        )


HEADING = f"{'p95 in ms':<32} {'target':>6} {'p50':>9}{'p95':>9}{'max':>9}{'first':>9} {'n':>5} {'ratio':>7}"


def idle_lines(server: Served, asked: Sequence[Question], requests: int) -> Iterator[Line]:
    """Measures each question with nothing else going on."""
    for question in asked:
        found = measure(server.port, question.ask, requests, BUDGET_SECONDS)
        yield Line(question.name, question.idle_ms, found)


def loaded_lines(
    server: Served, asked: Sequence[Question], requests: int, rate: float, samples_per_gpu: int, *, is_usual: bool
) -> Iterator[Line | str]:
    """Measures each question while samples come in; at the end, says what came in and how it was answered. Where
    it `is_usual`, questions are to take no longer than idle."""
    with sending(server, rate, samples_per_gpu) as sender:
        for question in asked:
            found = measure(server.port, question.ask, requests, BUDGET_SECONDS)
            yield Line(question.name, question.idle_ms if is_usual else question.loaded_ms, found)
        sender.terminate()
        told, _ = sender.communicate(timeout=120)
    sent = json.loads(told)
    yield (
        f"meanwhile {sent['rows_per_second']:,.0f} rows/s in {sent['requests']:,} requests, answered in "
        f"{sent['p50_ms']:.1f} ms (p50), {sent['p99_ms']:.1f} ms (p99)"
    )


@contextmanager
def sending(server: Served, rate: float, samples_per_gpu: int) -> Iterator[subprocess.Popen[str]]:
    """A process that posts so many rows a second, and in each request so many samples of a node's GPUs."""
    command = [sys.executable, "-m", "bench.sending", str(server.port), str(server.folder)]
    options = ["--rows-per-second", str(rate), "--samples-per-gpu", str(samples_per_gpu), "--seconds", "86400"]
    sender = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(3)  # until it is at its pace
        yield sender
    finally:
        if sender.poll() is None:
            sender.kill()
            sender.wait()


def generate(folder: Path, gpus: int, days: int, step: int) -> None:
    """Writes so many whole days up to yesterday, and today up to now."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    with open_fleet(gpus, step) as fleet:
        for back in range(days, -1, -1):
            fleet.write_day(folder, now.date() - timedelta(days=back), until=now)


def scene_of(server: Served) -> Scene:
    """What the server's folder holds."""
    days = sorted(path.name[12:20] for path in server.folder.glob("gpu_metrics_*.csv*"))
    past = [day for day in days if day < f"{datetime.now(UTC):%Y%m%d}"]
    last = datetime.strptime(past[-1], "%Y%m%d").date()
    return Scene(last, len(set(past)), fetch(server.port, Asked("POST", "/api/gpu/list", "{}"))["data"])


def main() -> None:
    """Runs everything and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--gpus", type=int, default=GPUS)
    parser.add_argument("--days", type=int, default=DAYS)
    parser.add_argument("--step", type=int, default=STEP_SECONDS)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--rows-per-second", type=float, default=ROWS_PER_SECOND)
    parser.add_argument("--unsealed", action="store_true", help="do not wait until past days are sealed")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started here is stopped
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not any(folder.glob("gpu_metrics_*.csv*")):
            generate(folder, options.gpus, options.days, options.step)
        server = stack.enter_context(served(folder))
        scene = scene_of(server)
        sealed = 0.0 if options.unsealed else server.wait_until_sealed(scene.days)
        server.wait_until_idle()
        print(machine())
        csv_bytes, own_bytes = size_of(folder, "*.csv*"), size_of(folder / ".gpumon", "*")
        print(f"{len(scene.gpus)} GPUs, {scene.days} days and today: {csv_bytes / 1e9:.2f} GB of CSV, "
              f"{own_bytes / 1e9:.2f} GB of gpumon's own; ready after {server.ready_seconds:.0f} s, "
              f"sealed {sealed:.0f} s later")  # fmt: skip
        asked = questions(scene)
        print(f"\nidle\n{HEADING}")
        for line in idle_lines(server, asked, options.requests):
            print(line, flush=True)
        usual = len(scene.gpus) / options.step
        for rate, samples_per_gpu in ((usual, 1), (options.rows_per_second, SAMPLES_PER_GPU)):
            print(f"\nwhile {rate:,.0f} rows/s come in\n{HEADING}")
            is_usual = rate == usual
            for told in loaded_lines(server, asked, options.requests, rate, samples_per_gpu, is_usual=is_usual):
                print(told, flush=True)
        now, highest = server.resident_mib()
        print(f"\nserver: {now:.0f} MiB resident, {highest:.0f} highest")


if __name__ == "__main__":
    main()
