"""What reading eight H100 costs: NVML calls by function, CPU time per sample, memory.

    python -m bench.nvml_calls [samples]

The library is the simulated one, whose own time is measured apart and taken off: what remains is the door,
the rules of reading, and the binding. How long a real driver takes is not in these figures; there, the number
and the kind of the calls decide.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from gpumon.agent.fakenvml import CALLS, FakeNvml
from gpumon.agent.nvml import Nvml

GPUS = 8
PROCESSES_PER_GPU = 3
SCENARIO = f"""
[[node]]
match = "*"
[[node.gpus]]
model = "h100-sxm"
count = {GPUS}
utilization = 70
""" + "".join(
    f"[[node.processes]]\ngpu = {gpu}\npid = {100 * gpu + process + 1}\n"
    for gpu in range(GPUS)
    for process in range(PROCESSES_PER_GPU)
)


class Bench:
    """One simulated node, sampled once a second of its own time."""

    def __init__(self) -> None:
        self.second = 0
        self.library_seconds = 0.0
        self.fake = FakeNvml.from_text(SCENARIO, "bench", now=self.now)
        self.nvml = Nvml(monotonic=lambda: float(self.second), now=self.now)

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.second)

    def time_the_library(self) -> None:
        """Wraps every function of the simulated library to add up its time."""
        for name in CALLS:
            self.fake._functions[name] = self._timed(self.fake._functions[name])

    def _timed(self, function: Any) -> Any:
        def timed(*args: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*args)
            finally:
                self.library_seconds += time.thread_time() - started

        return timed

    def cpu_seconds(self, samples: int) -> float:
        """CPU time of so many samples of all GPUs, after one that probes what they support."""
        self.fake.install()
        try:
            gpus = self.nvml.open()
            self._sample(gpus)
            self.library_seconds = 0.0
            self.before = self.fake.calls
            started = time.process_time()
            for _ in range(samples):
                self._sample(gpus)
            return time.process_time() - started
        finally:
            self.calls: Counter[str] = self.fake.calls - self.before
            self.nvml.close()
            self.fake.uninstall()

    def _sample(self, gpus: Any) -> None:
        self.second += 1
        for gpu in gpus:
            self.nvml.read(gpu)


def main() -> None:
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    plain, timed = Bench(), Bench()
    whole = plain.cpu_seconds(samples) / samples
    timed.time_the_library()
    timed.cpu_seconds(samples)
    library = timed.library_seconds / samples
    print(f"{GPUS} H100, {PROCESSES_PER_GPU} processes each, {samples} samples, one a second\n")
    for name, calls in plain.calls.most_common():
        print(f"  {calls / samples:7.2f}  {name}")
    print(f"  {plain.calls.total() / samples:7.2f}  NVML calls per sample of the node\n")
    print(f"  {whole * 1000:7.2f}  ms CPU per sample, of which the simulated library takes")
    print(f"  {library * 1000:7.2f}  ms")
    print(f"  {(whole - library) * 1000:7.2f}  ms CPU per sample for the door, the rules and the binding")
    print(f"  {_resident_mib():7.1f}  MiB resident")


def _resident_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return int(kib) / 1024


if __name__ == "__main__":
    main()
