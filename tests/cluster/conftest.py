"""The cluster and the release under test, for the tests that ask a real one.

Without GPUMON_E2E=1, which `make e2e` and `make kind-test` set, no cluster is looked for.

E2E_NAMESPACE   where gpumon is installed (gpumon-e2e); made and deleted again
E2E_HELM_ARGS   further arguments of `helm install`, such as --set=agent.image.repository=…
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.chart import tools
from tests.cluster import plan
from tests.cluster.cluster import Cluster, CommandFailed, Forward
from tests.cluster.release import CHART, Release
from tests.cluster.site import LEVELS, Site, make_namespace, remove_namespace, take_away

KIND_SAMPLES = "gpumon-samples"
"""Where `make kind-up` has its sample pods."""


def why_not(environment: Mapping[str, str]) -> str | None:
    """Why no cluster is asked, None if one is to be."""
    if environment.get("GPUMON_E2E") != "1":
        return "asks a real cluster: make kind-test, or make e2e KUBECONFIG=…"
    return None


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster of the kubeconfig's current context."""
    if (reason := why_not(os.environ)) is not None:
        pytest.skip(reason)
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not on the PATH: install it, so that the cluster can be asked")
    try:
        helm = str(tools.helm())
    except tools.ToolMissing as missing:
        pytest.skip(str(missing))
    return reached(Cluster([kubectl], [helm]))


def reached(cluster: Cluster) -> Cluster:
    """The same cluster, if it answers; otherwise the test is skipped."""
    try:
        cluster.kubectl("get", "--raw=/version", "--request-timeout=10s")
    except CommandFailed as failed:
        pytest.skip(
            f"no cluster answers: set KUBECONFIG to one that does ({str(failed).strip().splitlines()[-1]})"
        )
    return cluster


@pytest.fixture(scope="session")
def site(cluster: Cluster) -> Iterator[Site]:
    """gpumon in the cluster, as `plan` says; taken away again, unless it was there before."""
    nodes = cluster.get("nodes")
    plugins = cluster.get("daemonsets", everywhere=True, selector=plan.PLUGIN)
    try:
        planned = plan.plan(nodes, plugins, os.environ.get("E2E_NAMESPACE") or plan.OWN_RELEASE)
    except plan.Unclear as unclear:
        pytest.skip(str(unclear))
    release = Release(cluster, planned.release, planned.namespace)
    more = shlex.split(os.environ.get("E2E_HELM_ARGS", ""))
    if planned.adopted:
        made = make_namespace(cluster, KIND_SAMPLES, {})
        release.upgrade(*more)
        yield Site(cluster, planned, release, KIND_SAMPLES)
        if made:
            remove_namespace(cluster, KIND_SAMPLES)
        return
    classes = cluster.get("storageclasses")
    if planned.mock:
        more = [f"--values={CHART / 'ci' / 'kind-values.yaml'}", *plan.mock_sets(nodes, classes), *more]
    else:
        more = [*plan.storage_sets(classes), *more]
    made = make_namespace(cluster, planned.namespace, LEVELS)
    take_away(cluster, release)  # what a run that was cut off has left
    try:
        try:
            release.install(*more)
        except CommandFailed as failed:
            raise CommandFailed(f"{failed}{cluster.diagnosis([planned.namespace])}") from None
        yield Site(cluster, planned, release, planned.namespace)
    finally:
        take_away(cluster, release)
        if made:
            remove_namespace(cluster, planned.namespace)


@pytest.fixture(scope="session")
def mock(site: Site) -> Site:
    """The same, where the GPUs are simulated."""
    if not site.plan.mock:
        pytest.skip("the cluster has real GPUs: what they do is not known beforehand")
    return site


@pytest.fixture(scope="session")
def real(site: Site) -> Site:
    """The same, where a real device plugin offers GPUs."""
    if site.plan.mock:
        pytest.skip("no node has GPUs of a real device plugin")
    return site


@pytest.fixture(scope="session")
def server(site: Site) -> Iterator[Forward]:
    """The server, through a port of this machine."""
    with site.cluster.forwarding(
        site.release.namespace, f"service/{site.release.fullname}-server", 5000
    ) as forward:
        yield forward


@pytest.fixture(scope="session")
def sampled(mock: Site) -> Site:
    """The same, with the sample pods."""
    mock.apply_samples()
    return mock


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    """A failure comes with what the cluster says of itself: nodes, pods, events, last log lines."""
    report = yield
    site = getattr(item, "funcargs", {}).get("site")
    if report.failed and isinstance(site, Site):
        namespaces = dict.fromkeys([site.release.namespace, site.samples])
        report.sections.append(("the cluster", site.cluster.diagnosis(namespaces)))
    return report
