"""How the chart's objects hang together: names, labels, selectors, checksums, references, what is left behind."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart import CHART
from tests.chart.cases import CASES, EVERYTHING, MOCK, SERVICE_ACCOUNTS
from tests.chart.reach import matches
from tests.chart.rendering import Helm, Object, Release, component, containers

SELECTOR_KEYS = {f"app.kubernetes.io/{name}" for name in ("name", "instance", "component")}
CHECKSUM = "checksum/config"
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
WIDE: Mapping[str, Any] = {"agent": {"mockNvml": {"enabled": True}}, **{k: EVERYTHING[k] for k in ("monitoring",)}}


@pytest.mark.parametrize("name", CASES)
def test_selectors_have_what_never_changes_and_nothing_else(helm: Helm, name: str) -> None:
    for an, labels in selectors(helm.render(CASES[name])):
        assert set(labels) == SELECTOR_KEYS, an["kind"]


@pytest.mark.parametrize(
    "values",
    [
        {"commonLabels": {"team": "gpu", "app.kubernetes.io/part-of": "x"}},
        {"agent": {"podLabels": {"a": "b"}}, "server": {"podLabels": {"a": "b"}}},
        {"agent": {"image": {"tag": "9"}}, "server": {"image": {"tag": "9"}}},
    ],
    ids=["common labels", "pod labels", "image"],
)
def test_selectors_do_not_change_with(helm: Helm, values: Mapping[str, Any]) -> None:
    assert _selected(helm.render(values)) == _selected(helm.render())


def test_selectors_do_not_change_with_the_version_of_the_chart(helm: Helm, tmp_path: Path) -> None:
    assert _selected(helm.render(chart=chart_of(tmp_path, "9.9.9"))) == _selected(helm.render())


@pytest.mark.parametrize("name", CASES)
def test_each_selector_takes_the_pods_of_its_component_and_no_others(helm: Helm, name: str) -> None:
    release = helm.render(CASES[name])
    pods = {part: pod["metadata"]["labels"] for part, pod in release.pods.items()}
    assert {"agent", "server", "test"} <= set(pods)
    for an, labels in selectors(release):
        taken = {part for part, own in pods.items() if matches({"matchLabels": labels}, own)}
        assert taken == {component(an)}, an["kind"]


def test_labels_of_the_user_reach_every_object_and_pod(helm: Helm) -> None:
    release = helm.render({"commonLabels": {"team": "gpu"}} | MOCK)
    assert all(an["metadata"]["labels"]["team"] == "gpu" for an in release.objects)
    assert all(pod["metadata"]["labels"]["team"] == "gpu" for pod in release.pods.values())


@pytest.mark.parametrize(
    "options",
    [
        {"release": "r" * 53, "namespace": "n" * 63},
        {"release": "r" * 39 + "-x" + "r" * 12},
        {"values": {"fullnameOverride": "f" * 39 + "-" + "f" * 40}},
        {"values": {"nameOverride": "n" * 63}},
        {"release": "my-gpumon"},
    ],
    ids=["long release", "cut at a hyphen", "long full name", "long name", "name within the release"],
)
def test_names_are_valid_and_no_two_objects_meet(helm: Helm, options: dict[str, Any]) -> None:
    values = {**WIDE, **options.get("values", {})}
    release = helm.render(values, **{key: text for key, text in options.items() if key != "values"})
    for an in release.objects:
        name = an["metadata"]["name"]
        assert all(DNS_LABEL.fullmatch(part) for part in name.split(":")), name
        assert ":" not in name or an["kind"].startswith("ClusterRole"), name  # RBAC takes it, and only RBAC
        assert len(name) <= (253 if "namespace" not in an["metadata"] else 63), name
    for labels in [an["metadata"]["labels"] for an in release.objects]:
        assert all(len(text) <= 63 and not text.endswith("-") for text in labels.values())
    names = Counter((an["kind"], an["metadata"]["name"]) for an in release.objects)
    assert max(names.values()) == 1


def test_two_releases_share_no_object(helm: Helm) -> None:
    def all_of(**where: str) -> set[tuple[str, ...]]:
        objects = helm.render(SERVICE_ACCOUNTS, **where).objects
        return {(an["kind"], an["metadata"].get("namespace", ""), an["metadata"]["name"]) for an in objects}

    here, elsewhere, beside = all_of(), all_of(namespace="lab"), all_of(release="second")
    assert not here & elsewhere
    assert not here & beside


def test_what_is_of_a_namespace_says_so(helm: Helm) -> None:
    for an in helm.render(EVERYTHING).objects:
        assert an["metadata"].get("namespace") == (None if an["kind"].startswith("ClusterRole") else "gpu")


@pytest.mark.parametrize(("program", "other"), [("agent", "server"), ("server", "agent")])
def test_pods_are_replaced_when_their_settings_change(helm: Helm, program: str, other: str) -> None:
    changed = helm.render({program: {"config": {"logging": {"log_level": "DEBUG"}}}})
    assert checksum(changed, program) != checksum(helm.render(), program)
    assert checksum(changed, other) == checksum(helm.render(), other)


def test_pods_are_not_replaced_for_anything_else(helm: Helm, tmp_path: Path) -> None:
    same = [
        helm.render(
            {"agent": {"resources": {}}, "server": {"resources": {}, "service": {"annotations": {"a": "b"}}}}
        ),
        helm.render({"commonLabels": {"a": "b"}}),
        helm.render(chart=chart_of(tmp_path, "9.9.9")),
    ]
    for release in same:
        assert checksum(release, "agent") == checksum(helm.render(), "agent")
        assert checksum(release, "server") == checksum(helm.render(), "server")


def test_pods_carry_no_version_that_would_replace_them(helm: Helm, tmp_path: Path) -> None:
    newer = helm.render(None, "agent.image.tag=x", "server.image.tag=x", chart=chart_of(tmp_path, "9.9.9"))
    assert newer.pods == helm.render(None, "agent.image.tag=x", "server.image.tag=x").pods


@pytest.mark.parametrize("name", CASES)
def test_everything_that_is_referred_to_is_there_or_the_user_s(helm: Helm, name: str) -> None:
    values = CASES[name]
    release = helm.render(values)
    own = yaml.safe_load(values.read_text(encoding="utf-8")) if isinstance(values, Path) else values
    theirs = set(_texts(own or {}))
    for kind, wanted, keys in references(release):
        an = release.named(kind, wanted)
        assert an is not None or wanted in theirs | {"default"}, f"{kind} {wanted}"
        assert an is None or keys <= set(an.get("data", {})), f"{kind} {wanted} has no {keys}"


def test_tokens_are_random_and_long(helm: Helm) -> None:
    def tokens() -> list[str]:
        text = helm("template", "gpumon", CHART, "--set", "auth.read.enabled=true").stdout
        secret = next(an for an in yaml.safe_load_all(text) if an and an["kind"] == "Secret")
        return list(secret["data"].values())

    first, second = tokens(), tokens()
    assert len({*first, *second}) == 4
    assert all(len(token) >= 52 for token in first), "40 characters in base64"


def test_only_the_volume_outlives_an_uninstall(helm: Helm) -> None:
    for values in CASES.values():
        kept = {
            an["kind"]
            for an in helm.render(values).objects
            if (an["metadata"].get("annotations") or {}).get("helm.sh/resource-policy") == "keep"
        }
        assert kept <= {"PersistentVolumeClaim"}
    assert (
        helm.render().one("PersistentVolumeClaim")["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    )


def test_only_the_test_is_a_hook_and_ends_by_itself(helm: Helm) -> None:
    for an in helm.render(EVERYTHING).objects:
        hook = (an["metadata"].get("annotations") or {}).get("helm.sh/hook")
        assert hook == ("test" if an["kind"] == "Job" else None)
    job = helm.render().one("Job")["spec"]
    assert job["ttlSecondsAfterFinished"] and job["activeDeadlineSeconds"] and job["backoffLimit"] == 0


def selectors(release: Release) -> Iterator[tuple[Object, dict[str, str]]]:
    """Every object of the release that selects its pods, and by what labels."""
    for an in release.objects:
        match an["kind"]:
            case "Service":
                yield an, an["spec"]["selector"]
            case "NetworkPolicy":
                yield an, an["spec"]["podSelector"]["matchLabels"]
            case "DaemonSet" | "Deployment" | "PodDisruptionBudget" | "PodMonitor" | "ServiceMonitor":
                yield an, an["spec"]["selector"]["matchLabels"]


def references(release: Release) -> Iterator[tuple[str, str, set[str]]]:
    """Kind and name of whatever a pod or an Ingress needs, and the keys that it must have."""
    for pod in release.pods.values():
        spec = pod["spec"]
        if name := spec.get("serviceAccountName"):
            yield "ServiceAccount", name, set()
        for secret in spec.get("imagePullSecrets", []):
            yield "Secret", secret["name"], set()
        for volume in spec.get("volumes", []):
            if secret := volume.get("secret"):
                yield "Secret", secret["secretName"], {item["key"] for item in secret["items"]}
            if config := volume.get("configMap"):
                yield "ConfigMap", config["name"], set()
            if claim := volume.get("persistentVolumeClaim"):
                yield "PersistentVolumeClaim", claim["claimName"], set()
        mounts = [mount["name"] for one in containers(pod) for mount in one.get("volumeMounts", [])]
        assert set(mounts) == {volume["name"] for volume in spec.get("volumes", [])}
    for an in release.objects:
        if an["kind"] == "Ingress":
            yield from (("Secret", tls["secretName"], set()) for tls in an["spec"].get("tls", []))
            for rule in an["spec"]["rules"]:
                yield "Service", rule["http"]["paths"][0]["backend"]["service"]["name"], set()
        if an["kind"] == "ClusterRoleBinding":
            yield "ClusterRole", an["roleRef"]["name"], set()
            yield "ServiceAccount", an["subjects"][0]["name"], set()


def checksum(release: Release, program: str) -> str:
    """What replaces the pods when it changes."""
    return str(release.pods[program]["metadata"]["annotations"][CHECKSUM])


def chart_of(folder: Path, version: str) -> Path:
    """The chart under another version."""
    chart = folder / "gpumon"
    shutil.copytree(CHART, chart)
    text = (chart / "Chart.yaml").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^(version|appVersion): .*$", rf"\1: {version}", text)
    (chart / "Chart.yaml").write_text(text, encoding="utf-8")
    return chart


def _selected(release: Release) -> list[tuple[str, dict[str, str]]]:
    return [(an["kind"], labels) for an, labels in selectors(release)]


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            yield from _texts(value)
    elif isinstance(values, str):
        yield values
