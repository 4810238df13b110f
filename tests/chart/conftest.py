"""helm for the chart's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chart import tools
from tests.chart.rendering import Helm


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """`helm("lint", …)` runs it, `helm.render(values)` gives what an install would make."""
    return Helm(tools.helm(), tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def trivy() -> Path:
    """trivy, where it can be had."""
    try:
        return tools.trivy()
    except tools.ToolMissing as missing:
        pytest.skip(str(missing))
