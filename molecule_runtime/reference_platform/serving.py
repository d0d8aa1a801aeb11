"""An ASGI app behind uvicorn, on a socket of its own: what the platform and the memory plugin share of serving."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

import anyio
import uvicorn
from starlette.types import ASGIApp

from molecule_runtime.errors import Problem, SettingsError

KEEP_ALIVE_S = 75
"""Idle seconds before a connection is closed: longer than three beats of 20 s, so that agents keep theirs."""


async def serve_app(
    app: ASGIApp,
    *,
    name: str,
    host: str,
    port: int,
    prepare: Callable[[], Awaitable[None]],
    on_ready: Callable[[str], None],
    on_end: Callable[[], None] = lambda: None,
    shutdown_s: int,
) -> None:
    """Serve until SIGINT, SIGTERM or cancellation; call `on_ready(url)` once it answers.

    `name` is who cannot listen when the address is taken. `prepare` runs when the address is ours and before the server
    starts, so that what it raises is raised here instead of being lost in the server's log. Port 0 lets the system
    choose; the url names the chosen one. `on_end` is called when the end begins. Uvicorn gives running requests
    `shutdown_s` seconds, leaves the app's lifespan and then lets the signal take its usual effect.

    Raises:
        SettingsError: the address cannot be bound.
    """
    listener = _bind(name, host, port)
    with listener:
        await prepare()
        url = _url(host, listener.getsockname()[1])
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
                timeout_graceful_shutdown=shutdown_s,
            ),
            on_ready=lambda: on_ready(url),
            on_end=on_end,
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
    """A uvicorn server that says when it answers, and when it begins to end."""

    def __init__(self, config: uvicorn.Config, *, on_ready: Callable[[], None], on_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._on_end = on_end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_end()
        await super().shutdown(sockets)


def _bind(name: str, host: str, port: int) -> socket.socket:
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
        summary = f"{name} cannot listen on {host}:{port}: {error.strerror or error}"
        fix = "Stop what uses that address, or choose another port (0 lets the system choose)."
        raise SettingsError((Problem(id="address_unavailable", summary=summary, fix=fix),)) from error
    listener.setblocking(False)
    return listener


def _url(host: str, port: int) -> str:
    bare = host.removeprefix("[").removesuffix("]")
    return f"http://[{bare}]:{port}" if ":" in bare else f"http://{bare}:{port}"
