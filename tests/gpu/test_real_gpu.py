"""The agent on a real GPU, against what nvidia-smi says of it.

Work is made by `work`; nothing else may use the first GPU meanwhile.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx
import pytest

from gpumon.agent.nvml import Nvml
from gpumon.agent.ports import USE, Gpu, GpuProcess, Reading
from tests.processes import agent, free_port, server, until

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no nvidia-smi: no NVIDIA driver here"),
]
_WORK = Path(__file__).with_name("work.py")
_MIB = 2**20


def smi(query: str, *columns: str) -> list[dict[str, str]]:
    """What nvidia-smi says: a row for each GPU or process, column → text without unit."""
    command = ["nvidia-smi", f"--query-{query}={','.join(columns)}", "--format=csv,noheader,nounits"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    rows = csv.reader(text.splitlines(), skipinitialspace=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


@pytest.fixture
def nvml() -> Iterator[tuple[Nvml, Gpu]]:
    library = Nvml()
    [gpu, *_] = library.open()
    yield library, gpu
    library.close()


class Work:
    """A process that works on the GPU. The constructor takes what `work.py` does, and returns at "ready"."""

    def __init__(self, stack: ExitStack, *arguments: float) -> None:
        command = [sys.executable, str(_WORK), *map(str, arguments)]
        self._process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(self._process.kill)
        assert self._process.stdout is not None
        self._said = self._process.stdout
        ready, speed = self._said.readline().split()
        assert ready == "ready"
        self.pid, self.speed = self._process.pid, float(speed)

    def end(self) -> tuple[float, float]:
        """Ends it; gives the share of the time that it worked, in percent, and the MiB a second that it copied."""
        self._process.terminate()
        worked, copied, seconds = map(float, self._said.readline().split())
        return 100 * worked / seconds, copied / seconds


Start = Callable[..., Work]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts work; what is not ended by then ends with the test."""
    with ExitStack() as stack:
        works: list[Work] = []

        def begin(busy_ms: float, pause_ms: float, held_mib: float = 0, copied_mib: float = 0) -> Work:
            speed = works[0].speed if works else 0  # the first had the GPU for itself
            works.append(Work(stack, busy_ms, pause_ms, held_mib, copied_mib, speed))
            return works[-1]

        yield begin


def means(nvml: tuple[Nvml, Gpu], seconds: float, interval: float = 1.0) -> list[Reading]:
    """Samples at an interval; the first, which has nothing to compare with, is left out."""
    library, gpu = nvml
    library.read(gpu)
    samples = []
    for _ in range(round(seconds / interval)):
        time.sleep(interval)
        samples.append(library.read(gpu))
    return samples


def share(samples: list[Reading], work: Work) -> float:
    """A process's mean use over samples, in percent."""
    found = [
        process.sm_percent or 0.0 for sample in samples for process in processes(sample) if process.pid == work.pid
    ]
    return sum(found) / len(samples)


def processes(sample: Reading) -> tuple[GpuProcess, ...]:
    assert sample[USE].processes is not None, sample[USE].why_not
    return tuple(sample[USE].processes)


def test_every_gpu_is_who_nvidia_smi_says(nvml: tuple[Nvml, Gpu]) -> None:
    library, _ = nvml
    rows = smi("gpu", "index", "uuid", "name", "pci.bus_id", "driver_version")
    found = [
        (str(gpu.index), gpu.uuid, gpu.name, gpu.pci_bus_id, library.driver_version) for gpu in library.open()
    ]
    assert found == [tuple(row.values()) for row in rows]


SAID = {
    "memory_total": ("memory.total", 0),
    "memory_reserved": ("memory.reserved", 1),
    "memory_used": ("memory.used", 16),
    "memory_free": ("memory.free", 16),
    "power_limit": ("enforced.power.limit", 0.01),
    "power_draw": ("power.draw.average", 30),
    "memory_clock": ("clocks.mem", 0),
    "sm_clock": ("clocks.sm", 60),
    "fan_speed": ("fan.speed", 5),
    "temperature": ("temperature.gpu", 4),
    "temperature_memory": ("temperature.memory", 4),
    "utilization_gpu": ("utilization.gpu", 5),
    "utilization_memory": ("utilization.memory", 5),
    "ecc_uncorrected": ("ecc.errors.uncorrected.volatile.total", 0),
}
"""Catalogue field → column of nvidia-smi, and by how much it may be away."""


def test_readings_are_those_of_nvidia_smi_and_absent_where_it_has_none(
    nvml: tuple[Nvml, Gpu], start: Start
) -> None:
    start(1000, 0, 1024)
    time.sleep(5)  # its clock and power are steady then
    reading = means(nvml, 1)[-1]
    [row, *_] = smi("gpu", "pstate", *(column for column, _ in SAID.values()))
    assert f"P{reading['pstate']}" == row["pstate"]
    for field, (column, away) in SAID.items():
        absent = "N/A" in row[column] or "Not Supported" in row[column]
        expected = None if absent else pytest.approx(float(row[column]), abs=away)
        assert reading.get(field) == expected, field


def test_an_idle_gpu_has_no_process_and_no_use(nvml: tuple[Nvml, Gpu]) -> None:
    assert smi("compute-apps", "pid") == [], "something else uses the GPU"
    time.sleep(2)
    sample = means(nvml, 2)[-1]
    assert processes(sample) == ()
    assert sample["process_count"] == 0
    assert sample["utilization_mean"] == 0
    assert sample.get("sm_active", 0) < 1


def test_processes_are_those_of_nvidia_smi_with_their_memory(nvml: tuple[Nvml, Gpu], start: Start) -> None:
    pids = {start(10, 90, mib).pid for mib in (512, 2048)}
    sample = means(nvml, 1)[-1]
    found = {process.pid: (process.memory_bytes or 0) // _MIB for process in processes(sample)}
    said = {int(row["pid"]): int(row["used_memory"]) for row in smi("compute-apps", "pid", "used_memory")}
    assert found.keys() == pids
    assert found == said
    assert sample["process_count"] == 2


def test_use_is_the_part_of_the_time_in_which_it_worked(nvml: tuple[Nvml, Gpu], start: Start) -> None:
    work = start(50, 50)
    samples = means(nvml, 10)
    true, _ = work.end()
    assert fmean(sample["utilization_mean"] for sample in samples) == pytest.approx(true, abs=8)
    assert share(samples, work) == pytest.approx(true, abs=8)
    if all("sm_active" in sample for sample in samples):
        assert fmean(sample["sm_active"] for sample in samples) == pytest.approx(true, abs=8)


def test_work_in_bursts_is_seen_at_a_slow_interval(nvml: tuple[Nvml, Gpu], start: Start) -> None:
    work = start(400, 1600)
    samples = means(nvml, 30, 5.0)
    true, _ = work.end()
    assert fmean(sample["utilization_mean"] for sample in samples) == pytest.approx(true, abs=8)


@pytest.mark.parametrize(
    "rhythms",
    [
        [(60, 40), (15, 85), (0, 100)],
        [(20, 80), (20, 80)],
        [(2, 8), (50, 50)],
        [(50, 0), (50, 0)],
        [(5, 15), (5, 15), (5, 15)],
    ],
    ids=str,
)
def test_use_of_processes_that_share_the_gpu_is_told_apart(
    nvml: tuple[Nvml, Gpu], start: Start, rhythms: list[tuple[int, int]]
) -> None:
    works = [start(*rhythm) for rhythm in rhythms]
    samples = means(nvml, 20)
    told = [share(samples, work) for work in works]
    true = [work.end()[0] for work in works]
    busy = fmean(sample["utilization_mean"] for sample in samples)
    print(f"busy {busy:.1f}", *(f"told {a:.1f} true {b:.1f}" for a, b in zip(told, true, strict=True)), sep="; ")
    assert sum(told) == pytest.approx(busy, abs=3)
    assert told == [pytest.approx(share, abs=15) for share in true]


def test_what_is_copied_is_on_the_counter_of_pcie(nvml: tuple[Nvml, Gpu], start: Start) -> None:
    work = start(0, 1, copied_mib=64)
    samples = means(nvml, 10)
    if "pcie_rx_kib" not in samples[-1]:
        pytest.skip("this GPU has no GPM")
    _, mib_per_second = work.end()
    first, *_, last = (sample["pcie_rx_kib"] for sample in samples)
    assert (last - first) / 1024 / (len(samples) - 1) == pytest.approx(mib_per_second, rel=0.15)


def test_energy_is_power_over_time(nvml: tuple[Nvml, Gpu], start: Start) -> None:
    start(1000, 0)
    time.sleep(2)
    library, gpu = nvml
    began, first = time.monotonic(), library.read(gpu)
    samples = means(nvml, 10, 0.5)
    watts = (samples[-1]["energy_mj"] - first["energy_mj"]) / 1000 / (time.monotonic() - began)
    assert watts == pytest.approx(fmean(sample["power_draw"] for sample in samples), rel=0.1)


def test_agent_and_server_tell_of_it_what_nvidia_smi_told(tmp_path: Path, start: Start) -> None:
    port, status_port = free_port(), free_port()
    work = start(50, 50, 1024)
    every_second = {"GPUMON_AGENT__MONITORING__INTERVAL_SECONDS": "1"}
    sampling = agent(None, tmp_path / "spool", port, status_port, **every_second)
    with server(tmp_path / "data", port) as served, sampling:
        served.start()
        sampling.start()
        said = []
        for _ in range(12):
            time.sleep(1)
            said.append(smi("gpu", "uuid", "name", "memory.used", "power.draw.average")[0])

        def ask(path: str, **question: str) -> Any:
            answer = httpx.get(f"http://127.0.0.1:{port}{path}", params=question, timeout=10, trust_env=False)
            return answer.raise_for_status().json()["data"]

        [gpu, *_] = until(lambda: ask("/api/gpus"))
        series = ask("/api/series", metric="power_draw", last="10s")
        ledger = ask("/api/ledger", last="10s")["total"]
    assert (gpu["gpu_uuid"], gpu["gpu_name"]) == (said[0]["uuid"], said[0]["name"])
    assert gpu["memory_used"] == pytest.approx(float(said[-1]["memory.used"]), abs=16)
    [user] = gpu["pods"]
    assert (user["process_name"], user["process_count"]) == (Path(sys.executable).name, 1)
    watts = [point["value"] for point in series["points"] if point["value"] is not None]
    assert fmean(watts) == pytest.approx(fmean(float(row["power.draw.average"]) for row in said), rel=0.1)
    parts = ("active", "held_idle", "used_without_allocation", "free", "unhealthy", "no_data")
    assert sum(ledger[part] for part in parts) == pytest.approx(ledger["wall_seconds"])
    true, _ = work.end()
    assert ledger["used_without_allocation"] == pytest.approx(true / 10, abs=2)
