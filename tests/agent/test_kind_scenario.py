"""The sample pods of tests/kind are found by the chart's own scenario: their very commands, as real processes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from gpumon.agent.fakenvml.identity import gpu_uuid
from tests.cluster import samples
from tests.processes import agent, free_port, server, until

SCENARIO = Path(__file__).parents[2] / "charts" / "gpumon" / "files" / "mock-scenario.toml"
NODE = "gpu-node-a"
UUIDS = [gpu_uuid(NODE, index) for index in range(2)]


@contextmanager
def container(name: str, uuid: str, load: int | None = None) -> Iterator[None]:
    """The process of a sample pod to which the kubelet has given a GPU."""
    if load is None:
        [manifest] = [one for one in samples.manifests("any", []) if one["metadata"]["name"] == name]
    else:
        manifest = samples.pod(name, "any", [], load=load)
    [spec] = samples.pod_spec(manifest)["containers"]
    process = subprocess.Popen(
        [*spec["command"], *spec["args"]], env=os.environ | {"NVIDIA_VISIBLE_DEVICES": uuid}
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def gpus(port: int) -> dict[str, tuple[float | None, int | None]]:
    """Utilization in percent and number of processes of each GPU, as the server has them."""
    found = httpx.get(f"http://127.0.0.1:{port}/api/gpus", timeout=10, trust_env=False).json()["data"]
    return {gpu["gpu_uuid"]: (gpu["utilization_gpu"], gpu["process_count"]) for gpu in found}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server with an agent that has the chart's scenario."""
    folder = tmp_path_factory.mktemp("kind")
    port, status = free_port(), free_port()
    with server(folder / "data", port) as its_server, agent(SCENARIO, folder / "spool", port, status) as its_agent:
        its_server.start()
        its_agent.start()
        until(lambda: len(gpus(port)) == len(UUIDS))
        yield port


@pytest.mark.parametrize(("name", "load"), samples.LOADS.items())
def test_a_sample_pods_process_loads_the_gpu_that_it_was_given_and_no_other(
    port: int, name: str, load: int
) -> None:
    until(lambda: gpus(port) == dict.fromkeys(UUIDS, (0, 0)))
    with container(name, UUIDS[1]):
        until(lambda: gpus(port) == {UUIDS[0]: (0, 0), UUIDS[1]: (load, 1)})
    until(lambda: gpus(port) == dict.fromkeys(UUIDS, (0, 0)))


def test_two_sample_pods_share_a_gpu(port: int) -> None:
    with ExitStack() as both:
        both.enter_context(container("shared-a", UUIDS[0], load=50))
        both.enter_context(container("shared-b", UUIDS[0], load=25))
        until(lambda: gpus(port) == {UUIDS[0]: (75, 2), UUIDS[1]: (0, 0)})
