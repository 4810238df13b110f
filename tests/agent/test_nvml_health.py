"""Xid errors that leave a GPU unfit, as the door tells them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gpumon.agent.nvml import GROUPS
from gpumon.agent.nvml.events import UNFIT
from gpumon.errors import GpuLost
from gpumon.model.fields import BY_NAME
from tests.agent.nvmlnode import Node, answering, simulated
from tests.processes import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NVML has events on Linux only")
WAIT = "nvmlEventSetWait_v2"


@pytest.fixture
def nodes() -> Iterator[Callable[..., Node]]:
    with simulated() as make:
        yield make


def event(at: float, xid: int, gpu: int = 0) -> str:
    return f"\n[[node.events]]\nat = {at}\nxid = {xid}\ngpu = {gpu}\n"


def watching(node: Node) -> Node:
    """Opens a node and waits until its GPUs are watched: an Xid from before is none of theirs."""
    node.open()
    until(lambda: node.fake.calls[WAIT])
    return node


def unhealthy(node: Node, gpu: int = 0) -> Any:
    return node.nvml.read(node.gpus[gpu]).get("unhealthy")


@pytest.mark.parametrize("xid", [48, 95, 119])
def test_a_gpu_that_needs_a_reset_says_so_with_the_xid_and_the_others_do_not(
    nodes: Callable[..., Node], xid: int, caplog: pytest.LogCaptureFixture
) -> None:
    node = watching(nodes("model = 'l4'\ncount = 2" + event(5, xid, gpu=1)))
    assert unhealthy(node, 1) is None
    node.times.seconds = 6
    assert until(lambda: unhealthy(node, 1)) == f"xid {xid}"
    assert unhealthy(node, 0) is None
    assert f"gpu_unfit uuid={node.gpus[1].uuid} xid={xid} reason=" in caplog.text


def test_what_an_application_did_is_none_of_the_gpus_health(nodes: Callable[..., Node]) -> None:
    applications = "".join(event(2 + n / 10, xid) for n, xid in enumerate((13, 31, 43, 45, 68, 109, 94, 63)))
    node = watching(nodes("model = 'l4'" + applications + event(4, 62)))
    node.times.seconds = 5
    assert until(lambda: unhealthy(node)) == "xid 62"  # they came before


def test_the_first_xid_stays_named(nodes: Callable[..., Node]) -> None:
    node = watching(nodes("model = 'l4'\ncount = 2" + event(2, 48) + event(3, 95) + event(4, 46, gpu=1)))
    node.times.seconds = 5
    assert until(lambda: unhealthy(node, 1)) == "xid 46"
    assert unhealthy(node) == "xid 48"


def test_after_a_gpu_fell_off_the_bus_those_beside_it_are_watched_on_without_haste(
    nodes: Callable[..., Node],
) -> None:
    node = watching(nodes("model = 'l4'\ncount = 2" + event(2, 79) + event(100, 62, gpu=1)))
    node.times.seconds = 3
    until(lambda: node.fake.calls["nvmlEventSetFree"])
    made = node.fake.calls["nvmlEventSetCreate"]
    until(lambda: node.fake.calls["nvmlEventSetCreate"] > made)
    until(lambda: node.fake.calls[WAIT] > 3)
    assert node.fake.calls["nvmlEventSetCreate"] == 2
    assert node.fake.calls["nvmlDeviceRegisterEvents"] == 2 + 1
    with pytest.raises(GpuLost):
        node.nvml.read(node.gpus[0])
    node.times.seconds = 101
    assert until(lambda: unhealthy(node, 1)) == "xid 62"


def test_a_gpu_that_is_found_again_is_healthy_and_watched_anew(nodes: Callable[..., Node]) -> None:
    node = watching(nodes("model = 'l4'" + event(2, 48) + event(200, 95)))
    node.times.seconds = 3
    until(lambda: unhealthy(node))
    sets = node.fake.calls["nvmlEventSetCreate"]
    assert node.nvml.find_again(node.gpus[0])
    assert unhealthy(node) is None
    until(lambda: node.fake.calls["nvmlDeviceRegisterEvents"] == sets + 1)
    node.times.seconds = 201
    assert until(lambda: unhealthy(node)) == "xid 95"


def test_opening_anew_forgets_and_opening_once_more_does_not(nodes: Callable[..., Node]) -> None:
    node = watching(nodes("model = 'l4'" + event(2, 48)))
    node.times.seconds = 3
    until(lambda: unhealthy(node))
    node.open()
    assert unhealthy(node) == "xid 48"
    node.nvml.close()
    node.open()
    assert unhealthy(node) is None


def test_a_gpu_that_has_another_handle_when_the_library_is_opened_once_more_is_healthy(
    nodes: Callable[..., Node],
) -> None:
    node = watching(nodes("model = 'l4'\nlost = { from = 3, to = 5 }" + event(2, 48)))
    node.times.seconds = 2.5
    until(lambda: unhealthy(node))
    node.times.seconds = 4
    with pytest.raises(GpuLost):
        node.nvml.read(node.gpus[0])
    node.times.seconds = 6
    node.open()
    assert unhealthy(node) is None


def test_closing_ends_the_watch_before_the_library_and_frees_its_set(nodes: Callable[..., Node]) -> None:
    node = watching(nodes("model = 'l4'"))
    node.nvml.close()
    calls = node.fake.calls
    assert calls["nvmlEventSetCreate"] == calls["nvmlEventSetFree"] == 1
    waited = calls[WAIT]
    node.open()
    until(lambda: node.fake.calls[WAIT] > waited)


def test_closing_ends_earlier_watches_too(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'l4'")
    watches: list[int] = []

    def first_is_slow(*_: Any) -> None:
        watches.append(threading.get_ident())
        if watches[0] == watches[-1]:
            time.sleep(0.5)

    answering(node, WAIT, first_is_slow)
    node.open()
    until(lambda: watches)
    node.open()  # another watch, while the first is in its last wait
    node.nvml.close()
    calls = node.fake.calls
    assert calls["nvmlEventSetCreate"] == calls["nvmlEventSetFree"]
    assert "nvml-xids" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("call", ["nvmlEventSetCreate", "nvmlDeviceRegisterEvents"])
def test_a_library_without_events_is_left_alone(nodes: Callable[..., Node], call: str) -> None:
    node = nodes("model = 'l4'", f"missing_calls = ['{call}']").open()
    until(lambda: "nvml-xids" not in {thread.name for thread in threading.enumerate()})
    assert unhealthy(node) is None
    assert node.fake.calls[WAIT] == 0


def test_without_the_group_nobody_watches(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'l4'", groups=GROUPS - {"health"}).open()
    node.read()
    assert node.fake.calls["nvmlEventSetCreate"] == 0


def test_the_field_is_in_the_catalogue_and_every_xid_says_what_to_do() -> None:
    assert "unhealthy" in BY_NAME
    assert all(reason.endswith(("reset it", "reset the GPU", "restart the node")) for reason in UNFIT.values())
