"""What a whole agent costs: CPU time per sample of 8 GPUs, memory, bytes sent.

    python -m bench.agent [--seconds 60]

A real agent process on eight simulated H100 with three processes each, one sample a second, default batches,
posting to a server that only answers. CPU and memory are the process's own, after ten seconds of warm-up; the
simulated library's time is in them (`bench.nvml_calls` tells it apart, and counts the NVML calls). httpx loads
`rich` where a development tool brought it; the agent's image has none, so it is hidden here.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bench.nvml_calls import GPUS, SCENARIO

WARM_UP_SECONDS = 10
_AGENT = """
import sys
sys.modules["rich"] = None
sys.argv = ["gpumon", "agent", "--config", {devnull!r}]
from gpumon.__main__ import main
main()
"""


class Sink(BaseHTTPRequestHandler):
    """Takes everything and counts it."""

    protocol_version = "HTTP/1.1"
    bodies = 0
    received = 0

    def do_POST(self) -> None:
        """One batch."""
        length = int(self.headers["Content-Length"])
        self.rfile.read(length)
        Sink.bodies, Sink.received = Sink.bodies + 1, Sink.received + length
        answer = b'{"success":true}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int, what: str) -> float:
    """VmRSS (now) or VmHWM (highest) of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(what))) / 1024


def main() -> None:
    """Runs it and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    seconds = parser.parse_args().seconds
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        scenario = Path(folder, "eight-h100.toml")
        scenario.write_text(SCENARIO)
        agent = subprocess.Popen(
            [sys.executable, "-c", _AGENT.format(devnull=os.devnull)],
            env=os.environ
            | {
                "NODE_NAME": "bench",
                "GPUMON_FAKE_NVML": str(scenario),
                "GPUMON_AGENT__SERVER__SERVER_HOST": "http://127.0.0.1",
                "GPUMON_AGENT__SERVER__SERVER_PORT": str(server.server_port),
                "GPUMON_AGENT__MONITORING__INTERVAL_SECONDS": "1",
                "GPUMON_AGENT__SPOOL__DIRECTORY": f"{folder}/spool",
                "GPUMON_AGENT__STATUS__PORT": "0",
                "GPUMON_AGENT__LOGGING__LOG_FILE": "",
                "GPUMON_AGENT__LOGGING__CONSOLE_OUTPUT": "false",
            },
        )
        try:
            time.sleep(WARM_UP_SECONDS)
            before, bodies, received = cpu_seconds(agent.pid), Sink.bodies, Sink.received
            time.sleep(seconds)
            cpu = cpu_seconds(agent.pid) - before
            samples = max(1, Sink.bodies - bodies)
            print(f"{GPUS} H100, one sample a second for {seconds} s")
            print(f"  {cpu / seconds * 1000:6.2f} ms CPU per sample of the node ({cpu / seconds:.2%} of a core)")
            now, highest = resident_mib(agent.pid, "VmRSS"), resident_mib(agent.pid, "VmHWM")
            print(f"  {now:6.1f} MiB resident, {highest:.1f} highest")
            print(f"  {(Sink.received - received) / seconds:6.0f} bytes a second sent, in {samples} batches")
        finally:
            agent.terminate()
            agent.wait(20)
            server.shutdown()
            server.server_close()


if __name__ == "__main__":
    main()
