"""A cluster, through the programs that people use on it: kubectl and helm.

Whatever is asked goes to the current context of the kubeconfig; without a namespace it is about the whole cluster.
What a program says when it fails is in the error, with the command; nothing here reads or prints a Secret.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

T = TypeVar("T")
Json = dict[str, Any]

_PAUSE_SECONDS = 1.0
_COMMAND_SECONDS = 900.0
_LOG_LINES = 15
_FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ->")


class CommandFailed(AssertionError):
    """kubectl or helm says no."""


class NotYet(AssertionError):
    """What is waited for is not so yet; the text says how it is instead."""


@dataclass(frozen=True)
class Cluster:
    """`kubectl` and `helm` are the programs, with the options that all calls have."""

    kubectl_command: Sequence[str]
    helm_command: Sequence[str]

    def kubectl(self, *arguments: str, namespace: str | None = None, given: str | None = None) -> str:
        """What kubectl prints; `given` is its standard input. Raises CommandFailed."""
        within = [f"--namespace={namespace}"] if namespace else []
        return run([*self.kubectl_command, *within, *arguments], given)

    def helm(self, *arguments: str, namespace: str) -> str:
        """What helm prints. Raises CommandFailed."""
        return run([*self.helm_command, f"--namespace={namespace}", *arguments])

    def get(
        self, kind: str, *, namespace: str | None = None, selector: str = "", everywhere: bool = False
    ) -> list[Json]:
        """All objects of a kind in a namespace, everywhere, or of a kind that has no namespaces."""
        more = [f"--selector={selector}"] if selector else []
        more += ["--all-namespaces"] if everywhere else []
        listed = json.loads(self.kubectl("get", kind, "--output=json", *more, namespace=namespace))
        return list(listed["items"])

    def find(self, kind: str, name: str, *, namespace: str | None = None) -> Json | None:
        """One object; None where it is not there."""
        text = self.kubectl("get", kind, name, "--output=json", "--ignore-not-found", namespace=namespace)
        return json.loads(text) if text.strip() else None

    def apply(self, objects: Iterable[Json], *, namespace: str | None = None) -> None:
        """Makes objects, or changes them to what they are here."""
        things: Json = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "--filename=-", namespace=namespace, given=json.dumps(things))

    def delete(self, kind: str, *, namespace: str, selector: str) -> None:
        """Deletes what a selector takes, and returns when it is gone."""
        self.kubectl(
            "delete", kind, f"--selector={selector}", "--ignore-not-found", "--cascade=foreground",
            "--timeout=180s", namespace=namespace,
        )  # fmt: skip

    @contextlib.contextmanager
    def forward(self, namespace: str, target: str, port: int) -> Iterator[str]:
        """The http address of a Service's or pod's port on this machine, while the `with` lasts."""
        with self.forwarding(namespace, target, port) as forwarded:
            yield forwarded.url()

    def forwarding(self, namespace: str, target: str, port: int) -> Forward:
        """The same, for longer than one pod lives."""
        command = [*self.kubectl_command, f"--namespace={namespace}", "port-forward", "--address=127.0.0.1"]
        return Forward([*command, target, f":{port}"])

    def diagnosis(self, namespaces: Iterable[str]) -> str:
        """For people, once something has failed: nodes, and each namespace's events, pods and last log lines."""
        nodes = "custom-columns=NODE:.metadata.name,GPUS:.status.allocatable.nvidia\\.com/gpu"
        return "\n".join(["", self._said("get", "nodes", "--output", nodes), *map(self._diagnosis_of, namespaces)])

    def _diagnosis_of(self, namespace: str) -> str:
        within = f"--namespace={namespace}"
        parts = [f"--- namespace {namespace}", self._said("get", "pods", "--output=wide", within)]
        parts.append(self._said("get", "events", "--sort-by=.lastTimestamp", within))
        for pod in self._said("get", "pods", "--output=name", within).split():
            parts.append(f"--- {pod}")
            parts.append(self._said("logs", pod, "--all-containers", f"--tail={_LOG_LINES}", within))
        return "\n".join(parts)

    def _said(self, *arguments: str) -> str:
        try:
            return self.kubectl(*arguments)
        except CommandFailed as failed:
            return str(failed)


class Forward:
    """`kubectl port-forward`, begun anew when the pod at its end has gone. A context manager."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._process: subprocess.Popen[str] | None = None
        self._url = ""

    def __enter__(self) -> Forward:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def url(self) -> str:
        """The http address. Raises NotYet while no pod is ready."""
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._url = self._begin()
        return self._url

    def ask(self, path: str) -> httpx.Response:
        """A GET. Raises NotYet where there is no answer now: the way is then looked for anew."""
        try:
            return httpx.get(f"{self.url()}{path}", timeout=30, trust_env=False)
        except httpx.TransportError as error:
            self._end()
            raise NotYet(f"{path}: {error!r}") from error

    def data(self, path: str) -> Any:
        """The data of one of the server's answers. Raises NotYet where it has none to give now."""
        answer = self.ask(path)
        if answer.status_code >= 500:
            raise NotYet(f"{path}: {answer.status_code} {answer.text[:300]}")
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:300]}"
        return answer.json()["data"]

    def _begin(self) -> str:
        self._process = process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if match := _FORWARDING.match(line):
                # It writes a line for each connection, and would stop at a full pipe.
                threading.Thread(target=_drain, args=(process,), daemon=True).start()
                return f"http://127.0.0.1:{match[1]}"
        process.wait()
        process.stdout.close()
        raise NotYet(f"{' '.join(self._command)}: {''.join(said).strip()}")

    def _end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None


def run(command: Sequence[str], given: str | None = None) -> str:
    """What a command prints. Raises CommandFailed with what it says."""
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, check=False, timeout=_COMMAND_SECONDS,
            stdin=None if given is not None else subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        raise CommandFailed(f"{' '.join(command)}: no end within {late.timeout:g} s") from None
    if done.returncode:
        raise CommandFailed(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}{done.stdout}")
    return done.stdout


def until(ask: Callable[[], T], seconds: float, *, pause: float = _PAUSE_SECONDS) -> T:
    """What `ask` gives once it no longer fails by an assertion; its last failure when that takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(AssertionError):
            return ask()
        time.sleep(pause)
    return ask()


def _drain(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for _ in lines:
            pass
