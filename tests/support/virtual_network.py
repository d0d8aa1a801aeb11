"""A network whose time a test moves: round trips, idle connections that the server closes, resets that cross a request.

The client is real, httpx, httpcore and h11 included; only what lies below them is played. A request that is on its way
when the server closes its connection is lost, and the client learns of it one round trip after it sent: the race of
keep-alive, which a real network shows only now and then.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import httpcore
import pytest

Answering = Callable[[bytes], bytes]
"""A whole request to a whole answer."""


class VirtualNetwork(httpcore.AsyncNetworkBackend):
    """One server, which closes a connection after `idle_limit_s` without a request. `now` is everybody's clock."""

    def __init__(
        self, answering: Answering, *, idle_limit_s: float, rtt_s: tuple[float, float] = (0.1, 0.1), seed: int = 1
    ) -> None:
        self.now = 0.0
        self.answering = answering
        self.idle_limit_s = idle_limit_s
        self.connections = 0
        self.lost = 0
        """Requests that came to a connection which the server had closed."""
        self._rtt_s = rtt_s
        self._random = random.Random(seed)

    def carry(self, patch: pytest.MonkeyPatch) -> None:
        """Let every httpx client that is made from now on use this network and its clock."""
        patch.setattr("httpcore._async.connection_pool.AutoBackend", lambda: self)
        patch.setattr("httpcore._async.http11.time", self)

    def monotonic(self) -> float:
        """What httpcore reads the age of an idle connection from."""
        return self.now

    def half_way(self) -> float:
        return self._random.uniform(*self._rtt_s) / 2

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.connections += 1
        self.now += self.half_way() + self.half_way()
        return _Line(self)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class _Line(httpcore.AsyncNetworkStream):
    """A connection from the client's side."""

    def __init__(self, network: VirtualNetwork) -> None:
        self._network = network
        self._sent = b""
        self._server_closes_at = network.now + network.idle_limit_s
        self._close_is_seen_at = self._server_closes_at + network.half_way()

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._sent += buffer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        network = self._network
        request, self._sent = self._sent, b""
        arrives_at = network.now + network.half_way()
        network.now = arrives_at + network.half_way()
        if arrives_at >= self._server_closes_at:
            network.lost += 1
            raise httpcore.ReadError("connection reset")
        self._server_closes_at = arrives_at + network.idle_limit_s
        self._close_is_seen_at = self._server_closes_at + network.half_way()
        return network.answering(request)

    async def aclose(self) -> None:
        pass

    def get_extra_info(self, info: str) -> Any:
        return self._network.now >= self._close_is_seen_at if info == "is_readable" else None
