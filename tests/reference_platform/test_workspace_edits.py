"""Changing a workspace."""

from __future__ import annotations

from typing import Any

import pytest

from .support import NOBODY, Database, Member, Platform, bearer

UPDATED = (200, {"status": "updated"})
NOT_FOUND = (404, {"error": "workspace not found"})
CYCLE = (400, {"error": "parent_id would make the workspace its own ancestor"})
INVALID_FIELDS = "invalid workspace fields"


async def patch(platform: Platform, member: Member, **fields: Any) -> tuple[int, Any]:
    reply = await platform.http.patch(f"/workspaces/{member.id}", json=fields, headers=member.headers)
    return reply.status_code, reply.json()


async def read(platform: Platform, member: Member) -> dict[str, Any]:
    row: dict[str, Any] = (await platform.http.get(f"/workspaces/{member.id}")).json()
    return row


async def test_the_fields_sent_are_changed_and_no_others(platform: Platform) -> None:
    """Everything a canvas edits, in one call; what is absent or null stays (contract 3.6)."""
    member = await platform.join("laptop", role="sre", tier=2)
    before = await read(platform, member)
    sent = {"name": "desk 世界", "tier": 4, "x": 12.5, "y": -3, "collapsed": True, "runtime": "external", "role": None}
    assert await patch(platform, member, **sent) == UPDATED
    changed = {"name": "desk 世界", "tier": 4, "x": 12.5, "y": -3, "collapsed": True}
    assert await read(platform, member) == before | changed
    assert await patch(platform, member, role="") == UPDATED
    assert await read(platform, member) == before | changed | {"role": None}


async def test_a_directory_is_set_and_taken_away(platform: Platform) -> None:
    """`workspace_dir` may be null (contract 3.6)."""
    member = await platform.join()
    for directory in ("/srv/work", None):
        assert await patch(platform, member, workspace_dir=directory) == UPDATED
        (row,) = (await platform.http.get("/workspaces")).json()
        assert row["workspace_dir"] == directory


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"name": ""}, INVALID_FIELDS),
        ({"name": "  "}, INVALID_FIELDS),
        ({"name": "x" * 256}, INVALID_FIELDS),
        ({"name": "a\nb"}, INVALID_FIELDS),
        ({"role": "x" * 1001}, INVALID_FIELDS),
        ({"role": "a|b"}, INVALID_FIELDS),
        ({"tier": 0}, INVALID_FIELDS),
        ({"tier": 2**31}, INVALID_FIELDS),
        ({"parent_id": "nope"}, INVALID_FIELDS),
        ({"parent_id": NOBODY}, "parent workspace not found"),
        ({"x": 1}, "x and y must be given together"),
        ({"x": 1, "y": None}, "x and y must be given together"),
        ({"workspace_dir": "work"}, "invalid workspace directory"),
        ({"workspace_dir": "/srv/../etc"}, "invalid workspace directory"),
        ({"workspace_dir": "/srv\n"}, "invalid workspace directory"),
        ({"tier": 2.5}, "invalid request body"),
        ({"tier": True}, "invalid request body"),
        ({"collapsed": "yes"}, "invalid request body"),
        ({"name": 7}, "invalid request body"),
    ],
)
async def test_a_field_that_does_not_fit_changes_nothing(
    platform: Platform, fields: dict[str, Any], error: str
) -> None:
    """400 with the reason, and the good fields beside it are not stored either (contract 3.6, 3.1)."""
    member = await platform.join()
    before = await read(platform, member)
    assert await patch(platform, member, **{"collapsed": True} | fields) == (400, {"error": error})
    assert await read(platform, member) == before


async def test_another_runtime_is_refused(platform: Platform) -> None:
    """This platform starts no containers (contract 12)."""
    status, body = await patch(platform, await platform.join(), runtime="langgraph")
    assert (status, "external" in body["error"]) == (400, True)


async def test_moving_in_the_team_changes_who_may_talk(platform: Platform) -> None:
    """A new parent relates, null goes back to the top (contract 3.6, 2.9)."""
    root = await platform.join("root")
    child = await platform.join("child", parent_id=root.id)
    other = await platform.join("other")

    async def related() -> bool:
        body = {"caller_id": child.id, "target_id": other.id}
        allowed: bool = (await platform.http.post("/registry/check-access", json=body)).json()["allowed"]
        return allowed

    assert not await related()
    assert await patch(platform, child, parent_id=other.id.upper()) == UPDATED
    assert (await read(platform, child))["parent_id"] == other.id
    assert await related()
    for top in (None, ""):
        assert await patch(platform, child, parent_id=other.id) == UPDATED
        assert await patch(platform, child, parent_id=top) == UPDATED
        assert (await read(platform, child))["parent_id"] is None


async def test_a_cycle_is_refused_at_any_length(platform: Platform) -> None:
    """Neither itself nor a descendant can become the parent, however far down, beyond the cap of 32 too (ours)."""
    chain = [await platform.create("0")]
    for depth in range(1, 36):
        chain.append(await platform.create(str(depth), parent_id=chain[-1].id))
    for below in (0, 1, 2, 35):
        assert await patch(platform, chain[0], parent_id=chain[below].id) == CYCLE
    assert (await read(platform, chain[0]))["parent_id"] is None
    assert await patch(platform, chain[35], parent_id=chain[0].id) == UPDATED


async def test_a_removed_parent_or_workspace(platform: Platform) -> None:
    """A removed workspace takes no children and no changes (contract 3.6)."""
    member, gone = await platform.join("member"), await platform.join("gone")
    await platform.http.delete(f"/workspaces/{gone.id}")
    assert await patch(platform, member, parent_id=gone.id) == (400, {"error": "parent workspace not found"})
    for workspace_id in (gone.id, NOBODY):
        reply = await platform.http.patch(f"/workspaces/{workspace_id}", json={"name": "x"})
        assert (reply.status_code, reply.json()) == NOT_FOUND


async def test_a_failing_store_is_no_404(platform: Platform, database: Database) -> None:
    """500 for a change that could not be stored (R22)."""
    member = await platform.join()
    database.refuse("UPDATE", "workspaces")
    assert await patch(platform, member, name="x") == (500, {"error": "failed to update workspace"})


@pytest.mark.parametrize("action", ["expand", "collapse"])
async def test_the_routes_of_old_are_gone(platform: Platform, action: str) -> None:
    """A team is "has children" and collapsing a flag; both routes are 404 for every method (contract 3.6, 10)."""
    member = await platform.join()
    for method in ("POST", "GET", "PATCH", "DELETE"):
        url = f"/workspaces/{member.id}/{action}"
        reply = await platform.http.request(method, url, json={}, headers=bearer(member.token))
        assert (reply.status_code, reply.json()) == (404, {"error": "not found"})
