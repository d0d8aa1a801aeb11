"""Every door, every key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from .support import ADMIN, CARD, NOBODY, Database, Member, Platform, bearer, canvas_message

UNAVAILABLE = {"error": "platform datastore unavailable — retry shortly", "code": "platform_unavailable"}
MISSING, INVALID = "missing workspace auth token", "invalid workspace auth token"
ADMIN_MISSING, ADMIN_INVALID = "admin auth required", "invalid admin auth token"
CALLER_MISSING, CALLER_INVALID = "missing caller auth token", "invalid caller auth token"


@dataclass(frozen=True)
class Scene:
    """Two living workspaces and the token of a removed one."""

    ours: Member
    other: Member
    removed: Member

    def headers(self, key: str) -> dict[str, str]:
        tokens = {"none": None, "ours": self.ours.token, "other": self.other.token, "removed": self.removed.token}
        return bearer(tokens.get(key, key))


async def scene(platform: Platform) -> Scene:
    removed = await platform.join("removed")
    made = Scene(ours=await platform.join("ours"), other=await platform.join("other"), removed=removed)
    await platform.http.delete(f"/workspaces/{removed.id}", headers=platform.admin)
    return made


def outcome(reply: Any) -> str:
    """The error of an answer, or "" when the door opened."""
    return reply.json().get("error", "") if reply.status_code == 401 else ""


WORKSPACE_DOORS = [
    ("GET", "/workspaces/{}/activity", None),
    ("GET", "/workspaces/{}/chat-history", None),
    ("GET", "/workspaces/{}/state", None),
    ("POST", "/workspaces/{}/notify", {"message": "x"}),
]


@pytest.mark.parametrize(("method", "path", "body"), WORKSPACE_DOORS)
async def test_workspace_doors_in_development(platform: Platform, method: str, path: str, body: Any) -> None:
    """Own token or no bearer at all; any other bearer is refused even in development mode (contract 1.3)."""
    made = await scene(platform)
    expected = {"none": "", "ours": "", "other": INVALID, "removed": INVALID, "wrong": INVALID, ADMIN: INVALID}
    for key, error in expected.items():
        reply = await platform.http.request(method, path.format(made.ours.id), json=body, headers=made.headers(key))
        assert (key, outcome(reply)) == (key, error)
    gone = await platform.http.request(method, path.format(made.removed.id), json=body, headers=made.removed.headers)
    assert outcome(gone) == INVALID


@pytest.mark.parametrize("mode", ["locked", "production"])
@pytest.mark.parametrize(("method", "path", "body"), WORKSPACE_DOORS)
async def test_workspace_doors_elsewhere(
    locked: Platform, production: Platform, mode: str, method: str, path: str, body: Any
) -> None:
    """Outside development mode a bearer is needed; ADMIN_TOKEN opens every workspace where it is set (contract 1.3)."""
    platform = {"locked": locked, "production": production}[mode]
    made = await scene(platform)
    admin = "" if mode == "locked" else INVALID
    expected = {"none": MISSING, "ours": "", "other": INVALID, "removed": INVALID, "wrong": INVALID, ADMIN: admin}
    for key, error in expected.items():
        reply = await platform.http.request(method, path.format(made.ours.id), json=body, headers=made.headers(key))
        assert (key, outcome(reply)) == (key, error)


async def test_bearer_prefix_is_matched_with_its_case_and_the_rest_trimmed(locked: Platform) -> None:
    """`Bearer` has this spelling; spaces around the token do not matter (contract 1.1)."""
    member = await locked.join()
    url = f"/workspaces/{member.id}/state"
    for header, status in ((f"Bearer   {member.token} ", 200), (f"bearer {member.token}", 401), (member.token, 401)):
        assert (await locked.http.get(url, headers={"Authorization": header})).status_code == status


ADMIN_DOORS: list[tuple[str, str, Any]] = [
    ("GET", "/workspaces", None),
    ("POST", "/workspaces", {"name": "more", "external": True}),
    ("DELETE", f"/workspaces/{NOBODY}", None),
]


@pytest.mark.parametrize(("method", "path", "body"), ADMIN_DOORS)
async def test_admin_doors(
    platform: Platform, locked: Platform, production: Platform, method: str, path: str, body: Any
) -> None:
    """Open in development; ADMIN_TOKEN alone where it is set; else any live token (contract 1.4)."""
    for mode, expected in (
        (platform, {"none": "", "ours": "", "removed": "", "wrong": ""}),
        (locked, {"none": ADMIN_MISSING, "ours": ADMIN_INVALID, "wrong": ADMIN_INVALID, ADMIN: ""}),
        (production, {"none": ADMIN_MISSING, "ours": "", "removed": ADMIN_INVALID, "wrong": ADMIN_INVALID}),
    ):
        made = await scene(mode)
        for key, error in expected.items():
            reply = await mode.http.request(method, path, json=body, headers=made.headers(key))
            assert (key, outcome(reply)) == (key, error)


async def test_fresh_installation_is_open_until_the_first_token(fresh: Platform) -> None:
    """Without any live token and without ADMIN_TOKEN somebody must be able to begin (contract 1.4)."""
    assert (await fresh.http.get("/workspaces")).status_code == 200
    await fresh.create()
    assert outcome(await fresh.http.get("/workspaces")) == ADMIN_MISSING


@pytest.mark.parametrize("door", ["register", "heartbeat"])
async def test_self_doors(platform: Platform, locked: Platform, door: str) -> None:
    """Own token or ADMIN_TOKEN, in every mode; a removed workspace is always 401 (contract 1.5)."""
    for mode, admin in ((platform, INVALID), (locked, "")):
        made = await scene(mode)
        expected = {"none": MISSING, "ours": "", "other": INVALID, "removed": INVALID, "wrong": INVALID, ADMIN: admin}
        for key, error in expected.items():
            assert (key, outcome(await knock(mode, door, made.ours.id, made.headers(key)))) == (key, error)
        for key in ("removed", "other", ADMIN):
            assert outcome(await knock(mode, door, made.removed.id, made.headers(key))) == INVALID
        assert outcome(await knock(mode, door, made.removed.id, {})) == MISSING
        assert await mode.status(made.removed) == "removed"


async def knock(platform: Platform, door: str, workspace_id: str, headers: dict[str, str]) -> Any:
    body = {"workspace_id": workspace_id, "id": workspace_id, "agent_card": CARD, "delivery_mode": "poll"}
    return await platform.http.post(f"/registry/{door}", json=body, headers=headers)


@pytest.mark.parametrize("door", ["register", "heartbeat"])
async def test_without_a_live_token_a_wrong_bearer_is_still_refused(
    platform: Platform, database: Database, door: str
) -> None:
    """Bootstrapping means coming without a bearer, not with any bearer (contract 1.5 PROPOSED)."""
    member = await platform.join()
    database.sql("UPDATE workspace_tokens SET revoked_at = created_at")
    assert outcome(await knock(platform, door, member.id, bearer("wrong"))) == INVALID
    assert outcome(await knock(platform, door, member.id, member.headers)) == INVALID
    assert outcome(await knock(platform, door, member.id, {})) == ""


async def test_register_of_an_unknown_id_needs_the_admin_token_where_one_is_set(locked: Platform) -> None:
    """Nobody else creates workspaces by registering (contract 0.4)."""
    assert outcome(await knock(locked, "register", NOBODY, {})) == MISSING
    assert outcome(await knock(locked, "register", NOBODY, bearer("wrong"))) == INVALID
    assert (await locked.http.get(f"/workspaces/{NOBODY}")).status_code == 404
    created = await knock(locked, "register", NOBODY, locked.admin)
    assert (created.status_code, len(created.json()["auth_token"])) == (200, 43)


async def test_peers_door(platform: Platform, locked: Platform, production: Platform, database: Database) -> None:
    """As the workspace doors, and open to anybody while the workspace has no live token (contract 2.6)."""
    for mode, none, admin in ((platform, "", INVALID), (locked, MISSING, ""), (production, MISSING, INVALID)):
        made = await scene(mode)
        expected = {"none": none, "ours": "", "other": INVALID, "removed": INVALID, "wrong": INVALID, ADMIN: admin}
        for key, error in expected.items():
            reply = await mode.http.get(f"/registry/{made.ours.id}/peers", headers=made.headers(key))
            assert (key, "" if reply.status_code == 200 else reply.json()["error"]) == (key, error)
    database.sql("UPDATE workspace_tokens SET revoked_at = created_at")
    for key in ("none", "wrong", "ours"):
        reply = await production.http.get(f"/registry/{made.ours.id}/peers", headers=made.headers(key))
        assert reply.status_code == 200


async def test_a2a_caller(platform: Platform, locked: Platform, production: Platform) -> None:
    """Without the header no bearer is refused, save where ADMIN_TOKEN is set (contract 4.1, 0.2)."""
    for mode, expected in (
        (platform, {"none": "", "wrong": "", "removed": "", "other": "", ADMIN: ""}),
        (production, {"none": "", "wrong": "", "removed": "", "other": ""}),
        (locked, {"none": CALLER_MISSING, "wrong": CALLER_INVALID, "removed": CALLER_INVALID, "other": "", ADMIN: ""}),
    ):
        made = await scene(mode)
        for key, error in expected.items():
            reply = await post(mode, made.ours, made.headers(key))
            assert (key, outcome(reply)) == (key, error)
        sources = [row["source_id"] for row in await mode.rows(made.ours)]
        assert set(sources) == {None, made.other.id}
        assert sources.count(made.other.id) == 1


async def post(platform: Platform, target: Member, headers: dict[str, str]) -> Any:
    return await platform.http.post(f"/workspaces/{target.id}/a2a", json=canvas_message(), headers=headers)


async def test_workspace_header_always_needs_that_workspaces_bearer(platform: Platform, locked: Platform) -> None:
    """Nobody speaks for another, not even to it, not even the administrator (contract 0.3)."""
    for mode in (platform, locked):
        made = await scene(mode)
        for named in (made.ours, made.other):
            for key, error in {"none": CALLER_MISSING, "wrong": CALLER_INVALID, ADMIN: CALLER_INVALID}.items():
                headers = made.headers(key) | {"X-Workspace-ID": named.id}
                assert outcome(await post(mode, made.ours, headers)) == error
        forged = made.ours.headers | {"X-Workspace-ID": made.other.id}
        assert outcome(await post(mode, made.ours, forged)) == CALLER_INVALID
        ghost = made.removed.headers | {"X-Workspace-ID": made.removed.id}
        assert outcome(await post(mode, made.ours, ghost)) == CALLER_INVALID
        own = made.other.headers | {"X-Workspace-ID": made.other.id.upper()}
        assert (await post(mode, made.ours, own)).status_code == 200


async def test_a_workspace_without_live_token_cannot_be_named(platform: Platform, database: Database) -> None:
    """The bootstrap rule does not reach the caller header (contract 0.3)."""
    made = await scene(platform)
    database.sql("UPDATE workspace_tokens SET revoked_at = created_at")
    assert outcome(await post(platform, made.ours, {"X-Workspace-ID": made.other.id})) == CALLER_MISSING


@pytest.mark.parametrize("name", ["webhook:x", "system:cron", "test:1", "channel:7", "nope", ""])
async def test_caller_that_is_no_workspace_is_403(platform: Platform, name: str) -> None:
    """Internal caller names are not open to the outside (contract 4.1)."""
    member = await platform.join()
    reply = await post(platform, member, member.headers | {"X-Workspace-ID": name})
    assert (reply.status_code, reply.json()) == (403, {"error": "invalid caller ID"})


@pytest.mark.parametrize("mode", ["platform", "locked", "production"])
async def test_a_failing_store_opens_no_door(
    platform: Platform, locked: Platform, production: Platform, database: Database, mode: str
) -> None:
    """503 everywhere when nobody can say whether a token is good (contract 0.6)."""
    chosen = {"platform": platform, "locked": locked, "production": production}[mode]
    made = await scene(chosen)
    database.sql("ALTER TABLE workspace_tokens RENAME TO hidden")
    headers = made.ours.headers
    replies = [
        await chosen.http.get(f"/workspaces/{made.ours.id}/activity", headers=headers),
        await chosen.http.get(f"/registry/{made.ours.id}/peers", headers=headers),
        await knock(chosen, "register", made.ours.id, headers),
        await knock(chosen, "heartbeat", made.ours.id, {}),
        await post(chosen, made.ours, headers),
    ]
    if mode == "production":
        replies.append(await chosen.http.get("/workspaces", headers=headers))
    assert [(reply.status_code, reply.json()) for reply in replies] == [(503, UNAVAILABLE)] * len(replies)


async def test_only_digests_of_tokens_are_stored(platform: Platform, database: Database) -> None:
    """A stolen database opens nothing; 8 characters are kept for people (contract 1.2)."""
    member = await platform.join()
    ((digest, prefix),) = database.sql("SELECT digest, prefix FROM workspace_tokens")
    assert len(member.token) == 43
    assert (len(digest), prefix) == (32, member.token[:8])
    everything = database.everything()
    assert prefix.encode() in everything
    assert member.token.encode() not in everything


async def test_times_of_use_are_written_by_the_sweep(platform: Platform, database: Database) -> None:
    """A read notes that its token was used; the next sweep writes it down (contract 1.2)."""
    member = await platform.join()
    await platform.rows(member)
    assert database.sql("SELECT last_used_at FROM workspace_tokens") == [(None,)]
    await platform.parts.sweeper.sweep_once()
    ((moment,),) = database.sql("SELECT CAST(last_used_at AS TEXT) FROM workspace_tokens")
    assert moment.startswith("2026-01-01 00:00:00")


async def test_a_removed_workspaces_token_is_dead_even_if_it_was_never_revoked(
    platform: Platform, database: Database
) -> None:
    """The look-up itself leaves removed workspaces out (contract 1.2)."""
    made = await scene(platform)
    database.sql("UPDATE workspace_tokens SET revoked_at = NULL")
    for path in ("activity", "state", "chat-history"):
        reply = await platform.http.get(f"/workspaces/{made.removed.id}/{path}", headers=made.removed.headers)
        assert outcome(reply) == INVALID
    assert await platform.parts.tokens.owner(made.removed.token) is None
