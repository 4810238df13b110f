"""A release is upgraded, rolled back and taken away: nothing is lost by it, and nothing stays but what is said."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.cluster.answers import samples_since
from tests.cluster.cluster import Forward, until
from tests.cluster.site import Site

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

_SHOWN_SECONDS = 180


def token(site: Site) -> object:
    """What is in the Secret with the token; only ever compared."""
    secret = site.cluster.find("secret", f"{site.release.fullname}-auth", namespace=site.release.namespace)
    assert secret is not None, "the release has its own token"
    return secret["data"]


def test_an_upgrade_keeps_the_token_and_tells_how_to_look(site: Site) -> None:
    before = token(site)
    said = site.release.upgrade()
    site.release.roll_out()
    kept = token(site) == before
    assert kept, "the token is another one"
    assert f"port-forward svc/{site.release.fullname}-server" in said


def test_a_rollback_brings_back_what_was(server: Forward, site: Site) -> None:
    before = token(site)
    with site.release.changed("--set=agent.config.monitoring.interval_seconds=2"):
        agents = site.cluster.find("configmap", f"{site.release.fullname}-agent", namespace=site.release.namespace)
        assert agents is not None and "interval_seconds = 2" in agents["data"]["client_config.ini"]
    agents = site.cluster.find("configmap", f"{site.release.fullname}-agent", namespace=site.release.namespace)
    assert agents is not None and "interval_seconds = 2" not in agents["data"]["client_config.ini"]
    kept = token(site) == before
    assert kept, "the token is another one"
    now = datetime.now(UTC)
    until(lambda: samples_since(server, now), _SHOWN_SECONDS)


def test_samples_arrive_by_the_agents_service_account(server: Forward, site: Site) -> None:
    with site.release.changed("--set=auth.mode=serviceAccount"):
        now = datetime.now(UTC)
        until(lambda: samples_since(server, now), _SHOWN_SECONDS)
    now = datetime.now(UTC)
    until(lambda: samples_since(server, now), _SHOWN_SECONDS)
