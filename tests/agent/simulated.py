"""A simulated NVML for the tests of the simulation itself, read through the real pynvml functions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pynvml

from gpumon.agent.fakenvml import FakeNvml
from gpumon.agent.fakenvml.scenario_file import models

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MODELS = sorted(models())


class Times:
    """A clock that moves when it is told to, and when somebody sleeps by it."""

    def __init__(self) -> None:
        self.now_is = START
        self.slept: list[float] = []

    def __call__(self) -> datetime:
        return self.now_is

    def move(self, seconds: float) -> None:
        self.now_is += timedelta(seconds=seconds)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.move(seconds)


class Library:
    """A simulated library under the binding, initialised."""

    def __init__(self, text: str, node: str, times: Times, proc: Path) -> None:
        self.times = times
        self.fake = FakeNvml.from_text(text, node, now=times, sleep=times.sleep, proc=proc)
        self.fake.install()

    def gpu(self, index: int = 0) -> Any:
        """A handle."""
        return pynvml.nvmlDeviceGetHandleByIndex(index)


@contextlib.contextmanager
def libraries(proc: Path) -> Iterator[Callable[..., Library]]:
    """Makes libraries: `make(gpus, rest)`, both TOML; `gpus` is what stands in the first [[node.gpus]]."""
    made: list[Library] = []

    def make(gpus: str = 'model = "h100-sxm"', rest: str = "", *, top: str = "", node: str = "node-1") -> Library:
        text = f'[[node]]\nmatch = "*"\n{top}\n[[node.gpus]]\n{gpus}\n{rest}'
        made.append(Library(text, node, Times(), proc))
        pynvml.nvmlInit()
        return made[-1]

    yield make
    for library in reversed(made):
        library.fake.uninstall()
