"""Runs the application under uvicorn until a signal, or until a stop event, ends it in order."""

from __future__ import annotations

import logging
import socket
import threading

import uvicorn

from gpumon.errors import SettingsError
from gpumon.server.app import create_app
from gpumon.server.settings import ServerSettings

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 120
"""Longer than an agent's batch_interval, so that it finds its connection open."""


class ServerProcess:
    """One server: `run` returns when it has stopped; `stop` may come from any thread."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self.app = create_app(settings)
        self._server = uvicorn.Server(
            uvicorn.Config(
                self.app,
                http="httptools",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=max(1, round(settings.server.shutdown_seconds)),
                backlog=2048,
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
            log.info("server_listening host=%s port=%d", self._settings.server.host, self.port)
            self._server.run(sockets=[listener])
        log.info("server_stopped")

    def stop(self) -> None:
        """Asks the server to finish the requests under way and end."""
        self._server.should_exit = True

    def _bind(self) -> socket.socket:
        host, port = self._settings.server.host, self._settings.server.port
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family, backlog=2048)
        except OSError as error:
            raise SettingsError(
                f"can't listen on {host}:{port} ({error.strerror or error}); set [SERVER] host and port to a "
                "free address of this machine"
            ) from error
