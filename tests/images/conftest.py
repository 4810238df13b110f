"""Both images, built once by `make images` as anybody builds them."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from gpumon import __version__
from tests.images.base import make_base, pip_mounts
from tests.images.buildah import REPOSITORY, Buildah, Image


@pytest.fixture(scope="session")
def images() -> Iterator[Mapping[str, Image]]:
    """agent and server. What it makes on the disk goes with it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        buildah = Buildah(folder)
        try:
            make_base(buildah, folder, REPOSITORY / "images/agent/Dockerfile")
            flags = ["--isolation=chroot", "--pull-never", *(f"--volume={mount}" for mount in pip_mounts(folder))]
            subprocess.run(
                [
                    *("make", "images", f"CONTAINER_TOOL={' '.join(buildah.command)}"),
                    *(f"CONTAINER_BUILD_FLAGS={' '.join(flags)}", "REGISTRY=localhost/"),
                ],
                cwd=REPOSITORY,
                check=True,
            )
            yield {part: Image(buildah, f"localhost/gpumon-{part}:{__version__}") for part in ("agent", "server")}
        finally:
            buildah.do("rm", "--all")
            buildah.do("rmi", "--all", "--force")


@pytest.fixture
def agent(images: Mapping[str, Image]) -> Image:
    return images["agent"]


@pytest.fixture
def server(images: Mapping[str, Image]) -> Image:
    return images["server"]


@pytest.fixture(params=["agent", "server"])
def image(request: pytest.FixtureRequest, images: Mapping[str, Image]) -> Image:
    """One after the other."""
    return images[request.param]
