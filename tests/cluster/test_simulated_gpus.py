"""On a cluster without GPUs: simulated ones, really given out by the kubelet, and what gpumon tells of them."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from tests.cluster import plan, samples
from tests.cluster.answers import holders, samples_since
from tests.cluster.cluster import Forward, Json, NotYet, until
from tests.cluster.release import ready_pods
from tests.cluster.site import Site

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

_START_SECONDS = 180
_SHOWN_SECONDS = 120
_GPUS_A_NODE = 2
_NEAR_PERCENT = 4
_REPLICAS = 2
_SHARED = {"shared-a": 50, "shared-b": 25, "shared-c": 50, "shared-d": 25}
_PRINT_SAMPLES = """
import csv, glob, gzip
for path in glob.glob("/data/*.csv*"):
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", newline="") as lines:
        for row in csv.DictReader(lines):
            if "utilization_gpu" in row:
                print(row["gpu_uuid"], row["sampled_at"], sep=",")
"""


def gpus_offered(site: Site, each: int) -> list[str]:
    """The nodes of the fake device plugin, each of whose kubelets offers so many GPUs. Raises NotYet."""
    offering = {pod["spec"]["nodeName"] for pod in site.release.pods("fake-device-plugin")}
    offered = {
        node["metadata"]["name"]: plan.allocatable(node)
        for node in site.cluster.get("nodes")
        if node["metadata"]["name"] in offering
    }
    if not offered or set(offered.values()) != {each}:
        raise NotYet(f"nodes offer {offered}, wanted {each} each")
    return sorted(offered)


def sample_pods(site: Site, number: int) -> list[Json]:
    """So many sample pods, all that are ready. Raises NotYet."""
    found = site.cluster.get("pods", namespace=site.samples, selector=samples.SELECTOR)
    wanted = [pod for pod in found if pod["metadata"]["name"] != samples.NEVER_RUNS]
    return list(ready_pods([pod for pod in wanted if "deletionTimestamp" not in pod["metadata"]], number))


def variable(site: Site, pod: Json) -> str:
    """The UUID that the device plugin gave to a sample pod, as its container says."""
    name = pod["metadata"]["name"]
    said = site.cluster.kubectl("exec", name, "--", "printenv", "NVIDIA_VISIBLE_DEVICES", namespace=site.samples)
    return said.strip()


def shown(server: Forward, site: Site, pods: list[Json], loads: dict[str, int]) -> dict[str, Json]:
    """What the server says of the sample pods, by name: exactly these hold GPUs, each with its load. Raises
    NotYet."""
    found = holders(server)
    wanted = {f"{site.samples}/{pod['metadata']['name']}" for pod in pods}
    if set(found) != wanted:
        raise NotYet(f"/api/pods has {sorted(found)}, wanted {sorted(wanted)}")
    by_name = {samples.name_of(pod): found[f"{site.samples}/{pod['metadata']['name']}"] for pod in pods}
    used = {name: pod["utilization"] for name, pod in by_name.items()}
    if any(used[name] is None or abs(used[name] - load) > _NEAR_PERCENT for name, load in loads.items()):
        raise NotYet(f"pods use {used} %, wanted {loads}")
    return by_name


def sampled_between(site: Site, server: Json, begin: datetime, end: datetime) -> dict[str, list[datetime]]:
    """When each GPU was sampled from `begin` up to `end`, in order, by the files of a server's pod."""
    name, namespace = server["metadata"]["name"], site.release.namespace
    printed = site.cluster.kubectl("exec", name, "--", "python3", "-c", _PRINT_SAMPLES, namespace=namespace)
    found: dict[str, list[datetime]] = {}
    for uuid, sampled_at in csv.reader(printed.splitlines()):
        instant = datetime.fromisoformat(sampled_at)
        if begin <= instant < end:
            found.setdefault(uuid, []).append(instant)
    return {uuid: sorted(own) for uuid, own in found.items()}


@pytest.fixture(scope="module")
def running(sampled: Site) -> list[Json]:
    """The sample pods, once they run."""
    return until(lambda: sample_pods(sampled, len(samples.LOADS)), _START_SECONDS)


def test_every_workload_is_rolled_out(mock: Site) -> None:
    fullname = mock.release.fullname
    assert mock.release.roll_out() == [
        f"daemonset/{fullname}-agent",
        f"daemonset/{fullname}-fake-device-plugin",
        f"deployment/{fullname}-server",
    ]
    assert mock.release.pods("agent"), "a node has an agent"


def test_kubelets_offer_the_simulated_gpus(mock: Site) -> None:
    until(lambda: gpus_offered(mock, _GPUS_A_NODE), _START_SECONDS)


def test_the_server_answers_its_page_of_questions(server: Forward, mock: Site) -> None:
    assert until(lambda: server.ask("/docs"), _SHOWN_SECONDS).status_code == 200


def test_exactly_the_sample_pods_hold_gpus_each_at_its_load(
    server: Forward, sampled: Site, running: list[Json]
) -> None:
    given = {samples.name_of(pod): variable(sampled, pod) for pod in running}

    def told() -> None:
        found = shown(server, sampled, running, samples.LOADS)
        for pod in running:
            name = samples.name_of(pod)
            [part] = found[name]["gpus"]
            assert part["gpu_uuid"] == given[name]
            assert part["node"] == pod["spec"]["nodeName"]
            assert (part["method"], part["gpu_share"], part["process_count"]) == ("exclusive", 1, 1)
            assert (found[name]["owner_kind"], found[name]["owner_name"]) == samples.OWNERS[name]
            assert found[name]["pod_uid"] == pod["metadata"]["uid"]

    until(told, _SHOWN_SECONDS)


def test_a_pod_that_stays_pending_is_nowhere(server: Forward, sampled: Site, running: list[Json]) -> None:
    pending = sampled.cluster.find("pod", samples.NEVER_RUNS, namespace=sampled.samples)
    assert pending is not None and pending["status"]["phase"] == "Pending"
    for path in ("/api/pods", "/api/gpus", "/api/usage?group_by=pod&last=1h"):
        assert samples.NEVER_RUNS not in json.dumps(server.data(path)), path


def test_the_forgotten_pod_is_found_idle_and_no_other(server: Forward, sampled: Site, running: list[Json]) -> None:
    def found() -> list[Any]:
        idle = server.data(f"/api/idle?at_least=20s&last=10m&namespace={sampled.samples}")["idle"]
        if [holder["pod"] for holder in idle] != ["forgotten"]:
            raise NotYet(f"idle: {idle}")
        return list(idle)

    [holder] = until(found, _SHOWN_SECONDS)
    assert holder["idle_seconds"] >= 20 and holder["gpu_hours_wasted"] > 0
    assert holder["evidence"]["utilization_max"] == 0


def test_the_parts_of_the_ledger_add_up(server: Forward, sampled: Site, running: list[Json]) -> None:
    total = until(lambda: server.data("/api/ledger?last=2m"), _SHOWN_SECONDS)["total"]
    parts = ("active", "held_idle", "used_without_allocation", "free", "unhealthy", "no_data")
    assert sum(total[part] for part in parts) == pytest.approx(total["wall_seconds"], abs=0.01)
    assert total["active"] > 0 and total["held_idle"] > 0 and total["free"] > 0


def test_doctor_finds_nothing_broken_on_any_node(mock: Site, running: list[Json]) -> None:
    for pod in mock.release.pods("agent"):
        name = pod["metadata"]["name"]
        said = mock.cluster.kubectl(
            "exec", name, "--", "gpumon", "doctor", "--json", namespace=mock.release.namespace
        )
        report = json.loads(said)
        assert (report["ok"], report["node"]) == (True, pod["spec"]["nodeName"]), report


def test_helm_test_passes(mock: Site, running: list[Json]) -> None:
    mock.cluster.helm("test", mock.release.name, "--timeout=5m", namespace=mock.release.namespace)


def test_while_the_server_is_away_agents_keep_the_samples(
    server: Forward, mock: Site, running: list[Json]
) -> None:
    begin = datetime.now(UTC)
    [killed] = mock.release.pods("server")
    name, namespace = killed["metadata"]["name"], mock.release.namespace
    until(lambda: samples_since(server, begin), _SHOWN_SECONDS)
    mock.cluster.kubectl("delete", "pod", name, "--grace-period=1", namespace=namespace)
    back = until(lambda: ready_pods(mock.release.pods("server"), 1), _START_SECONDS)[0]
    end = datetime.now(UTC) + timedelta(seconds=5)
    until(lambda: samples_since(server, end), _SHOWN_SECONDS)

    gpus = {gpu["gpu_uuid"] for gpu in server.data("/api/gpus")}

    def whole() -> None:
        instants = sampled_between(mock, back, begin, end)
        assert set(instants) == gpus
        for uuid, own in instants.items():
            longest = max(after - before for before, after in pairwise(own))
            assert longest < timedelta(seconds=3), f"{uuid}: no sample for {longest}"
            assert len(own) == len(set(own)), f"{uuid}: a sample is there twice"
            wanted = (end - begin).total_seconds()
            assert len(own) == pytest.approx(wanted, abs=max(1, 0.05 * wanted)), uuid

    until(whole, _SHOWN_SECONDS)


@pytest.fixture
def sharing(sampled: Site, running: list[Json]) -> Iterator[list[Json]]:
    """Four pods on the two GPUs of one node, instead of the usual ones."""
    node = sampled.cluster.find("node", running[0]["spec"]["nodeName"])
    assert node is not None
    hostname = node["metadata"]["labels"]["kubernetes.io/hostname"]
    sampled.delete_samples()
    try:
        with sampled.release.changed(f"--set=agent.mockNvml.devicePlugin.replicas={_REPLICAS}"):
            until(lambda: gpus_offered(sampled, _REPLICAS * _GPUS_A_NODE), _START_SECONDS)
            image, secrets = sampled.image()
            sampled.cluster.apply(
                [samples.pod(name, image, secrets, load=load, node=hostname) for name, load in _SHARED.items()],
                namespace=sampled.samples,
            )
            yield until(lambda: sample_pods(sampled, len(_SHARED)), _START_SECONDS)
            sampled.delete_samples()
    finally:
        sampled.delete_samples()
        until(lambda: gpus_offered(sampled, _GPUS_A_NODE), _START_SECONDS)
        sampled.apply_samples()


def test_pods_that_share_a_gpu_are_told_apart(server: Forward, sampled: Site, sharing: list[Json]) -> None:
    given = {samples.name_of(pod): variable(sampled, pod) for pod in sharing}
    assert set(Counter(given.values()).values()) == {_REPLICAS}, "each GPU is shared"

    def told() -> None:
        found = shown(server, sampled, sharing, _SHARED)
        assert {name: [part["gpu_uuid"] for part in pod["gpus"]] for name, pod in found.items()} == {
            name: [uuid] for name, uuid in given.items()
        }
        parts = [pod["gpus"][0] for pod in found.values()]
        assert {(part["method"], part["gpu_share"]) for part in parts} == {("process", 1 / _REPLICAS)}

    until(told, _SHOWN_SECONDS)


def test_nothing_was_logged_as_a_traceback(mock: Site, running: list[Json]) -> None:
    for component in ("agent", "server", "fake-device-plugin"):
        said = mock.cluster.kubectl(
            "logs", f"--selector={mock.release.selector(component)}", "--tail=-1", "--prefix",
            "--max-log-requests=100", namespace=mock.release.namespace,
        )  # fmt: skip
        assert "Traceback" not in said, component
