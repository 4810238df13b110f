"""The doctor: on a node where all is well it finds nothing, and every broken step is the one that it names."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import trustme

from gpumon.agent.assembly import Agent
from gpumon.agent.cluster import Cluster
from gpumon.agent.counts import HoldersCounts
from gpumon.agent.doctor import Doctor, Finding, OpenedGpus, Report, render_json, render_text
from gpumon.agent.doctor.finding import Site
from gpumon.agent.doctor.gpus import SeenGpus
from gpumon.agent.doctor.kubelet import SeenKubelet, check_kubelet
from gpumon.agent.nvml import Nvml
from gpumon.agent.ports import ClaimedDevice, ContainerDevices
from gpumon.agent.settings import Attribution, Authentication, GpuMetrics, Kubernetes, Spool
from gpumon.agent.shipping.connection import Destination
from gpumon.agent.surroundings import Surroundings
from tests import processes
from tests.agent.doctornode import CONTAINER, GPU_RESOURCE, PID, AnsweringServer, DoctorNode, cgroup, doctor_nodes
from tests.agent.kubeapi import LIST, NODE, SLICES, WATCH, slice_json
from tests.agent.kubelet import holds
from tests.agent.proctree import A_PODS_PID_NAMESPACE

STEPS = [
    "nvml",
    "readings",
    "process-use",
    "host-pid",
    "cgroups",
    "kubelet",
    "resources",
    "device-ids",
    "node",
    "pod-api",
    "resource-slices",
    "matching",
    "server",
    "auth",
    "clock",
    "spool",
]
STRANGER = "GPU-00000000-0000-4000-8000-00000000dead"
OTHER_UID = "2d5c2c3e-7f54-4f0e-8a55-2f1f3f0a9b12"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[DoctorNode]:
    with doctor_nodes(tmp_path) as made:
        yield made


def broken(report: Report) -> list[str]:
    return [finding.name for finding in report.broken]


def test_where_all_is_well_every_step_is_ok_or_not_needed_and_says_what_was_seen(node: DoctorNode) -> None:
    report = node.examine()

    assert report.ok, report.broken
    assert [finding.name for finding in report.findings] == STEPS
    evidence = {finding.name: finding.evidence for finding in report.findings}
    assert {f.name for f in report.findings if f.status == "not needed"} == {"resource-slices"}
    assert "1x NVIDIA H100 80GB HBM3" in evidence["nvml"] and "simulated" not in evidence["nvml"]
    assert "fan_speed (nvmlDeviceGetFanSpeed: Not Supported)" in evidence["readings"]
    assert evidence["process-use"] == "1 process on 1 GPU, each with its use"
    assert evidence["cgroups"] == "systemd containerd: 1 process"
    assert str(node.kubelet.socket) in evidence["kubelet"] and "1 container with devices" in evidence["kubelet"]
    assert evidence["resources"] == f"{GPU_RESOURCE}: 1 held of 1"
    assert evidence["device-ids"] == "1 uuid"
    assert evidence["node"].startswith("NODE_NAME is node-1, which the API has; ")
    assert evidence["pod-api"] == "1 pod of this node, kept by a watch"
    assert evidence["matching"] == "1 process: 1 in pods that are known"
    assert "HTTP 422" in evidence["auth"]
    assert all(finding.fix == "" for finding in report.findings)


def test_looking_sends_no_sample_and_leaves_no_file(node: DoctorNode) -> None:
    node.spool.mkdir()
    before = sorted(path.name for path in node.folder.rglob("*"))
    node.examine()

    assert [body for asked, body in node.server.requests if asked.startswith("POST")] == [b"[]"]
    assert sorted(path.name for path in node.folder.rglob("*")) == sorted([*before, "kubeconfig"])


Break = Callable[[DoctorNode], None]


def no_driver(node: DoctorNode) -> None:
    node.top = 'init_error = "DriverNotLoaded"'


def no_gpus(node: DoctorNode) -> None:
    node.gpus, node.rest = "", ""


def gpu_left_out(node: DoctorNode) -> None:
    node.gpus = "model = 'h100-sxm'\ncount = 2"
    node.rest += "\n[[node.faults]]\ncall = 'nvmlDeviceGetHandleByIndex_v2'\ngpu = 1\nerror = 'GpuIsLost'"


def gpu_lost(node: DoctorNode) -> None:
    node.gpus = "model = 'h100-sxm'\n[[node.gpus]]\nmodel = 'l4'"
    node.rest += "\n[[node.faults]]\ncall = 'nvmlDeviceGetUtilizationRates'\ngpu = 1\nerror = 'GpuIsLost'"


def blind_driver(node: DoctorNode) -> None:
    node.top = "missing_calls = ['nvmlDeviceGetUtilizationRates', 'nvmlDeviceGetComputeRunningProcesses*']"


def no_host_pid(node: DoctorNode) -> None:
    own = f"0::/kubepods/pod{OTHER_UID}/{CONTAINER}\n"
    node.proc.init("gpumon", own)
    node.proc.agent(own, A_PODS_PID_NAMESPACE)


def strange_cgroup(node: DoctorNode) -> None:
    node.proc.add(PID, cgroup="0::/kubepods.slice/kubepods-vendor-x1/task\n")


def no_socket(node: DoctorNode) -> None:
    node.kubelet.stop()


def kubelet_hangs(node: DoctorNode) -> None:
    node.kubelet.hang = True


def kubelet_refuses(node: DoctorNode) -> None:
    node.kubelet.fail_with(grpc.StatusCode.INTERNAL, "checkpoint broken")


def stranger_held(node: DoctorNode) -> None:
    node.kubelet.containers = [holds("train", GPU_RESOURCE, STRANGER)]


def riddle_held(node: DoctorNode) -> None:
    node.kubelet.containers = [holds("train", GPU_RESOURCE, "vendor#7")]


def no_node_name(node: DoctorNode) -> None:
    del node.environ["NODE_NAME"]


def wrong_node_name(node: DoctorNode) -> None:
    node.api.nodes.clear()


def no_right_to_nodes(node: DoctorNode) -> None:
    node.api.refusals[NODE] = 403


def unknown_token(node: DoctorNode) -> None:
    node.api.token = "another"


def no_right_to_list(node: DoctorNode) -> None:
    node.api.refusals[LIST] = 403


def no_right_to_watch(node: DoctorNode) -> None:
    node.api.refusals[WATCH] = 403


def claims(node: DoctorNode, device: str = "gpu-0") -> None:
    held = ClaimedDevice("gpu.nvidia.com", "node-1", device)
    node.kubelet.containers = [ContainerDevices("default", "train", "main", {}, (held,))]


def no_right_to_slices(node: DoctorNode) -> None:
    claims(node)
    node.api.refusals[SLICES] = 403


def claim_in_no_slice(node: DoctorNode) -> None:
    claims(node, "gpu-7")
    node.api.slices = {"v1": [slice_json({"gpu-0": node.uuid()})]}


def stranger_claimed(node: DoctorNode) -> None:
    claims(node)
    node.api.slices = {"v1": [slice_json({"gpu-0": STRANGER})]}


def pod_of_nobody(node: DoctorNode) -> None:
    node.proc.add(PID, cgroup=cgroup(OTHER_UID))


def foreign_proc(node: DoctorNode) -> None:
    node.proc.remove(PID)


def no_server(node: DoctorNode) -> None:
    node.server.stop()


def other_server(node: DoctorNode) -> None:
    node.server.answers["GET /"] = 200, {"message": "Welcome to nginx"}


def old_server(node: DoctorNode) -> None:
    node.server.answers["GET /"] = 200, {"message": "NVIDIA GPU Metrics API", "version": "2.1.0"}


def server_disk_full(node: DoctorNode) -> None:
    node.server.answers["GET /health"] = 503, {"status": "unhealthy", "reasons": ["no space left"]}


def not_authenticated(node: DoctorNode) -> None:
    node.server.answers["POST /api/receive-data"] = 401, {"detail": "a token is needed"}


def not_allowed(node: DoctorNode) -> None:
    node.server.answers["POST /api/receive-data"] = 403, {"detail": "not for this agent"}


def token_gone(node: DoctorNode) -> None:
    node.sections["authentication"] = Authentication(token_file=str(node.folder / "token"))


def refused_too_often(node: DoctorNode) -> None:
    node.server.answers["POST /api/receive-data"] = 429, {"detail": "wait", "error_code": "HTTP_429"}


def token_not_reviewed(node: DoctorNode) -> None:
    node.server.answers["POST /api/receive-data"] = 503, {"detail": "no answer", "error_code": "HTTP_503"}


def wrong_path(node: DoctorNode) -> None:
    del node.server.answers["POST /api/receive-data"]


def clock_ahead(node: DoctorNode) -> None:
    node.server.ahead_seconds = -300.0


def clock_behind(node: DoctorNode) -> None:
    node.server.ahead_seconds = 300.0


def spool_is_a_file(node: DoctorNode) -> None:
    node.spool.write_text("")


@pytest.mark.parametrize(
    ("break_it", "step", "evidence", "fix"),
    [
        (no_driver, "nvml", "driver is not loaded", "agent.runtimeClassName"),
        (no_gpus, "nvml", "no GPU", "NVIDIA_VISIBLE_DEVICES"),
        (gpu_left_out, "nvml", "of index 1", "Xid"),
        (gpu_lost, "readings", "GPU 1 (NVIDIA L4)", "Xid"),
        (blind_driver, "readings", "GPU 0: neither utilization nor", "update the driver"),
        (no_host_pid, "host-pid", "pid namespace of its own", "agent.hostPID to true"),
        (strange_cgroup, "cgroups", "/kubepods.slice/kubepods-vendor-x1/task", "report this path"),
        (no_socket, "kubelet", "there is no such socket", "agent.kubeletRootDir"),
        (kubelet_hangs, "kubelet", "no complete answer within 0.5 s", "agent.config.kubernetes.kubelet_timeout"),
        (kubelet_refuses, "kubelet", "checkpoint broken", "systemctl status kubelet"),
        (stranger_held, "resources", f"{GPU_RESOURCE}: {STRANGER}", "agent.config.kubernetes.resource_names"),
        (riddle_held, "device-ids", f"{GPU_RESOURCE}: vendor#7", "report these ids"),
        (no_node_name, "node", "NODE_NAME is not set", "spec.nodeName"),
        (wrong_node_name, "node", "HTTP 404", "set NODE_NAME to the node's name"),
        (no_right_to_nodes, "node", "HTTP 403", "right to get nodes"),
        (unknown_token, "pod-api", "HTTP 401", "has expired: restart the pod"),
        (no_right_to_list, "pod-api", "HTTP 403: list is forbidden", "get, list and watch of pods"),
        (no_right_to_watch, "pod-api", "HTTP 403: watch is forbidden", "get, list and watch of pods"),
        (no_right_to_slices, "resource-slices", "HTTP 403", "list resourceslices"),
        (claim_in_no_slice, "resource-slices", "node-1/gpu-7", "dynamic_resources must be true"),
        (stranger_claimed, "resource-slices", STRANGER, "NVIDIA_VISIBLE_DEVICES"),
        (pod_of_nobody, "matching", OTHER_UID, "NODE_NAME"),
        (foreign_proc, "matching", "none of the 1 process", "agent.hostPID"),
        (no_server, "server", "Connection refused", "agent.config.server.server_host"),
        (other_server, "server", "is no gpumon server: GET / gives HTTP 200: Welcome to nginx", "server_port"),
        (old_server, "server", "the old program", "agent.config.network.compress to false"),
        (server_disk_full, "server", "no space left", "the server's log and disk"),
        (not_authenticated, "auth", "HTTP 401: a token is needed", "auth.existingSecret"),
        (not_authenticated, "auth", "does not know this agent, which sends no token", "auth.mode"),
        (token_gone, "auth", "can't read [AUTHENTICATION] token_file", "auth.existingSecretKey"),
        (refused_too_often, "auth", "too many wrong tokens", "auth.mode"),
        (token_not_reviewed, "auth", "can't find out who the agent is", "tokenreviews"),
        (not_allowed, "auth", "HTTP 403: not for this agent", "auth.mode"),
        (wrong_path, "auth", "HTTP 404", "agent.config.server.api_endpoint"),
        (clock_ahead, "clock", "300 s ahead of the server's", "NTP"),
        (clock_behind, "clock", "300 s behind the server's", "accept_future_seconds"),
        (spool_is_a_file, "spool", "is no folder", "agent.config.spool.directory"),
    ],
)
def test_a_broken_step_is_named_with_its_evidence_and_what_to_do(
    node: DoctorNode, break_it: Break, step: str, evidence: str, fix: str
) -> None:
    break_it(node)
    report = node.examine()

    assert broken(report) == [step], report.broken
    assert evidence in report.broken[0].evidence
    assert fix in report.broken[0].fix
    assert [finding.name for finding in report.findings] == STEPS


def test_what_builds_on_a_broken_step_is_not_looked_at(node: DoctorNode) -> None:
    no_driver(node)
    no_server(node)
    report = node.examine()

    assert broken(report) == ["nvml", "server"]
    waiting = {f.name: f.evidence for f in report.findings if f.evidence.startswith("not looked at")}
    first = {name: evidence.split(": ")[1].split()[0] for name, evidence in waiting.items()}
    assert first == {
        "readings": "nvml",
        "process-use": "nvml",
        "resources": "nvml",
        "device-ids": "nvml",
        "auth": "server",
        "clock": "server",
    }


def test_the_rights_of_the_socket_are_root_s_to_have() -> None:
    seen = SeenKubelet("k.sock (srw-rw----)", trouble="k.sock: permission denied.", cause=PermissionError())
    assert "runAsUser to 0" in check_kubelet(seen, Site(kubernetes=True)).fix
    found = check_kubelet(seen, Site(kubernetes=False))
    assert found.fix == "run the agent as root" and "srw-rw----" in found.evidence


def test_on_a_plain_host_kubernetes_is_not_needed_and_advice_names_settings(node: DoctorNode) -> None:
    node.environ.clear()
    node.sections["kubernetes"] = Kubernetes(kubelet_socket="")
    node.top = 'init_error = "DriverNotLoaded"'
    no_server(node)
    spool_is_a_file(node)
    report = node.examine()

    kubernetes = STEPS[STEPS.index("kubelet") : STEPS.index("server")]
    told = {finding.name: (finding.status, finding.evidence) for finding in report.findings}
    assert {told[step] for step in kubernetes} == {("not needed", "not in Kubernetes")}
    fixes = {finding.name: finding.fix for finding in report.broken}
    assert set(fixes) == {"nvml", "server", "spool"}
    assert "[MONITORING] fake_nvml" in fixes["nvml"]
    assert "[SERVER] server_host" in fixes["server"]
    assert "[SPOOL] directory" in fixes["spool"]
    assert "chart" not in " ".join(fixes.values())


def test_what_the_settings_switch_off_is_not_needed(node: DoctorNode) -> None:
    no_host_pid(node)
    no_socket(node)
    no_right_to_list(node)
    node.sections |= {
        "attribution": Attribution(enabled=False, proc_root=str(node.proc.root)),
        "spool": Spool(directory=""),
    }
    report = node.examine()
    assert report.ok, report.broken
    off = {f.name for f in report.findings if f.evidence == "[ATTRIBUTION] enabled is false"}
    assert off == set(STEPS[STEPS.index("host-pid") : STEPS.index("server")])
    assert node.kubelet.calls.total() == 0 and not node.api.requests


def test_an_api_that_is_switched_off_leaves_pods_known_by_name(node: DoctorNode) -> None:
    node.sections["kubernetes"] = Kubernetes(kubelet_socket=str(node.kubelet.socket), pod_metadata="off")
    del node.environ["NODE_NAME"]
    report = node.examine()
    assert report.ok, report.broken
    told = {finding.name: finding for finding in report.findings}
    assert told["node"].status == told["pod-api"].status == told["matching"].status == "not needed"
    assert "[KUBERNETES] pod_metadata is off" in told["pod-api"].evidence
    assert "1 in pods, known by UID alone" in told["matching"].evidence


def test_without_processes_by_choice_no_host_pid_is_asked_for(node: DoctorNode) -> None:
    no_host_pid(node)
    node.sections["gpu_metrics"] = GpuMetrics(include_processes=False)
    report = node.examine()
    assert report.ok, report.broken


def test_a_gpu_that_tells_no_use_by_process_is_shared_out_equally(node: DoctorNode) -> None:
    node.top = "missing_calls = ['nvmlDeviceGetProcess*Utilization*']"
    node.proc.add(PID + 1, cgroup=cgroup())
    alone = node.finding("process-use")
    node.rest += f"\n[[node.processes]]\ngpu = 0\npid = {PID + 1}"
    shared = node.finding("process-use")

    assert (alone.status, shared.status) == ("not needed", "ok")
    assert "equal-split" in alone.evidence and "equal-split" in shared.evidence


def test_mig_needs_no_use_by_process(node: DoctorNode) -> None:
    node.gpus = "model = 'a100-sxm'\nmig = ['1g.5gb']"
    node.rest = f"[[node.processes]]\ngpu = 0\nmig = 0\npid = {PID}"
    report = node.examine()
    told = {finding.name: finding for finding in report.findings}
    assert "split by MIG" in told["process-use"].evidence
    assert told["readings"].status == "ok"
    assert told["matching"].evidence == "1 process: 1 in pods that are known"


def test_a_token_that_cannot_be_read_is_found_before_anything_is_posted(node: DoctorNode) -> None:
    token_gone(node)
    node.examine()

    assert [asked for asked, _ in node.server.requests] == ["GET /", "GET /health"]


def test_a_server_that_repeats_the_token_does_not_bring_it_into_the_report(node: DoctorNode) -> None:
    token = node.folder / "token"
    token.write_text("s3cret-token")
    node.sections["authentication"] = Authentication(token_file=str(token))
    node.server.answers["POST /api/receive-data"] = 401, {"detail": "s3cret-token is no token of ours"}
    report = node.examine()

    assert broken(report) == ["auth"]
    assert "*** is no token of ours; the server does not know this agent" in report.broken[0].evidence
    assert b"s3cret" not in render_json(report)


def test_a_busy_server_or_proxy_is_no_trouble_with_the_token(node: DoctorNode) -> None:
    node.server.answers["POST /api/receive-data"] = 429, "slow down"
    found = node.finding("auth")
    assert found.status == "ok" and "too busy to say (HTTP 429" in found.evidence


def test_without_kubernetes_the_advice_on_tokens_and_certificates_names_settings(node: DoctorNode) -> None:
    node.environ.clear()
    node.sections["kubernetes"] = Kubernetes(kubelet_socket="")
    not_authenticated(node)
    assert "[AUTHENTICATION] token_file" in node.finding("auth").fix
    token_gone(node)
    assert "[AUTH] token_file" in node.finding("auth").fix
    with speaking_tls(node):
        assert "[SERVER] ca_file" in node.finding("server").fix


@contextmanager
def speaking_tls(node: DoctorNode) -> Iterator[trustme.CA]:
    """The node's server speaks https, by a certificate of the authority that is given."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with AnsweringServer() as server:
        server.speak_tls(context)
        plain, node.server, node.server_host = node.server, server, "https://127.0.0.1"
        yield authority
        node.server, node.server_host = plain, "http://127.0.0.1"


def test_a_server_whose_authority_is_not_the_agent_s_is_named_with_the_chart_value(
    node: DoctorNode, tmp_path: Path
) -> None:
    ca_file, token = tmp_path / "ca.crt", tmp_path / "token"
    token.write_text("t0ken")
    node.ca_file = str(ca_file)
    node.sections["authentication"] = Authentication(token_file=str(token))
    with speaking_tls(node) as authority:
        authority.cert_pem.write_to_path(str(ca_file))
        assert node.examine().ok
        trustme.CA().cert_pem.write_to_path(str(ca_file))
        strange = node.examine()
        ca_file.unlink()
        unread = node.examine()

    assert broken(strange) == broken(unread) == ["server"]
    assert "certificate verify failed" in strange.broken[0].evidence
    assert "can't read [SERVER] ca_file" in unread.broken[0].evidence
    assert "server.tls.caSecret" in strange.broken[0].fix
    assert strange.broken[0].fix == unread.broken[0].fix


def test_an_agent_that_speaks_http_to_a_server_with_a_certificate_is_told_so(node: DoctorNode) -> None:
    with speaking_tls(node):
        node.server_host = "http://127.0.0.1"
        in_a_cluster = node.examine()
        node.environ.clear()
        node.sections["kubernetes"] = Kubernetes(kubelet_socket="")
        plain = node.examine()

    assert broken(in_a_cluster) == broken(plain) == ["server"]
    assert "must begin with https://" in in_a_cluster.broken[0].fix and "server.tls" in in_a_cluster.broken[0].fix
    assert "must begin with https://" in plain.broken[0].fix and "tls_cert_file" in plain.broken[0].fix


def test_an_agent_that_speaks_https_is_not_told_to(node: DoctorNode) -> None:
    no_server(node)
    node.server_host = "https://127.0.0.1"

    assert "Connection refused" in node.finding("server").evidence
    assert "must begin with" not in node.finding("server").fix


def test_a_clock_that_is_a_little_off_is_told_and_not_broken(node: DoctorNode) -> None:
    node.server.ahead_seconds = 20.0
    found = node.finding("clock")
    assert found.status == "ok" and "20 s behind the server's" in found.evidence


def test_an_old_server_is_no_trouble_for_an_agent_that_does_not_compress(node: DoctorNode) -> None:
    old_server(node)
    settings = node.settings()
    node.sections["network"] = type(settings.network)(compress=False)
    found = node.finding("server")
    assert found.status == "ok" and "version 2.1.0 (the old program" in found.evidence


def test_claims_that_are_known_are_ok_and_those_of_other_drivers_do_not_count(node: DoctorNode) -> None:
    nic = ClaimedDevice("nic.example.com", "node-1", "nic-0")
    gpu = ClaimedDevice("gpu.nvidia.com", "node-1", "gpu-0")
    node.api.slices = {"v1": [slice_json({"gpu-0": node.uuid()})]}
    node.kubelet.containers = [ContainerDevices("default", "train", "main", {}, (nic,))]
    assert node.finding("resource-slices").status == "not needed"
    node.kubelet.containers = [ContainerDevices("default", "train", "main", {}, (nic, gpu))]
    assert node.finding("resource-slices").evidence == "1 GPU held by claim, each known"


@pytest.mark.parametrize("break_it", [lambda node: None, no_server, not_authenticated])
def test_a_password_in_the_address_is_never_shown(node: DoctorNode, break_it: Break) -> None:
    node.server_host = "http://agent:s3cret@127.0.0.1"
    break_it(node)
    report = node.examine()
    assert b"s3cret" not in render_json(report)
    assert "s3cret" not in render_text(report, width=100)
    assert f"http://127.0.0.1:{node.server.port}/api/receive-data" in render_text(report, width=100)


class Hanging:
    """A look that hangs until the test is over."""

    def __init__(self) -> None:
        self.calls = 0
        self.released = threading.Event()

    def see(self) -> SeenGpus:
        self.calls += 1
        assert self.released.wait(20)
        return SeenGpus(trouble="late")


def doctor_of(node: DoctorNode, gpus: Callable[[], SeenGpus]) -> Doctor:
    settings = node.settings()
    surroundings = Surroundings.look(settings, node.environ)
    cluster = Cluster(settings, surroundings, HoldersCounts())
    url = f"http://127.0.0.1:{node.server.port}/api/receive-data"
    return Doctor(settings, surroundings, cluster, Destination(url), gpus, gpus_seconds=0.05)


def test_what_hangs_is_a_finding_and_is_not_begun_again(node: DoctorNode) -> None:
    node.sections["attribution"] = Attribution(enabled=False)
    hanging = Hanging()
    doctor = doctor_of(node, hanging.see)
    try:
        for _ in range(2):
            report = doctor.examine()
            assert broken(report) == ["nvml"]
            assert "it hangs" in report.broken[0].evidence
        assert hanging.calls == 1
    finally:
        hanging.released.set()
    processes.until(lambda: doctor.examine().broken[0].evidence == "late")


def test_a_look_that_fails_is_a_finding_too(node: DoctorNode) -> None:
    node.sections["attribution"] = Attribution(enabled=False)

    def see() -> SeenGpus:
        raise ZeroDivisionError("division by zero")

    report = doctor_of(node, see).examine()
    assert broken(report) == ["nvml"]
    assert "a bug of gpumon: ZeroDivisionError" in report.broken[0].evidence


def test_a_check_that_fails_itself_is_a_finding_and_leaves_the_others_alone(node: DoctorNode) -> None:
    no_socket(node)
    node.sections["kubernetes"] = Kubernetes(kubelet_socket=str(node.kubelet.socket), pod_metadata="off")
    report = doctor_of(node, lambda: SeenGpus(gpus=(object(),))).examine()  # type: ignore[arg-type]
    assert [finding.name for finding in report.findings] == STEPS
    assert report.broken[0].name == "nvml" and report.broken[0].fix == "report this as a bug of gpumon"
    assert "kubelet" in broken(report) and "server" not in broken(report)


def assert_released(released: threading.Event) -> None:
    assert released.wait(20)


def test_a_gpu_that_hangs_does_not_hide_the_others(node: DoctorNode) -> None:
    node.gpus = "model = 'l4'\ncount = 2"
    released = threading.Event()
    with node.simulated() as fake:
        fake.state.sleep = lambda _: assert_released(released)
        fake.fail("nvmlDeviceGetUtilizationRates", delay_seconds=60, gpu=1)
        opened = OpenedGpus(Nvml(), read_seconds=0.5, between_reads_seconds=0)
        try:
            seen = opened.see()
            opened.close()
            assert fake.calls["nvmlShutdown"] == 0, "not under a call"
        finally:
            released.set()
    assert [gpu.trouble is None for gpu in seen.gpus] == [True, False]
    assert "it hangs" in (seen.gpus[1].trouble or "")


def get(port: int | None, path: str) -> tuple[int, dict[str, object]]:
    assert port is not None
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_the_running_agent_examines_itself_on_its_live_doors(node: DoctorNode) -> None:
    node.server.answers["POST /api/receive-data"] = 200, {"success": True}
    settings = node.settings()
    with node.simulated() as fake:
        agent = Agent(settings, Nvml(), Surroundings.look(settings, node.environ))
        agent.start()
        try:
            processes.until(lambda: agent.counts.delivery.samples > 2)
            opened = fake.calls["nvmlInit_v2"]
            status, body = get(agent.status.port, "/doctor")
            assert (status, body["ok"]) == (200, True), body
            findings = body["findings"]
            assert isinstance(findings, list)
            assert [finding["name"] for finding in findings] == STEPS
            told = {finding["name"]: finding["evidence"] for finding in findings}
            assert "driver 5" in told["nvml"] and "fan_speed" in told["readings"]
            assert told["matching"] == "1 process: 1 in pods that are known"
            assert fake.calls["nvmlInit_v2"] == opened

            node.kubelet.stop()
            status, body = get(agent.status.port, "/doctor")
            assert (status, body["ok"]) == (503, False)
        finally:
            agent.stop()


def test_the_running_agent_examines_itself_for_one_at_a_time(node: DoctorNode) -> None:
    settings = node.settings()
    first: list[int] = []
    with node.simulated():
        agent = Agent(settings, Nvml(), Surroundings.look(settings, node.environ))
        agent.start()
        try:
            node.server.hold.clear()
            thread = threading.Thread(target=lambda: first.append(get(agent.status.port, "/doctor")[0]))
            thread.start()
            processes.until(lambda: "GET /" in [asked for asked, _ in node.server.requests])
            status, body = get(agent.status.port, "/doctor")
            node.server.hold.set()
            thread.join(20)
            assert (status, "ask again" in str(body["detail"])) == (429, True)
            assert first in ([200], [503])
            assert get(agent.status.port, "/doctor")[0] != 429
        finally:
            agent.stop()


def broken_once_a_delivery_has_failed(node: DoctorNode) -> list[dict[str, str]]:
    """What a running agent finds broken after its first delivery."""
    settings = node.settings()
    with node.simulated():
        agent = Agent(settings, Nvml(), Surroundings.look(settings, node.environ))
        agent.start()
        try:
            processes.until(lambda: agent.counts.delivery.trouble)
            _, body = get(agent.status.port, "/doctor")
        finally:
            agent.stop()
    findings = body["findings"]
    assert isinstance(findings, list)
    return [finding for finding in findings if finding["status"] == "broken"]


def test_a_delivery_that_fails_is_told_though_the_server_answers(node: DoctorNode) -> None:
    node.server.answers["POST /api/receive-data"] = 200, {"hello": "world"}
    (found,) = broken_once_a_delivery_has_failed(node)
    assert found["name"] == "server" and "the agent's last delivery failed" in found["evidence"]


def test_an_agent_that_is_not_let_in_is_no_fault_of_the_server_s(node: DoctorNode) -> None:
    not_authenticated(node)
    assert [found["name"] for found in broken_once_a_delivery_has_failed(node)] == ["auth"]


def report_of(*findings: Finding) -> Report:
    return Report("3.0.0", "node-1", findings)


def test_the_text_fits_its_width_keeps_paths_whole_and_ends_with_the_verdict() -> None:
    path = "/" + "p" * 90
    report = report_of(
        Finding("nvml", "ok", "word " * 60),
        Finding("kubelet", "broken", f"{path}: there is no such socket", "set agent.kubeletRootDir " * 8),
        Finding("server", "broken", "no connection", "see the server"),
    )
    for width in (80, 100, 120):
        lines = render_text(report, width=width).splitlines()
        assert all(len(line) <= width for line in lines if path not in line)
        assert any(path in line for line in lines)
        assert lines[-1].startswith("Broken: kubelet first, and 1 more: ")
        (advice,) = [line for line in lines if "do: set" in line]
        assert advice.startswith(" " * 20)


def test_colours_change_nothing_but_the_colour() -> None:
    report = report_of(Finding("ok-by-name", "broken", "no", "yes"), Finding("nvml", "ok", "fine"))
    plain = render_text(report, width=100)
    painted = render_text(report, width=100, paint=lambda text, status: f"<{text}>")
    assert painted.replace("<", "").replace(">", "") == plain
    assert "ok-by-name  <broken    >  no" in painted


def test_where_nothing_is_broken_the_last_line_says_so() -> None:
    assert render_text(report_of(Finding("nvml", "ok", "fine")), width=100).endswith("\n\nNothing is broken.")


SIMULATED = """
[[node]]
match = "*"
[[node.gpus]]
model = "h100-sxm"
[[node.pods]]
name = "train-0"
gpus = [0]
pids = [5000001]
[[node.processes]]
gpu = 0
pid = 5000001
"""


class CommandLine:
    """`gpumon doctor` on a simulated node, as a process of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._scenario = folder / "scenario.toml"
        self._scenario.write_text(SIMULATED)
        self._environ = {
            "NODE_NAME": "gpu-node-a",
            "GPUMON_AGENT__SERVER__SERVER_HOST": "http://127.0.0.1",
            "GPUMON_AGENT__SERVER__SERVER_PORT": str(port),
        }

    def __call__(self, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gpumon", "doctor", "--fake-nvml", str(self._scenario), *options],
            cwd=self._folder,
            env=os.environ | self._environ | environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def test_the_command_ends_with_0_where_nothing_is_broken_1_where_something_is_2_for_a_setting(
    tmp_path: Path,
) -> None:
    port = processes.free_port()
    command = CommandLine(tmp_path, port)
    with processes.server(tmp_path / "data", port) as server:
        server.start()
        well = command("--json")
        found = json.loads(well.stdout)
        assert (well.returncode, found["ok"], found["node"]) == (0, True, "gpu-node-a"), well
        told = {finding["name"]: finding for finding in found["findings"]}
        assert list(told) == STEPS
        assert told["server"]["evidence"].endswith(f"version {found['version']}")
        assert told["auth"]["evidence"] == "an empty list is let in (HTTP 422)"
        assert told["matching"]["evidence"] == "1 process: 1 in pods that are known"
        assert told["cgroups"]["evidence"] == told["pod-api"]["evidence"] == "pods are simulated"
        assert all(set(finding) == {"name", "status", "evidence", "fix"} for finding in found["findings"])

    away = command()
    assert away.returncode == 1
    assert away.stdout.splitlines()[-1].startswith("Broken: server: http://127.0.0.1:")
    assert "\x1b" not in away.stdout
    assert away.stderr == "settings from defaults and GPUMON_AGENT__* variables\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "scenario.toml"]

    wrong = command(GPUMON_AGENT__SERVER__SERVER_HOST="http://h/path")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "[SERVER] server_host" in wrong.stderr and "Traceback" not in wrong.stderr


def test_the_command_shows_the_agent_s_token_to_a_server_that_asks_for_one(tmp_path: Path) -> None:
    port, tokens = processes.free_port(), tmp_path / "token"
    tokens.write_text("t0ken-of-the-server\n")
    auth = {"GPUMON_SERVER__AUTH__MODE": "token", "GPUMON_SERVER__AUTH__TOKEN_FILE": str(tokens)}
    command = CommandLine(tmp_path, port)

    def finding(**environ: str) -> dict[str, str]:
        findings = json.loads(command("--json", **environ).stdout)["findings"]
        return next(found for found in findings if found["name"] == "auth")

    with processes.server(tmp_path / "data", port, **auth) as server:
        server.start()
        right = finding(GPUMON_AGENT__AUTHENTICATION__TOKEN_FILE=str(tokens))
        assert (right["status"], right["evidence"]) == ("ok", "an empty list is let in (HTTP 422)")
        none = finding()
        assert none["status"] == "broken" and "HTTP 401" in none["evidence"]
        assert none["evidence"].endswith("does not know this agent, which sends no token")
        assert "[AUTHENTICATION] token_file" in none["fix"]
