"""The INI files of the chart: the programs read them without a warning, and get what stands in the values."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pytest

from tests.chart.cases import CASES, EVERYTHING, MOCK
from tests.chart.programs import FILES, loaded, mount_at, paths, volume_at
from tests.chart.rendering import Helm, Object

PROGRAMS = list(FILES)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_program_reads_its_file_without_a_warning(helm: Helm, name: str, program: str) -> None:
    settings, warnings = loaded(helm.render(CASES[name]), program)
    assert warnings == []
    assert settings.logging.log_file == "", "the log goes to where kubectl logs finds it"


@pytest.mark.parametrize(
    ("section", "key", "value", "read"),
    [
        ("storage", "max_disk_mb", 1_000_000, 1_000_000.0),
        ("storage", "data_retention_days", 36_500, 36_500),
        ("performance", "batch_write_size", 1_000_000, 1_000_000),
        ("limits", "accept_future_seconds", 0.1, 0.1),
        ("limits", "stale_after_seconds", 123_456_789.5, 123_456_789.5),
        ("server", "debug", True, True),
        ("storage", "enable_file_compression", False, False),
        ("server", "cors_origins", "", ""),
        ("server", "cors_origins", "*", "*"),
        ("cost", "currency", "5% %(home)s ${HOME}", "5% %(home)s ${HOME}"),
        ("cost", "currency", "a = b: c # d ; e", "a = b: c # d ; e"),
        ("cost", "currency", "[COST]", "[COST]"),
        ("cost", "currency", "true", "true"),
        ("cost", "currency", "0012", "0012"),
        ("cost", "currency", "{{ x }}", "{{ x }}"),
        ("cost", "prices", "NVIDIA H100*: 2.50\n[x]*: 1\n\n*: 0.5\n", "NVIDIA H100*: 2.50\n[x]*: 1\n\n*: 0.5"),
        ("cost", "prices", "\nNVIDIA A100*: 1.5\n", "NVIDIA A100*: 1.5"),
    ],
)
def test_value_reaches_the_program_as_it_was_given(
    helm: Helm, section: str, key: str, value: Any, read: Any
) -> None:
    settings, warnings = loaded(helm.render({"server": {"config": {section: {key: value}}}}), "server")
    assert warnings == []
    assert getattr(getattr(settings, section), key) == read


def test_setting_by_the_command_line_is_read_as_one_in_a_file(helm: Helm) -> None:
    release = helm.render(
        None, "server.config.storage.max_disk_mb=1000000", "agent.config.monitoring.interval_seconds=0.5"
    )
    assert loaded(release, "server")[0].storage.max_disk_mb == 1_000_000
    assert loaded(release, "agent")[0].monitoring.interval_seconds == 0.5


def test_null_leaves_a_key_or_a_section_at_the_default_of_the_program(helm: Helm) -> None:
    config = {"storage": {"enable_file_compression": None, "max_disk_mb": None}, "logging": None}
    settings, warnings = loaded(helm.render({"server": {"config": config}}), "server")
    assert warnings == []
    assert settings.storage.enable_file_compression is False
    assert settings.storage.max_disk_mb == 0
    assert settings.logging.log_api_requests is True


def test_what_stands_in_the_values_wins_over_what_the_chart_knows(helm: Helm) -> None:
    release = helm.render({"agent": {"config": {"server": {"server_host": "https://elsewhere.example.com"}}}})
    settings, _ = loaded(release, "agent")
    assert settings.server.server_host == "https://elsewhere.example.com"
    assert settings.server.server_port == 5000, "the rest of the section stays"


def test_disk_limits_stay_below_what_the_volumes_hold(helm: Helm) -> None:
    release = helm.render(
        {"agent": {"spool": {"sizeLimit": "512Mi"}}, "server": {"persistence": {"size": "1.5Ti"}}}
    )
    assert loaded(release, "agent")[0].spool.disk_mb == int(512 * 1.048576 * 0.9)
    assert loaded(release, "server")[0].storage.max_disk_mb == int(1.5 * 2**40 / 1e6 * 0.9)


def test_a_claim_of_ones_own_has_no_limit_that_the_chart_could_know(helm: Helm) -> None:
    release = helm.render({"server": {"persistence": {"existingClaim": "mine"}}})
    assert loaded(release, "server")[0].storage.max_disk_mb == 0


@pytest.mark.parametrize("values", [EVERYTHING, MOCK, CASES["service-account-auth"]], ids=lambda _: "")
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_path_in_a_file_is_mounted(helm: Helm, program: str, values: Any) -> None:
    release = helm.render(values)
    pod = release.pods[program]
    settings, _ = loaded(release, program)
    named = dict(paths(settings))
    assert named
    for key, path in named.items():
        mount = mount_at(pod["spec"]["containers"][0], path)
        volume = volume_at(pod, pod["spec"]["containers"][0], path)
        assert mount and volume, f"{key} = {path} lies in no mount"
        files = _files(volume)
        assert files is None or str(path.relative_to(mount["mountPath"])) in files, f"{key} = {path}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_not_needed_is_not_mounted(helm: Helm, program: str) -> None:
    release = helm.render(EVERYTHING)
    pod = release.pods[program]
    container = pod["spec"]["containers"][0]
    wanted = [path for _, path in paths(loaded(release, program)[0])]
    wanted += [PurePosixPath("/etc/gpumon") / FILES[program], PurePosixPath("/tmp"), PurePosixPath("/more")]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {str((mount_at(container, path) or {}).get("mountPath")) for path in wanted} & mounts
    assert {mount["name"] for mount in container["volumeMounts"]} == {an["name"] for an in pod["spec"]["volumes"]}


def _files(volume: Object) -> set[str] | None:
    """Names in a volume of Secret, ConfigMap or token; None where anything may be in it."""
    if "secret" in volume:
        return {item["path"] for item in volume["secret"]["items"]}
    if "projected" in volume:
        return {source["serviceAccountToken"]["path"] for source in volume["projected"]["sources"]}
    return {"scenario.toml"} if volume["name"] == "scenario" else None
