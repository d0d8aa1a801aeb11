"""The connections to one platform: how long an idle one is believed to be alive, and when a call is made twice.

A server closes a connection that was idle for some time, and a request that is on its way at that moment is lost: with
a client's 5 s against a server's 5 s and a round trip of 100 ms one call in ten (shared figures: 15 of 160). So an
idle connection is used for less time than the peer keeps it: 3 s at a peer that says nothing, otherwise what it
announces (`Keep-Alive: timeout=75`) less a margin, so that beats 20 s apart share one connection and one TLS handshake.

What is lost all the same (a proxy in between that closes sooner, a platform that restarts) is asked again, once, on a
new connection, if three things are certain: the connection had been used before, no answer had begun, and the call may
be repeated. A reset does not say whether the request was read; so a message is never sent twice by this module.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import structlog

UNKNOWN_PEER_EXPIRY_S = 3.0
"""Below the 5 s after which common servers close an idle connection."""
EXPIRY_CAP_S = 120.0
"""Routers and firewalls on the way forget an idle connection too, some after a few minutes and without a word."""
MARGIN_S = 2.0
MARGIN_SHARE = 0.1
"""What is taken off an announced time: a round trip, and the slack of the server's timer, which grows with the time."""
_TIMEOUT = re.compile(r"(?:^|[,;\s])timeout\s*=\s*\"?(\d{1,9})\b", re.IGNORECASE)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Journey:
    """What is known of one request on its way; httpcore tells it (the `trace` extension of httpx)."""

    def __init__(self) -> None:
        self.is_on_new_connection = False
        self.was_sent = False
        """Some of it may have left this machine: the platform may have read it."""
        self.has_answer = False

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        step = event.partition(".")[2]
        if step.startswith("connect_"):
            self.is_on_new_connection = True
        elif step == "send_request_headers.started":
            self.was_sent = True
        elif step == "receive_response_headers.complete":
            self.has_answer = True

    @property
    def met_a_dead_connection(self) -> bool:
        """Asked of a request that failed: it went out on a connection that had served before, and nothing came back."""
        return self.was_sent and not self.is_on_new_connection and not self.has_answer


class _Pool:
    """An httpx client that can be put aside while calls are under way on it."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._users = 0
        self._is_retired = False

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, journey: Journey, content: dict[str, Any]
    ) -> AsyncIterator[httpx.Response]:
        self._users += 1
        try:
            async with self._http.stream(method, path, extensions={"trace": journey}, **content) as response:
                yield response
        finally:
            self._users -= 1
            await self._close_when_left()

    async def retire(self) -> None:
        """Close it, now or when its last call has ended."""
        self._is_retired = True
        await self._close_when_left()

    async def _close_when_left(self) -> None:
        if self._is_retired and not self._users:
            await self._http.aclose()


class Connections:
    """A pool of connections to one platform. Several may share one `tls` context, which is dear to make."""

    def __init__(
        self,
        base_url: str,
        *,
        tls: ssl.SSLContext,
        transport: httpx.AsyncBaseTransport | None = None,
        max_connections: int | None = None,
        **options: Any,
    ) -> None:
        """`transport` replaces the network; `options` are httpx's.

        Raises:
            ImportError, ValueError, httpx.InvalidURL: the environment names a proxy that cannot be used.
        """
        self._max_connections = max_connections
        self._transport = transport
        self._options = {"base_url": base_url, "transport": transport, "verify": tls, **options}
        self.expiry_s = UNKNOWN_PEER_EXPIRY_S
        self._ceiling_s = EXPIRY_CAP_S
        self._pool = self._new_pool()

    async def aclose(self) -> None:
        await self._pool.retire()

    async def request(
        self, method: str, path: str, *, is_repeatable: bool, journey: Journey, **content: Any
    ) -> httpx.Response:
        """The platform's answer, read whole. `is_repeatable`: asked twice, it does what it does asked once.

        Raises:
            httpx.HTTPError: as httpx raises it; `journey` then says how far the request came.
        """
        answering = self.stream(method, path, is_repeatable=is_repeatable, journey=journey, **content)
        async with answering as response:
            await response.aread()
            return response

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, *, is_repeatable: bool, journey: Journey, **content: Any
    ) -> AsyncIterator[httpx.Response]:
        """The platform's answer with its body still to be read; a body that breaks off is never asked for again here.

        Raises:
            httpx.HTTPError: as `request`.
        """
        async with AsyncExitStack() as stack:
            pool = self._pool
            try:
                response = await stack.enter_async_context(pool.stream(method, path, journey, content))
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                if not journey.met_a_dead_connection:
                    raise
                if pool is self._pool:  # else a call beside this one has met the same and has seen to it
                    await self._believe_less()
                if not is_repeatable:
                    raise
                log.debug("connections.asked_again", method=method)
                response = await stack.enter_async_context(self._pool.stream(method, path, journey, content))
            await self._learn(response)
            yield response

    async def _learn(self, response: httpx.Response) -> None:
        """Take the shortest time that this peer has ever announced."""
        announced_s = announced_expiry_s(response.headers.get("Keep-Alive"))
        if announced_s is not None:
            self._ceiling_s = min(self._ceiling_s, announced_s)
            if self.expiry_s != self._ceiling_s:
                self.expiry_s = self._ceiling_s
                await self._renew()

    async def _believe_less(self) -> None:
        """A connection died younger than announced; those beside it are not trusted either."""
        if self.expiry_s > UNKNOWN_PEER_EXPIRY_S:
            self._ceiling_s = max(UNKNOWN_PEER_EXPIRY_S, self.expiry_s / 2)
            self.expiry_s = self._ceiling_s
        await self._renew()

    async def _renew(self) -> None:
        """Go on with fresh connections; httpx takes the expiry of a pool when the pool is made."""
        if self._transport is None:  # one that was given stays
            before, self._pool = self._pool, self._new_pool()
            await before.retire()

    def _new_pool(self) -> _Pool:
        limits = httpx.Limits(max_connections=self._max_connections, keepalive_expiry=self.expiry_s)
        return _Pool(httpx.AsyncClient(limits=limits, **self._options))


def announced_expiry_s(header: str | None) -> float | None:
    """How long to believe an idle connection of a peer that sends this Keep-Alive header; None when it says nothing."""
    found = _TIMEOUT.search(header or "")
    if found is None:
        return None
    announced_s = float(found[1])
    return min(max(0.0, announced_s - max(MARGIN_S, MARGIN_SHARE * announced_s)), EXPIRY_CAP_S)
