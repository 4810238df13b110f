"""Sample pods: the manifests of tests/kind, and others of their kind."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from tests.cluster.cluster import Json

FOLDER: Final = Path(__file__).parents[1] / "kind"
SELECTOR: Final = "app.kubernetes.io/part-of=gpumon-samples"
LOADS: Final = {"train": 80, "notebook": 30, "forgotten": 0}
"""What each one's GPU is to be at, in percent."""
OWNERS: Final = {"train": ("Job", "train"), "notebook": ("Deployment", "notebook"), "forgotten": (None, None)}
NEVER_RUNS: Final = "too-big"


def manifests(image: str, pull_secrets: list[Json]) -> list[Json]:
    """All of tests/kind, with an image that has python3."""
    return [
        _filled(yaml.safe_load(path.read_text()), image, pull_secrets) for path in sorted(FOLDER.glob("*.yaml"))
    ]


def pod(name: str, image: str, pull_secrets: list[Json], *, load: int = 0, node: str | None = None) -> Json:
    """A bare pod that holds one GPU and uses so much of it, on any node or one."""
    made = _filled(yaml.safe_load((FOLDER / "forgotten.yaml").read_text()), image, pull_secrets)
    made["metadata"]["name"] = name
    [container] = made["spec"]["containers"]
    container["args"] = [container["args"][0].replace("--load=0", f"--load={load}")]
    if node is not None:
        made["spec"]["nodeSelector"] = {"kubernetes.io/hostname": node}
    return made


def pod_spec(manifest: Mapping[str, Any]) -> Any:
    """The pod's part of a manifest."""
    return manifest["spec"] if manifest["kind"] == "Pod" else manifest["spec"]["template"]["spec"]


def name_of(pod: Mapping[str, Any]) -> str:
    """Which sample a running pod is: its own name, or that of its workload."""
    name: str = pod["metadata"]["name"]
    return next((sample for sample in LOADS if name == sample or name.startswith(f"{sample}-")), name)


def _filled(manifest: Json, image: str, pull_secrets: list[Json]) -> Json:
    made = copy.deepcopy(manifest)
    spec = pod_spec(made)
    if pull_secrets:
        spec["imagePullSecrets"] = pull_secrets
    for container in spec["containers"]:
        assert container["image"] == "IMAGE"
        container["image"] = image
    return made
