"""The README says what is there."""

from __future__ import annotations

import re
from pathlib import Path

from gpumon import ini
from gpumon.agent.settings import AgentSettings
from gpumon.cli import cli
from gpumon.server.app import create_app
from gpumon.server.settings import ServerSettings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_endpoint_stands_in_the_readme_and_no_other() -> None:
    there = {path for path in create_app(ServerSettings()).openapi()["paths"] if path != "/"}
    named = set(re.findall(r"`(?:GET |POST )?(/(?:api/[a-z/{}-]+|health|ready|metrics))`", README))
    assert named - {"/healthz", "/readyz"} == there


def test_every_make_target_and_command_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)\b", README)) <= targets
    for command in cli.commands:
        assert re.search(rf"\bgpumon (server\|)?{command}\b", README), command


def test_every_setting_that_is_named_exists() -> None:
    keys = {(key.section, key.name) for kind in (ServerSettings, AgentSettings) for key in ini.keys(kind)}
    for section, name in re.findall(r"`\[([A-Z_]+)\] ([a-z_]+)`", README):
        assert (section.lower(), name) in keys, name


def test_every_file_that_is_named_exists() -> None:
    for path in re.findall(r"`((?:src|config|bench|tests|\.ci)/[A-Za-z0-9_./-]+)`", README):
        assert (ROOT / path).exists(), path
