"""RATE_LIMIT: how many requests a minute one remote address may make (contract 1.7, 0.10).

The window is fixed: it starts with an address's first request and counts until it ends. Headers that a proxy would set
are not believed, since anybody can send them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from molecule_runtime.clock import Clock

WINDOW_S = 60.0
UNLIMITED = "unlimited"


@dataclass
class _Window:
    ends: float
    used: int = 0


@dataclass(frozen=True)
class Verdict:
    """Where an address stands after this request; `reset_s` is whole seconds to the end of its window."""

    allowed: bool
    remaining: int
    reset_s: int


class FixedWindow:
    """Counts requests by address. What it remembers is at most the addresses of the last minute."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self.limit = limit
        self._clock = clock
        self._windows: dict[str, _Window] = {}
        self._next_purge = 0.0

    def take(self, address: str) -> Verdict:
        """Count one request of an address and say whether it is within the limit."""
        now = self._clock.monotonic()
        self._purge(now)
        window = self._windows.get(address)
        if window is None or now >= window.ends:
            window = self._windows[address] = _Window(ends=now + WINDOW_S)
        window.used += 1
        return Verdict(
            allowed=window.used <= self.limit,
            remaining=max(0, self.limit - window.used),
            reset_s=max(1, math.ceil(window.ends - now)),
        )

    def _purge(self, now: float) -> None:
        if now >= self._next_purge:
            self._next_purge = now + WINDOW_S
            self._windows = {address: window for address, window in self._windows.items() if now < window.ends}


class RateLimit:
    """Refuses what is over the limit, and tells every caller where it stands."""

    def __init__(self, app: ASGIApp, *, limit: int, clock: Clock) -> None:
        self._app = app
        self._window = FixedWindow(limit, clock) if limit else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._window is None:
            await self._app(scope, receive, _adding({"X-RateLimit-Limit": UNLIMITED}, send))
            return
        verdict = self._window.take(scope["client"][0] if scope["client"] else "")
        headers = {
            "X-RateLimit-Limit": str(self._window.limit),
            "X-RateLimit-Remaining": str(verdict.remaining),
            "X-RateLimit-Reset": str(verdict.reset_s),
        }
        if verdict.allowed:
            await self._app(scope, receive, _adding(headers, send))
            return
        body = {"error": "rate limit exceeded", "retry_after": verdict.reset_s}
        headers["Retry-After"] = str(verdict.reset_s)
        await JSONResponse(body, status_code=429, headers=headers)(scope, receive, send)


def _adding(headers: dict[str, str], send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            added = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            message["headers"] = [*message["headers"], *added]
        await send(message)

    return send_with_headers
