"""The command line, as a user calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpumon import __version__
from gpumon.model.fields import FIELDS


def gpumon(*arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpumon", *arguments],
        cwd=cwd,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_version_and_help_need_nothing(tmp_path: Path) -> None:
    assert gpumon("--version", cwd=tmp_path).stdout.strip().endswith(__version__)
    helped = gpumon("--help", cwd=tmp_path)
    assert helped.returncode == 0
    for command in ("server", "agent", "demo", "fields", "config"):
        assert command in helped.stdout


def test_fields_prints_the_whole_catalogue(tmp_path: Path) -> None:
    lines = gpumon("fields", cwd=tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["field", *(field.name for field in FIELDS)]


@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [
        (["server", "--config", "none.ini"], {}, ["can't read", "none.ini"]),
        (["server"], {"GPUMON_SERVER__SERVER__PORT": "x"}, ["[SERVER] port", "whole number"]),
        (["server"], {"GPUMON_SERVER__SERVER__TIMEZONE": "Mars/Olympus"}, ["timezone", "Asia/Taipei"]),
        (["server"], {"GPUMON_SERVER__SERVER__HOST": "203.0.113.1"}, ["can't listen", "[SERVER] host"]),
        (["agent"], {"GPUMON_AGENT__SERVER__SERVER_HOST": "localhost"}, ["server_host", "http://"]),
        (["agent", "--fake-nvml", "none.toml"], {}, ["none.toml"]),
    ],
)
def test_a_wrong_setting_is_exit_code_2_and_one_sentence(
    tmp_path: Path, arguments: list[str], environ: dict[str, str], words: list[str]
) -> None:
    ended = gpumon(*arguments, cwd=tmp_path, **environ)
    assert ended.returncode == 2, ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("gpumon: ")
    for word in words:
        assert word in last
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", ["server", "agent", "doctor"])
def test_the_settings_file_may_be_named_by_a_variable(tmp_path: Path, command: str) -> None:
    assert "GPUMON_CONFIG" in gpumon(command, "--help", cwd=tmp_path).stdout
    key = "[SERVER]\nport = x\n" if command == "server" else "[SERVER]\nserver_port = x\n"
    (tmp_path / "by-variable.ini").write_text(key)
    ended = gpumon(command, cwd=tmp_path, GPUMON_CONFIG="by-variable.ini")
    assert ended.returncode == 2
    assert "(from by-variable.ini)" in ended.stderr
    given = gpumon(command, "--config", "given.ini", cwd=tmp_path, GPUMON_CONFIG="by-variable.ini")
    assert "can't read the settings file given.ini" in given.stderr


def test_an_empty_variable_names_no_settings_file(tmp_path: Path) -> None:
    ended = gpumon("server", cwd=tmp_path, GPUMON_CONFIG="", GPUMON_SERVER__SERVER__PORT="x")
    assert "[SERVER] port" in ended.stderr
