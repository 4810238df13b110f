"""The optional objects for Prometheus and Grafana.

The figures they ask for are compared with what a real server and agent expose. Where `promtool` is installed, each
alert is tried on series that should raise it, and on some that should not.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpumon import clock
from gpumon.agent.counts import DeliveryCounts, SamplerCounts
from gpumon.agent.metrics import AgentCounts, AgentMetrics
from gpumon.server.auth.refusal import Reason
from tests.chart import CHART
from tests.chart.rendering import Helm, Object, Release
from tests.samples import full_sample, pod
from tests.server.conftest import serving, settings_for

ALERTS = CHART / "files" / "alerts.yaml"
DASHBOARD: dict[str, Any] = json.loads((CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))
RULES = [rule for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"] for rule in group["rules"]]
KINDS = {
    "podMonitor": ("PodMonitor", "gpumon-agent"),
    "serviceMonitor": ("ServiceMonitor", "gpumon-server"),
    "prometheusRule": ("PrometheusRule", "gpumon"),
    "grafanaDashboard": ("ConfigMap", "gpumon-dashboard"),
}


def rendered(helm: Helm, *sets: str) -> Release:
    """An install with everything of monitoring on."""
    return helm.render({"monitoring": {key: {"enabled": True} for key in KINDS}}, *sets)


def pod_endpoint(release: Release) -> Object:
    (endpoint,) = release.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    return dict(endpoint)


def endpoint(release: Release) -> Object:
    (endpoint,) = release.one("ServiceMonitor")["spec"]["endpoints"]
    return dict(endpoint)


def expressions() -> list[str]:
    """All PromQL of alerts and dashboard, and what the dashboard's variables ask for."""
    variables = [v["definition"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
    targets = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [*(rule["expr"] for rule in RULES), *targets, *variables]


def test_nothing_of_monitoring_is_made_by_default(helm: Helm) -> None:
    made = {(an["kind"], an["metadata"]["name"]) for an in helm.render().objects}
    assert made and not made & set(KINDS.values())


def test_the_pod_monitor_selects_the_agents_pods_by_a_port_that_they_have(helm: Helm) -> None:
    release = rendered(helm, "monitoring.podMonitor.interval=7s")
    wanted = release.one("PodMonitor")["spec"]["selector"]["matchLabels"].items()
    chosen = [name for name, pod in release.pods.items() if wanted <= pod["metadata"]["labels"].items()]
    assert chosen == ["agent"]
    asked = pod_endpoint(release)
    ports = release.pods["agent"]["spec"]["containers"][0]["ports"]
    assert asked["port"] in [port["name"] for port in ports]
    assert (asked["path"], asked["interval"]) == ("/metrics", "7s")
    assert {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"} in asked["relabelings"]


def test_the_service_monitor_selects_the_servers_service_and_keeps_the_pods_own_labels(helm: Helm) -> None:
    release = rendered(helm, "monitoring.serviceMonitor.interval=7s")
    service = release.one("Service")
    wanted = release.one("ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
    assert wanted <= service["metadata"]["labels"].items()
    asked = endpoint(release)
    assert asked["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert (asked["path"], asked["interval"], asked["scheme"]) == ("/metrics", "7s", "http")
    assert asked["honorLabels"] is True
    assert {"action": "labeldrop", "regex": "pod|container"} in asked["relabelings"]
    assert "tlsConfig" not in asked and "authorization" not in asked


def test_the_service_monitor_knows_the_servers_certificate_and_the_token_for_reading(helm: Helm) -> None:
    sets = ("server.tls.existingSecret=cert", "auth.read.enabled=true")
    asked = endpoint(rendered(helm, *sets))
    assert asked["scheme"] == "https"
    assert asked["tlsConfig"] == {
        "serverName": "gpumon-server.gpu.svc",
        "ca": {"secret": {"name": "cert", "key": "ca.crt"}},
    }
    token = {"name": "gpumon-auth", "key": "read-token"}
    assert asked["authorization"] == {"type": "Bearer", "credentials": token}


def test_the_service_monitor_takes_authority_and_token_from_secrets_of_ones_own(helm: Helm) -> None:
    sets = (
        "server.tls.existingSecret=cert",
        "server.tls.caSecret=authority",
        "server.tls.caKey=root.pem",
        "auth.read.enabled=true",
        "auth.read.existingSecret=tokens",
        "auth.read.existingSecretKey=prometheus",
    )
    asked = endpoint(rendered(helm, *sets))
    assert asked["tlsConfig"]["ca"] == {"secret": {"name": "authority", "key": "root.pem"}}
    assert asked["authorization"]["credentials"] == {"name": "tokens", "key": "prometheus"}


def test_the_job_that_the_alerts_ask_for_is_the_pod_monitors(helm: Helm) -> None:
    relabelings = pod_endpoint(rendered(helm))["relabelings"]
    jobs = {one["replacement"] for one in relabelings if one["targetLabel"] == "job"}
    assert {name for one in expressions() for name in re.findall(r'job="([^"]*)"', one)} == jobs


@pytest.mark.parametrize("key", KINDS)
def test_an_object_has_the_charts_labels_and_its_own_which_win(helm: Helm, key: str) -> None:
    sets = ("commonLabels.team=a", "commonLabels.site=b", f"monitoring.{key}.labels.team=c")
    metadata = rendered(helm, *sets).one(*KINDS[key])["metadata"]
    assert metadata["namespace"] == "gpu"
    own = {"app.kubernetes.io/name": "gpumon", "app.kubernetes.io/instance": "gpumon"}
    assert metadata["labels"].items() >= (own | {"team": "c", "site": "b"}).items()


def test_alerts_and_dashboard_reach_the_cluster_as_they_are_in_their_files(helm: Helm) -> None:
    release = rendered(helm)
    assert release.one("PrometheusRule")["spec"] == yaml.safe_load(ALERTS.read_text("utf-8"))
    shown = release.one(*KINDS["grafanaDashboard"])
    assert json.loads(shown["data"]["gpumon.json"]) == DASHBOARD
    assert shown["metadata"]["labels"]["grafana_dashboard"] == "1"


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a server with one GPU, one pod and a token for reading exposes, and an agent that has delivered."""
    counts = AgentCounts(sampler=SamplerCounts(gpus_by_state={"ok": 1}), delivery=DeliveryCounts(delivered_at=1.0))
    at, folder = clock.to_wire(clock.now()), tmp_path_factory.mktemp("server")
    token = "for-reading-" + 20 * "x"
    (folder / "token").write_text(token, encoding="utf-8")
    with serving(settings_for(folder / "data", auth={"read_token_file": str(folder / "token")})) as client:
        one = full_sample(timestamp=at, sampled_at=at, pods=[pod()])
        client.post("/api/receive-data", json=one).raise_for_status()
        answer = client.get("/metrics", headers={"Authorization": f"Bearer {token}"}).raise_for_status()
        return answer.text + AgentMetrics(counts).render().decode()


def test_every_metric_that_is_asked_for_is_exposed(exposed: str) -> None:
    families = set(re.findall(r"^# TYPE (\S+)", exposed, re.MULTILINE))
    asked = {name for one in expressions() for name in re.findall(r"\bgpumon_\w+", one)}
    assert asked > {"gpumon_gpu_state", "gpumon_agent_nvml_up", "gpumon_server_storage_ok"}
    assert asked <= families


def test_every_label_that_is_asked_for_is_exposed_or_a_targets(exposed: str) -> None:
    targets = {"job", "instance", "namespace", "pod", "node"}
    known = set(re.findall(r'[{,](\w+)="', exposed)) | targets
    asked = {
        label
        for one in expressions()
        for labels in re.findall(r"\b(?:by|on|without) \(([^)]+)\)", one)
        for label in labels.split(", ")
    } | {label for one in expressions() for label in re.findall(r'(\w+)(?:=~|!=|=)"', one)}
    assert asked > {"node", "gpu", "state", "reason"}
    assert asked <= known
    assert Reason.LIMITED in {value for one in expressions() for value in re.findall(r'reason!="(\w+)"', one)}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_what_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"].keys() == {"summary", "description"}
    assert rule["alert"] in {alert for alert, *_ in TROUBLES}, "no trouble below raises it"


def test_every_panel_asks_the_chosen_datasource_and_has_a_place_of_its_own() -> None:
    assert (DASHBOARD["uid"], DASHBOARD["schemaVersion"]) == ("gpumon", 42)
    assert [v["name"] for v in DASHBOARD["templating"]["list"]] == ["datasource", "node", "namespace", "pod"]
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert panel["title"] and panel["description"]
        for asking in (panel, *panel["targets"]):
            assert asking["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


Series = dict[str, str]
SERVER = {"namespace": "mon", "instance": "gpumon-server.mon.svc", "job": "gpumon-server"}
AGENT = {
    "namespace": "mon",
    "pod": "gpumon-agent-x",
    "node": "n1",
    "instance": "10.0.0.1:9435",
    "job": "gpumon-agent",
}
GPU = {"node": "n1", "gpu": "0", "uuid": "GPU-1", "name": "H100"}
PART = {"node": "n1", "gpu": "0", "uuid": "GPU-1", "namespace": "lab", "pod": "train-0", "container": "main"}
IDLE = PART | {"method": "allocation-only"}
BUSY = PART | {"method": "exclusive"}
MINUTES = 300


def series(name: str, labels: dict[str, str], **more: str) -> str:
    return name + "{" + ",".join(f'{key}="{value}"' for key, value in (labels | more).items()) + "}"


def always(value: float) -> str:
    return f"{value}+0x{MINUTES}"


STORAGE_OK = series("gpumon_server_storage_ok", SERVER)
ROWS = series("gpumon_server_rows_stored_total", SERVER)
REFUSED = series("gpumon_server_auth_refusals_total", SERVER, right="send", reason="unknown")
LIMITED = series("gpumon_server_auth_refusals_total", SERVER, right="send", reason="limited")
UP = series("up", AGENT)
DELIVERED_AT = series("gpumon_agent_last_delivery_timestamp_seconds", AGENT)
DROPPED = series("gpumon_agent_dropped_samples_total", AGENT)
REJECTED = series("gpumon_agent_rejected_samples_total", AGENT)
QUARANTINED = series("gpumon_agent_quarantined_batches_total", AGENT)
NVML_UP = series("gpumon_agent_nvml_up", AGENT)
KUBELET_UP = series("gpumon_agent_kubelet_up", AGENT)
OK = series("gpumon_gpu_state", GPU | SERVER, state="ok")
LOST = series("gpumon_gpu_state", GPU | SERVER, state="lost")
ECC = series("gpumon_gpu_ecc_uncorrected_errors_total", GPU | SERVER)
REASONS = series("gpumon_gpu_clock_event_reasons", GPU | SERVER)
BUSY_SHARE = series("gpumon_pod_gpu_share", SERVER | BUSY)
BUSY_USE = series("gpumon_pod_gpu_utilization_ratio", SERVER | BUSY)
IDLE_SHARE = series("gpumon_pod_gpu_share", SERVER | IDLE)
IDLE_USE = series("gpumon_pod_gpu_utilization_ratio", SERVER | IDLE)

WELL: Series = {
    STORAGE_OK: always(1),
    ROWS: f"0+100x{MINUTES}",
    REFUSED: always(3),
    LIMITED: f"0+60x{MINUTES}",
    UP: always(1),
    series("gpumon_agent_spool_batches", AGENT, place="memory"): always(1),
    series("gpumon_agent_spool_batches", AGENT, place="disk"): always(0),
    DELIVERED_AT: f"0+60x{MINUTES}",
    DROPPED: always(7),
    REJECTED: always(7),
    QUARANTINED: always(7),
    NVML_UP: always(1),
    KUBELET_UP: always(1),
    OK: always(1),
    LOST: always(0),
    ECC: always(2),
    REASONS: always(0x4 + 0x20),
    BUSY_SHARE: always(1),
    BUSY_USE: always(0.5),
}
"""Five hours, a value a minute, in which nothing is to be done: what went wrong once did so before."""
GONE = "_"
IDLE_POD: Series = {BUSY_SHARE: GONE, BUSY_USE: GONE, IDLE_SHARE: always(0.5), IDLE_USE: always(0)}
NOTHING: Mapping[str, str] = {}

TROUBLES: list[tuple[str, Series, Mapping[str, str]]] = [
    ("GpumonServerDown", {STORAGE_OK: GONE, ROWS: GONE}, NOTHING),
    ("GpumonServerCannotStore", {STORAGE_OK: always(0), ROWS: always(9)}, SERVER),
    ("GpumonNoSamples", {ROWS: always(9)}, SERVER),
    ("GpumonAgentDown", {UP: always(0)}, AGENT),
    ("GpumonAgentCannotDeliver", {DELIVERED_AT: always(5)}, AGENT),
    ("GpumonAgentCannotDeliver", {DELIVERED_AT: GONE}, AGENT),
    ("GpumonSamplesLost", {DROPPED: f"0+1x{MINUTES}"}, AGENT),
    ("GpumonSamplesRefused", {REJECTED: f"0+1x{MINUTES}"}, AGENT),
    ("GpumonSamplesRefused", {QUARANTINED: f"0+1x{MINUTES}"}, AGENT),
    (
        "GpumonTokensRefused",
        {REFUSED: f"0+2x{MINUTES}"},
        {"namespace": "mon", "right": "send", "reason": "unknown"},
    ),
    ("GpumonNvmlDown", {NVML_UP: always(0)}, AGENT),
    ("GpumonKubeletDoesNotAnswer", {KUBELET_UP: always(0)}, AGENT),
    ("GpumonGpuNotOk", {OK: always(0), LOST: always(1)}, GPU | {"state": "lost"}),
    ("GpumonGpuMemoryErrors", {ECC: f"0+1x{MINUTES}"}, GPU),
    ("GpumonGpuSlowedByHardware", {REASONS: always(0x4 + 0x8 + 0x40)}, GPU),
    ("GpumonGpuHeldIdle", IDLE_POD, {"node": "n1", "namespace": "lab", "pod": "train-0"}),
]
"""(the one alert that is raised, the series that raise it, its labels)."""

NO_TROUBLES: Mapping[str, Series] = {
    "all is well": {},
    "an agent with nothing to deliver": {
        DELIVERED_AT: GONE,
        series("gpumon_agent_spool_batches", AGENT, place="memory"): always(0),
    },
    "a pod that worked two hours ago": IDLE_POD
    | {BUSY_SHARE: "_x170 1+0x10 _x120", BUSY_USE: "_x170 0.9+0x10 _x120"},
    "a pod that has held a GPU for an hour": IDLE_POD | {IDLE_SHARE: "_x240 1+0x60", IDLE_USE: "_x240 0+0x60"},
    "a pod whose work could not be measured": IDLE_POD | {BUSY_SHARE: "1+0x240 _x60", IDLE_USE: "_x240 0+0x60"},
    "a busy MIG instance, a seventh of the GPU": {BUSY_SHARE: always(0.14), BUSY_USE: always(0.01)},
}


@pytest.fixture(scope="session")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not on PATH; install Prometheus to have the alerts tried")
    return found


def raised(trouble: Series) -> list[dict[str, str]]:
    return [{"series": name, "values": values} for name, values in (WELL | trouble).items() if values != GONE]


def try_rules(promtool: str, folder: Path, trouble: Series, alert: str, labels: Mapping[str, str]) -> None:
    """Fails unless the alert, and no other, is raised at the end."""

    def expected(rule: Mapping[str, Any]) -> list[dict[str, Any]]:
        if rule["alert"] != alert:
            return []
        texts = {
            key: re.sub(r"{{ \$labels\.(\w+) }}", lambda found: labels[found[1]], text).replace(
                "{{ $value }}", "1"
            )
            for key, text in rule["annotations"].items()
        }
        return [{"exp_labels": {**labels, **rule["labels"]}, "exp_annotations": texts}]

    tests = [
        {"alertname": rule["alert"], "eval_time": f"{MINUTES}m", "exp_alerts": expected(rule)} for rule in RULES
    ]
    written = folder / "test.yaml"
    one = {"interval": "1m", "input_series": raised(trouble), "alert_rule_test": tests}
    asked = {"rule_files": [str(ALERTS)], "evaluation_interval": "5m", "tests": [one]}
    written.write_text(yaml.safe_dump(asked), encoding="utf-8")
    done = subprocess.run([promtool, "test", "rules", str(written)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("alert", "trouble", "labels"), TROUBLES)
def test_a_trouble_raises_its_alert_and_no_other(
    promtool: str, tmp_path: Path, alert: str, trouble: Series, labels: Mapping[str, str]
) -> None:
    try_rules(promtool, tmp_path, trouble, alert, labels)


@pytest.mark.parametrize("trouble", NO_TROUBLES.values(), ids=NO_TROUBLES)
def test_no_alert_is_raised_by(promtool: str, tmp_path: Path, trouble: Series) -> None:
    try_rules(promtool, tmp_path, trouble, "none", NOTHING)


def test_the_dashboards_expressions_are_right_promql(promtool: str, tmp_path: Path) -> None:
    asked = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    plain = [re.sub(r"\$__rate_interval", "5m", re.sub(r"\$(node|namespace|pod)\b", ".+", one)) for one in asked]
    assert not [one for one in plain if "$" in one]
    rules = [{"record": f"panel:{number}", "expr": one} for number, one in enumerate(plain)]
    written = tmp_path / "panels.yaml"
    written.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run([promtool, "check", "rules", str(written)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
