"""`gpumon demo`: the whole system on one machine, without a GPU.

One server and several agents as processes of their own, each agent with the fake library under the real
nvidia-ml-py, posting over real HTTP: what a cluster runs, on loopback.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from importlib.resources import files
from pathlib import Path

START_SECONDS = 30.0
STOP_SECONDS = 20.0
LOOK_SECONDS = 0.25
INTERVAL_SECONDS = 2.0
NODES = "abcdefghijklmnopqrst"

_WELCOME = """
gpumon runs: 1 server, {nodes} simulated GPU nodes, a sample of each GPU every {interval:g} s.

  API, to try out      {url}/docs
  Reference            {url}/redoc
  Prometheus           {url}/metrics
  Daily CSV files      {data}

First questions (a browser shows the answers, too):

  {url}/api/pods                              which pod has which GPU now, and how hard it works
  {url}/api/usage?group_by=owner&last=1h      GPU-hours held and used, memory, energy, by workload
  {url}/api/usage?group_by=label:team&last=1h the same by a label of your choice
  {url}/api/ledger?group_by=node&last=1h      where every GPU-second went
  {url}/api/idle?at_least=1m                  who holds GPUs without using them

Ctrl+C stops all.
"""


def run_demo(
    *, port: int, data: Path, nodes: int, stop_asked: Callable[[], bool], say: Callable[[str], None]
) -> int:
    """Runs until a stop is asked for. Gives the exit code: 1 when a part ended by itself."""
    port = _free_port(port)
    url = f"http://127.0.0.1:{port}"
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        processes["server"] = _start("server", _server_environment(port, data))
        if not _answers(url, processes["server"], stop_asked):
            say("the server did not start; its log is logs/server.log")
            return 1
        for letter in NODES[:nodes]:
            node = f"gpu-node-{letter}"
            processes[node] = _start("agent", _agent_environment(port, node, data))
        say(_WELCOME.format(nodes=nodes, interval=INTERVAL_SECONDS, url=url, data=data.resolve()))
        while not stop_asked():
            time.sleep(LOOK_SECONDS)
            for name, process in processes.items():
                if process.poll() is not None:
                    say(f"{name} ended by itself with exit code {process.returncode}; see logs/")
                    return 1
        return 0
    finally:
        _stop_all(processes, say)


def _server_environment(port: int, data: Path) -> dict[str, str]:
    return {
        "GPUMON_SERVER__SERVER__HOST": "127.0.0.1",
        "GPUMON_SERVER__SERVER__PORT": str(port),
        "GPUMON_SERVER__STORAGE__OUTPUT_DIRECTORY": str(data),
        "GPUMON_SERVER__LOGGING__CONSOLE_OUTPUT": "false",
    }


def _agent_environment(port: int, node: str, data: Path) -> dict[str, str]:
    scenario = files("gpumon.agent.fakenvml") / "demo.toml"
    return {
        "NODE_NAME": node,
        "GPUMON_FAKE_NVML": str(scenario),
        "GPUMON_AGENT__SERVER__SERVER_HOST": "http://127.0.0.1",
        "GPUMON_AGENT__SERVER__SERVER_PORT": str(port),
        "GPUMON_AGENT__MONITORING__INTERVAL_SECONDS": str(INTERVAL_SECONDS),
        "GPUMON_AGENT__NETWORK__BATCH_INTERVAL": str(INTERVAL_SECONDS),
        "GPUMON_AGENT__SPOOL__DIRECTORY": str(data / "spool"),
        "GPUMON_AGENT__STATUS__PORT": "0",
        "GPUMON_AGENT__LOGGING__CONSOLE_OUTPUT": "false",
        "GPUMON_AGENT__LOGGING__LOG_FILE": f"./logs/client-{node}.log",
    }


def _start(program: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Starts a part in a process group of its own, so that Ctrl+C reaches only the demo, which stops the parts
    in order."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GPUMON_")}
    return subprocess.Popen(
        [sys.executable, "-m", "gpumon", program, "--config", os.devnull],
        env=inherited | environment,
        stdin=subprocess.DEVNULL,
        start_new_session=os.name != "nt",
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )


def _stop_all(processes: dict[str, subprocess.Popen[bytes]], say: Callable[[str], None]) -> None:
    """The agents first, so that the server takes what they still have."""
    for names in ([n for n in processes if n != "server"], [n for n in processes if n == "server"]):
        for name in names:
            if processes[name].poll() is None:
                processes[name].send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
        deadline = time.monotonic() + STOP_SECONDS
        for name in names:
            try:
                processes[name].wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                processes[name].kill()
                processes[name].wait()
                say(f"{name} did not stop in {STOP_SECONDS:g} s and was killed")
    say("stopped")


def _free_port(wanted: int) -> int:
    for port in (*range(wanted, min(wanted + 20, 65536)), 0):
        with closing(socket.socket()) as probe:
            if os.name != "nt":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    return wanted


def _answers(url: str, server: subprocess.Popen[bytes], stop_asked: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None and not stop_asked():
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=2):  # noqa: S310 - loopback
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(LOOK_SECONDS)
    return False
