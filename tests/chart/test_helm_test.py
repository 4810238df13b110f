"""What `helm test` runs, as its Job runs it, against a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from tests.chart.cases import EVERYTHING
from tests.chart.rendering import Helm
from tests.processes import free_port, until
from tests.samples import full_sample, pod
from tests.server.conftest import serving, settings_for
from tests.server.test_tls import running, trusting, write_pair

TOKEN = "the-right-token-for-reading"


class Job:
    """The Job's container, with python of this machine."""

    def __init__(self, helm: Helm) -> None:
        (container,) = helm.render(EVERYTHING).pods["test"]["spec"]["containers"]
        assert container["command"] == ["python", "-c"]
        (self._program,) = container["args"]
        self._named = {variable["name"] for variable in container["env"]}

    def start(self, url: str, *, wait_seconds: float = 0, **variables: str | Path) -> subprocess.Popen[str]:
        """Starts it with these variables, each of which the chart must set where it is needed."""
        given = {"GPUMON_URL": url} | {name: str(value) for name, value in variables.items()}
        assert set(given) <= self._named
        own = {"PATH": os.environ["PATH"], "GPUMON_WAIT_SECONDS": str(wait_seconds)}
        return subprocess.Popen(
            [sys.executable, "-c", self._program],
            env=own | given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, url: str, **variables: Any) -> tuple[int, str, str]:
        """Exit code, what it printed, and what it printed as an error."""
        with self.start(url, **variables) as process:
            printed, said = process.communicate(timeout=60)
            return process.returncode, printed, said


@pytest.fixture
def job(helm: Helm) -> Job:
    return Job(helm)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    """A server that is open to all."""
    with serving(settings_for(tmp_path / "data")) as client:
        yield client


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[httpx.Client]:
    """A server that asks for a token for reading; the client has it."""
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\nthe-one-before-this-one\n", encoding="utf-8")
    with serving(settings_for(tmp_path / "data", auth={"read_token_file": str(token)})) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        yield client


def send(client: httpx.Client, *, seconds_ago: float = 10, **fields: Any) -> None:
    at = (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat()
    held = full_sample(timestamp=at, sampled_at=at, client_name="node-1", **({"pods": [pod()]} | fields))
    assert client.post("/api/receive-data", json=held).status_code == 200


def test_passes_and_tells_what_has_arrived(job: Job, client: httpx.Client) -> None:
    send(client)
    code, printed, said = job.run(str(client.base_url))
    assert (code, said) == (0, "")
    assert printed.splitlines() == [
        "1 GPUs of 1 nodes have sent samples",
        "/api/usage answers for node-1",
        "1 pods hold or use GPUs now",
    ]


def test_passes_where_no_pod_holds_a_gpu_yet(job: Job, client: httpx.Client) -> None:
    send(client, pods=[])
    code, printed, _ = job.run(str(client.base_url))
    assert code == 0
    assert "0 pods hold or use GPUs now" in printed


def test_fails_while_nothing_has_arrived_and_says_where_to_look(job: Job, client: httpx.Client) -> None:
    code, printed, said = job.run(str(client.base_url))
    assert (code, printed) == (1, "")
    assert "no GPU has sent a sample: are there agents (kubectl get daemonset)?" in said


def test_fails_where_only_old_samples_are_there(job: Job, client: httpx.Client) -> None:
    send(client, seconds_ago=3600)
    code, _, said = job.run(str(client.base_url))
    assert code == 1
    assert "no GPU has sent a sample" in said


def test_waits_for_the_first_samples(job: Job, client: httpx.Client) -> None:
    process = job.start(str(client.base_url), wait_seconds=50)
    with process:
        until(lambda: 'route="/api/gpus"' in client.get("/metrics").text)
        assert process.poll() is None
        send(client)
        printed, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert "1 GPUs" in printed


def test_fails_where_no_server_is_and_names_its_address(job: Job) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    code, _, said = job.run(url)
    assert code == 1
    assert said.startswith(url)
    assert "refused" in said


def test_reads_with_the_token_of_the_secret(job: Job, guarded: httpx.Client, tmp_path: Path) -> None:
    send(guarded)
    code, _, said = job.run(str(guarded.base_url), GPUMON_READ_TOKEN_FILE=tmp_path / "token")
    assert (code, said) == (0, "")


@pytest.mark.parametrize("token", [None, "a-token-that-nobody-knows"])
def test_fails_without_the_right_token_and_does_not_print_it(
    job: Job, guarded: httpx.Client, tmp_path: Path, token: str | None
) -> None:
    send(guarded)
    variables: Mapping[str, Path] = {}
    if token:
        (tmp_path / "wrong").write_text(token, encoding="utf-8")
        variables = {"GPUMON_READ_TOKEN_FILE": tmp_path / "wrong"}
    code, printed, said = job.run(str(guarded.base_url), **variables)
    assert (code, printed) == (1, "")
    assert "401" in said
    assert "nobody-knows" not in said


def test_speaks_https_with_the_authority_of_the_secret(job: Job, tmp_path: Path) -> None:
    ca, stranger = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    stranger.cert_pem.write_to_path(str(tmp_path / "stranger.crt"))
    pair = write_pair(tmp_path / "tls", ca.issue_cert("localhost"))
    with running(tmp_path, **pair) as port:
        url = f"https://localhost:{port}"
        with httpx.Client(base_url=url, verify=trusting(ca), trust_env=False, timeout=20) as client:
            send(client)
        code, _, said = job.run(url, GPUMON_CA_FILE=tmp_path / "ca.crt")
        assert (code, said) == (0, "")
        code, _, said = job.run(url, GPUMON_CA_FILE=tmp_path / "stranger.crt")
        assert code == 1
        assert "CERTIFICATE_VERIFY_FAILED" in said
