"""Directories of the Kubernetes API for tests: they try again at once, and are stopped at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpumon.agent.kube import KubeDirectory
from tests.agent.kubeapi import KubeApi

STOP_SECONDS = 2.0


@contextlib.contextmanager
def directories(folder: Path) -> Iterator[Callable[..., KubeDirectory]]:
    """Makes and starts directories: `make(api)`, and what of a KubeDirectory's arguments is to be other."""
    made: list[KubeDirectory] = []

    def make(api: KubeApi | None, node: str = "node-1", **more: Any) -> KubeDirectory:
        given: dict[str, Any] = {
            "pod_labels": ["team"],
            "node_labels": ["zone"],
            "dynamic_resources": False,
            "first_delay_seconds": 0.01,
            "chance": lambda: 0.5,
        }
        if api is not None:
            given["kubeconfig"] = api.kubeconfig(folder / "kubeconfig")
        made.append(KubeDirectory(node, **(given | more)).start())
        return made[-1]

    try:
        yield make
    finally:
        stopped = [directory.stop(STOP_SECONDS) for directory in made]
    assert all(stopped)
