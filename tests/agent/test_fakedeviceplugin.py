"""The fake device plugin, against a kubelet's device manager over real sockets."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pynvml
import pytest

from gpumon.agent import fakenvml
from gpumon.agent.fakedeviceplugin import Options, run
from gpumon.agent.fakedeviceplugin.devices import Device, preferred, uuids
from gpumon.agent.fakedeviceplugin.endpoint import RETRY_SECONDS, Endpoint
from gpumon.agent.fakedeviceplugin.messages import allocate_request, preferred_allocation_request
from gpumon.agent.protobuf import Malformed
from gpumon.errors import SettingsError
from tests.agent.devicemanager import DeviceManager, Registration
from tests.agent.doors import PATIENCE_SECONDS, Times
from tests.agent.kubelet import nested, number, text
from tests.processes import until

GPU = "nvidia.com/gpu"
TWO_H100 = """
[[node]]
match = "gpu-worker*"
[[node.gpus]]
model = "h100-sxm"
count = 2
"""
ONE_MORE = f'{TWO_H100}[[node.gpus]]\nmodel = "l4"\n'
SECOND_LOST = (
    f"{TWO_H100.replace('count = 2', '')}{TWO_H100.partition('[[node.gpus]]')[1]}\nmodel = 'l4'\nlost = true\n"
)
MIG = """
[[node]]
match = "*"
[[node.gpus]]
model = "h100-sxm"
[[node.gpus]]
model = "h100-sxm"
mig = ["1g.10gb", "", "3g.40gb", "1g.10gb"]
"""


class Node:
    """A node with the kubelet's directory, and a scenario that can be edited."""

    def __init__(self, folder: Path) -> None:
        self.directory = folder / "plugins"
        self.directory.mkdir()
        self.scenario = folder / "scenario.toml"
        self._edits = 0
        self.write(TWO_H100)

    def write(self, scenario: str) -> None:
        """Replaces the scenario in one step, as a ConfigMap is; each has another time of change."""
        new = self.scenario.with_suffix(".new")
        new.write_text(scenario)
        self._edits += 1
        os.utime(new, (1_800_000_000 + self._edits,) * 2)
        new.replace(self.scenario)

    @contextmanager
    def plugin(self, replicas: int = 1, resource: str = GPU) -> Iterator[None]:
        """The plugin, running in a thread."""
        stop = threading.Event()
        options = Options(self.scenario, "gpu-worker", self.directory, resource, replicas)
        thread = threading.Thread(target=run, args=(options, stop.is_set), name="plugin")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()

    def sockets(self) -> list[str]:
        """The sockets in the directory."""
        return sorted(path.name for path in self.directory.iterdir() if path.is_socket())

    def nvml_uuids(self) -> list[str]:
        """The UUIDs that the agent on this node sees."""
        fake = fakenvml.install(self.scenario, "gpu-worker")
        try:
            pynvml.nvmlInit()
            return [
                pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index))
                for index in range(pynvml.nvmlDeviceGetCount())
            ]
        finally:
            fake.uninstall()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def kubelet(node: Node) -> Iterator[DeviceManager]:
    with DeviceManager(node.directory) as kubelet:
        yield kubelet


def registered(kubelet: DeviceManager, *resources: str, count: int = 1) -> list[Registration]:
    """Waits until resources are registered so many times together, and have devices."""
    kubelet.wait(lambda: len(kubelet.registrations) >= count and kubelet.resources() >= set(resources))
    return list(kubelet.registrations)


def test_the_kubelet_is_offered_the_gpus_that_the_agent_sees(node: Node, kubelet: DeviceManager) -> None:
    with node.plugin():
        (registration,) = registered(kubelet, GPU)
        assert kubelet.health(GPU) == dict.fromkeys(node.nvml_uuids(), "Healthy")
        assert node.sockets() == ["gpumon-gpu.sock", "kubelet.sock"]
    assert (registration.version, registration.endpoint) == ("v1beta1", "gpumon-gpu.sock")
    assert registration.options == registration.asked_options == number(2, 1)


def test_a_container_finds_the_uuids_of_its_gpus_in_the_variable_of_nvidias_plugin(
    node: Node, kubelet: DeviceManager
) -> None:
    with node.plugin():
        registered(kubelet, GPU)
        first, second = kubelet.ids(GPU)
        assert kubelet.allocate(GPU, [second], [first, second]) == [
            {"NVIDIA_VISIBLE_DEVICES": second},
            {"NVIDIA_VISIBLE_DEVICES": f"{first},{second}"},
        ]
        assert kubelet.call(GPU, "PreStartContainer", text(1, first)) == b""


def test_what_can_not_be_given_is_refused_with_a_sentence(node: Node, kubelet: DeviceManager) -> None:
    with node.plugin():
        registered(kubelet, GPU)
        (first, second) = kubelet.ids(GPU)
        for ask in (
            lambda: kubelet.allocate(GPU, ["GPU-of-another-node"]),
            lambda: kubelet.call(GPU, "Allocate", b"\x0a\xff"),
            lambda: kubelet.prefer(GPU, [first, second], [], 3),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                ask()
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "simulated device plugin" in refused.value.details()
        assert kubelet.allocate(GPU, [first])


def test_replicas_have_ids_of_their_own_and_one_gpu_in_the_container(node: Node, kubelet: DeviceManager) -> None:
    with node.plugin(replicas=3):
        registered(kubelet, GPU)
        ids = kubelet.ids(GPU)
        first, second = node.nvml_uuids()
        assert ids == [f"{uuid}::{n}" for uuid in (first, second) for n in range(3)]
        assert kubelet.allocate(GPU, [ids[1], ids[2]]) == [{"NVIDIA_VISIBLE_DEVICES": first}]
        assert kubelet.prefer(GPU, ids[1:], [], 1) == [f"{second}::0"]


def test_a_split_gpu_is_a_resource_for_each_profile(node: Node, kubelet: DeviceManager) -> None:
    node.write(MIG)
    resources = ("nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb")
    with node.plugin(replicas=2):
        registered(kubelet, GPU, *resources, count=3)
        found = {resource: kubelet.ids(resource) for resource in kubelet.resources()}
        assert [len(found[resource]) for resource in (GPU, *resources)] == [2, 2, 1]
        assert {device_id[:4] for resource in resources for device_id in found[resource]} == {"MIG-"}
        (instance,) = found[resources[1]]
        assert kubelet.allocate(resources[1], [instance]) == [{"NVIDIA_VISIBLE_DEVICES": instance}]


def test_after_the_kubelets_restart_it_serves_a_new_socket_and_registers_again(
    node: Node, kubelet: DeviceManager
) -> None:
    with node.plugin():
        registered(kubelet, GPU)
        for _ in range(3):
            kubelet.stop()
            kubelet.start()
            registered(kubelet, GPU)
            assert kubelet.allocate(GPU, kubelet.ids(GPU)[:1])
    assert node.sockets() == ["kubelet.sock"]


def test_a_lost_gpu_is_unhealthy_until_it_is_back(node: Node, kubelet: DeviceManager) -> None:
    with node.plugin():
        registered(kubelet, GPU)
        first, second = kubelet.ids(GPU)
        node.write(SECOND_LOST)
        kubelet.wait(lambda: kubelet.health(GPU) == {first: "Healthy", second: "Unhealthy"})
        node.write(TWO_H100)
        kubelet.wait(lambda: kubelet.health(GPU) == {first: "Healthy", second: "Healthy"})
        assert len(kubelet.registrations) == 1


def test_an_edited_scenario_shows_at_once_and_a_wrong_one_changes_nothing(
    node: Node, kubelet: DeviceManager, caplog: pytest.LogCaptureFixture
) -> None:
    with node.plugin():
        registered(kubelet, GPU)
        before = kubelet.ids(GPU)
        node.write("[[node")
        until(lambda: "scenario_kept" in caplog.text)
        assert kubelet.ids(GPU) == before
        node.write(ONE_MORE)
        kubelet.wait(lambda: len(kubelet.ids(GPU)) == 3)
        assert kubelet.ids(GPU)[:2] == before
        node.write(MIG.replace('model = "h100-sxm"\n[[', 'model = "t4"\nmig = []\ncount = 1\n[['))
        kubelet.wait(lambda: "nvidia.com/mig-3g.40gb" in kubelet.resources() and len(kubelet.ids(GPU)) == 1)
        node.write(TWO_H100.replace("gpu-worker*", "another"))
        kubelet.wait(lambda: not kubelet.resources())
    assert "no GPUs for node gpu-worker" in caplog.text


def test_it_waits_for_a_kubelet_and_says_so_once(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), node.plugin():
        until(lambda: "kubelet.sock" in caplog.text)
        with DeviceManager(node.directory) as kubelet:
            registered(kubelet, GPU)
            until(lambda: "recovered kubelet" in caplog.text)
    assert caplog.text.count("trouble kubelet") == 1


def test_a_kubelet_that_refuses_is_asked_again_when_it_is_a_new_one(
    node: Node, kubelet: DeviceManager, caplog: pytest.LogCaptureFixture
) -> None:
    kubelet.refuse = "the API version is not supported"
    with node.plugin():
        until(lambda: "the kubelet refuses: the API version is not supported" in caplog.text)
        kubelet.stop()
        kubelet.refuse = None
        kubelet.start()
        registered(kubelet, GPU)


def test_a_kubelet_that_does_not_watch_any_more_is_registered_with_again(
    node: Node, kubelet: DeviceManager, caplog: pytest.LogCaptureFixture
) -> None:
    times = Times()
    devices = (Device("GPU-1", healthy=True),)

    async def keep_until(endpoint: Endpoint, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not done():
                await endpoint.keep(devices, (1, 2, 3))
                await asyncio.sleep(0.01)

    async def live() -> None:
        endpoint = Endpoint(GPU, node.directory / "kubelet.sock", monotonic=times.monotonic)
        await keep_until(endpoint, lambda: kubelet.ids(GPU) == ["GPU-1"])
        kubelet.leave(GPU)
        await keep_until(endpoint, lambda: not endpoint._service.watchers)
        for _ in range(3):
            await endpoint.keep(devices, (1, 2, 3))
        assert len(kubelet.registrations) == 1, "it waits first"
        times.seconds += RETRY_SECONDS
        await keep_until(endpoint, lambda: len(kubelet.registrations) == 2 and kubelet.ids(GPU) == ["GPU-1"])
        await keep_until(endpoint, lambda: endpoint._trouble.reason is None)
        await endpoint.close()

    asyncio.run(live())
    assert "does not watch it any more" in caplog.text


@pytest.mark.parametrize("name", ["nvidia-gpu.sock", "nvidiaGPU-1764150000.sock"])
def test_a_real_plugin_beside_it_is_warned_of(
    name: str, node: Node, kubelet: DeviceManager, caplog: pytest.LogCaptureFixture
) -> None:
    (node.directory / name).touch()
    with caplog.at_level(logging.INFO), node.plugin():
        registered(kubelet, GPU)
        until(lambda: f"has a socket here: {name}" in caplog.text)
        (node.directory / name).unlink()
        until(lambda: "recovered foreign_plugin" in caplog.text)
    assert caplog.text.count("has a socket here") == 2, "when it began, and when it ended"


def test_a_directory_that_can_not_be_written_to_is_trouble(
    node: Node, kubelet: DeviceManager, caplog: pytest.LogCaptureFixture
) -> None:
    (node.directory / "gpumon-gpu.sock").mkdir()
    with node.plugin():
        until(lambda: "trouble register resource=nvidia.com/gpu" in caplog.text)
        assert "mount the node's" in caplog.text


@pytest.mark.parametrize("resource", ["gpu", "nvidia.com/", "NVIDIA.com/gpu", "nvidia.com/gpu/x", "a b/c"])
def test_a_resource_name_that_no_kubelet_takes_is_a_wrong_setting(resource: str, node: Node) -> None:
    with pytest.raises(SettingsError, match=r"--resource .*like nvidia\.com/gpu"):
        run(Options(node.scenario, "gpu-worker", node.directory, resource), lambda: True)


def test_a_wrong_scenario_is_a_wrong_setting(node: Node) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml"):
        run(Options(node.scenario.with_name("none.toml"), "gpu-worker", node.directory), lambda: True)


@pytest.fixture
def command(node: Node) -> Iterator[subprocess.Popen[str]]:
    environ = os.environ | {"NODE_NAME": "gpu-worker", "GPUMON_FAKE_NVML": str(node.scenario)}
    arguments = ["fake-device-plugin", "--directory", str(node.directory), "--resource", "example.com/gpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gpumon", *arguments], env=environ, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_the_command_offers_what_its_options_say_and_sigterm_ends_it_in_order(
    node: Node, kubelet: DeviceManager, command: subprocess.Popen[str]
) -> None:
    registered(kubelet, "example.com/gpu")
    assert kubelet.ids("example.com/gpu") == node.nvml_uuids()
    command.send_signal(signal.SIGTERM)
    _, log = command.communicate(timeout=PATIENCE_SECONDS)
    assert command.returncode == 0
    assert node.sockets() == ["kubelet.sock"]
    kubelet.wait(lambda: not kubelet.resources())
    assert kubelet.broken == []
    assert "registered resource=example.com/gpu devices=2" in log
    assert log.rstrip().endswith("fake_device_plugin_stopped")
    assert "Traceback" not in log and "ERROR" not in log


def test_without_its_packages_the_command_says_what_to_install(node: Node) -> None:
    hidden = node.scenario.with_name("hidden")
    hidden.mkdir()
    (hidden / "grpclib.py").write_text("raise ModuleNotFoundError('No module named grpclib', name='grpclib')")
    ended = subprocess.run(
        [sys.executable, "-m", "gpumon", "fake-device-plugin", "--scenario", str(node.scenario)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(hidden), *sys.path])},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr == ("gpumon: the package grpclib is missing; install it by: pip install 'gpumon[mock]'\n")


@pytest.mark.parametrize(
    ("available", "must", "size", "chosen"),
    [
        (["a", "b", "c"], [], 2, ("a", "b")),
        (["a", "b", "c"], ["c"], 2, ("c", "a")),
        (["a::0", "a::1", "b::0", "b::1"], [], 3, ("a::0", "b::0", "a::1")),
        (["a::1", "b::0", "b::1"], [], 1, ("b::0",)),
        (["a::0", "a::1", "b::0", "b::1"], ["a::0"], 2, ("a::0", "b::0")),
    ],
)
def test_preferred_are_those_that_must_be_then_the_gpus_that_are_least_given_out(
    available: list[str], must: list[str], size: int, chosen: tuple[str, ...]
) -> None:
    assert preferred(available, must, size) == chosen


@pytest.mark.parametrize(("must", "size"), [([], 3), (["a", "b"], 1), (["x"], 4)])
def test_a_preference_that_can_not_be_had_is_an_error(must: list[str], size: int) -> None:
    with pytest.raises(ValueError, match="devices"):
        preferred(["a", "b"], must, size)


def test_two_replicas_of_one_gpu_are_one_uuid() -> None:
    assert uuids(["GPU-a::1", "GPU-b", "GPU-a::0"]) == ("GPU-a", "GPU-b")


def test_requests_of_several_containers_and_of_newer_kubelets_are_read() -> None:
    more = number(9, 300) + nested(10, b"news")
    assert allocate_request(nested(1, text(1, "a") + more + text(1, "b")) + more + nested(1, b"")) == [
        ("a", "b"),
        (),
    ]
    (wanted,) = preferred_allocation_request(
        nested(1, number(3, 300) + text(2, "b") + text(1, "a") + text(1, "b") + more)
    )
    assert (wanted.available, wanted.must, wanted.size) == (("a", "b"), ("b",), 300)


@pytest.mark.parametrize("broken", [number(1, 5), b"\x0a\x05", b"\x00", nested(1, text(3, "\x08\x01"))])
def test_requests_that_are_none_are_malformed(broken: bytes) -> None:
    with pytest.raises(Malformed):
        preferred_allocation_request(broken)
