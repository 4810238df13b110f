"""What two installs make, kept to be looked at: whoever changes the chart sees in the difference what it does."""

from __future__ import annotations

from pathlib import Path

from tests.chart import CHART
from tests.chart.rendering import Helm, dump

FOLDER = Path(__file__).with_name("golden")
_KEPT = ("default", "kind")


def goldens(helm: Helm) -> dict[Path, str]:
    """Objects and notes of the `ci` values default and kind, by the file that they are kept in."""
    found: dict[Path, str] = {}
    for name in _KEPT:
        release = helm.render(CHART / "ci" / f"{name}-values.yaml")
        found[FOLDER / f"{name}.yaml"] = dump(release)
        found[FOLDER / f"{name}-notes.txt"] = release.notes.strip() + "\n"
    return found
