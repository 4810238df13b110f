"""What a command of `gpumon` does before and around its work: settings, log, signals, what is not installed."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from gpumon import ini, logs
from gpumon.errors import SettingsError

log = logging.getLogger(__name__)

S = TypeVar("S", bound=msgspec.Struct)
Notes = Sequence[tuple[int, str]]
"""What is to be logged once the log is set up: severity and sentence."""


def read_settings(
    kind: type[S], config: Path | None, usual: Path, prefix: str, environ: Mapping[str, str] | None = None
) -> tuple[S, Notes]:
    """The settings from a file, or where none is given and the usual one is there, from that, and from the
    environment. Raises SettingsError."""
    if config is None and usual.exists():
        config = usual
    settings, warnings = ini.load(kind, config, os.environ if environ is None else environ, prefix)
    source = f"settings from {config or 'defaults'} and {prefix}* variables"
    return settings, [*((logging.WARNING, warning) for warning in warnings), (logging.INFO, source)]


@contextmanager
def installed(extra: str) -> Iterator[None]:
    """Says what to install where a package of the server or the agent is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("gpumon"):
            raise
        raise SettingsError(
            f"the package {error.name} is missing; install it by: pip install 'gpumon[{extra}]'"
        ) from error


@contextmanager
def logging_as(wanted: logs.LoggingSettings, level: str, notes: Notes = ()) -> Iterator[None]:
    """A log as the settings want it, as long as the block runs. It begins with the notes."""
    handlers = logs.set_up(
        level=level,
        file=wanted.log_file,
        console=wanted.console_output,
        max_size_mb=wanted.log_max_size,
        backup_count=wanted.log_backup_count,
    )
    try:
        for severity, note in notes:
            log.log(severity, "%s", note)
        yield
    finally:
        handlers.close()


@contextmanager
def quiet() -> Iterator[None]:
    """Without a log: whoever is asked for one answer does not tell of each trouble on the way, too."""
    handlers = logs.set_up(level="CRITICAL", file="", console=False, max_size_mb=1, backup_count=0)
    try:
        yield
    finally:
        handlers.close()


class StopAsked:
    """A plain flag that the main thread polls: an Event's lock may not be taken in a signal handler, and on
    Windows a main thread that waits for a lock hears no signal."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        """Takes note."""
        self._asked = True

    def is_asked(self) -> bool:
        """Whether anybody has asked."""
        return self._asked


def on_signal(stop: Callable[[], None]) -> None:
    """Ctrl+C, SIGTERM, a closed terminal and, on Windows, Ctrl+Break end the program in order. `stop` runs in the
    signal handler, so it may only set a flag."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, lambda *_: stop())
