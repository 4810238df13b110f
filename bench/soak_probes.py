"""What watches a soak (`bench.soak`) from without: markers, memory and descriptors, and questions now and then."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from bench.agent import resident_mib
from bench.ingest import RECEIVE, agent_sample
from bench.soaking import PATIENCE_SECONDS, Plan, post
from gpumon.clock import to_wire

MARKER_SECONDS = 0.5
QUESTIONS = ("/metrics", "/api/usage?group_by=namespace&last=24h")
_MARKER = "soak-marker"


class Marking:
    """Posts markers and waits until each is in the list of GPUs."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._connection = http.client.HTTPConnection("127.0.0.1", plan.port, timeout=PATIENCE_SECONDS)
        self.began = plan.now()
        self.rows = self.failed = self.never_seen = 0
        self.at: list[float] = []
        """When the markers were stored that were seen, on the monotonic clock, and after how many seconds."""
        self.seconds: list[float] = []

    def close(self) -> None:
        """Closes its connection."""
        self._connection.close()

    def mark(self) -> None:
        """One marker. A GPU's `last_update` tells it from those before: the clock is fast, its seconds whole."""
        at = self._plan.now().replace(microsecond=0)
        sample = agent_sample(0) | {"client_name": _MARKER, "node": _MARKER, "gpu_uuid": f"GPU-{_MARKER}"}
        sample |= {"timestamp": to_wire(at), "sampled_at": to_wire(at)}
        sample |= {"interval_seconds": MARKER_SECONDS * self._plan.speed, "pods": []}
        headers = {"Content-Type": "application/json"}
        answer = post(self._connection, RECEIVE, json.dumps([sample]).encode(), headers)
        if answer is None:
            self.failed += 1
            return
        stored = time.monotonic()
        self.rows += answer["received_count"]
        wanted = json.dumps({"client_name": _MARKER}).encode()
        while time.monotonic() < stored + PATIENCE_SECONDS:
            answer = post(self._connection, "/api/gpu/list", wanted, headers)
            if answer and [gpu for gpu in answer["data"] if gpu["last_update"] >= f"{at:%Y-%m-%d %H:%M:%S}"]:
                self.at.append(stored)
                self.seconds.append(time.monotonic() - stored)
                return
            time.sleep(0.005)
        self.never_seen += 1


@dataclass
class Watch:
    """What /proc says of the server, and how long a scrape and a question took, while it is entered."""

    plan: Plan
    pid: int
    resident: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the start, MiB."""
    descriptors: list[int] = field(default_factory=list)
    workers_mib: float = 0.0
    together_mib: float = 0.0
    asked_seconds: dict[str, list[float]] = field(default_factory=lambda: {path: [] for path in QUESTIONS})
    asking: list[tuple[float, float]] = field(default_factory=list)
    """When a question was under way, on the monotonic clock."""
    questions_failed: int = 0

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._look, self._ask)]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _look(self) -> None:
        """Memory and descriptors every 10 s, in short runs forty times; workers, which come and go, more often."""
        began, step, number = time.monotonic(), min(10.0, self.plan.seconds / 40), 0
        while not self._ended.wait(min(0.2, step)):
            with contextlib.suppress(OSError, StopIteration):  # the server is gone: others say so
                self._look_at_workers()
                if (after := time.monotonic() - began) >= number * step:
                    number += 1
                    self.resident.append((after, resident_mib(self.pid, "VmRSS")))
                    self.descriptors.append(sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir()))

    def _look_at_workers(self) -> None:
        workers = 0.0
        for thread in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(OSError, StopIteration):  # it ends while it is looked at
                for child in (thread / "children").read_text().split():
                    workers += resident_mib(int(child), "VmRSS")
        self.workers_mib = max(self.workers_mib, workers)
        self.together_mib = max(self.together_mib, workers + resident_mib(self.pid, "VmRSS"))

    def _ask(self) -> None:
        while not self._ended.wait(min(30.0, self.plan.seconds / 4)):
            for path in QUESTIONS:
                connection = http.client.HTTPConnection("127.0.0.1", self.plan.port, timeout=PATIENCE_SECONDS)
                began, status = time.monotonic(), 0
                with closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
                    connection.request("GET", path)
                    answer = connection.getresponse()
                    answer.read()
                    status = answer.status
                ended = time.monotonic()
                self.asking.append((began, ended))
                self.asked_seconds[path].append(ended - began)
                self.questions_failed += status != 200


def counters(port: int) -> dict[str, float]:
    """The server's own figures without labels, by their names less `gpumon_server_`."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    found = re.findall(r"^gpumon_server_(\w+) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}
