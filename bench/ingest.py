"""Rows per CPU-second of the receiving server, against the simplest FastAPI server, in one run.

    python -m bench.ingest [--seconds 5]

The simplest one declares a pydantic body model and appends to the day's CSV, as the documentation of FastAPI
leads one to; it neither syncs, nor keeps good rows of a bad batch, nor remembers batches. gpumon does all of it.
Both get the same thirteen-field samples over HTTP from the same closed loop of 8 connections; CPU time is the
server process's own. Also printed: how much faster msgspec decodes the wire format than the pydantic model.
"""

from __future__ import annotations

import argparse
import csv
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import timeit
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CONNECTIONS = 8
PATH = "/api/receive-data"


def simplest(folder: str, port: int) -> None:
    """The baseline server."""
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI()
    samples = list[pydantic_model()]  # type: ignore[misc]

    def receive(body: samples) -> dict[str, Any]:  # type: ignore[valid-type]
        with (Path(folder) / f"gpu_metrics_{datetime.now(UTC):%Y%m%d}.csv").open("a", newline="") as file:
            writer = csv.writer(file)
            for item in body:
                writer.writerow(item.model_dump().values())
        return {"success": True, "received_count": len(body)}

    receive.__annotations__["body"] = samples
    app.post(PATH)(receive)
    uvicorn.run(app, port=port, log_level="error", http="httptools", access_log=False)


def pydantic_model() -> Any:
    """The thirteen fields as one writes them by hand."""
    from pydantic import create_model

    optional_float, optional_int = (float | None, ...), (int | None, ...)
    return create_model(
        "Sample",
        timestamp=(str, ...), gpu_id=(int, ...), gpu_name=(str, ...),
        utilization_gpu=optional_float, utilization_memory=optional_float,
        memory_total=optional_int, memory_used=optional_int, memory_free=optional_int, temperature=optional_int,
        power_draw=optional_float, power_limit=optional_float, fan_speed=optional_int, client_name=(str, ...),
    )  # fmt: skip


def body_of(rows: int) -> bytes:
    """A batch of so many samples of the present."""
    return json.dumps(
        [
            {
                "timestamp": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}", "gpu_id": gpu, "gpu_name": "NVIDIA H100",
                "utilization_gpu": 87.0, "utilization_memory": 41.0, "memory_total": 81559, "memory_used": 61004,
                "memory_free": 20555, "temperature": 61, "power_draw": 512.4, "power_limit": 700.0,
                "fan_speed": None, "client_name": "gpu-node-a",
            }
            for gpu in range(rows)
        ]
    ).encode()  # fmt: skip


class Server:
    """One server process under load."""

    def __init__(self, command: list[str], port: int, environment: dict[str, str]) -> None:
        self.port = port
        self._process = subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                self._post(http.client.HTTPConnection("127.0.0.1", port), body_of(1), "start/x/1")
                return
            except OSError:
                time.sleep(0.1)
        raise SystemExit(f"{command} does not answer")

    def _post(self, connection: http.client.HTTPConnection, body: bytes, batch: str) -> None:
        connection.request("POST", PATH, body, {"Content-Type": "application/json", "Gpumon-Batch": batch})
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"answer {answer.status}")

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def load(self, rows: int, seconds: float) -> dict[str, float]:
        """Runs the closed loop; gives rows per CPU-second and per second, and latencies in ms."""
        body = body_of(rows)
        latencies: list[float] = []
        lock = threading.Lock()
        end = time.monotonic() + seconds

        def one(worker: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port)
            mine = []
            number = 0
            while time.monotonic() < end:
                number += 1
                begin = time.perf_counter()
                self._post(connection, body, f"node-{worker}/{rows}-{seconds:g}/{number}".replace(".", "-"))
                mine.append(time.perf_counter() - begin)
            with lock:
                latencies.extend(mine)

        cpu, begin = self.cpu_seconds(), time.monotonic()
        workers = [threading.Thread(target=one, args=(n,)) for n in range(CONNECTIONS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        wall, cpu = time.monotonic() - begin, self.cpu_seconds() - cpu
        latencies.sort()
        return {
            "rows/CPU-s": len(latencies) * rows / cpu,
            "rows/s": len(latencies) * rows / wall,
            "p50 ms": statistics.median(latencies) * 1000,
            "p99 ms": latencies[int(len(latencies) * 0.99)] * 1000,
        }

    def stop(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait(20)


def decoding() -> float:
    """How many times faster msgspec decodes and checks a batch of 80 than the pydantic model."""
    import msgspec
    from pydantic import TypeAdapter

    from gpumon.model.sample import GpuSample

    body = body_of(80)
    ours = msgspec.json.Decoder(list[GpuSample]).decode
    theirs = TypeAdapter(list[pydantic_model()]).validate_json  # type: ignore[misc]
    best = [min(timeit.repeat(lambda: decode(body), number=200, repeat=5)) for decode in (ours, theirs)]  # noqa: B023
    return best[1] / best[0]


def main() -> None:
    """Runs everything and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        simplest(options.serve[0], int(options.serve[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        gpumon = Server(
            [sys.executable, "-m", "gpumon", "server", "--config", os.devnull],
            5871,
            {
                "GPUMON_SERVER__SERVER__PORT": "5871",
                "GPUMON_SERVER__STORAGE__OUTPUT_DIRECTORY": f"{folder}/gpumon",
                "GPUMON_SERVER__LOGGING__LOG_FILE": "",
                "GPUMON_SERVER__LOGGING__LOG_API_REQUESTS": "false",
            },
        )
        baseline = Server([sys.executable, "-m", "bench.ingest", "--serve", folder, "5872"], 5872, {})
        print(f"{'rows/request':>12} {'server':<10} {'rows/CPU-s':>11} {'rows/s':>9} {'p50 ms':>7} {'p99 ms':>7}")
        try:
            for rows in (8, 80):
                ours, theirs = gpumon.load(rows, options.seconds), baseline.load(rows, options.seconds)
                for name, found in (("gpumon", ours), ("simplest", theirs)):
                    print(
                        f"{rows:>12} {name:<10} {found['rows/CPU-s']:>11,.0f} {found['rows/s']:>9,.0f} "
                        f"{found['p50 ms']:>7.1f} {found['p99 ms']:>7.1f}"
                    )
                print(f"{rows:>12} ratio      {ours['rows/CPU-s'] / theirs['rows/CPU-s']:>10.2f}x")
        finally:
            gpumon.stop()
            baseline.stop()
    print(f"decoding a batch of 80: msgspec {decoding():.1f}x the pydantic model")


if __name__ == "__main__":
    main()
