"""The few settings that the images bring along. Needs no image."""

from __future__ import annotations

from gpumon import ini
from gpumon.agent.settings import AgentSettings
from gpumon.server.settings import ServerSettings
from tests.images.buildah import REPOSITORY


def test_the_agents_image_logs_to_the_console_and_can_be_scraped_from_outside() -> None:
    settings, warnings = ini.load(AgentSettings, REPOSITORY / "images/agent/client_config.ini", {}, "NONE")
    assert warnings == []
    assert (settings.logging.log_file, settings.logging.console_output) == ("", True)
    assert (settings.status.host, settings.spool.directory) == ("*", "/var/spool/gpumon")


def test_the_servers_image_logs_to_the_console_and_stores_below_data() -> None:
    settings, warnings = ini.load(ServerSettings, REPOSITORY / "images/server/server_config.ini", {}, "NONE")
    assert warnings == []
    assert (settings.logging.log_file, settings.logging.console_output) == ("", True)
    assert (settings.server.host, settings.storage.output_directory) == ("*", "/data")
