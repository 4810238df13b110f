"""Runs the application under uvicorn until a signal, or until a stop event, ends it in order."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from gpumon import clock
from gpumon.errors import SettingsError
from gpumon.listening import listen
from gpumon.server.app import create_app
from gpumon.server.protocol import BoundedProtocol
from gpumon.server.settings import ServerSettings
from gpumon.server.tls import Certificate
from gpumon.tasks import Task

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 120
"""Longer than an agent's batch_interval, so that it finds its connection open."""
_BACKLOG = 2048
_STOP_SECONDS = 5.0


class ServerProcess:
    """One server: `run` returns when it has stopped; `stop` may come from any thread."""

    def __init__(self, settings: ServerSettings, now: clock.Now = clock.now) -> None:
        """Raises SettingsError where the certificate or the tokens can't be used."""
        self._settings = settings
        self._certificate = certificate = Certificate.named(
            settings.server.tls_cert_file, settings.server.tls_key_file
        )
        self.app = create_app(settings, now)
        self._server = uvicorn.Server(
            uvicorn.Config(
                self.app,
                http=BoundedProtocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                # uvicorn believes what a client of this machine says of itself, unless the variable names others.
                proxy_headers=bool(os.environ.get("FORWARDED_ALLOW_IPS")),
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=max(1, round(settings.server.shutdown_seconds)),
                backlog=_BACKLOG,
                ssl_context_factory=None if certificate is None else lambda *_: certificate.context,
            )
        )
        self.listening = threading.Event()
        self.port: int | None = None

    def run(self) -> None:
        """Serves until stopped. In the main thread, SIGINT and SIGTERM stop it. Raises SettingsError when the
        address can't be had."""
        with self._bind() as listener:
            self.port = listener.getsockname()[1]
            self.listening.set()
            scheme = "http" if self._certificate is None else "https"
            log.info("server_listening host=%s port=%d scheme=%s", self._settings.server.host, self.port, scheme)
            with self._watching():
                self._server.run(sockets=[listener])
        log.info("server_stopped")

    def stop(self) -> None:
        """Asks the server to finish the requests under way and end."""
        self._server.should_exit = True

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """The certificate is read again when it changes, as long as the block runs."""
        if self._certificate is None:
            yield
            return
        task = Task("tls-certificate", self._certificate.watch).start()
        try:
            yield
        finally:
            task.stop(_STOP_SECONDS)

    def _bind(self) -> socket.socket:
        host, port = self._settings.server.host, self._settings.server.port
        try:
            return listen(host, port, _BACKLOG)
        except OSError as error:
            raise SettingsError(
                f"can't listen on {host}:{port} ({error.strerror or error}); set [SERVER] host and port to a "
                "free address of this machine"
            ) from error
