"""The memory plugin, all parts by name. Start here.

    request -> NoBrowsers -> LastResort -> routes -> namespaces, memories (the rules) -> store (the facts)

`create_app` builds a plugin without opening anything; its lifespan migrates the database and starts the sweeper.
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
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from molecule_runtime.clock import Clock, SystemClock
from molecule_runtime.memory_plugin.config import PluginConfig
from molecule_runtime.memory_plugin.parts import Parts, build_parts
from molecule_runtime.memory_plugin.routes import routes
from molecule_runtime.reference_platform.middleware import LastResort
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.serving import serve_app

SHUTDOWN_S = 1
"""Seconds that running requests are given at the end: the plugin is gone within 2 s."""
CLOSE_S = 0.5
CODES = {403: "forbidden", 404: "not_found", 500: "internal", 503: "unavailable"}
"""The word for a status; any other refusal is a `bad_request` (contract 7.4)."""


def create_app(config: PluginConfig, *, clock: Clock | None = None) -> Starlette:
    """A plugin as an ASGI app; `app.state.parts` holds its parts. Enter the lifespan before the first request."""
    app = Starlette(
        routes=routes(),
        middleware=[
            Middleware(NoBrowsers),
            Middleware(LastResort, body={"code": CODES[500], "message": "internal error"}),
        ],
        exception_handlers={Refusal: _refused, HTTPException: _http_error},
        lifespan=_lifespan,
    )
    app.router.redirect_slashes = False
    app.state.parts = build_parts(config, clock or SystemClock())
    return app


class NoBrowsers:
    """Refuses what a web page sends: nobody is asked who he is here, and a page can reach this machine's ports.

    A browser names the page's origin in every request that changes something; programs name none.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and any(name == b"origin" for name, _ in scope["headers"]):
            await _error(403, "web pages may not use this service")(scope, receive, send)
        else:
            await self._app(scope, receive, send)


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    parts: Parts = app.state.parts
    await parts.store.migrate()
    sweeping = asyncio.create_task(parts.sweeper.run())
    try:
        yield
    finally:
        sweeping.cancel()
        with anyio.move_on_after(CLOSE_S):  # a database that does not answer must not hold up the end
            await asyncio.wait([sweeping])
            await parts.store.close()


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _error(error.status, error.text)


async def _http_error(_request: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such route, wrong method) in the contract's form."""
    assert isinstance(error, HTTPException)
    response = _error(error.status_code, error.detail.lower())
    response.headers.update(error.headers or {})
    return response


def _error(status: int, message: str) -> Response:
    return JSONResponse({"code": CODES.get(status, "bad_request"), "message": message}, status_code=status)


async def serve(
    config: PluginConfig,
    *,
    on_ready: Callable[[str], None],
    on_end: Callable[[], None] = lambda: None,
    clock: Clock | None = None,
) -> None:
    """Serve a plugin until SIGINT, SIGTERM or cancellation; call `on_ready(url)` once it answers.

    `on_end` is called when the end begins.

    Raises:
        SettingsError: the address cannot be bound.
        StoreError: the database cannot be opened or migrated.
    """
    app = create_app(config, clock=clock)
    await serve_app(
        app,
        name="the memory plugin",
        host=config.host,
        port=config.port,
        prepare=app.state.parts.store.migrate,
        on_ready=on_ready,
        on_end=on_end,
        shutdown_s=SHUTDOWN_S,
    )
