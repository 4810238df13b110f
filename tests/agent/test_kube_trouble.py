"""Credentials, what goes wrong with the API and what is said of it, and the end."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from gpumon.agent.kube import KubeDirectory
from gpumon.agent.kube.client import open_client
from gpumon.agent.kube.labels import LabelChoice
from gpumon.agent.kube.records import PodRecords
from gpumon.agent.kube.watch import PodWatch
from tests.agent.doors import Times, Until
from tests.agent.kubeapi import LIST, SLICES, WATCH, KubeApi, pod_json
from tests.agent.kubedirs import directories
from tests.processes import free_port, until


@pytest.fixture
def api() -> Iterator[KubeApi]:
    with KubeApi() as served:
        yield served


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., KubeDirectory]]:
    with directories(tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and a certificate for 127.0.0.1, signed by itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificates of these tests, and is not here")
    key, cert = (tmp_path_factory.mktemp("tls") / name for name in ("key.pem", "cert.pem"))
    names = "subjectAltName=IP:127.0.0.1"
    usage = "keyUsage=critical,digitalSignature,keyCertSign"
    command = [
        openssl,
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += [
        "-subj",
        "/CN=kubernetes",
        "-addext",
        names,
        "-addext",
        usage,
        "-keyout",
        str(key),
        "-out",
        str(cert),
    ]
    subprocess.run(command, check=True, capture_output=True)
    cert.write_bytes(cert.read_bytes() + key.read_bytes())
    return cert


@pytest.fixture
def in_cluster(
    certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[KubeApi, Path]]:
    """An API that speaks TLS and takes a token, and a folder with what a pod has to ask it."""
    account = tmp_path / "serviceaccount"
    account.mkdir()
    (account / "token").write_text("first")
    (account / "ca.crt").write_bytes(certificate.read_bytes())
    with KubeApi(certificate=certificate) as served:
        served.token = "first"
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(served.port))
        yield served, account


def says(directory: KubeDirectory, *words: str) -> Callable[[], bool]:
    return lambda: all(word in (directory.trouble or "") for word in words)


def test_in_a_cluster_the_service_account_asks_and_its_new_token_is_taken_up(
    in_cluster: tuple[KubeApi, Path], start: Callable[..., KubeDirectory]
) -> None:
    api, account = in_cluster
    directory = start(None, kubeconfig="", service_account=account)
    api.wait_for(WATCH, 1)
    until(lambda: directory.trouble is None)

    api.token = "second"
    (account / "token").write_text("second")
    api.end_watches()
    until(lambda: api.requests[-1].token == "second")
    api.put(pod_json("a"))

    until(lambda: directory.by_name("default", "a") is not None)
    assert {request.token for request in api.requests} == {"first", "second"}
    assert api.count(LIST) == 1


def test_a_token_that_expires_is_made_anew_for_every_request(
    api: KubeApi, start: Callable[..., KubeDirectory], tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        f"""import json, pathlib
status = {{"token": pathlib.Path({str(token)!r}).read_text(), "expirationTimestamp": "2020-01-01T00:00:00Z"}}
kind = {{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}}
print(json.dumps(kind | {{"status": status}}))
"""
    )
    run = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": sys.executable,
        "args": [str(plugin)],
        "interactiveMode": "Never",
    }
    api.token = "first"
    directory = start(None, kubeconfig=api.kubeconfig(tmp_path / "kubeconfig", exec=run))
    api.wait_for(WATCH, 1)

    token.write_text("second")
    api.token = "second"
    api.end_watches()
    api.wait_for(WATCH, 2)

    until(lambda: directory.trouble is None)
    assert api.requests[-1].token == "second"
    assert len(api.requests) == 5, "none was refused"


def test_a_kubeconfig_that_is_renewed_is_read_again(
    api: KubeApi, start: Callable[..., KubeDirectory], tmp_path: Path
) -> None:
    api.token = "good"
    config = tmp_path / "config"
    directory = start(None, kubeconfig=api.kubeconfig(config, token="bad"))
    until(says(directory, "401", "renew the kubeconfig"))

    api.kubeconfig(config, token="good")
    until(lambda: directory.trouble is None)


def test_proxy_variables_are_not_followed(
    api: KubeApi, start: Callable[..., KubeDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    directory = start(api)

    until(lambda: directory.trouble is None)


@pytest.mark.parametrize(("kind", "right"), [(LIST, "pods"), (WATCH, "pods")])
def test_a_missing_right_is_named_with_what_grants_it(
    api: KubeApi, start: Callable[..., KubeDirectory], kind: str, right: str
) -> None:
    api.refusals[kind] = 403
    directory = start(api)
    until(says(directory, f"a right on {right}", "agent.podMetadata", "403", f"{kind} is forbidden"))

    api.refusals.clear()
    until(lambda: directory.trouble is None)


def test_an_api_that_is_not_there_yet_is_tried_again(start: Callable[..., KubeDirectory], tmp_path: Path) -> None:
    config = tmp_path / "config"
    with KubeApi() as gone:
        gone.kubeconfig(config)
    directory = start(None, kubeconfig=str(config))
    until(says(directory, "no connection to http://127.0.0.1", "refused", "network policies"))

    with KubeApi() as api:
        api.put(pod_json("a"))
        api.kubeconfig(config)
        until(lambda: directory.by_name("default", "a") is not None)
        assert directory.trouble is None
        directory.stop(5)


def config_for(path: Path, server: str) -> str:
    api = KubeApi()
    api.url = server
    return api.kubeconfig(path)


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ("http://no-such-host.invalid:1", ("can't be resolved", "DNS")),
        ("http://127.0.0.1:port", ("can't be asked", "kubeconfig")),
    ],
)
def test_an_address_that_leads_nowhere_is_said(
    start: Callable[..., KubeDirectory], tmp_path: Path, server: str, words: tuple[str, ...]
) -> None:
    until(says(start(None, kubeconfig=config_for(tmp_path / "config", server)), *words))


def test_a_certificate_of_another_authority_is_said(
    certificate: Path, start: Callable[..., KubeDirectory], tmp_path: Path
) -> None:
    with KubeApi(certificate=certificate) as api:
        directory = start(api)
        until(says(directory, "no TLS connection", "certificate", "authority"))
        assert api.requests == []
        # A connection that is reset before its TLS has begun leaves Python's ssl with a socket unclosed.
        directory.stop(5.0)


def test_something_else_than_a_kubernetes_api_is_said(start: Callable[..., KubeDirectory], tmp_path: Path) -> None:
    class Page(KubeApi):
        def _list(self, query: object) -> tuple[int, dict[str, object]]:
            return 200, {"items": "<html>"}

    with Page() as api:
        until(says(start(api), "does not answer like a Kubernetes API"))


@pytest.mark.parametrize(
    ("kubeconfig", "text"),
    [
        ("missing", None),
        ("broken", "{"),
        ("empty", ""),
        ("odd", json.dumps({"current-context": "nowhere"})),
        ("", None),
    ],
)
def test_without_credentials_it_is_said_what_to_set(
    start: Callable[..., KubeDirectory],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kubeconfig: str,
    text: str | None,
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    path = str(tmp_path / kubeconfig) if kubeconfig else ""
    if text is not None:
        Path(path).write_text(text)

    until(says(start(None, kubeconfig=path), "no credentials", "[KUBERNETES] kubeconfig", "pod_metadata"))


def test_without_a_node_nothing_is_asked(api: KubeApi, start: Callable[..., KubeDirectory]) -> None:
    directory = start(api, node="")

    until(says(directory, "NODE_NAME", "spec.nodeName"))
    assert api.requests == []


def test_the_delay_grows_to_a_minute_with_a_random_part_left_out(tmp_path: Path) -> None:
    times = Times()
    stop = Until(times, end=200.0)
    waited: list[float] = []

    def watched(chance: float) -> PodWatch:
        return PodWatch(
            "node-1",
            PodRecords(LabelChoice(())),
            LabelChoice(()),
            connect,
            watch_seconds=300.0,
            slack_seconds=30.0,
            first_delay_seconds=1.0,
            monotonic=times.monotonic,
            chance=lambda: chance,
        )

    def connect() -> object:
        waited.append(times.seconds)
        return open_client(str(tmp_path / "missing"))

    watched(0.0).run(stop)
    assert [round(after - before) for before, after in pairwise(waited)] == [
        1,
        2,
        4,
        8,
        16,
        32,
        60,
        60,
    ]

    waited.clear()
    times.seconds = 0.0
    watched(1.0).run(Until(times, end=10.0))
    assert waited == [0.0, 0.5, 1.5, 3.5, 7.5]


def test_it_stops_at_once_in_the_middle_of_a_watch(api: KubeApi, tmp_path: Path) -> None:
    directory = started(api.kubeconfig(tmp_path / "config"))
    api.wait_for(WATCH, 1)
    until(lambda: directory.trouble is None)

    began = time.monotonic()
    assert directory.stop(10.0)
    assert time.monotonic() - began < 2.0
    assert directory.trouble is None


def test_it_stops_at_once_in_the_middle_of_a_watch_by_tls(in_cluster: tuple[KubeApi, Path]) -> None:
    api, account = in_cluster
    directory = started("", service_account=account)
    api.wait_for(WATCH, 1)
    until(lambda: directory.trouble is None)

    began = time.monotonic()
    assert directory.stop(10.0)
    assert time.monotonic() - began < 2.0


def test_it_stops_while_it_waits_to_try_again(tmp_path: Path) -> None:
    directory = started(str(tmp_path / "missing"), first_delay_seconds=60.0)
    until(says(directory, "no credentials"))

    began = time.monotonic()
    assert directory.stop(10.0)
    assert time.monotonic() - began < 2.0


def test_it_stops_in_time_where_nothing_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        directory = started(config_for(tmp_path / "config", f"http://127.0.0.1:{deaf.getsockname()[1]}"))
        connection, _ = deaf.accept()
        with connection:
            connection.recv(1)
            began = time.monotonic()
            assert not directory.stop(0.2)
            assert time.monotonic() - began < 2.0
    assert directory.stop(5.0), "its thread ends with the connection"


def test_it_may_be_stopped_before_it_has_begun(tmp_path: Path) -> None:
    assert KubeDirectory("node-1", kubeconfig="", pod_labels=[], node_labels=[], dynamic_resources=True).stop(1.0)


def test_no_thread_is_left_after_the_stop(api: KubeApi, tmp_path: Path) -> None:
    directory = started(api.kubeconfig(tmp_path / "config"))
    api.wait_for(WATCH, 1)
    assert [t.name for t in threading.enumerate() if t.name.startswith("kubernetes")] != []

    directory.stop(5.0)
    assert [t.name for t in threading.enumerate() if t.name.startswith("kubernetes")] == []
    assert api.count(SLICES) == 0


def test_a_host_that_has_no_use_for_it_does_not_pay_for_the_package() -> None:
    code = """
import sys
from gpumon.agent.kube import KubeDirectory
KubeDirectory("n", kubeconfig="", pod_labels=[], node_labels=[], dynamic_resources=True)
print(sorted({name.partition(".")[0] for name in sys.modules} & {"kubernetes", "urllib3", "pydantic", "yaml"}))
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"[]\n"


def test_the_packages_models_are_not_loaded(api: KubeApi, tmp_path: Path) -> None:
    code = f"""
import sys
from gpumon.agent.kube.client import open_client
client = open_client({api.kubeconfig(tmp_path / "config")!r})
assert client.get("/api/v1/nodes/node-1")
print([name for name in sys.modules if name.startswith("kubernetes.client.models.") or ".api." in name])
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"[]\n"


def started(kubeconfig: str, **more: object) -> KubeDirectory:
    """One that the test itself stops."""
    given: dict[str, object] = {"pod_labels": [], "node_labels": [], "dynamic_resources": True}
    return KubeDirectory("node-1", kubeconfig=kubeconfig, **(given | more)).start()  # type: ignore[arg-type]
