"""Calling the agent of a push-mode workspace, and nobody else (contract 2.1, 4.1).

The URL comes from outside, so it could name this machine or the network it stands in. Its name is therefore resolved
once, every address it has is checked, and the connection goes to a checked address: an answer that the name server
gives later cannot change where it leads. Redirects are not followed and proxies of the environment not used, since both
would be a second, unchecked choice of where to connect.

What becomes of a call is one of four values. What tells them apart is whether the request may have been delivered:
that is what a sender needs to know before it tries again. This is the only module of the platform that calls out.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import httpx

from molecule_runtime.reference_platform.services.push_urls import blocked_label

CONNECT_S = 10.0
"""Seconds for a connection to one address."""
MAX_ANSWER_BYTES = 10 * 1024 * 1024
"""Bytes of an agent's answer that are read (contract 4.1)."""
MAX_PORT = 65_535


@dataclass(frozen=True)
class Answered:
    """The agent's status and its body; from 300 on the body may have been lost, and is empty then."""

    status: int
    body: bytes


@dataclass(frozen=True)
class Unreachable:
    """Nothing was sent: calling again is safe."""

    reason: str


@dataclass(frozen=True)
class Unanswered:
    """The request went out and no answer came: it may have been delivered."""

    reason: str


@dataclass(frozen=True)
class Unreadable:
    """The agent accepted the request, and its answer was lost on the way or too long: it was delivered."""

    reason: str


PushOutcome = Answered | Unreachable | Unanswered | Unreadable
Resolve = Callable[[str, int], Awaitable[list[str]]]
"""The addresses of a name, as text; raises OSError for a name that has none."""


async def system_resolve(host: str, port: int) -> list[str]:
    """What the machine's resolver says, in its order."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _Refused(Exception):
    """The URL may not be called; the text says why."""


class _TooLong(Exception):
    """The agent's answer is longer than what is read."""


@dataclass(frozen=True)
class Payload:
    """What is posted: all bytes at once, or an iterator that gives them once, as they come.

    `path` takes the place of the URL's own path, query included; `length` is that of an iterator, if it is known.
    """

    content: bytes | AsyncIterator[bytes]
    content_type: str
    path: str | None = None
    length: int | None = None


@dataclass
class _Call:
    """How far a call has come."""

    sent: bool = False
    status: int | None = None

    async def trace(self, event: str, _info: Mapping[str, Any]) -> None:
        """httpcore's trace: from the first byte of the request on it may reach the agent."""
        self.sent = self.sent or event == "http11.send_request_headers.started"

    def ended(self, reason: str) -> PushOutcome:
        """What a failure at this point means."""
        if self.status is None:
            return Unanswered(reason) if self.sent else Unreachable(reason)
        return Answered(self.status, b"") if self.status >= 300 else Unreadable(reason)


class PushAgents:
    """Calls agents. In development mode this machine may be called too."""

    def __init__(self, *, development: bool, resolve: Resolve = system_resolve) -> None:
        self._development = development
        self._resolve = resolve
        self._tls: ssl.SSLContext | None = None

    async def call(self, url: str, secret: str | None, body: Mapping[str, Any], timeout_s: float | None) -> PushOutcome:
        """Post `body` to the agent at `url` with `secret` as its bearer; no deadline when `timeout_s` is None."""
        content = json.dumps(body, ensure_ascii=False).encode()
        return await self.post(url, secret, Payload(content, "application/json"), timeout_s)

    async def post(self, url: str, secret: str | None, payload: Payload, timeout_s: float | None) -> PushOutcome:
        """The same with any payload. What its iterator raises comes through, and ends the call."""
        call = _Call()
        with anyio.move_on_after(timeout_s):
            try:
                return await self._post(call, url, secret, payload)
            except _Refused as refused:
                return Unreachable(str(refused))
            except _TooLong:
                return call.ended(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
            except (httpx.HTTPError, OSError) as error:
                return call.ended(type(error).__name__)
        return call.ended(f"no answer within {timeout_s} s")

    async def _post(self, call: _Call, url: str, secret: str | None, payload: Payload) -> PushOutcome:
        target = _parsed(url)
        addresses = await self._checked_addresses(target)
        async with httpx.AsyncClient(
            verify=self._tls_context(),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(None, connect=CONNECT_S),
        ) as client:
            for address in addresses[:-1]:
                try:
                    return await _exchange(client, call, _pinned(client, call, target, address, secret, payload))
                except httpx.TransportError:
                    if call.sent:
                        raise
            return await _exchange(client, call, _pinned(client, call, target, addresses[-1], secret, payload))

    async def _checked_addresses(self, target: httpx.URL) -> list[str]:
        """Every address of the target's name; one blocked address refuses them all."""
        host = target.raw_host.decode("ascii")
        try:
            addresses = await self._resolve(host, _port(target))
        except (OSError, UnicodeError):  # a label that is too long fails in the codec of host names
            addresses = []
        if not addresses:
            raise _Refused("its host name has no address")
        for address in addresses:
            label = blocked_label(ipaddress.ip_address(address), development=self._development)
            if label is not None:
                raise _Refused(f"url targets a blocked address: {label}")
        return addresses

    def _tls_context(self) -> ssl.SSLContext:
        """One context for all calls: loading the certificates takes longer than most calls."""
        if self._tls is None:
            self._tls = httpx.create_ssl_context(trust_env=False)
        return self._tls


async def _exchange(client: httpx.AsyncClient, call: _Call, request: httpx.Request) -> PushOutcome:
    response = await client.send(request, stream=True)
    try:
        call.status = response.status_code
        # Undecoded: nothing but `identity` was asked for, and a small packed body could unpack to any size.
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise _TooLong
    finally:
        await response.aclose()
    return Answered(response.status_code, bytes(body))


def _pinned(
    client: httpx.AsyncClient, call: _Call, target: httpx.URL, address: str, secret: str | None, payload: Payload
) -> httpx.Request:
    """The request, addressed to a checked address in the name of its host, for TLS too."""
    headers = {
        "Host": target.netloc.decode("ascii"),
        "Content-Type": payload.content_type,
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": "molecule-platform",
    }
    if secret:
        headers["Authorization"] = f"Bearer {secret}"
    if payload.length is not None:
        headers["Content-Length"] = str(payload.length)
    url = target.copy_with(host=address, username="", password="")
    if payload.path is not None:
        url = url.copy_with(raw_path=payload.path.encode("ascii"))
    return client.build_request(
        "POST",
        url,
        headers=headers,
        content=payload.content,
        extensions={"sni_hostname": target.raw_host.decode("ascii"), "trace": call.trace},
    )


def _parsed(url: str) -> httpx.URL:
    """The URL as the client reads it; the same object is checked and connected to, so no two readings can differ."""
    try:
        target = httpx.URL(url)
    except httpx.InvalidURL:
        raise _Refused("its url is not valid") from None
    if target.scheme not in ("http", "https") or not target.host:
        raise _Refused("its url is not http or https")
    if not 0 < _port(target) <= MAX_PORT:
        raise _Refused("its url is not valid")
    return target


def _port(target: httpx.URL) -> int:
    if target.port is not None:
        return target.port
    return 443 if target.scheme == "https" else 80
