"""Logging of the server and the agent: one event, one line, on standard error and in a rotated file.

    2026-11-24T17:33:23.123Z WARNING gpumon.agent.shipping.delivery delivery_failing reason='connection refused'

A log file that can't be written is no reason to stop measuring: the console says so, and what to do, and
takes its place. What `set_up` does to the process's loggers, `Logs.close` undoes. `Trouble` is how the rest
of the program logs what goes wrong again and again.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gpumon import clock
from gpumon.clock import Monotonic

log = logging.getLogger(__name__)


class LoggingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the [LOGGING] sections of server and agent have in common."""

    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
        Meta(description="Least severity that is logged."),
    ] = "INFO"
    log_file: Annotated[str, Meta(description="Log file; empty is none.")] = ""
    console_output: Annotated[bool, Meta(description="Log to standard error, too.")] = True
    log_max_size: Annotated[
        float, Meta(gt=0, description="A log file this large is rotated.", extra={"unit": "MB"})
    ] = 50.0
    log_backup_count: Annotated[int, Meta(ge=0, description="Rotated log files that are kept.")] = 10


_CHATTY = ("httpx", "httpcore", "hpack", "urllib3")
"""Libraries that log a line per request at INFO, or each header at DEBUG; ours says the same with numbers, and
less often."""


class Logs:
    """The handlers of one set-up. `close` takes them away again and closes the file."""

    def __init__(self, handlers: list[logging.Handler], levels_before: dict[str, int]) -> None:
        self._handlers = handlers
        self._levels_before = levels_before

    def close(self) -> None:
        """Undoes `set_up`. Harmless when done twice."""
        root = logging.getLogger()
        for handler in self._handlers:
            root.removeHandler(handler)
            handler.close()
        for name, level in self._levels_before.items():
            logging.getLogger(name).setLevel(level)
        self._handlers, self._levels_before = [], {}


def set_up(*, level: str, file: str, console: bool, max_size_mb: float, backup_count: int) -> Logs:
    """Logs everything from `level` on to standard error if `console` and to `file` unless it is empty.

    The file is rotated when it would pass `max_size_mb`; `backup_count` older ones are kept, with 0 the file
    is begun anew. A file that can't be opened becomes a warning on standard error."""
    handlers: list[logging.Handler] = []
    trouble = None
    if file:
        try:
            handlers.append(_open_file(Path(file), round(max_size_mb * 1e6), backup_count))
        except OSError as error:
            trouble = error
    if console or trouble is not None:
        handlers.append(logging.StreamHandler(sys.stderr))
    if not handlers:
        handlers.append(logging.NullHandler())
    root = logging.getLogger()
    levels_before = {name: logging.getLogger(name).level for name in ("", *_CHATTY)}
    for handler in handlers:
        handler.setFormatter(OneLine())
        root.addHandler(handler)
    root.setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    if trouble is not None:
        log.warning(
            "log_file_unwritable file=%s reason=%r do=%r",
            file,
            trouble.strerror or str(trouble),
            "make its folder writable for this user, or set [LOGGING] log_file (empty: none)",
        )
    return Logs(handlers, levels_before)


class OneLine(logging.Formatter):
    """UTC instant, level, logger, event. Line breaks, a traceback's too, become ` | `: one event stays one
    line, and no text from outside can pass for an event of its own."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    @staticmethod
    def converter(seconds: float | None) -> time.struct_time:
        """Times are UTC, as everywhere in gpumon."""
        return time.gmtime(seconds)

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        return " | ".join(line for line in super().format(record).splitlines() if line.strip())


class Trouble:
    """Repeated trouble, logged when it starts, when its reason changes, and when it ends; never in between.

    `subject` says what it is about: `nvml`, `gpu=3`. Not for use by several threads at once."""

    def __init__(self, log: logging.Logger, subject: str, *, monotonic: Monotonic = clock.monotonic) -> None:
        self._log = log
        self._subject = subject
        self._monotonic = monotonic
        self._since = 0.0
        self._times = 0
        self.reason: str | None = None

    def occurred(self, reason: str, *, do: str = "") -> None:
        """It happened (again). `do` is the next step for whoever reads the log."""
        if self.reason is None:
            self._since, self._times = self._monotonic(), 0
        if self.reason != reason:
            advice = f" do={do!r}" if do else ""
            self._log.warning("trouble %s reason=%r%s", self._subject, reason, advice)
        self.reason = reason
        self._times += 1

    def ended(self) -> None:
        """It is over. Harmless when there was none."""
        if self.reason is not None:
            seconds = self._monotonic() - self._since
            self._log.info(
                "recovered %s after_seconds=%.1f times=%d reason=%r",
                self._subject,
                seconds,
                self._times,
                self.reason,
            )
        self.reason = None


class _RotatedFile(RotatingFileHandler):
    """A rotated log file. A disk that fills up is told once on standard error, not once per line."""

    _told = False

    def doRollover(self) -> None:  # noqa: N802  the library's name
        """Begins the file anew. The library would go on appending where no older file is kept."""
        super().doRollover()
        if self.backupCount == 0 and self.stream is not None:
            self.stream.truncate(0)

    def close(self) -> None:
        """Closes the file, whether or not its last lines can be written."""
        with contextlib.suppress(OSError):
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the library's name
        """Says once what is wrong with the file."""
        if not self._told:
            self._told = True
            sys.stderr.write(f"{self.baseFilename}: log lines are lost: {sys.exc_info()[1]}; check the disk\n")


def _open_file(path: Path, max_bytes: int, backup_count: int) -> logging.Handler:
    path.parent.mkdir(parents=True, exist_ok=True)
    return _RotatedFile(path, maxBytes=max(1, max_bytes), backupCount=backup_count, encoding="utf-8")
