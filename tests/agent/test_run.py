"""The agent as a whole: all stages wired, over a fake GPU library and a real HTTP server."""

from __future__ import annotations

import http.client
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpumon import clock
from gpumon.agent.assembly import Agent
from gpumon.agent.run import run
from gpumon.agent.settings import (
    AgentSettings,
    Authentication,
    GpuMetrics,
    Kubernetes,
    Monitoring,
    Network,
    Server,
    Spool,
    Status,
)
from gpumon.agent.surroundings import Simulated, Surroundings
from gpumon.errors import NvmlUnavailable, SettingsError
from gpumon.model.sample import GpuSample
from tests.agent.doors import PATIENCE_SECONDS, FakeLibrary, Hang, Receiver, gpu

OPEN_FILES = Path("/proc/self/fd")
HERE = Surroundings("node-1", "worker-1")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def settings(port: int, folder: Path, **sections: Any) -> AgentSettings:
    """Every tenth of a second a sample, each sample a batch; a server that is away is tried again at once."""
    given: dict[str, Any] = {
        "monitoring": Monitoring(interval_seconds=0.1, call_timeout=0.1),
        "server": Server(server_host="http://127.0.0.1", server_port=port, read_timeout=30.0),
        "network": Network(batch_size=1, retry_delay=0.01, retry_backoff=1.0),
        "spool": Spool(directory=str(folder)),
        "status": Status(port=0),
    }
    return AgentSettings(**(given | sections))


def get(agent: Agent, path: str) -> tuple[int, bytes]:
    assert agent.status.port is not None
    connection = http.client.HTTPConnection("127.0.0.1", agent.status.port, timeout=20)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def wait_for_posts(receiver: Receiver, count: int) -> None:
    for _ in range(count):
        assert receiver.arrived.acquire(timeout=PATIENCE_SECONDS)


def test_samples_reach_the_server_as_the_wire_format_says(receiver: Receiver, tmp_path: Path) -> None:
    agent = Agent(settings(receiver.port, tmp_path), FakeLibrary(gpu(0)), HERE)
    agent.start()
    wait_for_posts(receiver, 3)
    agent.stop()

    samples = [sample for post in receiver.posts for sample in post.samples]
    msgspec.convert(samples, list[GpuSample])
    assert {(s["client_name"], s["node"], s["gpu_uuid"], s["state"]) for s in samples} == {
        ("node-1", "worker-1", "GPU-0", "ok")
    }
    agents, boots, sequences = zip(*(each.split("/") for each in receiver.batch_ids()), strict=True)
    assert (set(agents), len(set(boots))) == ({"node-1"}, 1)
    assert [int(each) for each in sequences] == list(range(1, len(sequences) + 1))
    assert agent.counts.delivery.samples == agent.counts.sampler.samples == len(samples)


def test_what_a_stop_leaves_is_on_disk_and_the_next_run_sends_it_with_the_same_ids(
    receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answer = (503, {"Retry-After": "3600"}, b"{}")
    first = Agent(settings(receiver.port, tmp_path), FakeLibrary(gpu(0)), HERE)
    first.start()
    wait_for_posts(receiver, 1)
    with caplog.at_level(logging.INFO):
        first.stop()
    taken = first.counts.sampler.samples
    assert f"samples_sent=0 samples_spooled={taken} samples_dropped=0" in caplog.text
    assert len(list((tmp_path / "node-1").glob("*.batch"))) == taken >= 1

    receiver.answer = (200, {}, b'{"success": true}')
    second = Agent(settings(receiver.port, tmp_path), FakeLibrary(gpu(0)), HERE)
    second.start()
    wait_for_posts(receiver, taken + 1)
    second.stop()

    ids = receiver.batch_ids()[1:]
    boot = receiver.batch_ids()[0].split("/")[1]
    assert ids[:taken] == [f"node-1/{boot}/{sequence}" for sequence in range(1, taken + 1)]
    assert ids[taken].split("/")[1] != boot
    assert list((tmp_path / "node-1").glob("*.batch")) == []


def test_a_stop_sends_the_batch_that_is_being_filled(receiver: Receiver, tmp_path: Path) -> None:
    library = FakeLibrary(gpu(0))
    wanted = settings(receiver.port, tmp_path, network=Network(batch_size=1000, batch_interval=3600))
    agent = Agent(wanted, library, HERE)
    agent.start()
    for _ in range(2):  # at the second tick, the first one's sample waits in the batch
        assert library.asked.acquire(timeout=PATIENCE_SECONDS)
    agent.stop()

    (post,) = receiver.posts
    assert len(post.samples) == agent.counts.sampler.samples >= 1


def test_neither_a_request_nor_a_gpu_that_hangs_holds_up_the_stop(receiver: Receiver, tmp_path: Path) -> None:
    receiver.hold.clear()
    library = FakeLibrary(gpu(0), gpu(1))
    hang = library.answers[0] = Hang({})
    wanted = settings(receiver.port, tmp_path, network=Network(batch_size=1, shutdown_seconds=0.2, compress=False))
    agent = Agent(wanted, library, HERE)
    agent.start()
    wait_for_posts(receiver, 1)
    began = clock.monotonic()
    agent.stop()
    seconds = clock.monotonic() - began

    assert seconds < 10  # the request would take 20 s, the call into NVML for ever
    stored = [int(path.name.split("-")[1]) for path in (tmp_path / "node-1").glob("*.batch")]
    assert sum(stored) == agent.counts.sampler.samples
    assert json.loads(receiver.posts[0].body)[0]["gpu_id"] == 1
    hang.released.set()
    receiver.hold.set()
    for thread in threading.enumerate():
        if thread.name in {"gpu-0", "delivery"}:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()


def test_its_port_says_how_it_is(receiver: Receiver, tmp_path: Path) -> None:
    library = FakeLibrary(gpu(0))
    agent = Agent(settings(receiver.port, tmp_path), library, HERE, Simulated())
    agent.start()
    wait_for_posts(receiver, 2)
    try:
        assert get(agent, "/healthz")[0] == 200
        assert get(agent, "/readyz")[0] == 200
        status, metrics = get(agent, "/metrics")
    finally:
        agent.stop()
    assert status == 200
    assert b"gpumon_fake_nvml 1.0\n" in metrics
    assert b'gpumon_agent_gpus{state="ok"} 1.0\n' in metrics


def test_it_is_not_ready_while_there_is_no_nvml(receiver: Receiver, tmp_path: Path) -> None:
    library = FakeLibrary(gpu(0))
    library.open_error = NvmlUnavailable("no driver")
    agent = Agent(settings(receiver.port, tmp_path), library, HERE)
    agent.start()
    try:
        status, body = get(agent, "/readyz")
        assert status == 503
        assert json.loads(body)["reasons"][0].startswith("NVML: no")
        assert get(agent, "/healthz")[0] == 200
    finally:
        agent.stop()
    assert receiver.posts == []


@pytest.mark.skipif(not OPEN_FILES.exists(), reason="counts open files in /proc")
def test_fifty_starts_and_stops_leave_no_thread_and_no_file(receiver: Receiver, tmp_path: Path) -> None:
    agents = []  # kept, or the garbage collection would close what they forget

    def start_and_stop() -> None:
        agent = Agent(settings(receiver.port, tmp_path), FakeLibrary(gpu(0), gpu(1)), HERE)
        agents.append(agent)
        agent.start()
        wait_for_posts(receiver, 2)
        get(agent, "/metrics")
        agent.stop()

    start_and_stop()
    wait_until_requests_are_over()
    threads, files = set(threading.enumerate()), len(list(OPEN_FILES.iterdir()))
    for _ in range(50):
        start_and_stop()
    wait_until_requests_are_over()

    assert set(threading.enumerate()) <= threads
    assert len(list(OPEN_FILES.iterdir())) <= files


def wait_until_requests_are_over() -> None:
    """The receiver's and the status port's threads of single requests end by themselves."""
    for thread in threading.enumerate():
        if "process_request_thread" in thread.name:
            thread.join(PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("setting", "environ", "client", "node"),
    [
        ("lab", {"NODE_NAME": "worker-1"}, "lab", "worker-1"),
        ("", {"NODE_NAME": "worker-1"}, "worker-1", "worker-1"),
        ("lab", {}, "lab", None),
        ("", {"NODE_NAME": ""}, "this-host", None),
    ],
)
def test_a_client_is_called_by_its_setting_else_its_node_else_its_host(
    setting: str,
    environ: dict[str, str],
    client: str,
    node: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "this-host")
    found = Surroundings.look(AgentSettings(authentication=Authentication(client_name=setting)), environ)
    assert (found.client, found.node) == (client, node)


@pytest.mark.parametrize(
    ("socket", "environ", "in_pod", "kubernetes"),
    [
        ("pod-resources/kubelet.sock", {}, False, True),
        ("none/kubelet.sock", {}, False, False),
        ("", {}, False, False),
        ("", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, True, True),
    ],
)
def test_a_pod_is_known_by_its_environment_and_a_node_by_the_kubelets_folder(
    socket: str, environ: dict[str, str], in_pod: bool, kubernetes: bool, tmp_path: Path
) -> None:
    (tmp_path / "pod-resources").mkdir()
    wanted = Kubernetes(kubelet_socket=str(tmp_path / socket) if socket else "")
    found = Surroundings.look(AgentSettings(kubernetes=wanted), environ)
    assert (found.in_pod, found.kubernetes) == (in_pod, kubernetes)


SCENARIO = """
[[node]]
match = "worker-1"
[[node.gpus]]
model = "h100-sxm"
count = 2
"""


def test_simulated_gpus_go_the_whole_way_and_are_warned_about(
    receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(SCENARIO)
    wanted = settings(
        receiver.port,
        tmp_path / "spool",
        network=Network(batch_size=2),
        gpu_metrics=GpuMetrics(include_power=False),
        status=Status(port=-1),
    )
    stop = threading.Event()
    environ = {"NODE_NAME": "worker-1", "GPUMON_FAKE_NVML": str(scenario)}
    runner = threading.Thread(target=run, args=(wanted, stop.is_set, environ))
    with caplog.at_level(logging.INFO):
        runner.start()
        wait_for_posts(receiver, 2)
        stop.set()
        runner.join(PATIENCE_SECONDS)

    assert not runner.is_alive()
    samples = receiver.posts[0].samples
    assert sorted(sample["gpu_id"] for sample in samples) == [0, 1]
    assert all(sample["utilization_gpu"] is not None and "power_draw" not in sample for sample in samples)
    msgspec.convert(samples, list[GpuSample])
    assert "simulated" in caplog.text


def test_a_scenario_that_is_not_there_is_a_wrong_setting(tmp_path: Path) -> None:
    wanted = settings(1, tmp_path, monitoring=Monitoring(fake_nvml=str(tmp_path / "none.toml")))
    with pytest.raises(SettingsError):
        run(wanted, lambda: True, {})


@pytest.mark.parametrize(
    "host",
    [
        "http://",
        "https:///",
        "http://h/prefix",
        "http://h?x",
        "http://h?",
        "https://h#y",
        "http://h:8080",
        "http://user:cret@h/prefix",
        "http://user:cret@",
        "http://::1",
        "http://h h",
    ],
)
def test_a_server_host_with_more_than_scheme_and_host_is_a_wrong_setting(host: str, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(SettingsError, match=r"scheme and host only.*server_port.*api_endpoint") as raised:
        run(settings(5000, tmp_path, server=Server(server_host=host)), stop.is_set, {})

    assert "cret" not in str(raised.value)


@pytest.mark.parametrize("host", ["http://user:cret@127.0.0.1", "http://127.0.0.1/", "http://localhost"])
def test_a_server_host_may_have_a_password_or_a_slash_at_its_end(
    host: str, receiver: Receiver, tmp_path: Path
) -> None:
    server = Server(server_host=host, server_port=receiver.port)
    agent = Agent(settings(receiver.port, tmp_path, server=server), FakeLibrary(gpu(0)), HERE)
    agent.start()
    wait_for_posts(receiver, 1)
    agent.stop()

    assert receiver.posts[0].path == "/api/receive-data"
