"""gpumon beside VictoriaMetrics and Prometheus: the same samples, the same questions, one run.

    python -m bench.rivals [FOLDER] [--gpus 200] [--days 30] [--step 10] [--only gpumon prometheus]

The data is that of `bench.queries`. Each question is written as its users would, the values of the answers are
compared with gpumon's, and the table says how far they differ at most and whether that is within what the meanings
allow; where these differ, it is said beside the question. One server runs at a time, with its default settings.
VictoriaMetrics keeps what it answered, and the same is asked again and again: VictoriaMetrics* is without that, as
gpumon and Prometheus are, and as when the end of the range moves on.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from bench.fleet import DAYS, GPUS, STEP_SECONDS
from bench.queries import BUDGET_SECONDS, generate
from bench.rival_questions import Compared, Scene, Values, questions
from bench.rival_servers import Rival, Samples, programs, prometheus, victoria_metrics
from bench.sending import newest
from bench.served import Asked, Latencies, fetch, machine, measure, served, size_of

REQUESTS = 50
SERVERS = ("gpumon", "victoria-metrics", "prometheus")


@dataclass(slots=True)
class Column:
    """One server's latencies and values by question, and what it costs."""

    name: str
    latencies: dict[str, Latencies] = field(default_factory=dict)
    values: dict[str, Values] = field(default_factory=dict)
    costs: str = ""


def ask_gpumon(folder: Path, scene: Scene, asked: Sequence[Compared], requests: int, *, sealed: bool) -> Column:
    """Measures gpumon."""
    column = Column("gpumon")
    with served(folder) as server:
        waited = server.ready_seconds + (server.wait_until_sealed(scene.days) if sealed else 0)
        for question in asked:
            found = measure(server.port, question.of_gpumon, requests, BUDGET_SECONDS)
            column.latencies[question.name] = found
            if found.status == 200:
                column.values[question.name] = question.gpumon_values(fetch(server.port, question.of_gpumon(0)))
        now, highest = server.resident_mib()
    own, csv_bytes = size_of(folder / ".gpumon", "*"), size_of(folder, "*.csv*")
    column.costs = (
        f"ready after {waited:.0f} s, {own / 1e6:,.0f} MB beside {csv_bytes / 1e6:,.0f} MB of CSV, "
        f"{now:.0f} MiB resident, {highest:.0f} highest; holds every field of each sample and pod, and labels"
    )
    return column


def ask_rival(rival: Rival, asked: Sequence[Compared], requests: int, *, cached: bool = True) -> Column:
    """Measures one of the others; `cached` tells whether it may keep answers."""
    column = Column(rival.name if cached else f"{rival.name}*")
    for question in asked:
        if question.of_rival is None:
            continue
        wanted = question.of_rival(0)
        if not cached:
            wanted = replace(wanted, path=f"{wanted.path}&nocache=1")
        found = measure(rival.port, _always(wanted), requests, BUDGET_SECONDS)
        column.latencies[question.name] = found
        if found.status == 200:
            result = fetch(rival.port, wanted)["data"]["result"]
            column.values[question.name] = question.rival_values(result)
    now, highest = rival.resident_mib()
    size = size_of(rival.folder, "*")
    column.costs = (
        f"loaded {rival.values:,} values in {rival.load_seconds:.0f} s, {size / 1e6:,.0f} MB "
        f"({size / rival.values:.2f} bytes a value), {now:.0f} MiB resident, {highest:.0f} highest"
    )
    return column


def _always(asked: Asked) -> Callable[[int], Asked]:
    return lambda _: asked


def difference(ours: Values | None, theirs: Values | None, tolerance: float) -> str:
    """How far two answers differ at most, as a part of the larger value, and whether that is allowed."""
    if ours is None or theirs is None:
        return "-"
    if set(ours) != set(theirs):
        return f"NOT THE SAME KEYS ({len(set(ours) - set(theirs))} more, {len(set(theirs) - set(ours))} missing)"
    most = max((abs(ours[key] - theirs[key]) / max(abs(ours[key]), 1.0) for key in ours), default=0.0)
    verdict = "equal" if most <= tolerance else "DIFFERENT"
    return f"{verdict}: {len(ours)} values, {most:.2%} apart"


def table(asked: Sequence[Compared], columns: Sequence[Column]) -> Iterator[str]:
    """What was found."""
    yield f"{'p50 / p95 in ms':<36}" + "".join(f"{column.name:>21}" for column in columns)
    for question in asked:
        yield f"{question.name:<36}" + "".join(
            f"{_cell(column.latencies.get(question.name)):>21}" for column in columns
        )
        ours = columns[0].values.get(question.name)
        for column in columns[1:]:
            if question.name in column.latencies:
                told = difference(ours, column.values.get(question.name), question.tolerance)
                yield f"    {column.name}: {told}"
        if question.note:
            yield f"    {question.note}"
    yield ""
    yield from (f"{column.name}: {column.costs}" for column in columns)


def _cell(found: Latencies | None) -> str:
    if found is None:
        return "cannot"
    if found.status != 200:
        return f"answer {found.status}"
    return f"{found.percentile(0.5):.1f} / {found.percentile(0.95):.1f}"


def days_of(folder: Path) -> list[date]:
    """The days that a folder holds."""
    names = {path.name[12:20] for path in folder.glob("gpu_metrics_*.csv*")}
    return sorted(datetime.strptime(name, "%Y%m%d").date() for name in names)


def scene_of(folder: Path) -> Scene:
    """What a folder holds up to today."""
    today = datetime.now(UTC).date()
    whole = [day for day in days_of(folder) if day < today]
    samples = [sample for node in newest(folder) for sample in node]
    last = max(samples, key=lambda sample: sample["sampled_at"])
    first, end = (datetime(day.year, day.month, day.day, tzinfo=UTC) for day in (whole[0], whole[-1]))
    return Scene(
        start=first,
        end=end + timedelta(days=1),
        newest=datetime.fromisoformat(last["sampled_at"]),
        step=round(last["interval_seconds"]),
        gpu_uuid=last["gpu_uuid"],
    )


def main() -> None:
    """Runs everything and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--gpus", type=int, default=GPUS)
    parser.add_argument("--days", type=int, default=DAYS)
    parser.add_argument("--step", type=int, default=STEP_SECONDS)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--only", nargs="+", choices=SERVERS, default=SERVERS)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "gpumon-bench")
    parser.add_argument("--unsealed", action="store_true", help="do not wait until past days are sealed")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started here is stopped
    with ExitStack() as stack:
        aside = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = options.folder or aside / "data"
        if not any(folder.glob("gpu_metrics_*.csv*")):
            generate(folder, options.gpus, options.days, options.step)
        scene = scene_of(folder)
        asked = questions(scene)
        print(machine())
        print(f"{scene.days} days and today, a sample every {scene.step} s", flush=True)
        columns = []
        if "gpumon" in options.only:
            columns.append(ask_gpumon(folder, scene, asked, options.requests, sealed=not options.unsealed))
        for name, start in (("victoria-metrics", victoria_metrics), ("prometheus", prometheus)):
            if name in options.only:
                (aside / name).mkdir()
                with start(programs(options.cache), Samples(folder), days_of(folder), aside / name) as rival:
                    columns.append(ask_rival(rival, asked, options.requests))
                    if name == "victoria-metrics":
                        columns.append(ask_rival(rival, asked, options.requests, cached=False))
                shutil.rmtree(aside / name)
        for line in table(asked, columns):
            print(line)


if __name__ == "__main__":
    main()
