"""The way to a cluster, without one: what is done where, and what is said when nothing answers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import kubernetes_validate
import pytest

from tests.chart import tools
from tests.chart.podsecurity import level
from tests.chart.rendering import Helm
from tests.cluster import plan, samples
from tests.cluster.cluster import Cluster, CommandFailed, NotYet, run, until
from tests.cluster.conftest import reached, why_not
from tests.cluster.plan import Plan
from tests.cluster.release import Release
from tests.processes import free_port

Program = Callable[[str], Cluster]


def node(labels: dict[str, str] | None = None, gpus: int | None = None) -> dict[str, Any]:
    """A node that offers so many GPUs."""
    allocatable = {} if gpus is None else {plan.RESOURCE: str(gpus)}
    return {"metadata": {"name": "one", "labels": labels or {}}, "status": {"allocatable": allocatable}}


def plugin(namespace: str, release: str) -> dict[str, Any]:
    """The DaemonSet of a release's fake device plugin."""
    return {"metadata": {"namespace": namespace, "labels": {"app.kubernetes.io/instance": release}}}


def waited_for(path: Path) -> None:
    """Returns when a file is there."""

    def look() -> None:
        if not path.exists():
            raise NotYet(f"no {path}")

    until(look, 30, pause=0.01)


@pytest.fixture
def kubectl(tmp_path: Path) -> Program:
    """Makes a cluster whose kubectl is a program in Python."""

    def make(code: str) -> Cluster:
        path = tmp_path / "kubectl"
        path.write_text(f"#!{sys.executable}\nimport json, sys\n{code}\n", encoding="utf-8")
        path.chmod(0o755)
        return Cluster([str(path)], [str(path)])

    return make


def test_without_its_variable_no_cluster_is_looked_for() -> None:
    assert "make kind-test" in str(why_not({"KUBECONFIG": "of-a-developer"}))
    assert why_not({"GPUMON_E2E": "1"}) is None


def test_a_cluster_that_does_not_answer_is_a_skip_that_says_so(kubectl: Program) -> None:
    silent = kubectl('sys.exit("The connection to the server 192.0.2.1:6443 was refused")')
    with pytest.raises(pytest.skip.Exception, match=r"no cluster answers: set KUBECONFIG.*6443 was refused"):
        reached(silent)


def test_a_cluster_without_gpus_gets_simulated_ones_of_the_tests_own() -> None:
    assert plan.plan([node(gpus=0), node()], [], "e2e") == Plan(True, "gpumon-e2e", "e2e")


def test_real_gpus_are_left_as_they_are() -> None:
    assert plan.plan([node(gpus=8)], [], "e2e") == Plan(False, "gpumon-e2e", "e2e")


def test_simulated_gpus_that_are_there_are_used_and_stay() -> None:
    planned = plan.plan([node(gpus=2)], [plugin("gpumon", "gpumon")], "e2e")
    assert planned == Plan(True, "gpumon", "gpumon", adopted=True)


def test_what_a_run_that_was_cut_off_has_left_is_its_own() -> None:
    assert plan.plan([node(gpus=2)], [plugin("e2e", "gpumon-e2e")], "e2e") == Plan(True, "gpumon-e2e", "e2e")


def test_two_fake_device_plugins_are_too_many() -> None:
    with pytest.raises(plan.Unclear, match="uninstall all but one"):
        plan.plan([], [plugin("gpumon", "gpumon"), plugin("e2e", "gpumon-e2e")], "e2e")


def test_nodes_without_a_gpus_label_get_agents_all_the_same() -> None:
    anywhere = '--set-json=agent.affinity={"nodeAffinity":{}}'
    assert anywhere in plan.mock_sets([node()], [])
    assert anywhere not in plan.mock_sets([node(), node({"nvidia.com/gpu.present": "true"})], [])


def test_labels_of_gpu_nodes_are_those_of_the_chart(tmp_path: Path) -> None:
    helm = Helm(tools.helm(), tmp_path)
    [agents] = [one for one in helm.render(None).objects if one["kind"] == "DaemonSet"]
    affinity = agents["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    for term in terms:
        [of] = term["matchExpressions"]
        assert plan.is_gpu_node(node({of["key"]: of.get("values", ["any"])[0]})), of
        assert plan.is_gpu_node(node({of["key"]: "other"})) == (of["operator"] == "Exists"), of
    assert len(terms) == len(plan.GPU_LABELS)


@pytest.mark.parametrize(("default", "wanted"), [("true", "size=1Gi"), ("false", "enabled=false")])
def test_without_a_default_storage_class_there_is_no_volume(default: str, wanted: str) -> None:
    its_class = {"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": default}}}
    assert plan.storage_sets([its_class]) == [f"--set=server.persistence.{wanted}"]


def test_a_pod_holds_gpus_while_it_runs_with_them() -> None:
    limits = {"cpu": "500m", "memory": "1Gi", "nvidia.com/mig-1g.10gb": "1"}
    pod = {"status": {"phase": "Running"}, "spec": {"containers": [{}, {"resources": {"limits": limits}}]}}
    assert plan.holds_gpus(pod)
    assert not plan.holds_gpus({**pod, "status": {"phase": "Succeeded"}})
    assert not plan.holds_gpus({**pod, "spec": {"containers": [{"resources": {"limits": {"cpu": "1"}}}]}})


def test_a_failed_command_says_what_it_was_and_what_it_said(kubectl: Program) -> None:
    broken = kubectl('print("Warning: old"); sys.exit("no such thing")')
    with pytest.raises(CommandFailed, match=r"kubectl --namespace=n get pods .*: exit code 1\nno such thing"):
        broken.get("pods", namespace="n")


def test_an_object_that_is_not_there_is_none(kubectl: Program) -> None:
    assert kubectl("").find("namespace", "gone") is None


def test_objects_are_applied_as_one_list(kubectl: Program, tmp_path: Path) -> None:
    kept = tmp_path / "given"
    cluster = kubectl(f"open({str(kept)!r}, 'w').write(repr((sys.argv[1:], json.load(sys.stdin))))")
    cluster.apply([{"kind": "Pod"}], namespace="n")
    given = {"apiVersion": "v1", "kind": "List", "items": [{"kind": "Pod"}]}
    assert kept.read_text() == repr((["--namespace=n", "apply", "--filename=-"], given))


def test_what_is_left_of_a_release_is_found_by_label_and_by_name(kubectl: Program) -> None:
    cluster = kubectl("""
if "api-resources" in sys.argv:
    print("pods\\nevents\\nbroken" if "--namespaced=true" in sys.argv else "clusterroles.rbac")
elif "broken" in sys.argv:
    sys.exit("the server is currently unable to handle the request")
elif "pods" in sys.argv:
    print("other \\ngpumon-e2e-server-1 gpumon-e2e\\nrenamed gpumon-e2e")
    print("gpumon-e2e-lost \\ngpumon-server-2 gpumon")
else:
    print("view \\ne2e:gpumon-e2e-agent \\ngpumon:gpumon-agent gpumon")
""")
    assert Release(cluster, "gpumon-e2e", "e2e").remains() == {
        "pods/gpumon-e2e-server-1",
        "pods/renamed",
        "pods/gpumon-e2e-lost",
        "clusterroles.rbac/e2e:gpumon-e2e-agent",
    }


def test_a_wait_ends_when_it_is_so_and_fails_with_how_it_was_last() -> None:
    answers = iter([NotYet("none"), NotYet("one"), "two"])

    def ask() -> str:
        answer = next(answers)
        if isinstance(answer, NotYet):
            raise answer
        return answer

    assert until(ask, 30, pause=0.01) == "two"

    def never() -> None:
        raise NotYet("still one")

    with pytest.raises(NotYet, match="still one"):
        until(never, 0.05, pause=0.01)


def test_a_port_is_forwarded_anew_when_the_pod_at_its_end_has_gone(kubectl: Program) -> None:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"data": "here"}')

        def log_message(self, *_: object) -> None:
            """Silent."""

    port = free_port()
    cluster = kubectl(f"""
print("Forwarding from 127.0.0.1:{port} -> 5000", flush=True)
__import__("signal").pause()
""")
    with cluster.forwarding("n", "service/gpumon-server", 5000) as forward:
        with pytest.raises(NotYet, match="/api/pods: ConnectError"):
            forward.data("/api/pods")
        with HTTPServer(("127.0.0.1", port), Answers) as server:
            thread = Thread(target=server.serve_forever)
            thread.start()
            try:
                assert forward.data("/api/pods") == "here"
            finally:
                server.shutdown()
                thread.join(10)


def test_what_a_forward_goes_on_saying_is_taken_from_it(kubectl: Program, tmp_path: Path) -> None:
    said = tmp_path / "said"
    cluster = kubectl(f"""
print("Forwarding from 127.0.0.1:1 -> 5000", flush=True)
print("Handling connection for 1\\n" * 10_000, flush=True)
open({str(said)!r}, "w").close()
__import__("signal").pause()
""")
    with cluster.forward("n", "service/gpumon-server", 5000) as url:
        assert url == "http://127.0.0.1:1"
        waited_for(said)


def test_a_port_that_can_not_be_forwarded_yet_is_told_with_kubectls_words(kubectl: Program) -> None:
    cluster = kubectl('sys.exit("error: unable to forward port because pod is not running")')
    with (
        cluster.forwarding("n", "service/gpumon-server", 5000) as forward,
        pytest.raises(NotYet, match="because pod is not running"),
    ):
        forward.ask("/docs")


def test_commands_do_not_wait_for_input() -> None:
    assert run([sys.executable, "-c", "import sys; print(repr(sys.stdin.read()))"]) == "''\n"


def test_sample_pods_are_valid_and_need_no_more_than_restricted() -> None:
    made = samples.manifests("registry.example/gpumon-server:1", [{"name": "pull"}])
    assert sorted(one["metadata"]["name"] for one in made) == sorted([*samples.LOADS, samples.NEVER_RUNS])
    for manifest in [*made, samples.pod("one", "registry.example/any", [], load=50, node="worker")]:
        kubernetes_validate.validate(manifest, "1.30", strict=True)
        assert level({"metadata": {}, "spec": samples.pod_spec(manifest)}) == "restricted"
        [container] = samples.pod_spec(manifest)["containers"]
        assert container["image"].startswith("registry.example/")


def test_make_fills_in_the_same_image_as_the_tests() -> None:
    placeholder = "image: IMAGE\n"
    assert all(path.read_text().count(placeholder) == 1 for path in samples.FOLDER.glob("*.yaml"))
    makefile = (samples.FOLDER.parents[1] / "Makefile").read_text(encoding="utf-8")
    assert "sed 's|image: IMAGE$$|image: $(REGISTRY)gpumon-server:$(VERSION)|'" in makefile
