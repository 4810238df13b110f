"""Settings: every key documented and effective, errors that say what to do, the shipped files in step."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpumon import ini
from gpumon.agent.settings import ENVIRONMENT_PREFIX as AGENT
from gpumon.agent.settings import AgentSettings
from gpumon.errors import SettingsError
from gpumon.server.settings import ENVIRONMENT_PREFIX as SERVER
from gpumon.server.settings import ServerSettings

CONFIG = Path(__file__).parent.parent / "config"
PROGRAMS = [("server", ServerSettings, SERVER), ("agent", AgentSettings, AGENT)]

OLD_SERVER_INI = """
[SERVER]
host = 127.0.0.1
port = 5999
debug = false

[STORAGE]
output_directory = ./elsewhere
csv_filename_prefix = metrics
max_file_size_mb = 50
file_split_mode = size
enable_file_compression = True
data_retention_days = 0

[LOGGING]
log_level = WARNING
log_file = ./logs/other.log
console_output = no
log_max_size = 5
log_backup_count = 2
log_api_requests = false

[PERFORMANCE]
batch_write_size = 10
buffer_size = 99
gc_interval = 60
file_sync_interval = 60
"""

OLD_CLIENT_INI = """
[AUTHENTICATION]
client_name = 實驗室-1

[MONITORING]
interval_seconds = 10

[SERVER]
server_host = http://10.0.0.5
server_port = 5001
api_endpoint = /api/receive-data
connection_timeout = 3
read_timeout = 6

[NETWORK]
max_retries = 5
retry_delay = 1
retry_backoff = 3
batch_size = 1
batch_interval = 7

[GPU_METRICS]
include_utilization = true
include_memory = true
include_temperature = false
include_power = true
include_fan_speed = false

[LOGGING]
log_level = DEBUG
log_file = ./logs/c.log
console_output = true
log_max_size = 1
log_backup_count = 1
"""


@pytest.mark.parametrize(
    ("text", "kind", "prefix"), [(OLD_SERVER_INI, ServerSettings, SERVER), (OLD_CLIENT_INI, AgentSettings, AGENT)]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_of_the_old_program_loads_unchanged_and_every_key_arrives(
    tmp_path: Path, text: str, kind: type[msgspec.Struct], prefix: str, encoding: str
) -> None:
    path = tmp_path / "old.ini"
    path.write_text(text, encoding=encoding)
    settings, warnings = ini.load(kind, path, {}, prefix)
    assert warnings == []
    parser = configparser.ConfigParser()
    parser.read_string(text)
    for section in parser.sections():
        for name, written in parser.items(section):
            value = getattr(getattr(settings, section.lower()), name)
            if isinstance(value, bool):
                assert value == parser.getboolean(section, name), name
            else:
                assert str(value).removesuffix(".0") == written, name


@pytest.mark.parametrize(("program", "kind", "prefix"), PROGRAMS)
def test_the_shipped_file_is_what_the_settings_classes_say(
    program: str, kind: type[msgspec.Struct], prefix: str
) -> None:
    name = {"server": "server_config.ini", "agent": "client_config.ini"}[program]
    assert (CONFIG / name).read_text(encoding="utf-8") == ini.render(kind, f"gpumon {program}", prefix), (
        "run `make config`"
    )
    assert ini.load(kind, CONFIG / name, {}, prefix) == (kind(), [])


@pytest.mark.parametrize(("program", "kind", "prefix"), PROGRAMS)
def test_every_key_can_be_set_by_the_environment_and_is_documented(
    program: str, kind: type[msgspec.Struct], prefix: str
) -> None:
    for key in ini.keys(kind):
        assert key.help.endswith((".", "!")), key
        variable = f"{prefix}{key.section}__{key.name}".upper()
        settings, _ = ini.load(kind, None, {variable: ini.show(key.default)}, prefix)
        assert settings == kind(), variable


def test_words_are_taken_in_any_case() -> None:
    environ = {f"{SERVER}LOGGING__LOG_LEVEL": "critical", f"{SERVER}STORAGE__FILE_SPLIT_MODE": "Hourly"}
    settings, _ = ini.load(ServerSettings, None, environ, SERVER)
    assert (settings.logging.log_level, settings.storage.file_split_mode) == ("CRITICAL", "hourly")


def test_what_stands_behind_a_value_or_in_its_place_in_old_files_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "server_config.ini"
    path.write_text(
        "[SERVER]\nport = 05001  # ours\ndebug =\n"
        "[STORAGE]\noutput_directory = ./a #1\nmax_file_size_mb = 100 ; MB\ndata_retention_days = ; for ever?\n"
        "enable_file_compression = yes\t; gzip\nfile_split_mode = hourly # parts\n"
        "[LOGGING]\nlog_level = warn\n"
    )
    settings, warnings = ini.load(ServerSettings, path, {}, "GPUMON_SERVER_")
    assert (settings.server.port, settings.server.debug) == (5001, False)
    assert (settings.storage.output_directory, settings.storage.max_file_size_mb) == ("./a #1", 100)
    assert (settings.storage.data_retention_days, settings.storage.enable_file_compression) == (30, True)
    assert (settings.storage.file_split_mode, settings.logging.log_level) == ("hourly", "WARNING")
    assert len(warnings) == 2
    assert "[STORAGE] data_retention_days is empty: it is 30" in warnings[1]


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    path = tmp_path / "s.ini"
    path.write_text("[SERVER]\nport = 1\nhost = a\n")
    settings, _ = ini.load(ServerSettings, path, {"GPUMON_SERVER__SERVER__PORT": "2"}, SERVER)
    assert (settings.server.port, settings.server.host) == (2, "a")


def test_an_unknown_key_is_a_warning_in_a_file_and_an_error_in_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "s.ini"
    path.write_text("[SERVER]\nport = 1\nprot = 2\n")
    settings, warnings = ini.load(ServerSettings, path, {}, SERVER)
    assert settings.server.port == 1
    assert len(warnings) == 1
    assert "prot" in warnings[0]
    with pytest.raises(SettingsError, match=r"GPUMON_SERVER__SERVER__PROT .*gpumon config"):
        ini.load(ServerSettings, None, {"GPUMON_SERVER__SERVER__PROT": "2"}, SERVER)


def test_variables_that_kubernetes_sets_for_a_service_are_not_ours() -> None:
    environ = {"GPUMON_SERVER_SERVICE_HOST": "10.0.0.1", "GPUMON_SERVER_PORT_5000_TCP_ADDR": "10.0.0.1"}
    assert ini.load(ServerSettings, None, environ, SERVER)[0] == ServerSettings()


@pytest.mark.parametrize(
    ("section", "name", "value", "words"),
    [
        ("server", "port", "http", ["[SERVER] port", "'http'", "whole number", "GPUMON_SERVER__SERVER__PORT"]),
        ("server", "port", "70000", ["[SERVER] port", "at most 65535"]),
        ("server", "debug", "maybe", ["true or false"]),
        ("storage", "file_split_mode", "weekly", ["daily", "size", "hourly"]),
        ("storage", "csv_filename_prefix", "../x", ["csv_filename_prefix"]),
        ("logging", "log_level", "LOUD", ["DEBUG", "INFO"]),
        ("performance", "batch_write_size", "0", ["at least 1"]),
    ],
)
def test_a_wrong_value_names_the_key_the_value_where_it_was_set_and_what_is_allowed(
    section: str, name: str, value: str, words: list[str]
) -> None:
    with pytest.raises(SettingsError) as error:
        ini.load(ServerSettings, None, {f"{SERVER}{section}__{name}".upper(): value}, SERVER)
    for word in words:
        assert word in str(error.value)


def test_a_password_in_a_wrong_address_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as error:
        ini.load(AgentSettings, None, {f"{AGENT}SERVER__SERVER_HOST": "user:secret@host"}, AGENT)
    assert "secret" not in str(error.value)
    assert "server_host" in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["can't read", "missing.ini"]),
        (b"port = 1\n", ["not a valid INI"]),
        (b"[SERVER]\nhost = \xb9\xea\xc5\xe7\n", ["UTF-8"]),
        (b"[SERVER]\nport = 1\nport = 2\n", ["not a valid INI"]),
    ],
)
def test_a_file_that_can_not_be_read_says_why(tmp_path: Path, content: bytes | None, words: list[str]) -> None:
    path = tmp_path / "missing.ini"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError) as error:
        ini.load(ServerSettings, path, {}, SERVER)
    for word in words:
        assert word in str(error.value)


def test_defaults_are_those_of_the_old_program_where_it_had_the_key() -> None:
    differs = {"file_split_mode", "file_sync_interval"}  # daily, and every commit synced: see the README
    agent: Any = AgentSettings()
    assert (agent.monitoring.interval_seconds, agent.network.batch_size, agent.network.batch_interval) == (
        5,
        10,
        30,
    )
    assert (agent.network.max_retries, agent.network.retry_delay, agent.network.retry_backoff) == (3, 5, 2)
    server: Any = ServerSettings()
    old = {"port": 5000, "max_file_size_mb": 100, "data_retention_days": 30, "batch_write_size": 50,
           "buffer_size": 1000, "gc_interval": 300, "log_max_size": 50, "log_backup_count": 10}  # fmt: skip
    found = {key.name: key.default for key in ini.keys(type(server))}
    assert {name: found[name] for name in old} == old
    assert differs <= found.keys()


def test_a_misspelt_key_of_auth_is_an_error_for_it_would_leave_the_server_open(tmp_path: Path) -> None:
    file = tmp_path / "server_config.ini"
    file.write_text("[AUTH]\nmod = token\n")
    with pytest.raises(SettingsError, match=r"server_config\.ini: \[AUTH\] mod is not a setting"):
        ini.load(ServerSettings, file, {}, "GPUMON_SERVER__")
