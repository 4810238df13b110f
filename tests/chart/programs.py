"""The programs' settings as they are read in a rendered pod."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from gpumon import ini
from gpumon.agent.settings import AgentSettings
from gpumon.server.settings import ServerSettings
from tests.chart.rendering import Object, Release

FILES = {"agent": "client_config.ini", "server": "server_config.ini"}
_CLASSES: dict[str, tuple[type[msgspec.Struct], str]] = {
    "agent": (AgentSettings, "GPUMON_AGENT__"),
    "server": (ServerSettings, "GPUMON_SERVER__"),
}


def ini_text(release: Release, program: str) -> str:
    """The INI file of agent or server, by the volume that is mounted where GPUMON_CONFIG points."""
    pod = release.pods[program]
    container = pod["spec"]["containers"][0]
    path = next(variable["value"] for variable in container["env"] if variable["name"] == "GPUMON_CONFIG")
    volume = volume_at(pod, container, path)
    assert volume is not None
    config = release.one("ConfigMap", volume["configMap"]["name"])
    return str(config["data"][PurePosixPath(path).name])


def loaded(release: Release, program: str) -> tuple[Any, list[str]]:
    """The settings that the program would have, and its warnings. Raises SettingsError as it would."""
    settings, prefix = _CLASSES[program]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILES[program]
        path.write_text(ini_text(release, program), encoding="utf-8")
        return ini.load(settings, path, {}, prefix)


def paths(settings: Any) -> Iterator[tuple[str, PurePosixPath]]:
    """Every absolute path that settings name, but what the system itself has: `[SECTION] key` and the path."""
    for section in msgspec.structs.fields(settings):
        for key, value in msgspec.structs.asdict(getattr(settings, section.name)).items():
            if isinstance(value, str) and value.startswith("/") and key not in ("api_endpoint", "proc_root"):
                yield f"[{section.name.upper()}] {key}", PurePosixPath(value)


def mount_at(container: Object, path: PurePosixPath | str) -> Object | None:
    """The mount of a container that a path lies in; None where it lies in the image."""
    path = PurePosixPath(path)
    above = [mount for mount in container["volumeMounts"] if path.is_relative_to(mount["mountPath"])]
    return max(above, key=lambda mount: len(mount["mountPath"]), default=None)


def volume_at(pod: Object, container: Object, path: PurePosixPath | str) -> Object | None:
    """The volume of a pod that a path of its container lies in."""
    mount = mount_at(container, path)
    return mount and next(volume for volume in pod["spec"]["volumes"] if volume["name"] == mount["name"])
