"""VictoriaMetrics and Prometheus, of Debian's packages, loaded with the samples of gpumon's CSV files.

The series are those that a user's questions need: of each GPU its utilisation, power and memory, of each pod on a
GPU the share that it holds and its use. VictoriaMetrics takes JSON lines over HTTP, Prometheus blocks that its own
`promtool` makes of OpenMetrics text, two hours each, which it then compacts itself. The times of loading are what
these programs take, without the reading of the CSV and the writing of their formats.
"""

from __future__ import annotations

import http.client
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from bench.agent import cpu_seconds, resident_mib
from bench.served import free_port, wait_for

PACKAGES = ("victoria-metrics", "prometheus")
BLOCK = timedelta(hours=2)
_QUIET_SECONDS = 75
"""Prometheus looks once a minute whether there is something to compact."""
_GPU = {"gpu_utilization": "utilization_gpu", "gpu_power_watts": "power_draw", "gpu_memory_used": "memory_used"}
_POD = {"pod_gpu_share": "gpu_share", "pod_gpu_utilization": "utilization"}
_GPU_LABELS = ("node", "gpu_uuid")
_POD_LABELS = (*_GPU_LABELS, "namespace", "pod", "container")


def programs(cache: Path) -> Path:
    """The folder of the three programs: Debian's packages, unpacked, not installed, so that no service starts."""
    if not (cache / "usr" / "bin" / "victoria-metrics").exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "-q", "download", *PACKAGES], cwd=cache, check=True, stdout=subprocess.DEVNULL)
        for package in cache.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, cache], check=True)
    return cache / "usr" / "bin"


class Samples:
    """The samples of a folder, day by day, in the forms that are loaded."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._database = duckdb.connect(config={"memory_limit": "4GB"})

    def read_day(self, day: date) -> int:
        """Reads a day; gives the number of values."""
        self._database.execute("CREATE OR REPLACE TABLE series (number UBIGINT, json VARCHAR, text VARCHAR)")
        self._database.execute("CREATE OR REPLACE TABLE points (number UBIGINT, ms BIGINT, value DOUBLE)")
        for prefix, names, labels in (("gpu_metrics", _GPU, _GPU_LABELS), ("pod_usage", _POD, _POD_LABELS)):
            files = [str(path) for path in sorted(self._folder.glob(f"{prefix}_{day:%Y%m%d}*.csv*"))]
            values = ", ".join(f"CAST({column} AS DOUBLE) AS {name}" for name, column in names.items())
            json_labels = " || ',' || ".join(f"""'"{label}":"' || {label} || '"'""" for label in labels)
            text_labels = " || ',' || ".join(f"""'{label}="' || {label} || '"'""" for label in labels)
            self._database.execute(
                f"""
                CREATE OR REPLACE TABLE lines AS
                SELECT hash({", ".join(labels)}) AS whose, {", ".join(labels)},
                       epoch_ms(CAST(sampled_at AS TIMESTAMP)) AS ms, {values}
                FROM read_csv(?, header = true, all_varchar = true)
                """,
                [files],
            )
            for name in names:
                self._database.execute(
                    f"""
                    INSERT INTO series
                    SELECT hash(whose, '{name}'), '{{"__name__":"{name}",' || {json_labels} || '}}',
                           '{name}{{' || {text_labels} || '}}'
                    FROM (SELECT DISTINCT whose, {", ".join(labels)} FROM lines)
                    """
                )
                self._database.execute(
                    f"INSERT INTO points SELECT hash(whose, '{name}'), ms, {name} FROM lines "
                    f"WHERE {name} IS NOT NULL"
                )
        self._database.execute("DROP TABLE lines")
        return int(self._database.execute("SELECT count(*) FROM points").fetchall()[0][0])

    def write_json(self, path: Path) -> None:
        """Writes the day for VictoriaMetrics: a line for each series, its values and their times."""
        self._write(
            path,
            """
            SELECT '{"metric":' || json || ',"values":[' || array_to_string(list(value), ',')
                   || '],"timestamps":[' || array_to_string(list(ms), ',') || ']}'
            FROM points JOIN series USING (number) GROUP BY number, json""",
        )

    def write_open_metrics(self, path: Path, begin: datetime) -> int:
        """Writes a block's time of the day for Prometheus, as OpenMetrics text; gives the number of values."""
        first = int(begin.timestamp() * 1000)
        rows = self._write(
            path,
            f"""
            SELECT text || ' ' || value || ' ' || ms / 1000.0
            FROM points JOIN series USING (number)
            WHERE ms >= {first} AND ms < {first + int(BLOCK.total_seconds() * 1000)}
            ORDER BY ms""",
        )
        with path.open("a") as file:
            file.write("# EOF\n")
        return rows

    def _write(self, path: Path, sql: str) -> int:
        options = r"FORMAT csv, HEADER false, QUOTE '', ESCAPE '', DELIMITER '\x01'"
        return int(self._database.execute(f"COPY ({sql}) TO '{path}' ({options})").fetchall()[0][0])


@dataclass(slots=True)
class Rival:
    """A running server with a Prometheus API, and what was loaded: how many values, in how many seconds."""

    name: str
    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    load_seconds: float
    values: int

    def resident_mib(self) -> tuple[float, float]:
        """Resident memory now and at its highest, MiB."""
        return resident_mib(self.process.pid, "VmRSS"), resident_mib(self.process.pid, "VmHWM")

    def wait_until_quiet(self) -> float:
        """Waits until it has nothing left to merge or compact; gives the CPU seconds that it took for that."""
        began = before = cpu_seconds(self.process.pid)
        while True:
            time.sleep(_QUIET_SECONDS)
            now = cpu_seconds(self.process.pid)
            if now - before < 0.02 * _QUIET_SECONDS:
                return now - began
            before = now


@contextmanager
def victoria_metrics(programs: Path, samples: Samples, days: Sequence[date], folder: Path) -> Iterator[Rival]:
    """VictoriaMetrics with these days."""
    port = free_port()
    options = [f"-storageDataPath={folder}", f"-httpListenAddr=127.0.0.1:{port}", "-retentionPeriod=100y"]
    with _running([str(programs / "victoria-metrics"), *options]) as process:
        wait_for(port, "/health", process, 60)
        rival = Rival("VictoriaMetrics", folder, port, process, 0.0, 0)
        with TemporaryDirectory(dir=folder.parent) as aside:
            for day in days:
                rival.values += samples.read_day(day)
                samples.write_json(Path(aside, "day.json"))
                began = time.monotonic()
                _post(port, "/api/v1/import", Path(aside, "day.json"))
                rival.load_seconds += time.monotonic() - began
        _get(port, "/internal/force_flush")
        rival.load_seconds += rival.wait_until_quiet()
        yield rival


@contextmanager
def prometheus(programs: Path, samples: Samples, days: Sequence[date], folder: Path) -> Iterator[Rival]:
    """Prometheus with these days."""
    seconds, values = 0.0, 0
    with TemporaryDirectory(dir=folder.parent) as aside:
        text = Path(aside, "block.txt")
        for day in days:
            samples.read_day(day)
            for number in range(timedelta(days=1) // BLOCK):
                begin = datetime(day.year, day.month, day.day, tzinfo=UTC) + number * BLOCK
                rows = samples.write_open_metrics(text, begin)
                if rows:
                    values += rows
                    began = time.monotonic()
                    command = [str(programs / "promtool"), "tsdb", "create-blocks-from", "openmetrics"]
                    command += [str(text), str(folder)]
                    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                    seconds += time.monotonic() - began
    port = free_port()
    empty = folder / "prometheus.yml"
    empty.write_text("")
    command = [str(programs / "prometheus"), f"--config.file={empty}", f"--web.listen-address=127.0.0.1:{port}"]
    command += [f"--storage.tsdb.path={folder}", "--storage.tsdb.retention.time=100y"]
    with _running(command) as process:
        wait_for(port, "/-/ready", process, 600)
        rival = Rival("Prometheus", folder, port, process, seconds, values)
        rival.load_seconds += rival.wait_until_quiet()
        yield rival


@contextmanager
def _running(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def _post(port: int, path: str, body: Path) -> None:
    with (
        closing(http.client.HTTPConnection("127.0.0.1", port, timeout=600)) as connection,
        body.open("rb") as file,
    ):
        connection.request("POST", path, file, {"Content-Length": str(body.stat().st_size)})
        answer = connection.getresponse()
        text = answer.read()
    if answer.status not in (200, 204):
        raise SystemExit(f"{path}: {answer.status} {text[:300]!r}")


def _get(port: int, path: str) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=600)) as connection:
        connection.request("GET", path)
        connection.getresponse().read()
