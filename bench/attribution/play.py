"""Plays scenes: one server, a node and an agent for each scene, all at the same time; then asks the server.

start all ─▶ every GPU is stored ─▶ [ the measured range ] ─▶ agents stop and deliver ─▶ ask
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from tests import processes

from bench.attribution.node import SAMPLE_SECONDS, Node
from bench.attribution.scene import Scene
from bench.attribution.score import Score, score
from bench.attribution.truth import sampled
from gpumon.clock import to_wire

_START_SECONDS = 120.0
_LEAD_SECONDS = 4.0
"""From the moment the simulated library is told when the range begins until it does: it looks at its file each
second."""
_AFTER_SECONDS = 4 * SAMPLE_SECONDS
"""The sample after the range's end stands for the last part of it."""


def play(scenes: Sequence[tuple[str, Callable[[float], Scene]]], seconds: float, folder: Path) -> list[Score]:
    """The scores of scenes, each (name of its node, scene), over a measured range of so many seconds. Raises
    SystemExit where the agents don't come up."""
    port = processes.free_port()
    data = folder / "data"
    with processes.server(data, port) as server, ExitStack() as stack:
        server.start()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            nodes = [stack.enter_context(Node(name, make(seconds), folder / name, port)) for name, make in scenes]
            _wait_for_all(client, nodes)
            begins_at = time.time() + _LEAD_SECONDS
            for node in nodes:
                node.begin(begins_at)
            _act(nodes, begins_at, seconds)
            for node in nodes:
                node.end_agent(signal.SIGTERM)
            span = {"start": _wire(begins_at), "end": _wire(begins_at + seconds)}
            usage = _ask(client, "/api/usage", span | {"group_by": "node,container"})
            ledger = _ask(client, "/api/ledger", span | {"group_by": "gpu"})
        server.end(signal.SIGTERM)
    # The answers' range is in whole milliseconds.
    began = datetime.fromisoformat(span["start"]).timestamp()
    return [score(node, sampled(data, node, began, seconds), usage, ledger, seconds) for node in nodes]


def _wait_for_all(client: httpx.Client, nodes: Sequence[Node]) -> None:
    wanted = {(node.name, gpu) for node in nodes for gpu in range(len(node.uuids))}
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        listed = client.post("/api/gpu/list").json().get("data") or []
        missing = wanted - {(gpu["client_name"], gpu["gpu_id"]) for gpu in listed}
        if not missing:
            return
        time.sleep(0.2)
    name = min(missing)[0]
    raise SystemExit(f"{name} does not deliver:\n" + next(node.log for node in nodes if node.name == name))


def _act(nodes: Sequence[Node], begins_at: float, seconds: float) -> None:
    """Lets happen what happens, and returns some time after the range's end."""
    actions = sorted((action for node in nodes for action in node.actions()), key=lambda action: action[0])
    for at, action in [*actions, (seconds + _AFTER_SECONDS, lambda: None)]:
        time.sleep(max(0.0, begins_at + at - time.time()))
        action()


def _ask(client: httpx.Client, path: str, query: dict[str, str]) -> dict[str, Any]:
    answer = client.get(path, params=query)
    if answer.status_code != 200:
        raise SystemExit(f"{path} answers {answer.status_code}: {answer.text}")
    said: dict[str, Any] = answer.json()["data"]
    return said


def _wire(unix: float) -> str:
    return to_wire(datetime.fromtimestamp(unix, UTC))
