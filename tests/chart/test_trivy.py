"""What trivy finds HIGH or CRITICAL in the rendered chart and in the Dockerfiles, and why it is right so."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.chart import CHART
from tests.chart.cases import CI
from tests.chart.rendering import Helm, Object

DOCKERFILES = sorted((CHART.parents[1] / "images").glob("*/Dockerfile"))
SCANNED: Mapping[str, Any] = {
    "default": CI["default"],
    "kind": CI["kind"],
    "service-account-auth": CI["service-account-auth"],
    "gke": {"agent": {"platform": "gke"}},
}


class Finding(NamedTuple):
    """A check of trivy's that an object does not pass, in the first of the renders that has the object so."""

    render: str
    check: str
    thing: str


EXPLAINED = {
    Finding("default", "KSV010", "DaemonSet 'gpumon-agent'"): (
        "hostPID: NVML names processes by the node's pids; agent.hostPID=false does without use by process"
    ),
    Finding("kind", "KSV010", "DaemonSet 'gpumon-agent'"): "as in default",
    Finding("service-account-auth", "KSV010", "DaemonSet 'gpumon-agent'"): "as in default",
    Finding("gke", "KSV010", "DaemonSet 'gpumon-agent'"): "as in default",
    Finding("gke", "KSV017", "DaemonSet 'gpumon-agent'"): (
        "privileged: GKE has no NVIDIA runtime; devices are opened by a pod that takes a GPU or is privileged"
    ),
}


@pytest.fixture(scope="session")
def findings(helm: Helm, trivy: Path, tmp_path_factory: pytest.TempPathFactory) -> set[Finding]:
    """All findings. An object that several renders have alike is looked at once: a look takes seconds."""
    folder = tmp_path_factory.mktemp("scanned")
    seen: list[Object] = []
    for name, values in SCANNED.items():
        fresh = [an for an in helm.render(values).objects if an not in seen]
        seen += fresh
        (folder / f"{name}.yaml").write_text(yaml.safe_dump_all(fresh), encoding="utf-8")
    for path in DOCKERFILES:
        (folder / f"Dockerfile.{path.parent.name}").write_bytes(path.read_bytes())
    options = ["--skip-check-update", "--severity=HIGH,CRITICAL", "--format=json", "--quiet"]
    command = [trivy, "config", *options, f"--cache-dir={folder / '.cache'}", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["Results"]
    scanned = {Path(result["Target"]).name for result in results}
    assert scanned == {path.name for path in folder.iterdir() if path.is_file()}, "trivy looked at every file"
    return {
        Finding(Path(result["Target"]).stem, failed["ID"], _thing(failed["Message"]))
        for result in results
        for failed in result.get("Misconfigurations", [])
    }


def test_every_finding_is_explained(findings: set[Finding]) -> None:
    assert findings - set(EXPLAINED) == set()


def test_every_explanation_is_of_a_finding(findings: set[Finding]) -> None:
    assert set(EXPLAINED) - findings == set()


def test_both_images_are_looked_at() -> None:
    assert [path.parent.name for path in DOCKERFILES] == ["agent", "server"]


def _thing(message: str) -> str:
    """Kind and name of the object in trivy's sentence; the sentence where it names none."""
    before, kind, after = message.partition("DaemonSet '")
    return f"{kind}{after.partition(chr(39))[0]}'" if kind else before
