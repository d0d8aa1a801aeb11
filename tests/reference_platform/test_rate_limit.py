"""RATE_LIMIT, on a clock that moves by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.rate_limit import FixedWindow

from .support import BASE_URL, Platform, running, served


@pytest.fixture
async def limited(config: PlatformConfig, clock: ManualClock) -> AsyncIterator[Platform]:
    """A platform that takes three requests a minute, and whose sweeper stays out of the way when time passes."""
    async with running(replace(config, rate_limit=3, sweep_interval_s=1e6), clock) as platform:
        yield platform


def standing(reply: httpx.Response) -> tuple[int, str | None, str | None, str | None]:
    headers = reply.headers
    return (
        reply.status_code,
        headers.get("x-ratelimit-remaining"),
        headers.get("x-ratelimit-reset"),
        headers.get("retry-after"),
    )


async def test_off_by_default(platform: Platform) -> None:
    """No request is counted, and that is said (contract 0.10, 1.7)."""
    for _ in range(3):
        reply = await platform.http.get("/health")
        assert reply.headers["x-ratelimit-limit"] == "unlimited"
        assert standing(reply) == (200, None, None, None)


async def test_the_window_is_fixed(limited: Platform, clock: ManualClock) -> None:
    """It begins with the first request, counts down, refuses, and starts anew after a minute (contract 1.7)."""
    assert standing(await limited.http.get("/health")) == (200, "2", "60", None)
    clock.advance(20.5)
    assert standing(await limited.http.get("/nope")) == (404, "1", "40", None)
    assert standing(await limited.http.post("/workspaces", content=b"{")) == (400, "0", "40", None)
    clock.advance(30)
    refused = await limited.http.get("/health")
    assert standing(refused) == (429, "0", "10", "10")
    assert refused.json() == {"error": "rate limit exceeded", "retry_after": 10}
    assert refused.headers["x-ratelimit-limit"] == "3"
    assert refused.headers["x-content-type-options"] == "nosniff"
    clock.advance(9.5)
    assert standing(await limited.http.get("/health")) == (200, "2", "60", None)


async def test_a_page_can_read_the_refusal_and_its_preflights_are_free(limited: Platform) -> None:
    """The 429 carries the CORS header, since a canvas waits as it says (contract 1.7, 1.8)."""
    page = {"Origin": "http://localhost:3000"}
    for _ in range(5):
        asked = page | {"Access-Control-Request-Method": "PATCH"}
        assert (await limited.http.options("/workspaces", headers=asked)).status_code == 200
    replies = [await limited.http.get("/health", headers=page) for _ in range(4)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
    assert replies[-1].headers["access-control-allow-origin"] == page["Origin"]


async def test_each_address_has_a_window_of_its_own(limited: Platform) -> None:
    """One address at its limit is no other's business (contract 1.7)."""

    @asynccontextmanager
    async def at(address: str) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(app=limited.app, client=(address, 50000))
        async with httpx.AsyncClient(transport=transport, base_url=BASE_URL) as http:
            yield http

    async with at("10.0.0.1") as one, at("10.0.0.2") as other:
        assert [(await one.get("/health")).status_code for _ in range(4)] == [200, 200, 200, 429]
        assert (await other.get("/health")).status_code == 200


async def test_what_a_proxy_header_claims_does_not_count(config: PlatformConfig) -> None:
    """Whoever sends X-Forwarded-For is still counted by its address (contract 1.7)."""
    async with served(replace(config, rate_limit=2)) as url, httpx.AsyncClient(base_url=url) as http:
        statuses = [
            (await http.get("/health", headers={"X-Forwarded-For": f"10.0.0.{index}"})).status_code
            for index in range(3)
        ]
        assert statuses == [200, 200, 429]


def test_what_is_remembered_does_not_grow() -> None:
    """Windows that ended are forgotten, so a scan of many addresses costs a minute of memory (ours)."""
    clock = ManualClock()
    window = FixedWindow(1, clock)
    for index in range(1000):
        window.take(str(index))
    clock.advance(60)
    assert window.take("one more").allowed
    assert len(window._windows) == 1
