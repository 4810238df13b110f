"""The HTTP application: `create_app(settings)`. Its lifespan opens and closes the engine in order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline

from gpumon import __version__, clock
from gpumon.server.api import accounts, errors, export, files, inventory, ops, receive, seed
from gpumon.server.api.access import AccessLayer
from gpumon.server.api.body import BodyLimit
from gpumon.server.api.gate import Gate, describe
from gpumon.server.api.state import ApiState
from gpumon.server.auth.rights import open_rights
from gpumon.server.days import zone_named
from gpumon.server.engine import Engine
from gpumon.server.metrics import ServerMetrics
from gpumon.server.settings import ServerSettings

_DESCRIPTION = """
Which pod held each GPU, which really used it, how hard, at what power, and what was wasted; now and over months.

* **Samples** come in by `POST /api/receive-data`. 200 means that they are on disk.
* **Now** and **accounts** are GET, with their question in the address, so that an answer can be linked.
  **Queries** are those of the old program: percent and watts to two decimals, °C to whole degrees.
* All answer `{"success": true, "data": …}`; days and hours are those of the server's zone.
* **Errors** answer `{"success": false, "detail": …, "error_code": …}`; `detail` says what to do.
* **No data is never a real 0**: `coverage` and `samples` tell how far a figure is backed.
"""


def create_app(settings: ServerSettings, now: clock.Now = clock.now) -> FastAPI:
    """The application for these settings. Its data is not opened before its lifespan starts. Raises SettingsError
    where the tokens can't be read that decide who is let in."""
    rights = open_rights(settings.auth)
    engine = Engine(settings, now)
    metrics = ServerMetrics(engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await anyio.to_thread.run_sync(engine.open)
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(engine.close)
            if rights is not None:
                rights.close()

    app = FastAPIOffline(
        title="gpumon",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        strict_content_type=False,  # the old program's pages send their questions without one
        # Nobody reads it, and looking up whether somebody does is 8 % of a small request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        swagger_ui_parameters={
            "tryItOutEnabled": True,
            "displayRequestDuration": True,
            "defaultModelsExpandDepth": 0,
        },
    )
    app.state.gpumon = ApiState(
        engine=engine,
        metrics=metrics,
        now=now,
        zone=zone_named(settings.server.timezone),
        max_body_bytes=int(settings.server.max_body_mb * 10**6),
    )
    errors.install(app)
    for module in (receive, inventory, accounts, files, export, seed, ops):
        app.include_router(module.router)
    # A layer stands outside of those added before it.
    app.add_middleware(receive.DirectRoute)
    if rights is not None:
        app.add_middleware(Gate, rights=rights, metrics=metrics)
        describe(app, rights)
    origins = [origin.strip() for origin in settings.server.cors_origins.split(",") if origin.strip()]
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(BodyLimit, max_bytes=app.state.gpumon.max_body_bytes)
    app.add_middleware(AccessLayer, metrics=metrics, log_requests=settings.logging.log_api_requests)
    return app
