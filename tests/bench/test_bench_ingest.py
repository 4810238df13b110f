"""The benchmarks of ingest, scaled down: they run, and what they send and count is what is stored."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from bench.ingest import STATISTICS, Turns, agent_sample, batch, old_sample, serving_old_design
from bench.load import Load, request
from bench.openloop import timetable

from bench import ingest, openloop
from tests.server.conftest import serving, settings_for


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    with serving(settings_for(tmp_path / "data")) as client:
        yield client


@contextmanager
def slow_answers(seconds: float) -> Iterator[int]:
    """A server that takes its time."""

    class Slow(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            time.sleep(seconds)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server.server_port
        server.shutdown()


def test_both_kinds_of_samples_are_taken_whole(client: httpx.Client) -> None:
    for kind in (old_sample, agent_sample):
        answer = client.post("/api/receive-data", json=[kind(gpu) for gpu in range(16)])
        assert (answer.status_code, answer.json()["received_count"], answer.json()["failed_count"]) == (200, 16, 0)
        assert "left_out_count" not in answer.json()


def test_a_turn_counts_what_is_stored(client: httpx.Client) -> None:

    class Here:
        port = client.base_url.port or 0

        def cpu_seconds(self) -> float:
            return time.process_time()

    turns = Turns(8)
    body = json.dumps([old_sample(gpu) for gpu in range(8)]).encode()
    turns.take(Here(), body, 0.3, until_answered=True)
    assert len(turns.latencies) > 0
    metrics = client.get("/metrics").text
    assert f"gpumon_server_rows_stored_total {8.0 * len(turns.latencies)}" in metrics, "no batch is a duplicate"
    assert turns.rows_per_cpu_second > 0
    assert str(turns)


def test_the_old_design_stores_rows_and_answers_from_its_files(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    folder = tmp_path / "old"
    with serving_old_design(folder) as server, closing(Load(server.port, 2)) as load:
        samples = [old_sample(0) | {"utilization_gpu": 10.0}, old_sample(1) | {"utilization_gpu": 30.0}]
        load.opened((0.0, batch(json.dumps(samples).encode())) for _ in range(3))
        (file,) = folder.glob("gpu_metrics_*.csv")
        lines = file.read_text().splitlines()
        assert lines[0].startswith("timestamp,gpu_id,")
        assert len(lines) == 1 + 3 * 2
        assert len(load.opened([(0.0, request(STATISTICS, b"{}"))])) == 1
        data = httpx.post(f"http://127.0.0.1:{server.port}{STATISTICS}", trust_env=False).json()["data"]
    assert (data["period_average"], data["min_utilization"], data["max_utilization"]) == (20.0, 10.0, 30.0)


def test_a_timetable_sends_the_rows_of_its_rate_to_nodes_that_take_turns() -> None:
    entries = list(timetable(rows=8, rows_per_second=800, seconds=1))
    assert len(entries) == 100
    assert entries[50][0] == 0.5
    bodies = [json.loads(data.partition(b"\r\n\r\n")[2]) for _, data in entries]
    assert {len(body) for body in bodies} == {8}
    assert len({body[0]["client_name"] for body in bodies}) == 80
    assert len({data.partition(b"Gpumon-Batch: ")[2].partition(b"\r\n")[0] for _, data in entries}) == 100


def test_a_latency_counts_from_when_a_request_was_due_not_from_when_it_could_be_sent() -> None:
    with slow_answers(0.1) as port, closing(Load(port, 1)) as load:
        latencies = load.opened((0.0, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(4))
    assert len(latencies) == 4
    assert latencies[3] >= 0.4, "it waited for the three before it"


def test_an_answer_that_is_an_error_ends_the_measurement(client: httpx.Client) -> None:
    with closing(Load(client.base_url.port or 0, 1)) as load, pytest.raises(SystemExit, match="422"):
        load.opened([(0.0, batch(b"[]"))])


def test_the_whole_benchmark_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pandas")
    assert set(ingest.measure(seconds=0.1, rounds=1, folder=tmp_path, days=1)) == {8, 80}
    found = openloop.measure(seconds=0.5, folder=tmp_path / "open", sizes=[8], rows_per_second=800)
    assert 0 < found[8] < 60
    printed = capsys.readouterr().out
    assert printed.count("times the rows per CPU-second") == 4
    assert printed.count("800 rows/s") == 1
