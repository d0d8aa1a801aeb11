"""Cards, relations and where a peer is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.config import PlatformConfig

from .support import CARD, NOBODY, Database, Member, Platform, bearer, running

NOT_AUTHORIZED = (403, {"error": "not authorized to discover this workspace"})
NOT_FOUND = (404, {"error": "workspace not found"})


async def discover(platform: Platform, caller: Member, target_id: str) -> tuple[int, Any]:
    headers = bearer(caller.token, **{"X-Workspace-ID": caller.id})
    reply = await platform.http.get(f"/registry/discover/{target_id}", headers=headers)
    return reply.status_code, reply.json()


async def may(platform: Platform, caller_id: str, target_id: str) -> bool:
    body = {"caller_id": caller_id, "target_id": target_id}
    reply = await platform.http.post("/registry/check-access", json=body)
    assert reply.status_code == 200
    allowed: bool = reply.json()["allowed"]
    return allowed


async def test_a_new_card_is_stored_and_announced(platform: Platform) -> None:
    """The card replaces the old one whole, for peers and canvas alike (contract 2.5, 8.3)."""
    member = await platform.join()
    card = {"name": "renamed 世界", "skills": []}
    with platform.parts.bus.subscribe() as events:
        body = {"workspace_id": member.id.upper(), "agent_card": card}
        reply = await platform.http.post("/registry/update-card", json=body, headers=member.headers)
        assert (reply.status_code, reply.json()) == (200, {"status": "updated"})
        assert await platform.heard(events) == [("AGENT_CARD_UPDATED", {"agent_card": card})]
    assert (await platform.http.get(f"/workspaces/{member.id}")).json()["agent_card"] == card


async def test_a_card_of_nobody_and_a_failing_store_are_told_apart(platform: Platform, database: Database) -> None:
    """404 for an unknown id, 500 for a sick database, no event either way (R22, contract 2.5)."""
    member = await platform.join()
    with platform.parts.bus.subscribe() as events:
        body = {"workspace_id": NOBODY, "agent_card": CARD}
        unknown = await platform.http.post("/registry/update-card", json=body)
        assert (unknown.status_code, unknown.json()) == NOT_FOUND
        database.refuse("UPDATE", "workspaces")
        body = {"workspace_id": member.id, "agent_card": CARD}
        failed = await platform.http.post("/registry/update-card", json=body, headers=member.headers)
        assert (failed.status_code, failed.json()) == (500, {"error": "failed to update card"})
        assert await platform.heard(events) == []


async def test_access_follows_the_hierarchy(platform: Platform) -> None:
    """Self, siblings, ancestors and descendants; nobody else, and nobody who does not exist (contract 2.8, 2.9)."""
    root = await platform.create("root")
    child = await platform.create("child", parent_id=root.id)
    other = await platform.create("other root")
    assert await may(platform, root.id, root.id)
    assert await may(platform, root.id, other.id)
    assert await may(platform, child.id.upper(), root.id)
    assert not await may(platform, child.id, other.id)
    assert not await may(platform, root.id, NOBODY)
    assert not await may(platform, "nobody", root.id)


async def test_a_failing_lookup_means_no_access(platform: Platform, database: Database) -> None:
    """A store that cannot say allows nothing (contract 2.9)."""
    member = await platform.create()
    database.sql("ALTER TABLE workspaces RENAME TO hidden")
    assert not await may(platform, member.id, member.id)


@pytest.mark.parametrize("content", ["", "[]", '{"caller_id": 7, "target_id": "x"}'])
async def test_access_of_a_bad_body_is_400(platform: Platform, content: str) -> None:
    """Two strings are needed (contract 2.8)."""
    reply = await platform.http.post("/registry/check-access", content=content)
    assert (reply.status_code, reply.json()) == (400, {"error": "invalid request body"})


async def test_a_polling_peer_is_described_whatever_its_status(platform: Platform, database: Database) -> None:
    """It has no url to call, even if it showed one; name, role and card come along (contract 2.7 PROPOSED)."""
    ours, peer = await platform.join("ours"), await platform.create("ops-agent", role="sre")
    await platform.register(peer, url="http://10.0.0.7/mine")
    for status in ("online", "awaiting_agent", "paused"):
        database.sql(f"UPDATE workspaces SET status = '{status}' WHERE id = '{peer.id}'")
        assert await discover(platform, ours, peer.id.upper()) == (
            200,
            {
                "id": peer.id,
                "name": "ops-agent",
                "role": "sre",
                "status": status,
                "delivery_mode": "poll",
                "url": "",
                "agent_card": CARD,
            },
        )


@pytest.mark.parametrize(
    ("status", "url", "answer"),
    [
        ("online", "https://agent.example/a2a", {"url": "https://agent.example/a2a"}),
        ("degraded", "https://agent.example/a2a", {"url": "https://agent.example/a2a"}),
        ("online", "http://localhost:9000/", {"url": "http://localhost:9000/"}),
        ("online", "", {"error": "workspace not available", "status": "online"}),
        ("paused", "https://agent.example", {"error": "workspace not available", "status": "paused"}),
        ("online", "http://[::ffff:10.0.0.1]/", {"error": "workspace URL failed safety check"}),
        ("online", "http://169.254.169.254/", {"error": "workspace URL failed safety check"}),
        ("online", "ftp://agent.example/", {"error": "workspace URL failed safety check"}),
        ("online", "http://[", {"error": "workspace URL failed safety check"}),
    ],
)
async def test_a_pushed_peer_is_told_while_it_can_be_called(
    platform: Platform, database: Database, status: str, url: str, answer: dict[str, str]
) -> None:
    """id, url and name of a reachable one; 503 with the reason otherwise (contract 2.7)."""
    ours, peer = await platform.join("ours"), await platform.create("pushed")
    database.sql(f"UPDATE workspaces SET status = '{status}', url = '{url}' WHERE id = '{peer.id}'")
    expected = (503, answer) if "error" in answer else (200, {"id": peer.id, "name": "pushed"} | answer)
    assert await discover(platform, ours, peer.id) == expected


async def test_localhost_is_unsafe_outside_development(config: PlatformConfig, clock: ManualClock) -> None:
    """A url that development mode took fails the check where ADMIN_TOKEN is set (contract 2.7, ours)."""
    async with running(replace(config, admin_token="x" * 20), clock) as platform:
        ours, peer = await platform.join("ours"), await platform.create("pushed")
        await platform.register(peer, delivery_mode="push", url="http://localhost:9000/")
        assert await discover(platform, ours, peer.id) == (503, {"error": "workspace URL failed safety check"})


async def test_strangers_unknown_and_removed_peers(platform: Platform) -> None:
    """Unrelated and unknown look alike; a removed relative is gone (contract 2.7)."""
    root = await platform.join("root")
    child = await platform.join("child", parent_id=root.id)
    other = await platform.join("other root")
    gone = await platform.join("gone")
    await platform.http.delete(f"/workspaces/{gone.id}")
    assert await discover(platform, other, child.id) == NOT_AUTHORIZED
    assert await discover(platform, other, NOBODY) == NOT_AUTHORIZED
    assert await discover(platform, other, gone.id) == NOT_FOUND
    assert await discover(platform, other, "nope") == (400, {"error": "invalid workspace ID"})


async def test_a_removed_or_unknown_caller_learns_nothing(locked: Platform) -> None:
    """Neither has a live token, so neither needs one, and neither is anybody's peer (contract 2.7, 11; ours)."""
    peer, gone = await locked.join("peer"), await locked.join("gone")
    await locked.http.delete(f"/workspaces/{gone.id}", headers=locked.admin)
    for caller in (gone.id, NOBODY, "nobody"):
        reply = await locked.http.get(f"/registry/discover/{peer.id}", headers={"X-Workspace-ID": caller})
        assert (reply.status_code, reply.json()) == NOT_AUTHORIZED


async def test_discover_with_a_failing_store_is_no_404(platform: Platform, database: Database) -> None:
    """The door cannot check a token then: 503, never "not found" (R22, contract 0.6)."""
    member = await platform.join()
    database.sql("ALTER TABLE workspaces RENAME TO hidden")
    status, body = await discover(platform, member, member.id)
    assert (status, body["code"]) == (503, "platform_unavailable")
    admin = await platform.http.get(f"/registry/discover/{member.id}", headers={"X-Workspace-ID": member.id})
    assert admin.status_code == 503
