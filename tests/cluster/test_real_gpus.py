"""On a cluster with a real device plugin: exactly the pods that hold GPUs are shown."""

from __future__ import annotations

import pytest

from tests.cluster import samples
from tests.cluster.answers import holders
from tests.cluster.cluster import Forward, NotYet, until
from tests.cluster.plan import holds_gpus
from tests.cluster.site import Site

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

_START_SECONDS = 180
_SHOWN_SECONDS = 120


def test_every_workload_is_rolled_out_and_helm_test_passes(real: Site) -> None:
    fullname = real.release.fullname
    assert real.release.roll_out() == [f"daemonset/{fullname}-agent", f"deployment/{fullname}-server"]
    assert real.release.pods("agent"), "a node has an agent"
    real.cluster.helm("test", real.release.name, "--timeout=5m", namespace=real.release.namespace)


def test_the_pods_that_are_shown_are_those_that_hold_gpus(server: Forward, real: Site) -> None:
    image, secrets = real.image()
    real.cluster.apply([samples.pod("sample", image, secrets)], namespace=real.samples)
    until(lambda: started(real), _START_SECONDS)

    def same() -> None:
        watched = {pod["spec"]["nodeName"] for pod in real.release.pods("agent")}
        holding = {
            f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            for pod in real.cluster.get("pods", everywhere=True)
            if holds_gpus(pod) and pod["spec"]["nodeName"] in watched
        }
        shown = set(holders(server))
        if shown != holding:
            raise NotYet(f"/api/pods has {sorted(shown)}, the cluster {sorted(holding)}")

    until(same, _SHOWN_SECONDS)


def started(real: Site) -> None:
    """Whether the sample pod runs; where every GPU is taken, the test goes on without it. Raises NotYet."""
    pod = real.cluster.find("pod", "sample", namespace=real.samples)
    assert pod is not None
    if pod["status"].get("phase") == "Running":
        return
    conditions = pod["status"].get("conditions", [])
    if any(of.get("reason") == "Unschedulable" for of in conditions):
        return
    raise NotYet(f"the sample pod is {pod['status']}")
