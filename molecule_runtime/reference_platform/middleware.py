"""What surrounds every request: counting, security headers, the guard against foreign web pages, and the last resort.

Written as plain ASGI, so that WebSockets pass the same guard and bodies are never buffered.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import urlsplit

import anyio
import structlog
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.config import PlatformConfig, is_loopback
from molecule_runtime.reference_platform.metrics import UNMATCHED, Metrics

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "Referrer-Policy": "strict-origin-when-cross-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; "
    "base-uri 'none'; object-src 'none'",
}
"""Set on every response (contract 1.8)."""
INTERNAL_ERROR: Mapping[str, str] = {"error": "internal error"}
_RAW_SECURITY_HEADERS = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]

log = structlog.get_logger(__name__)


class CountRequests:
    """Counts answered requests and the time they took, by route pattern."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, clock: Clock) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = self._clock.monotonic()
        status = 500

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            self._metrics.request_done(
                method=scope["method"],
                path=_pattern(scope.get("route")),
                status=status,
                seconds=self._clock.monotonic() - started,
            )


def _pattern(route: BaseRoute | None) -> str:
    """`/workspaces/:id/activity`, as the contract writes it."""
    path: str | None = getattr(route, "path", None)
    return UNMATCHED if path is None else path.replace("{", ":").replace("}", "")


class SecurityHeaders:
    """Adds the security headers to every HTTP response; nothing inside sets one of them itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def add_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_RAW_SECURITY_HEADERS]
            await send(message)

        await self._app(scope, receive, add_headers)


class ForeignPageGuard:
    """Keeps web pages of other origins from using a platform whose doors are open (contract 0.2).

    Without ADMIN_TOKEN the browser of whoever runs the platform would otherwise be a key: any page it shows could post
    messages or open the socket. A loopback Host defeats names that are re-pointed at 127.0.0.1, the Origin rule all
    else; programs send no Origin or the platform's own.
    """

    def __init__(self, app: ASGIApp, *, config: PlatformConfig) -> None:
        self._app = app
        self._active = not config.admin_token
        self._origins = frozenset(config.cors_origins) | {_origin(config.external_url)} - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reason = self._reason(scope) if self._active and scope["type"] in ("http", "websocket") else None
        if reason is None:
            await self._app(scope, receive, send)
            return
        refusal = JSONResponse({"error": reason}, status_code=403)
        if scope["type"] == "websocket":
            await deny_socket(WebSocket(scope, receive, send), refusal)
        else:
            await refusal(scope, receive, send)

    def _reason(self, scope: Scope) -> str | None:
        host, origins = "", []
        for name, value in scope["headers"]:
            if name == b"host":
                host = host or value.decode("latin-1").lower()
            elif name == b"origin":
                origins.append(value.decode("latin-1"))
        if not _is_loopback_host(host):
            return "host not allowed"
        own = (f"http://{host}", f"https://{host}")
        if all(origin.lower() in own or origin in self._origins for origin in origins):
            return None
        return "origin not allowed"


@lru_cache(maxsize=64)
def _is_loopback_host(netloc: str) -> bool:
    """Remembered, because every request of an agent carries the same one."""
    return is_loopback(_hostname(netloc))


async def deny_socket(socket: WebSocket, refusal: Response) -> None:
    """Answer a handshake with an HTTP refusal instead of accepting it."""
    await socket.send_denial_response(refusal)
    # Uvicorn closes the connection in its next turn, and logs an error when the app returns before that.
    await anyio.lowlevel.checkpoint()


def _hostname(netloc: str) -> str:
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""


class LastResort:
    """Turns a bug into a logged traceback and a plain 500; inside the other layers, so that it gets their headers."""

    def __init__(self, app: ASGIApp, *, body: Mapping[str, str] = INTERNAL_ERROR) -> None:
        self._app = app
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, note_start)
        except Exception:
            log.exception("request.failed", endpoint=f"{scope['method']} {_pattern(scope.get('route'))}")
            if started:
                raise  # half an answer is out; only closing the connection tells the client
            await JSONResponse(self._body, status_code=500)(scope, receive, send)
