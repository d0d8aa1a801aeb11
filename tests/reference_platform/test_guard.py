"""Foreign web pages: where the doors are open, a browser must not be the key."""

from __future__ import annotations

from dataclasses import replace

import pytest

from molecule_runtime.reference_platform.config import PlatformConfig

from .support import BASE_URL, Platform, canvas_message, running


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": BASE_URL}, 200),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Host": "localhost:8080", "Origin": "http://localhost:8080"}, 200),
        ({"Host": "[::1]:8080", "Origin": "http://[::1]:8080"}, 200),
        ({"Host": "127.0.0.2"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "http://localhost:3000.evil.example"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "["}, 403),
    ],
)
async def test_only_loopback_hosts_and_known_origins_may_post(
    platform: Platform, headers: dict[str, str], status: int
) -> None:
    """In development mode a page elsewhere can neither post nor reach in through a re-pointed name (contract 0.2)."""
    member = await platform.join()
    url = f"/workspaces/{member.id}/a2a"
    reply = await platform.http.post(url, json=canvas_message(), headers=headers)
    assert reply.status_code == status
    assert len(await platform.rows(member)) == (status == 200)


async def test_foreign_preflight_is_refused_and_a_known_one_answered(platform: Platform) -> None:
    """CORS allows the configured origins the contract's headers (contract 1.8)."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "X-Workspace-ID"}
    known = await platform.http.options("/workspaces", headers={"Origin": "http://localhost:3000"} | asked)
    assert known.status_code == 200
    assert known.headers["access-control-allow-origin"] == "http://localhost:3000"
    for name in ("Origin", "Content-Type", "X-Workspace-ID", "Authorization"):
        assert name in known.headers["access-control-allow-headers"]
    foreign = await platform.http.options("/workspaces", headers={"Origin": "https://evil.example"} | asked)
    assert foreign.status_code == 403


async def test_guard_also_holds_outside_development_mode_without_admin_token(production: Platform) -> None:
    """What is open to programs on this machine is not open to pages (contract 0.2, ours)."""
    reply = await production.http.get("/health", headers={"Origin": "https://evil.example"})
    assert (reply.status_code, reply.json()) == (403, {"error": "origin not allowed"})


async def test_with_admin_token_any_host_may_ask(locked: Platform) -> None:
    """A deployed platform is reached under its own name; there the token guards (contract 0.2)."""
    headers = {"Host": "molecule.example", "Origin": "https://molecule.example"}
    assert (await locked.http.get("/health", headers=headers)).status_code == 200


async def test_the_public_address_is_an_own_origin(config: PlatformConfig) -> None:
    """EXTERNAL_PLATFORM_URL counts as the platform's own origin (contract 0.2)."""
    async with running(replace(config, external_url="https://tunnel.example/base")) as platform:
        reply = await platform.http.get("/health", headers={"Origin": "https://tunnel.example"})
        assert reply.status_code == 200


async def test_every_answer_carries_the_security_headers(platform: Platform) -> None:
    """Also refusals, unknown routes and the guard's own answers (contract 1.8)."""
    for reply in (
        await platform.http.get("/health"),
        await platform.http.get("/nope"),
        await platform.http.get("/health", headers={"Host": "evil.example"}),
        await platform.http.post("/workspaces", content=b"{"),
    ):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["x-frame-options"] == "DENY"
        for name in ("strict-transport-security", "referrer-policy", "permissions-policy", "content-security-policy"):
            assert reply.headers[name]
