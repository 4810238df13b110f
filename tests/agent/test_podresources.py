"""The door to the kubelet, asked over its real protocol: what it answers, and what each trouble says to do."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from gpumon.agent.podresources import KubeletPodResources
from gpumon.agent.ports import ClaimedDevice, ContainerDevices
from gpumon.errors import KubeletUnavailable
from tests.agent.kubelet import ALLOCATABLE, LIST, Kubelet, holds, nested, text
from tests.agent.oddkubelet import Call, OddKubelet, frame

GPU = "nvidia.com/gpu"
LARGEST_BYTES = 16 * 1024 * 1024
Door = KubeletPodResources


@pytest.fixture
def at(tmp_path: Path) -> Path:
    """Where the kubelet's socket is."""
    return tmp_path / "kubelet.sock"


@pytest.fixture
def kubelet(at: Path) -> Iterator[Kubelet]:
    with Kubelet(at) as kubelet:
        yield kubelet


@pytest.fixture
def door(at: Path) -> Iterator[Door]:
    with opened(at) as door:
        yield door


def opened(at: Path, **settings: Any) -> closing[Door]:
    return closing(Door(at, **({"timeout_seconds": 5.0} | settings)))


def trouble(door: Door, ask: Callable[[Door], object] = Door.list_containers) -> str:
    """What the door says when it is asked in vain, after the socket's name: a reason and what to do."""
    with pytest.raises(KubeletUnavailable) as caught:
        ask(door)
    sentence = str(caught.value)
    name, _, rest = sentence.partition(": ")
    assert name.endswith(".sock")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return rest


def test_the_kubelet_tells_which_container_holds_what(kubelet: Kubelet, door: Door) -> None:
    kubelet.containers = [
        ContainerDevices("ml", "train-0", "main", {GPU: ("GPU-a", "GPU-b"), "rdma/ib": ("ib0",)}),
        ContainerDevices("ml", "train-0", "side", {"nvidia.com/mig-1g.10gb": ("MIG-a",)}),
        ContainerDevices("web", "serve", "main", {}, (ClaimedDevice("gpu.nvidia.com", "node-1", "gpu-0"),)),
    ]

    assert door.list_containers() == kubelet.containers


def test_a_container_without_a_device_is_left_out(kubelet: Kubelet, door: Door) -> None:
    kubelet.containers = [ContainerDevices("web", "serve", "main", {}), holds("train", GPU, "GPU-a")]

    assert door.list_containers() == [holds("train", GPU, "GPU-a")]


def test_the_kubelet_tells_what_it_could_give_out(kubelet: Kubelet, door: Door) -> None:
    kubelet.allocatable = {GPU: ("GPU-a", "GPU-b"), "rdma/ib": ("ib0",)}

    assert door.list_allocatable() == {GPU: {"GPU-a", "GPU-b"}, "rdma/ib": {"ib0"}}


def test_a_node_of_a_thousand_containers_is_one_call(kubelet: Kubelet, door: Door) -> None:
    kubelet.containers = [holds(f"pod-{index}", GPU, f"GPU-{index}", "x" * 200) for index in range(1000)]

    assert door.list_containers() == kubelet.containers
    assert kubelet.calls == {LIST: 1}


def test_a_kubelet_without_the_call_for_allocatable_devices_tells_none(kubelet: Kubelet, door: Door) -> None:
    kubelet.allocatable = None

    assert door.list_allocatable() is None
    assert kubelet.calls == {ALLOCATABLE: 1}


def test_a_kubelet_whose_feature_gate_for_that_call_is_off_tells_none(kubelet: Kubelet, door: Door) -> None:
    kubelet.fail_with(grpc.StatusCode.UNKNOWN, "Pod Resources API GetAllocatableResources disabled")

    assert door.list_allocatable() is None
    assert "answers UNKNOWN (Pod Resources API" in trouble(door)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "the kubelet answers RESOURCE_EXHAUSTED (why): it takes 100 calls"),
        (grpc.StatusCode.UNKNOWN, "the kubelet answers UNKNOWN (why): see the kubelet's log."),
        (grpc.StatusCode.INTERNAL, "the kubelet answers INTERNAL (why): see the kubelet's log."),
    ],
)
def test_a_status_that_is_not_ok_is_named_with_the_kubelets_words(
    kubelet: Kubelet, door: Door, status: grpc.StatusCode, reason: str
) -> None:
    kubelet.fail_with(status, "why")

    assert trouble(door).startswith(reason)
    assert trouble(door, Door.list_allocatable).startswith(reason)


def test_a_kubelet_that_is_too_old_is_told_by_the_version_it_needs(kubelet: Kubelet, door: Door) -> None:
    kubelet.fail_with(grpc.StatusCode.UNIMPLEMENTED, "unknown service v1.PodResourcesLister")

    assert trouble(door) == (
        "the kubelet answers UNIMPLEMENTED (unknown service v1.PodResourcesLister): "
        "the agent needs a kubelet of Kubernetes 1.20 or newer."
    )


def test_the_kubelets_words_are_one_line_of_any_language_and_not_too_long(kubelet: Kubelet, door: Door) -> None:
    kubelet.fail_with(grpc.StatusCode.INTERNAL, "für\r\n\tdie 100%25 " + "x" * 10_000)

    assert "(für die 100%25 " + "x" * 185 + ")" in trouble(door)


@pytest.mark.parametrize(("status", "name"), [("16", "UNAUTHENTICATED"), ("99", "status 99"), ("²", "UNKNOWN")])
def test_a_status_that_grpc_does_not_know_is_said_as_it_is(at: Path, door: Door, status: str, name: str) -> None:
    with OddKubelet(at, lambda call: call.headers(grpc_status=status, end=True)):
        assert trouble(door) == f"the kubelet answers {name}: see the kubelet's log."
        door.close()


def test_a_status_that_is_not_ok_is_believed_whatever_comes_with_it(at: Path, door: Door) -> None:
    with OddKubelet(at, lambda call: call.headers(grpc_status="13").data(b"xxxxxxxx").end()):
        assert trouble(door) == "the kubelet answers INTERNAL: see the kubelet's log."
        door.close()


def test_the_first_question_connects_and_the_connection_is_kept(at: Path) -> None:
    with OddKubelet(at, well) as kubelet, opened(at) as door:
        assert kubelet.connections == 0
        for _ in range(20):
            assert door.list_containers() == []

        assert (kubelet.connections, kubelet.calls) == (1, 20)


def test_a_status_that_is_not_ok_leaves_the_connection_as_it_is(at: Path) -> None:
    with OddKubelet(at, lambda call: call.headers(grpc_status="8", end=True)) as kubelet, opened(at) as door:
        assert [trouble(door), trouble(door)] == [trouble(door)] * 2

        assert (kubelet.connections, kubelet.calls) == (1, 3)


def test_a_closed_door_connects_anew_when_it_is_asked(at: Path) -> None:
    with OddKubelet(at, well) as kubelet, opened(at) as door:
        door.close()
        door.list_containers()
        door.close()
        door.close()
        door.list_containers()

        assert kubelet.connections == 2


def test_a_kubelet_that_restarted_is_asked_again_at_once(kubelet: Kubelet, door: Door) -> None:
    kubelet.containers = [holds("train", GPU, "GPU-a")]
    door.list_containers()

    kubelet.stop()
    kubelet.start()

    assert door.list_containers() == kubelet.containers
    assert kubelet.calls == {LIST: 2}


def test_while_the_kubelet_is_away_its_socket_is_and_then_all_is_well_again(kubelet: Kubelet, door: Door) -> None:
    door.list_containers()
    kubelet.stop()

    assert trouble(door).startswith("there is no such socket: mount <kubelet root>/pod-resources")
    assert trouble(door).startswith("there is no such socket")

    kubelet.start()
    assert door.list_containers() == []


def test_a_dead_connection_is_made_anew_once_and_no_more(at: Path) -> None:
    with OddKubelet(at, well) as kubelet, opened(at) as door:
        door.list_containers()
        kubelet.answer = Call.hang_up

        assert trouble(door).startswith(
            "the kubelet hangs up without an answer: see the kubelet's log, or whether"
        )
        assert (kubelet.connections, kubelet.calls) == (2, 3)
        trouble(door)
        assert (kubelet.connections, kubelet.calls) == (3, 4)


def test_a_connection_that_dies_in_the_middle_of_an_answer_is_made_anew_once(at: Path) -> None:
    def break_off(call: Call) -> None:
        kubelet.answer = well
        call.headers().data(frame(b"\x0a\x00")[:3]).hang_up()

    with OddKubelet(at, well) as kubelet, opened(at) as door:
        door.list_containers()
        kubelet.answer = break_off

        assert door.list_containers() == []
        assert kubelet.calls == 3


def test_a_kubelet_that_hangs_is_not_waited_for_any_longer(kubelet: Kubelet, at: Path) -> None:
    with opened(at, timeout_seconds=0.2) as door:
        door.list_containers()
        kubelet.hang = True
        assert trouble(door) == (
            "no complete answer within 0.2 s: see whether the kubelet hangs, or raise [KUBERNETES] "
            "kubelet_timeout."
        )
        assert kubelet.calls == {LIST: 2}  # a kubelet that hangs is not asked twice

        kubelet.hang = False
    with opened(at) as door:
        assert door.list_containers() == []


def test_after_an_answer_that_came_too_late_the_next_one_is_the_right_one(kubelet: Kubelet, at: Path) -> None:
    kubelet.hang = True
    with opened(at, timeout_seconds=0.5) as door:
        trouble(door)
        kubelet.hang = False
        kubelet.containers = [holds("train", GPU, "GPU-a")]
        for _ in range(3):
            assert door.list_containers() == kubelet.containers


DRIPS = 2000
"""Far more than fit into the buffers between the two: whoever waits for the last one has read very often."""


def drip_body(call: Call) -> Iterator[Callable[[], object]]:
    call.headers().data(frame(bytes(DRIPS))[:5])
    while True:
        yield lambda: call.data(b"\x0a")


def drip_pings(call: Call) -> Iterator[Callable[[], object]]:
    while True:
        yield call.ping


def drip_pings_after_the_answer(call: Call) -> Iterator[Callable[[], object]]:
    call.headers().data(frame(b""))
    while True:
        yield call.ping


def drip_body_after_a_status(call: Call) -> Iterator[Callable[[], object]]:
    call.headers(grpc_status="13")
    while True:
        yield lambda: call.data(b"x")


@pytest.mark.parametrize(
    "drips",
    [drip_body, drip_pings, drip_pings_after_the_answer, drip_body_after_a_status, Call.headers_in_bytes],
)
def test_a_kubelet_that_drips_has_no_more_time_than_one_that_hangs(
    at: Path, drips: Callable[[Call], Iterator[Callable[[], object]]]
) -> None:
    seconds = itertools.count()  # each time that the door looks at the clock, another one has passed

    def drip(call: Call) -> None:
        call.buffer_little()
        for _, step in zip(range(DRIPS), drips(call), strict=False):
            step()
        call.hang_up()

    with OddKubelet(at, drip), opened(at, timeout_seconds=30.0, monotonic=lambda: next(seconds)) as door:
        assert trouble(door).startswith("no complete answer within 30 s: ")


ODD = {
    "no message": (lambda call: call.headers().end(), "it is empty"),
    "no message and no word": (lambda call: call.headers(end=True), "it is empty"),
    "a frame's beginning": (lambda call: call.headers().data(b"\0\0").end(), "it is broken off"),
    "half a message": (lambda call: call.headers().data(frame(bytes(99))[:50]).end(), "it is broken off"),
    "two messages": (lambda call: call.headers().data(frame(b"") * 2).end(), "it is more than one message"),
    "compressed": (
        lambda call: call.headers().data(b"\x01\0\0\0\x02\x78\x9c").end(),
        "it is compressed, though that was not offered",
    ),
    "another page": (
        lambda call: call.headers(404, content_type="text/html").data(b"<html>").end(),
        "it is HTTP 404 of type 'text/html'",
    ),
    "another type": (
        lambda call: call.headers(content_type="text/html").data(frame(b"")).end(),
        "it is HTTP 200 of type 'text/html'",
    ),
    "another status": (lambda call: call.headers(502).data(frame(b"")).end(), "it is HTTP 502 of type"),
    "too long, and it never ends": (
        lambda call: call.headers().data(b"\0" + (LARGEST_BYTES + 1).to_bytes(4, "big")),
        "it is longer than 16 MiB",
    ),
}


@pytest.mark.parametrize(("answer", "reason"), ODD.values(), ids=ODD)
def test_an_answer_that_breaks_the_rules_is_no_answer(
    at: Path, answer: Callable[[Call], object], reason: str
) -> None:
    with OddKubelet(at, answer) as kubelet, opened(at) as door:
        said = trouble(door)
        assert said.startswith(f"the answer can't be used ({reason}")
        assert said.endswith(": see whether [KUBERNETES] kubelet_socket names the kubelet's socket.")

        kubelet.answer = well
        assert door.list_containers() == []
        assert kubelet.calls == 2


def nonsense_in_the_middle(call: Call) -> None:
    """Of a message longer than what is read at once."""
    call.headers().data(frame(bytes(1 << 20))[:10_000])
    for _ in range(10):
        call.data(bytes(10_000))
    call.nonsense()


@pytest.mark.parametrize(
    "answer",
    [Call.nonsense, nonsense_in_the_middle, lambda call: call.headers("fine", end=True)],
    ids=["before the answer", "in its middle", "in its status"],
)
def test_an_answer_that_is_no_http_is_no_answer(at: Path, answer: Callable[[Call], object]) -> None:
    with OddKubelet(at, answer) as kubelet, opened(at) as door:
        assert trouble(door).startswith("what answers there does not speak gRPC: see whether")

        kubelet.answer = well
        assert door.list_containers() == []


def test_a_call_that_is_reset_has_no_answer(at: Path) -> None:
    with OddKubelet(at, Call.reset), opened(at) as door:
        assert trouble(door).startswith("the kubelet hangs up without an answer")


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "the kubelet hangs up without an answer: see the kubelet's log, or whether",
        ),
        (b"\0" * 64, "what answers there does not speak gRPC: see whether"),
    ],
)
def test_something_else_on_the_socket_is_told_from_a_kubelet(at: Path, greeting: bytes, reason: str) -> None:
    with OddKubelet(at, well, greeting=greeting), opened(at) as door:
        assert trouble(door).startswith(reason)


@pytest.mark.parametrize(
    ("message", "why"),
    [(b"\x0a\x05abcd", "it ends too early"), (b"\x08\x01", "field 1 is of another type"), (b"\x7f", "no type")],
)
def test_a_message_that_is_no_protobuf_is_no_answer(
    kubelet: Kubelet, door: Door, message: bytes, why: str
) -> None:
    kubelet.message = message

    for ask in (Door.list_containers, Door.list_allocatable):
        assert why in trouble(door, ask)


def test_a_message_of_sixteen_mebibytes_is_taken_and_one_byte_more_is_not(kubelet: Kubelet, door: Door) -> None:
    pod = nested(1, text(1, "train") + nested(3, nested(2, text(1, GPU) + text(2, "GPU-a"))))
    more = nested(9, bytes(LARGEST_BYTES - len(pod) - 5))
    kubelet.message = pod + more
    assert len(kubelet.message) == LARGEST_BYTES

    assert [each.pod for each in door.list_containers()] == ["train"]

    kubelet.message += b"\0"
    assert trouble(door).startswith("the answer can't be used (it is longer than 16 MiB): ")


def test_a_socket_that_nobody_listens_on_is_a_kubelet_that_does_not_run(at: Path, door: Door) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(at))

    assert trouble(door).startswith(
        "nobody listens there: see whether the kubelet runs; if it does, mount the dir"
    )


def test_a_socket_in_a_folder_that_is_none_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with opened(tmp_path / "file" / "kubelet.sock") as door:
        assert trouble(door).startswith("there is no such socket")


def test_a_name_that_no_socket_can_have_is_said_to_be(tmp_path: Path) -> None:
    with opened(tmp_path / ("x" * 200 + ".sock")) as door:
        assert trouble(door).startswith("AF_UNIX path too long: see ")


def test_a_kubelet_that_takes_no_connections_any_more_hangs(at: Path, door: Door) -> None:
    with socket.socket(socket.AF_UNIX) as listening, ExitStack() as waiting:
        listening.bind(str(at))
        listening.listen(0)
        with pytest.raises(BlockingIOError):
            while True:
                client = waiting.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(at))

        assert trouble(door) == ("so many wait there already that no more can: see whether the kubelet hangs.")


@contextmanager
def nobody() -> Iterator[None]:
    """As a user without rights, whoever runs the tests."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_an_agent_without_the_right_to_the_directory_is_told_which_it_needs(
    tmp_path: Path, kubelet: Kubelet, door: Door
) -> None:
    tmp_path.chmod(0)
    try:
        with nobody():
            assert trouble(door).startswith("permission denied: the agent needs uid 0, for the directory is 0750 ")
    finally:
        tmp_path.chmod(0o700)
    assert door.list_containers() == []


def test_the_cause_of_the_trouble_is_kept(at: Path, door: Door) -> None:
    with pytest.raises(KubeletUnavailable) as caught:
        door.list_containers()

    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert str(caught.value).startswith(f"{at}: ")


def well(call: Call) -> None:
    """An answer without any container."""
    call.headers().data(frame(b"")).end()
