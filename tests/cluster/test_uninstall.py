"""The last test of a release: what stays of it."""

from __future__ import annotations

import pytest

from tests.cluster.release import Release
from tests.cluster.site import Site

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def test_an_uninstall_leaves_nothing_but_the_volume_claim(site: Site) -> None:
    if site.plan.adopted:
        pytest.skip(f"release {site.plan.release} was here before the tests, and stays")
    release = site.release
    claims = {f"persistentvolumeclaims/{name}" for name in claim_names(release)}
    site.delete_samples()
    release.uninstall()
    release.remains_only(claims)


def claim_names(release: Release) -> list[str]:
    """The volume claims of a release."""
    found = release.cluster.get("persistentvolumeclaims", namespace=release.namespace, selector=release.selector())
    return [claim["metadata"]["name"] for claim in found]
