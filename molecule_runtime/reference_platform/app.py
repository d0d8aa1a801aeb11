"""The reference platform, all parts by name. Start here.

    request -> CountRequests -> SecurityHeaders -> ForeignPageGuard -> CORS -> RateLimit -> LastResort -> routes/*
    routes  -> auth (who is asking) -> services/* (the rules) -> store/* (the facts) -> bus -> /ws

`create_app` builds a platform without opening anything; its lifespan migrates the database and starts the sweepers and
the calls of delegations.
`serve` runs one behind uvicorn on a socket of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from molecule_runtime.clock import Clock, SystemClock
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.middleware import (
    CountRequests,
    ForeignPageGuard,
    LastResort,
    SecurityHeaders,
)
from molecule_runtime.reference_platform.parts import Parts, build_parts
from molecule_runtime.reference_platform.rate_limit import RateLimit
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.routes import (
    activity,
    delegations,
    health,
    mcp,
    memories,
    messages,
    registry,
    tokens,
    uploads,
    workspaces,
    ws,
)
from molecule_runtime.reference_platform.serving import serve_app

CORS_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
CORS_HEADERS = ("Origin", "Content-Type", "X-Workspace-ID", "Authorization")
SHUTDOWN_S = 5
CLOSE_S = 4.0


def create_app(config: PlatformConfig, *, clock: Clock | None = None) -> Starlette:
    """A platform as an ASGI app; `app.state.parts` holds its parts. Enter the lifespan before the first request."""
    parts = build_parts(config, clock or SystemClock())
    app = Starlette(
        routes=_routes(),
        middleware=_middleware(parts),
        exception_handlers={Refusal: _refused, HTTPException: _http_error},
        lifespan=_lifespan,
    )
    app.router.redirect_slashes = False
    app.state.parts = parts
    return app


def _routes() -> list[BaseRoute]:
    return [
        *health.routes(),
        *registry.routes(),
        *workspaces.routes(),
        *tokens.routes(),
        *messages.routes(),
        *activity.routes(),
        *delegations.routes(),
        *uploads.routes(),
        *memories.routes(),
        *mcp.routes(),
        *ws.routes(),
    ]


def _middleware(parts: Parts) -> list[Middleware]:
    """Outermost first."""
    return [
        Middleware(CountRequests, metrics=parts.metrics, clock=parts.clock),
        Middleware(SecurityHeaders),
        Middleware(ForeignPageGuard, config=parts.config),
        Middleware(
            CORSMiddleware,
            allow_origins=parts.config.cors_origins,
            allow_methods=CORS_METHODS,
            allow_headers=CORS_HEADERS,
        ),
        # Inside CORS, so that a page can read the refusal; preflights do not count.
        Middleware(RateLimit, limit=parts.config.rate_limit, clock=parts.clock),
        Middleware(LastResort),
    ]


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    parts: Parts = app.state.parts
    await parts.store.migrate()
    try:
        async with parts.relay.running():
            loops = (parts.sweeper, parts.upload_sweeper, parts.delegation_sweeper, parts.dispatcher)
            running = [asyncio.create_task(loop.run()) for loop in loops]
            try:
                yield
            finally:
                for task in running:
                    task.cancel()
                await asyncio.wait(running)
    finally:
        await parts.memory_sidecar.stop()
        await parts.memory_plugin.close()
        with anyio.move_on_after(CLOSE_S):  # a database that does not answer must not hold up the end
            await parts.store.close()


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return JSONResponse(error.body(), status_code=error.status)


async def _http_error(_request: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such route, wrong method) in the contract's form."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail.lower()}, status_code=error.status_code, headers=error.headers)


async def serve(config: PlatformConfig, *, on_ready: Callable[[str], None], clock: Clock | None = None) -> None:
    """Serve a platform until SIGINT, SIGTERM or cancellation; call `on_ready(url)` once it answers.

    Port 0 lets the system choose; the url names the chosen one. Uvicorn finishes running requests, closes the database
    and then lets the signal take its usual effect.

    Raises:
        SettingsError: the address cannot be bound.
        StoreError: the database cannot be opened or migrated.
        SidecarFailed: the memory plugin that was asked for does not come up.
    """
    app = create_app(config, clock=clock)
    async with app.state.parts.memory_sidecar.running():
        await serve_app(
            app,
            name="the platform",
            host=config.host,
            port=config.port,
            prepare=app.state.parts.store.migrate,
            on_ready=on_ready,
            shutdown_s=SHUTDOWN_S,
        )
