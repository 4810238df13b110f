"""From NVML to the CSV and back: real processes, real HTTP, real signals; only the GPUs are simulated."""

from __future__ import annotations

import csv
import itertools
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from tests import processes
from tests.processes import free_port, metric, until

SCENARIO = """
[[node]]
match = "gpu-node-*"
[[node.gpus]]
model = "h100-sxm"
count = 2
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "two-h100.toml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture
def status_port() -> Iterator[int]:
    yield free_port()


def rows(folder: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for path in sorted(folder.glob("gpu_metrics_*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            found += csv.DictReader(file)
    return found


def assert_once_and_in_order(stored: list[dict[str, str]]) -> None:
    """Every (GPU, instant) once, and each GPU's instants ascending in the file."""
    seen = Counter((row["gpu_uuid"], row["sampled_at"]) for row in stored)
    assert max(seen.values()) == 1
    for uuid in {row["gpu_uuid"] for row in stored}:
        instants = [row["sampled_at"] for row in stored if row["gpu_uuid"] == uuid]
        assert instants == sorted(instants)


def gaps(stored: list[dict[str, str]], gpu: str) -> list[float]:
    """Seconds between one GPU's samples."""
    instants = [datetime.fromisoformat(row["sampled_at"]) for row in stored if row["gpu_id"] == gpu]
    return [(b - a).total_seconds() for a, b in itertools.pairwise(instants)]


def test_what_the_gpus_say_is_what_the_server_answers(tmp_path: Path, scenario: Path, status_port: int) -> None:
    port = free_port()
    with (
        processes.server(tmp_path / "data", port) as server,
        processes.agent(scenario, tmp_path / "spool", port, status_port) as agent,
    ):
        server.start()
        agent.start()
        until(lambda: metric(status_port, "gpumon_agent_samples_sent_total") >= 20)
        assert httpx.get(f"http://127.0.0.1:{status_port}/readyz", trust_env=False).status_code == 200
        assert agent.end(signal.SIGTERM) == 0
        listed = httpx.post(f"http://127.0.0.1:{port}/api/gpu/list", trust_env=False).json()["data"]
        assert [(gpu["client_name"], gpu["gpu_id"], gpu["state"]) for gpu in listed] == [
            ("gpu-node-a", 0, "ok"),
            ("gpu-node-a", 1, "ok"),
        ]
        assert server.end(signal.SIGTERM) == 0
    stored = rows(tmp_path / "data")
    assert_once_and_in_order(stored)
    first = stored[0]
    assert first["gpu_name"] == "NVIDIA H100 80GB HBM3"
    assert first["memory_total"] == "81559"
    assert first["fan_speed"] == "", "an H100 has no fan: absent, not 0"
    assert (first["node"], first["client_name"]) == ("gpu-node-a", "gpu-node-a")
    assert first["source"] == "fake_nvml", "simulated figures can be told from real ones"
    assert all(0 <= float(row["utilization_gpu"]) <= 100 for row in stored)
    energies = [int(row["energy_mj"]) for row in stored if row["gpu_id"] == "0"]
    assert energies == sorted(energies)


def test_a_stop_delivers_every_sample_that_was_taken(tmp_path: Path, scenario: Path, status_port: int) -> None:
    port = free_port()
    with (
        processes.server(tmp_path / "data", port) as server,
        processes.agent(scenario, tmp_path / "spool", port, status_port) as agent,
    ):
        server.start()
        agent.start()
        until(lambda: metric(status_port, "gpumon_agent_samples_sent_total") >= 8)
        assert agent.end(signal.SIGTERM) == 0
        said = next(line for line in agent.log if "agent_stopped" in line)
        server.end(signal.SIGTERM)
    assert f"samples_sent={len(rows(tmp_path / 'data'))} samples_spooled=0 samples_dropped=0" in said


def test_kill_9_of_the_agent_loses_at_most_what_was_in_memory(
    tmp_path: Path, scenario: Path, status_port: int
) -> None:
    port = free_port()
    batch_size, in_flight = 4, 8
    with processes.server(tmp_path / "data", port) as server:
        server.start()
        taken = 0.0
        for _ in range(3):
            with processes.agent(scenario, tmp_path / "spool", port, status_port) as agent:
                agent.start()
                until(lambda: metric(status_port, "gpumon_agent_samples_sent_total") >= 12)
                taken += metric(status_port, "gpumon_agent_samples_total")
                agent.end(signal.SIGKILL)
        server.end(signal.SIGTERM)
    stored = rows(tmp_path / "data")
    assert_once_and_in_order(stored)
    assert len(stored) >= taken - 3 * (batch_size + in_flight)


@pytest.mark.timeout(180)
def test_while_the_server_is_away_nothing_is_missing_also_when_the_agent_is_killed_meanwhile(
    tmp_path: Path, scenario: Path, status_port: int
) -> None:
    port = free_port()
    with (
        processes.server(tmp_path / "data", port) as server,
        processes.agent(scenario, tmp_path / "spool", port, status_port) as agent,
    ):
        server.start()
        agent.start()
        until(lambda: metric(status_port, "gpumon_agent_samples_sent_total") >= 8)
        server.end(signal.SIGKILL)
        until(lambda: len(list((tmp_path / "spool").rglob("*.batch*"))) >= 8)
        on_disk = len(list((tmp_path / "spool").rglob("*.batch*")))
        agent.end(signal.SIGKILL)
        agent.start()
        assert len(list((tmp_path / "spool").rglob("*.batch*"))) >= on_disk - 1, "an earlier run's stay"
        server.start()
        until(lambda: metric(status_port, "gpumon_agent_spool_batches") <= 1)
        assert agent.end(signal.SIGTERM) == 0
        server.end(signal.SIGTERM)
    stored = rows(tmp_path / "data")
    assert_once_and_in_order(stored)
    for gpu in ("0", "1"):
        longest = sorted(gaps(stored, gpu))[-2:]
        assert longest[0] < 1.0, "only the agent's own death left a gap"


def test_a_missing_driver_is_named_and_found_again_without_a_restart(tmp_path: Path, status_port: int) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(SCENARIO.replace("gpu-node-*", "elsewhere"))
    port = free_port()
    with (
        processes.server(tmp_path / "data", port) as server,
        processes.agent(scenario, tmp_path / "spool", port, status_port) as agent,
    ):
        server.start()
        agent.start()
        until(lambda: metric(status_port, "gpumon_agent_nvml_opens_total") >= 2)
        ready = httpx.get(f"http://127.0.0.1:{status_port}/readyz", trust_env=False)
        assert ready.status_code == 503
        assert "driver" in ready.text.lower()
        assert rows(tmp_path / "data") == [], "no data is never 0"
        scenario.write_text(SCENARIO)
        until(lambda: metric(status_port, "gpumon_agent_samples_sent_total") >= 4)
        assert httpx.get(f"http://127.0.0.1:{status_port}/readyz", trust_env=False).status_code == 200
        agent.end(signal.SIGTERM)
        server.end(signal.SIGTERM)
    assert len([line for line in agent.log if "trouble nvml" in line]) == 1, "said once, not per try"
