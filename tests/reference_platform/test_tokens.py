"""Making, listing and revoking tokens, and the ones for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.attach import attach
from molecule_runtime.reference_platform.config import PlatformConfig

from .support import ADMIN, NOBODY, Database, Member, Platform, bearer, running

AT_THE_LIMIT = {"error": "maximum 50 active tokens per workspace"}
NO_TOKEN = {"error": "token not found or already revoked"}


async def tokens_of(platform: Platform, member: Member, **params: Any) -> list[dict[str, Any]]:
    reply = await platform.http.get(f"/workspaces/{member.id}/tokens", params=params, headers=member.headers)
    assert reply.status_code == 200
    answer = reply.json()
    assert answer.keys() == {"tokens", "count"}
    assert answer["count"] == len(answer["tokens"])
    found: list[dict[str, Any]] = answer["tokens"]
    return found


async def issue(platform: Platform, member: Member) -> Any:
    return await platform.http.post(f"/workspaces/{member.id}/tokens", headers=member.headers)


async def revoke(platform: Platform, member: Member, token_id: str) -> Any:
    return await platform.http.delete(f"/workspaces/{member.id}/tokens/{token_id}", headers=member.headers)


async def test_a_new_token_opens_the_workspace_and_is_shown_once(platform: Platform, database: Database) -> None:
    """201 with the whole token; the list shows its first 8 characters only (contract 3.8, 1.2)."""
    member = await platform.join()
    reply = await issue(platform, member)
    made = reply.json()
    assert (reply.status_code, made["workspace_id"], len(made["auth_token"])) == (201, member.id, 43)
    second = Member(member.id, made["auth_token"])
    assert await platform.rows(second) == []
    listed = (await platform.http.get(f"/workspaces/{member.id}/tokens", headers=member.headers)).text
    assert second.token not in listed
    assert second.token[:8] in listed
    assert second.token.encode() not in database.everything()


async def test_the_list_is_newest_first_and_paged(platform: Platform, clock: ManualClock) -> None:
    """limit and offset page through the live tokens; bad values mean the defaults (contract 3.8)."""
    member = await platform.join()
    for _ in range(3):
        clock.advance(1)
        await issue(platform, member)
    listed = await tokens_of(platform, member)
    assert [token["created_at"][17:19] for token in listed] == ["03", "02", "01", "00"]
    assert await tokens_of(platform, member, limit=2, offset=1) == listed[1:3]
    assert await tokens_of(platform, member, limit="x", offset="-1") == listed
    assert await tokens_of(platform, member, offset=4) == []


async def test_times_of_use_are_current(platform: Platform, clock: ManualClock) -> None:
    """Also the ones that no sweep has written yet, and after it (contract 3.8)."""
    member = await platform.join()
    clock.advance(5)
    first = (await tokens_of(platform, member))[0]["last_used_at"]
    await platform.parts.sweeper.sweep_once()
    assert first == "2026-01-01T00:00:05.000000Z"
    assert (await tokens_of(platform, member))[0]["last_used_at"] == first


async def test_a_revoked_token_opens_nothing_at_once(platform: Platform) -> None:
    """The very next call with it is refused on every door, and it leaves the list (contract 3.8)."""
    member = await platform.join()
    doomed = Member(member.id, (await issue(platform, member)).json()["auth_token"])
    (token_id,) = [row["id"] for row in await tokens_of(platform, member) if doomed.token.startswith(row["prefix"])]
    assert (await revoke(platform, doomed, token_id.upper())).json() == {"status": "revoked"}
    for reply in (
        await platform.http.get(f"/workspaces/{member.id}/activity", headers=doomed.headers),
        await platform.http.post("/registry/heartbeat", json={"workspace_id": member.id}, headers=doomed.headers),
        await issue(platform, doomed),
    ):
        assert (reply.status_code, reply.json()) == (401, {"error": "invalid workspace auth token"})
    assert token_id not in [row["id"] for row in await tokens_of(platform, member)]
    again = await revoke(platform, member, token_id)
    assert (again.status_code, again.json()) == (404, NO_TOKEN)


async def test_nobody_revokes_anothers_token(platform: Platform) -> None:
    """The id of another workspace's token is not found, nor is a word (contract 3.8)."""
    ours, other = await platform.join("ours"), await platform.join("other")
    (theirs,) = await tokens_of(platform, other)
    for token_id in (theirs["id"], NOBODY, "nope"):
        reply = await revoke(platform, ours, token_id)
        assert (reply.status_code, reply.json()) == (404, NO_TOKEN)
    assert await platform.rows(other) == []


async def test_the_51st_live_token_is_refused_without_a_hint_when_to_retry(platform: Platform) -> None:
    """429 without Retry-After, since waiting does not help; a revoked one makes room (contract 1.7, 3.8)."""
    member = await platform.join()
    for _ in range(49):
        assert (await issue(platform, member)).status_code == 201
    refused = await issue(platform, member)
    assert (refused.status_code, refused.json(), "retry-after" in refused.headers) == (429, AT_THE_LIMIT, False)
    await revoke(platform, member, (await tokens_of(platform, member))[0]["id"])
    assert (await issue(platform, member)).status_code == 201


async def test_attaching_at_the_limit_revokes_the_longest_idle(config: PlatformConfig, clock: ManualClock) -> None:
    """`platform --workspace NAME` always gets its token; used ones stay (ours)."""
    used = await attach(config, "laptop", clock=clock)
    clock.advance(1)
    idle = await attach(config, "laptop", clock=clock)
    clock.advance(1)
    async with running(config, clock) as platform:
        member = Member(used.workspace_id, used.auth_token)
        await platform.rows(member)
        await platform.parts.sweeper.sweep_once()
        for _ in range(48):
            assert (await issue(platform, member)).status_code == 201
        newest = await attach(config, "laptop", clock=clock)
        assert len(await tokens_of(platform, member)) == 50
        assert await platform.parts.tokens.owner(newest.auth_token) == used.workspace_id
        assert await platform.parts.tokens.owner(idle.auth_token) is None


async def test_racing_for_the_last_place_lets_one_through(platform: Platform) -> None:
    """Counting and minting are one step (ours)."""
    member = await platform.join()
    for _ in range(48):
        await issue(platform, member)
    statuses: list[int] = []

    async def race() -> None:
        statuses.append((await issue(platform, member)).status_code)

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(race)
    assert sorted(statuses) == [201, 429, 429, 429]


async def test_an_unknown_workspace_and_a_failing_store(platform: Platform, database: Database) -> None:
    """404 for a token of nobody, 500 where the database is sick (R22)."""
    member = await platform.join()
    unknown = await platform.http.post(f"/workspaces/{NOBODY}/tokens")
    assert (unknown.status_code, unknown.json()) == (404, {"error": "workspace not found"})
    (token,) = await tokens_of(platform, member)
    for verb in ("INSERT", "UPDATE"):
        database.refuse(verb, "workspace_tokens")
    assert (await issue(platform, member)).status_code == 500
    assert (await revoke(platform, member, token["id"])).status_code == 500


async def test_token_for_a_test(platform: Platform) -> None:
    """Without ADMIN_TOKEN and outside production everybody on this machine gets one (contract 1.8)."""
    member = await platform.join()
    reply = await platform.http.get(f"/admin/workspaces/{member.id}/test-token")
    assert (reply.status_code, reply.json().keys()) == (200, {"auth_token", "workspace_id"})
    assert await platform.rows(Member(member.id, reply.json()["auth_token"])) == []


@pytest.mark.parametrize(
    ("env", "headers", "workspace", "status", "error"),
    [
        ({"environment": "production"}, {}, NOBODY, 404, "not found"),
        ({"environment": "production", "admin_token": ADMIN}, {}, "nope", 404, "not found"),
        ({"admin_token": ADMIN}, {}, NOBODY, 401, "admin auth required"),
        ({"admin_token": ADMIN}, bearer("wrong"), NOBODY, 401, "admin auth required"),
        ({"admin_token": ADMIN}, bearer(ADMIN), "nope", 400, "invalid workspace ID"),
        ({"admin_token": ADMIN}, bearer(ADMIN), NOBODY, 404, "workspace not found"),
        ({"environment": "production", "enable_test_tokens": True}, {}, NOBODY, 404, "workspace not found"),
    ],
)
async def test_token_for_a_test_is_refused_in_the_contracts_order(
    config: PlatformConfig, env: dict[str, Any], headers: dict[str, str], workspace: str, status: int, error: str
) -> None:
    """Switched on, administrator, workspace: each is told only to who passed those before (contract 1.8)."""
    async with running(replace(config, **env)) as platform:
        reply = await platform.http.get(f"/admin/workspaces/{workspace}/test-token", headers=headers)
        assert (reply.status_code, reply.json()) == (status, {"error": error})
