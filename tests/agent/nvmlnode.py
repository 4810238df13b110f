"""A door to NVML opened onto simulated GPUs, for the tests of the door."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from gpumon.agent.fakenvml import FakeNvml
from gpumon.agent.nvml import GROUPS, Nvml
from gpumon.agent.ports import USE, Gpu, GpuUse, Reading

PLAIN = {
    "utilization_gpu",
    "utilization_memory",
    "utilization_mean",
    "encoder_utilization",
    "decoder_utilization",
    "clock_event_reasons",
    "pstate",
    "sm_clock",
    "process_count",
}
MEMORY = {"memory_total", "memory_used", "memory_free", "memory_reserved"}
PCIE = {"pcie_rx_kib", "pcie_tx_kib"}
GPM = {"sm_active", "sm_occupancy", "tensor_active", "dram_active"} | PCIE
POWER = {"power_draw", "power_limit", "energy_mj"}
NVLINK = {"nvlink_rx_kib", "nvlink_tx_kib"}
USUAL = PLAIN | MEMORY | POWER | {"temperature", "memory_clock"}

FIELDS_OF = {
    "h100-sxm": USUAL | GPM | NVLINK | {"temperature_memory", "ecc_uncorrected"},
    "a100-sxm": USUAL | NVLINK | {"temperature_memory", "ecc_uncorrected"},
    "t4": USUAL | {"ecc_uncorrected"},
    "l4": USUAL | {"ecc_uncorrected"},
    "rtx-4090": USUAL | {"fan_speed"},
    "gb10": PLAIN | {"temperature", "power_draw", "energy_mj"},
    "vgpu-a40-8q": PLAIN | MEMORY | {"memory_clock"},
}
"""What each model tells once it has been read twice; all else must be absent."""

EIGHT_BUSY_H100 = "model = 'h100-sxm'\ncount = 8\nutilization = 70"


_OF_THE_WATCH = {"nvmlEventSetCreate", "nvmlDeviceRegisterEvents", "nvmlEventSetWait_v2", "nvmlEventSetFree"}
_NAP_SECONDS = 0.02
"""For how long the simulation really sleeps, whatever it is to sleep of its own time."""


class Times:
    """Wall time for both and monotonic time for the door, moved by hand; `step` sets the wall clock alone."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.step = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds + self.step)

    def monotonic(self) -> float:
        return 5000.0 + self.seconds


class Node:
    """A door opened onto simulated GPUs."""

    def __init__(self, gpus: str, rest: str, groups: frozenset[str]) -> None:
        self.times = Times()
        self._closing = threading.Event()
        self.fake = FakeNvml.from_text(
            f'[[node]]\nmatch = "*"\n{rest}\n[[node.gpus]]\n{gpus}',
            "node-1",
            now=self.times.now,
            sleep=lambda seconds: self._closing.wait(min(seconds, _NAP_SECONDS)) and None,
        )
        self.fake.install()
        self.nvml = Nvml(groups, monotonic=self.times.monotonic, now=self.times.now)
        self.gpus: list[Gpu] = []

    def open(self) -> Node:
        self.gpus = list(self.nvml.open())
        return self

    def read(self, gpu: int = 0, *, after: float = 1.0) -> Reading:
        """The next second's reading, without who uses the GPU."""
        self.times.seconds += after
        reading = self.nvml.read(self.gpus[gpu])
        reading.pop(USE, None)
        return reading

    def use(self, gpu: int = 0, *, after: float = 1.0) -> GpuUse:
        """Who uses the GPU in the next second."""
        self.times.seconds += after
        return self.nvml.read(self.gpus[gpu])[USE]  # type: ignore[no-any-return]

    def calls_of(self, action: Any) -> Counter[str]:
        """The calls that an action makes, without those of the thread that waits for Xids."""
        before = self.fake.calls
        action()
        calls = self.fake.calls - before
        return Counter({name: count for name, count in calls.items() if name not in _OF_THE_WATCH})

    def close(self) -> None:
        self._closing.set()
        self.nvml.close()
        self.fake.uninstall()


@contextlib.contextmanager
def simulated() -> Iterator[Callable[..., Node]]:
    """Makes nodes: `make(gpus, rest)`, both TOML. All are closed at the end."""
    made: list[Node] = []

    def make(gpus: str = "model = 'h100-sxm'", rest: str = "", groups: frozenset[str] = GROUPS) -> Node:
        made.append(Node(gpus, rest, groups))
        return made[-1]

    yield make
    for node in reversed(made):
        node.close()


def answering(node: Node, name: str, change: Any) -> None:
    """Lets a function of the simulated library answer, and `change` its arguments after that."""
    original = node.fake._functions[name]

    def changed(*args: Any) -> int:
        code = original(*args)
        change(*args)
        return code  # type: ignore[no-any-return]

    node.fake._functions[name] = changed
