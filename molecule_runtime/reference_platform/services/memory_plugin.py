"""Calls of the memory plugin: HTTP to one configured address and no other (contract 7.4).

A plugin that does not answer costs every caller the whole timeout. So three failures in a row open a breaker: for a
minute nobody waits any more, then one call may try. What counts as a failure is a plugin that cannot be reached, does
not answer in time, or answers with 5xx; a 4xx is an answer like any other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import anyio
import httpx
import structlog
from pydantic import BaseModel, ValidationError

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform import strict_json
from molecule_runtime.wire.memories import (
    ForgetRequest,
    MemoryWrite,
    MemoryWritten,
    NamespaceKind,
    PluginMemory,
    PutNamespaceRequest,
    SearchReply,
    SearchRequest,
)

FAILURES_TO_OPEN = 3
OPEN_S = 60.0
"""The breaker (contract 7.4)."""
MAX_ANSWER_BYTES = 32 * 1024 * 1024
"""Bytes of an answer that are read: 100 memories as long as our plugin takes them, escaped as JSON can be."""
MAX_MESSAGE_CHARS = 300
"""Characters of a plugin's own words that are passed on."""
NOT_FOUND = 404
NO_NAMESPACE = (NOT_FOUND, 500)
"""By which plugins say that there is no such namespace, which may have gone meanwhile (contract 7.4)."""

log = structlog.get_logger(__name__)

M = TypeVar("M", bound=BaseModel)


class PluginFailure(Exception):
    """The plugin did not do what it was asked; `reason` is for the operator, `status` what it answered, if it did."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class PluginUnavailable(PluginFailure):
    """It cannot say: away, too slow, out of order, or not asked because it was a moment ago."""


class PluginLeftAlone(PluginUnavailable):
    """It was not asked because it was unavailable a moment ago."""

    def __init__(self) -> None:
        super().__init__("it failed repeatedly and is not asked for up to a minute")


class PluginRefusal(PluginFailure):
    """It understood and said no: any answer from 300 to 499."""


class Breaker:
    """Counts failures in a row; see the top of the module."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures = 0
        self._closed_from = 0.0

    def admits(self) -> bool:
        """Whether a call may be made. After a minute the one that asks first may, and the others when it succeeded."""
        if self._failures < FAILURES_TO_OPEN:
            return True
        now = self._clock.monotonic()
        if now < self._closed_from:
            return False
        self._closed_from = now + OPEN_S
        return True

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        self._failures += 1
        if self._failures >= FAILURES_TO_OPEN:
            self._closed_from = self._clock.monotonic() + OPEN_S


class MemoryPlugin:
    """The plugin at one address, or none: `is_wired` says whether there is one.

    `transport` takes the place of the network in tests.
    """

    def __init__(
        self, url: str, clock: Clock, *, timeout_s: float, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._transport = transport
        self._breaker = Breaker(clock)
        self._clock = clock
        self._client: httpx.AsyncClient | None = None
        self._known: set[str] = set()

    @property
    def is_wired(self) -> bool:
        return bool(self._url)

    def connect(self, url: str) -> None:
        """Talk to a plugin at another address from now on: it has just begun to serve there."""
        self._url = url
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget what was known of the plugin: another process answers now."""
        self._breaker = Breaker(self._clock)
        self._known.clear()

    async def is_healthy(self) -> bool:
        """Whether the plugin answers, and says that it is well. Does not count for the breaker."""
        try:
            status, _ = await self._exchange("GET", "/v1/health", None)
        except PluginUnavailable:
            return False
        return status == httpx.codes.OK

    async def write(self, namespace: str, kind: NamespaceKind, memory: MemoryWrite) -> None:
        """Store a memory, in a namespace that is put there first (contract 7.3).

        Raises:
            PluginFailure
        """
        path = f"/v1/namespaces/{quote(namespace, safe='')}/memories"
        known = namespace in self._known
        if not known:
            await self._put_namespace(namespace, kind)
        try:
            written = await self._call("POST", path, memory)
        except PluginFailure as failure:
            self._known.discard(namespace)
            if not known or failure.status not in NO_NAMESPACE:
                raise
            await self._put_namespace(namespace, kind)
            written = await self._call("POST", path, memory)
        # Whoever answers 200 to everything has stored nothing.
        _read(MemoryWritten, written)

    async def search(
        self, namespaces: Sequence[str], *, query: str = "", kinds: Sequence[str] = (), limit: int
    ) -> list[PluginMemory]:
        """What these namespaces hold, in the plugin's order. Memories of other namespaces are left out.

        Raises:
            PluginFailure
        """
        wanted = SearchRequest(namespaces=list(namespaces), query=query or None, kinds=list(kinds) or None, limit=limit)
        reply = _read(SearchReply, await self._call("POST", "/v1/search", wanted))
        allowed = set(namespaces)
        return [memory for memory in reply.memories or [] if memory.namespace in allowed][:limit]

    async def forget(self, memory_id: str, namespace: str) -> bool:
        """Delete a memory of this namespace; False when it has none of this id.

        Raises:
            PluginFailure
        """
        path = f"/v1/memories/{quote(memory_id, safe='')}"
        try:
            await self._call("DELETE", path, ForgetRequest(requested_by_namespace=namespace))
        except PluginRefusal as refusal:
            if refusal.status == NOT_FOUND:
                return False
            raise
        return True

    async def delete_namespace(self, namespace: str) -> None:
        """Delete a namespace with all its memories; one that is not there is gone already.

        Raises:
            PluginFailure
        """
        self._known.discard(namespace)
        try:
            await self._call("DELETE", f"/v1/namespaces/{quote(namespace, safe='')}", None)
        except PluginRefusal as refusal:
            if refusal.status != NOT_FOUND:
                raise

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _put_namespace(self, namespace: str, kind: NamespaceKind) -> None:
        await self._call("PUT", f"/v1/namespaces/{quote(namespace, safe='')}", PutNamespaceRequest(kind=kind))
        self._known.add(namespace)

    async def _call(self, method: str, path: str, body: BaseModel | None) -> bytes:
        if not self._breaker.admits():
            raise PluginLeftAlone
        try:
            status, content = await self._exchange(method, path, body)
        except PluginUnavailable:
            self._breaker.failed()
            raise
        if status >= httpx.codes.INTERNAL_SERVER_ERROR or status < httpx.codes.OK:
            self._breaker.failed()
            raise PluginUnavailable(f"it answered {status}: {_message(content)}", status)
        self._breaker.succeeded()
        if status >= httpx.codes.MULTIPLE_CHOICES:
            raise PluginRefusal(_message(content), status)
        return content

    async def _exchange(self, method: str, path: str, body: BaseModel | None) -> tuple[int, bytes]:
        """Status and body of the answer; the deadline holds for all of it."""
        sent = None if body is None else body.model_dump_json(exclude_none=True).encode()
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        content = bytearray()
        # Real time, not the platform's clock: it bounds a network, and no test waits for it to pass.
        with anyio.move_on_after(self._timeout_s):
            try:
                request = self._http().stream(method, self._url + path, content=sent, headers=headers)
                async with request as response:
                    async for chunk in response.aiter_raw():
                        content += chunk
                        if len(content) > MAX_ANSWER_BYTES:
                            raise PluginUnavailable(f"its answer is longer than {MAX_ANSWER_BYTES} bytes")
                return response.status_code, bytes(content)
            except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
                raise PluginUnavailable(f"it cannot be reached: {type(error).__name__}") from None
        raise PluginUnavailable(f"no answer within {self._timeout_s:g} s")

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            # Neither proxies of the environment nor redirects: both would lead to an address that nobody configured.
            self._client = httpx.AsyncClient(
                transport=self._transport, trust_env=False, follow_redirects=False, timeout=None
            )
        return self._client


def _read(model: type[M], content: bytes) -> M:
    try:
        return model.model_validate(strict_json.parse(content))
    except (ValueError, ValidationError):
        raise PluginUnavailable("its answer cannot be read") from None


def _message(content: bytes) -> str:
    """The plugin's own words for an error, cut; they are for people."""
    try:
        parsed: Any = json.loads(content)
    except (ValueError, RecursionError):
        return "no reason given"
    message = parsed.get("message") if isinstance(parsed, dict) else None
    return message[:MAX_MESSAGE_CHARS] if isinstance(message, str) and message else "no reason given"
