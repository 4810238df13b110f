"""The `gpumon` command. Server and agent are imported only when asked for: each image has one of them."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from gpumon import __version__, ini, logs
from gpumon.errors import GpumonError, SettingsError
from gpumon.starting import Notes, StopAsked, installed, logging_as, on_signal, quiet, read_settings

if TYPE_CHECKING:
    from gpumon.agent.settings import AgentSettings

EXIT_SETTINGS = 2


_CONFIG = click.option(
    "--config",
    "config",
    type=click.Path(path_type=Path),
    envvar="GPUMON_CONFIG",
    show_envvar=True,
    help="INI file. Without it the file below config/ is read, if there is one, else defaults hold.",
)
_FAKE_NVML = click.option(
    "--fake-nvml", metavar="FILE", help="Simulated GPUs from a scenario file instead of real ones."
)
_COLOURS = {"ok": "green", "broken": "red", "not needed": None}
_LEAST_COLUMNS, _COLUMNS = 80, 120


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="gpumon")
def cli() -> None:
    """Which pod held each GPU, which really used it, how hard, and what was wasted."""


@cli.command()
@_CONFIG
@click.option(
    "--rebuild",
    is_flag=True,
    help="Instead of serving, make all that is derived anew from the CSV files, and report what was found. The "
    "server must be stopped. Exit code 1 where a file or a line could not be read.",
)
def server(config: Path | None, rebuild: bool) -> None:
    """Run the server: receive samples, write daily CSV files, answer queries."""
    with installed("server"):
        from gpumon.server.rebuilding import rebuild as make_anew  # noqa: PLC0415
        from gpumon.server.serve import ServerProcess  # noqa: PLC0415
    from gpumon.server.settings import ENVIRONMENT_PREFIX, ServerSettings  # noqa: PLC0415

    settings, notes = read_settings(ServerSettings, config, Path("config/server_config.ini"), ENVIRONMENT_PREFIX)
    level = "DEBUG" if settings.server.debug else settings.logging.log_level
    with logging_as(settings.logging, level, notes):
        if rebuild:
            report = make_anew(settings, click.echo)
            click.echo(report.text())
            sys.exit(0 if report.ok else 1)
        process = ServerProcess(settings)
        on_signal(process.stop)
        process.run()


@cli.command()
@_CONFIG
@_FAKE_NVML
def agent(config: Path | None, fake_nvml: str | None) -> None:
    """Run the agent: read this node's GPUs, deliver samples to the server."""
    with installed("agent"):
        from gpumon.agent.run import run  # noqa: PLC0415

    settings, notes = _agent_settings(config, fake_nvml)
    asked = StopAsked()
    with logging_as(settings.logging, settings.logging.log_level, notes):
        on_signal(asked.ask)
        run(settings, asked.is_asked)


@cli.command()
@_CONFIG
@_FAKE_NVML
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def doctor(config: Path | None, fake_nvml: str | None, as_json: bool) -> None:
    """Examine what an agent meets here, from the GPUs to the server, and name what is broken.

    Exit code 0: nothing is broken; 1: something is; 2: a setting is wrong. Changes nothing, and can run beside an
    agent."""
    with installed("agent"):
        from gpumon.agent.doctor import render_json, render_text  # noqa: PLC0415
        from gpumon.agent.run import examine  # noqa: PLC0415

    settings, notes = _agent_settings(config, fake_nvml)
    for _, note in notes:
        click.echo(note, err=True)
    with quiet():
        report = examine(settings)
    if as_json:
        click.echo(render_json(report))
    else:
        width = max(_LEAST_COLUMNS, min(shutil.get_terminal_size((_COLUMNS, 0)).columns, _COLUMNS))
        click.echo(
            render_text(report, width=width, paint=lambda text, status: click.style(text, _COLOURS[status]))
        )
    sys.exit(0 if report.ok else 1)


@cli.command("import")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@_CONFIG
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def import_(directory: Path, config: Path | None, dry_run: bool) -> None:
    """Take the rows of the daily CSV files in DIR, the old program's or gpumon's, into the server's data folder.

    Can run beside the server, and again: rows that are there already are not taken twice. DIR is only read. Exit
    code 1 where a file could not be read."""
    with installed("server"):
        from gpumon.server.importing import effort, render, take_over  # noqa: PLC0415
    from gpumon.server.days import FileNames, zone_named  # noqa: PLC0415
    from gpumon.server.settings import ENVIRONMENT_PREFIX, ServerSettings  # noqa: PLC0415

    settings, _ = read_settings(ServerSettings, config, Path("config/server_config.ini"), ENVIRONMENT_PREFIX)
    storage, zone = settings.storage, zone_named(settings.server.timezone)
    folder, names = Path(storage.output_directory), FileNames(storage.csv_filename_prefix)
    click.echo(f"into {folder}, days of {zone.key}" + (", as a dry run" if dry_run else ""))
    with click.progressbar(length=effort(directory), label="reading", file=sys.stderr) as bar:
        report = take_over(directory, folder, names, zone, bar.update, dry_run=dry_run)
    click.echo(render(report, datetime.now(zone).date(), storage.data_retention_days, dry_run=dry_run))
    sys.exit(1 if report.unreadable else 0)


@cli.command()
@click.option(
    "--port",
    default=5000,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="Port of the server; the next free one if taken.",
)
@click.option(
    "--data", type=click.Path(path_type=Path), default=Path("data"), show_default=True, help="Data folder."
)
@click.option("--nodes", default=3, show_default=True, type=click.IntRange(1, 20), help="Simulated GPU nodes.")
def demo(port: int, data: Path, nodes: int) -> None:
    """Run a server and simulated GPU nodes on this machine until Ctrl+C."""
    from gpumon.demo import run_demo  # noqa: PLC0415

    with installed("agent,server"):
        import gpumon.agent.run  # noqa: PLC0415
        import gpumon.server.serve  # noqa: F401, PLC0415

    asked = StopAsked()
    on_signal(asked.ask)
    sys.exit(run_demo(port=port, data=data, nodes=nodes, stop_asked=asked.is_asked, say=click.echo))


@cli.command()
@click.option(
    "--scenario",
    required=True,
    type=click.Path(path_type=Path),
    envvar="GPUMON_FAKE_NVML",
    show_envvar=True,
    help="Scenario file, the same as the agent's.",
)
@click.option(
    "--replicas",
    default=1,
    show_default=True,
    type=click.IntRange(1, 100),
    help="Offer each whole GPU so many times, as by time-slicing.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=Path("/var/lib/kubelet/device-plugins"),
    show_default=True,
    help="The kubelet's directory for device plugins.",
)
@click.option("--resource", default="nvidia.com/gpu", show_default=True, help="Resource name of whole GPUs.")
def fake_device_plugin(scenario: Path, replicas: int, directory: Path, resource: str) -> None:
    """Offer a scenario's simulated GPUs to the kubelet of this node, NODE_NAME, so that pods can ask for them.

    For clusters without GPUs, such as kind's. Runs until it is stopped."""
    with installed("mock"):
        from gpumon.agent.fakedeviceplugin import Options, run  # noqa: PLC0415

    node = os.environ.get("NODE_NAME", "").strip() or socket.gethostname()
    asked = StopAsked()
    with logging_as(logs.LoggingSettings(), "INFO"):
        on_signal(asked.ask)
        run(Options(scenario, node, directory, resource, replicas), asked.is_asked)


@cli.command()
def fields() -> None:
    """The field catalogue: every field of a sample, its unit, meaning and source."""
    from gpumon.model.fields import FIELDS  # noqa: PLC0415

    width = max(len(field.name) for field in FIELDS)
    click.echo(f"{'field':<{width}}  {'type':<7}  {'unit':<6}  meaning (source)")
    for field in FIELDS:
        click.echo(f"{field.name:<{width}}  {field.kind:<7}  {field.unit:<6}  {field.help} ({field.source})")


@cli.command()
@click.argument("program", type=click.Choice(["server", "agent"]))
def config(program: str) -> None:
    """Every setting with its default, unit and meaning, as an INI file."""
    kind: type[msgspec.Struct]
    if program == "server":
        from gpumon.server import settings as server_settings  # noqa: PLC0415

        kind, prefix = server_settings.ServerSettings, server_settings.ENVIRONMENT_PREFIX
    else:
        from gpumon.agent import settings as agent_settings  # noqa: PLC0415

        kind, prefix = agent_settings.AgentSettings, agent_settings.ENVIRONMENT_PREFIX
    click.echo(ini.render(kind, f"gpumon {program}", prefix), nl=False)


def main() -> None:
    """Runs the command; trouble that gpumon knows is one sentence on standard error, exit code 2 for a setting."""
    try:
        cli.main(standalone_mode=True)
    except SettingsError as error:
        click.echo(f"gpumon: {error}", err=True)
        sys.exit(EXIT_SETTINGS)
    except GpumonError as error:
        click.echo(f"gpumon: {error}", err=True)
        sys.exit(1)


def _agent_settings(config: Path | None, fake_nvml: str | None) -> tuple[AgentSettings, Notes]:
    from gpumon.agent.settings import ENVIRONMENT_PREFIX, AgentSettings  # noqa: PLC0415

    environ = dict(os.environ)
    if fake_nvml is not None:
        environ[f"{ENVIRONMENT_PREFIX}MONITORING__FAKE_NVML"] = fake_nvml
    return read_settings(AgentSettings, config, Path("config/client_config.ini"), ENVIRONMENT_PREFIX, environ)
