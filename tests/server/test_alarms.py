"""What is due is called when it is due, by one thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from gpumon.server.alarms import Alarms


@pytest.fixture
def alarms() -> Iterator[Alarms]:
    made = Alarms()
    yield made
    made.close()


def test_what_is_due_is_called_once_also_where_something_later_is_waited_for(alarms: Alarms) -> None:
    called: list[str] = []
    done = threading.Event()
    now = time.monotonic()
    alarms.set(now + 60, lambda: called.append("much later"))
    alarms.set(now + 0.10, done.set)
    alarms.set(now + 0.05, lambda: called.append("sooner"))
    assert done.wait(10)
    assert time.monotonic() >= now + 0.10
    assert called == ["sooner"]


def test_what_is_cancelled_is_not_called(alarms: Alarms) -> None:
    called: list[str] = []
    done = threading.Event()
    now = time.monotonic()
    cancelled = alarms.set(now + 0.05, lambda: called.append("cancelled"))
    alarms.set(now + 0.10, done.set)
    alarms.cancel(cancelled)
    alarms.cancel(cancelled)
    assert done.wait(10)
    assert called == []


def test_its_thread_ends_with_it_and_does_not_come_back() -> None:
    alarms = Alarms()
    alarms.set(time.monotonic() + 60, lambda: None)
    thread = alarms._thread
    assert thread is not None
    assert thread.is_alive()
    alarms.close()
    thread.join(10)
    assert not thread.is_alive()
    alarms.set(time.monotonic() + 60, lambda: None)
    assert alarms._thread is thread
