"""The reference platform, all parts by name. Start here.

    request -> CountRequests -> SecurityHeaders -> ForeignPageGuard -> CORS -> RateLimit -> LastResort -> routes/*
    routes  -> auth (who is asking) -> services/* (the rules) -> store/* (the facts) -> bus -> /ws

`create_app` builds a platform without opening anything; its lifespan migrates the database and starts the sweepers and
the calls of delegations.
`serve` runs one behind uvicorn on a socket of its own.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from molecule_runtime.clock import Clock, SystemClock
from molecule_runtime.errors import Problem, SettingsError
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
    messages,
    registry,
    tokens,
    uploads,
    workspaces,
    ws,
)

KEEP_ALIVE_S = 75
"""Idle seconds before a connection is closed: longer than three beats of 20 s, so that agents keep theirs."""
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
    """
    app = create_app(config, clock=clock)
    listener = _bind(config.host, config.port)
    with listener:
        # Before the server starts, so that a bad database is raised here instead of being lost in the server's log.
        await app.state.parts.store.migrate()
        url = _url(config.host, listener.getsockname()[1])
        server = _Server(
            uvicorn.Config(
                app,
                lifespan="on",
                http="httptools",
                ws="websockets-sansio",
                proxy_headers=False,  # the rate limit counts remote addresses, not what a header claims
                access_log=False,
                log_config=None,
                log_level=logging.WARNING,
                timeout_keep_alive=KEEP_ALIVE_S,
                headers=[("Keep-Alive", f"timeout={KEEP_ALIVE_S}")],  # agents believe it: one connection for all beats
                timeout_graceful_shutdown=SHUTDOWN_S,
            ),
            on_ready=lambda: on_ready(url),
        )
        await _until_done(server, listener)


async def _until_done(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve; when cancelled, let the server finish as it would after a signal."""
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        with anyio.CancelScope(shield=True):
            await serving
        raise


class _Server(uvicorn.Server):
    """A uvicorn server that says when it answers."""

    def __init__(self, config: uvicorn.Config, *, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()


def _bind(host: str, port: int) -> socket.socket:
    bare = host.removeprefix("[").removesuffix("]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        summary = f"the platform cannot listen on {host}:{port}: {error.strerror or error}"
        fix = "Stop what uses that address, or choose another port (0 lets the system choose)."
        raise SettingsError((Problem(id="address_unavailable", summary=summary, fix=fix),)) from error
    listener.setblocking(False)
    return listener


def _url(host: str, port: int) -> str:
    bare = host.removeprefix("[").removesuffix("]")
    return f"http://[{bare}]:{port}" if ":" in bare else f"http://{bare}:{port}"
