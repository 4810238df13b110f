"""Whether the chart renders: every `ci` file, every platform, for every Kubernetes, and refuses what is wrong."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import kubernetes_validate.utils
import pytest
import yaml
import yamllint.config
import yamllint.linter

from gpumon import __version__
from tests.chart import CHART
from tests.chart.cases import CASES, CI
from tests.chart.rendering import Helm, objects_in

FOREIGN = {"PodMonitor", "ServiceMonitor", "PrometheusRule"}
"""Kinds of the Prometheus operator: Kubernetes has no schema of them."""
_OLDEST = (1, 29)
VERSIONS = [
    version
    for version in dict.fromkeys(kubernetes_validate.utils.all_versions())
    if tuple(map(int, version.split(".")[:2])) >= _OLDEST
]
_WRITTEN = yamllint.config.YamlLintConfig(
    "{extends: default, rules: {line-length: disable, document-start: disable, "
    "comments: {min-spaces-from-content: 1}, indentation: {indent-sequences: whatever}}}"
)

_RENDERED = yamllint.config.YamlLintConfig(
    "{extends: default, rules: {line-length: disable, document-start: disable, comments: disable, "
    "indentation: {indent-sequences: whatever}, trailing-spaces: disable, empty-lines: disable}}"
)
"""Blank lines and what ends a line are helm's, in templates as in texts that are indented."""


@pytest.fixture(scope="session")
def schemas() -> Iterator[None]:
    """Each schema is read once, not once for each object."""
    with pytest.MonkeyPatch.context() as patch:
        read = functools.cache(kubernetes_validate.utils.schema_contents)
        patch.setattr(kubernetes_validate.utils, "schema_contents", read)
        yield


@pytest.mark.parametrize("name", CI)
def test_helm_lint_has_nothing_to_say_against_a_ci_file(helm: Helm, name: str) -> None:
    helm("lint", "--strict", CHART, "--values", CI[name])


@pytest.mark.parametrize("name", CI)
def test_helm_template_makes_what_an_install_makes(helm: Helm, name: str) -> None:
    text = helm("template", "gpumon", CHART, "--namespace", "gpu", "--values", CI[name]).stdout
    by_name = sorted(objects_in(text), key=repr)
    assert by_name == sorted(helm.render(CI[name]).objects, key=repr)


@pytest.mark.usefixtures("schemas")
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_every_field(helm: Helm, version: str) -> None:
    seen: list[Any] = []
    for values in CASES.values():
        for an in helm.render(values).objects:
            if an["kind"] not in FOREIGN and an not in seen:
                seen.append(an)
                kubernetes_validate.utils.validate(an, version, strict=True)
    assert {an["kind"] for an in seen} >= {"DaemonSet", "Deployment", "Job", "NetworkPolicy", "Ingress"}


def test_newest_schemas_are_at_hand() -> None:
    assert len(VERSIONS) == 9
    assert VERSIONS[-1].startswith("1.37")


@pytest.mark.parametrize("name", ["default", "everything"])
def test_what_is_rendered_is_clean_yaml(helm: Helm, name: str) -> None:
    text = helm("template", "gpumon", CHART, "--values", helm.values_file(CASES[name])).stdout
    assert [str(problem) for problem in yamllint.linter.run(text, _RENDERED)] == []


@pytest.mark.parametrize("name", ["values.yaml", "Chart.yaml"])
def test_what_is_written_is_clean_yaml(name: str) -> None:
    text = (CHART / name).read_text(encoding="utf-8")
    assert [str(problem) for problem in yamllint.linter.run(text, _WRITTEN)] == []


def test_chart_and_images_have_the_version_of_the_program(helm: Helm) -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == chart["version"] == __version__
    images = {container["image"] for pod in helm.render().pods.values() for container in pod["spec"]["containers"]}
    assert images == {f"ghcr.io/gpumon/gpumon-{name}:{__version__}" for name in ("agent", "server")}


def test_digest_takes_the_place_of_the_tag(helm: Helm) -> None:
    digest = "sha256:" + "a" * 64
    agent = helm.render(None, f"agent.image.digest={digest}", "agent.image.tag=old").pods["agent"]
    assert agent["spec"]["containers"][0]["image"] == f"ghcr.io/gpumon/gpumon-agent@{digest}"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"agnet": {}}, "'agnet'"),
        ({"agent": {"tolerations": [], "hostPid": True}}, "'/agent': additional properties 'hostPid'"),
        ({"agent": {"config": {"monitoring": {"intervall_seconds": 1}}}}, "'intervall_seconds'"),
        ({"agent": {"config": {"monitor": {}}}}, "'monitor'"),
        (
            {"agent": {"config": {"monitoring": {"interval_seconds": 0}}}},
            "/agent/config/monitoring/interval_seconds",
        ),
        (
            {"server": {"config": {"storage": {"file_split_mode": "weekly"}}}},
            "/server/config/storage/file_split_mode",
        ),
        ({"server": {"service": {"port": "5000"}}}, "/server/service/port"),
        ({"server": {"persistence": {"size": "20 GB"}}}, "/server/persistence/size"),
        ({"agent": {"platform": "azure"}}, "/agent/platform"),
        ({"auth": {"mode": "basic"}}, "/auth/mode"),
        ({"auth": {"serviceAccounts": ["agent"]}}, "/auth/serviceAccounts/0"),
        ({"commonLabels": {"app.kubernetes.io/name": "x"}}, "/commonLabels/app.kubernetes.io~1name"),
        ({"agent": {"podLabels": {"app.kubernetes.io/component": "x"}}}, "/agent/podLabels/app.kub"),
        ({"server": {"podAnnotations": {"a": True}}}, "/server/podAnnotations/a"),
        ({"server": {"ingress": {"enabled": True}}}, "server.ingress.hosts"),
    ],
)
def test_wrong_values_are_refused_and_the_message_names_the_key(
    helm: Helm, values: dict[str, Any], named: str
) -> None:
    assert named in helm.refusal(values)


def test_notes_warn_of_what_is_not_for_production(helm: Helm) -> None:
    quiet = helm.render().notes
    for values, warning in [
        ({"agent": {"mockNvml": {"enabled": True}}}, "the GPUs are simulated"),
        ({"server": {"persistence": {"enabled": False}}}, "the history goes when the server's pod goes"),
        ({"auth": {"mode": "none"}}, "whoever reaches the server may send"),
        ({"server": {"ingress": {"enabled": True, "hosts": ["a.b"]}}}, "may read who uses which GPU"),
        ({"server": {"pdb": {"enabled": True}}}, "stops every drain"),
    ]:
        assert warning in helm.render(values).notes
        assert warning not in quiet


def test_notes_name_the_service_the_token_and_the_volume_that_are_there(helm: Helm) -> None:
    release = helm.render({"auth": {"read": {"enabled": True}}, "server": {"service": {"port": 80}}}, release="x")
    assert f"port-forward svc/{release.one('Service')['metadata']['name']} 5000:80" in release.notes
    assert (
        f"get secret {release.one('Secret')['metadata']['name']} -o jsonpath='{{.data.read-token}}'"
        in release.notes
    )
    claim = release.one("PersistentVolumeClaim")["metadata"]["name"]
    assert f"delete pvc {claim}\n" in release.notes + "\n"


def test_the_chart_can_be_part_of_another_one(helm: Helm) -> None:
    assert helm.render({"enabled": True, "global": {"any": "thing"}}).objects


@pytest.mark.parametrize("part", ["agent", "server"])
def test_a_service_account_of_ones_own_needs_its_name(helm: Helm, part: str) -> None:
    assert f"{part}.serviceAccount.name" in helm.refusal({part: {"serviceAccount": {"create": False}}})
