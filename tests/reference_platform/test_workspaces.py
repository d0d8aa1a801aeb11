"""Creating, reading and removing workspaces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.config import PlatformConfig

from .support import BASE_URL, NOBODY, Database, Platform, running

EXTERNAL_ONLY = 'this platform runs no containers: create workspaces with "runtime": "external"'


async def create(platform: Platform, body: Any) -> tuple[int, Any]:
    reply = await platform.http.post("/workspaces", json=body)
    return reply.status_code, reply.json()


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"name": "a" * 256, "external": True}, "invalid workspace fields"),
        ({"name": "a\r", "external": True}, "invalid workspace fields"),
        ({"name": "a\x00", "external": True}, "invalid workspace fields"),
        *(({"name": f"a{char}", "external": True}, "invalid workspace fields") for char in "{}[]|>*&!"),
        ({"name": "a", "role": "b" * 1001, "external": True}, "invalid workspace fields"),
        ({"name": "a", "role": "b\nc", "external": True}, "invalid workspace fields"),
        ({"name": "a", "external": True, "parent_id": "nope"}, "invalid workspace fields"),
        ({"name": "a", "external": True, "parent_id": NOBODY}, "parent workspace not found"),
        ({"name": "", "external": True}, "invalid workspace payload"),
        ({"name": "  ", "external": True}, "invalid workspace payload"),
        ({"name": 7, "external": True}, "invalid workspace payload"),
        ({"name": "a", "external": "yes"}, "invalid workspace payload"),
        ({"name": "a", "external": True, "tier": 10**30}, "invalid workspace payload"),
        ([], "invalid workspace payload"),
        ({"name": "a", "external": True, "delivery_mode": "pigeon"}, "delivery_mode must be 'push' or 'poll'"),
        ({"name": "a"}, EXTERNAL_ONLY),
        ({"name": "a", "runtime": "langgraph"}, EXTERNAL_ONLY),
        ({"name": "a", "external": True, "url": "http://10.0.0.1"}, "url targets a blocked address: private"),
    ],
)
async def test_unacceptable_fields_are_400_and_nothing_is_created(platform: Platform, body: Any, error: str) -> None:
    """Each check has its text; a refused request leaves no row and no event (contract 3.1)."""
    with platform.parts.bus.subscribe() as events:
        assert await create(platform, body) == (400, {"error": error})
        assert await platform.heard(events) == []
    assert (await platform.http.get("/workspaces")).json() == []


async def test_names_of_every_script_and_full_length_pass(platform: Platform) -> None:
    """255 code points of any letters are a name (contract 3.1)."""
    for name in ("世" * 255, "🌍 agent", "a.b-c_d (2)", "Ünï: 'quoted'"):
        status, body = await create(platform, {"name": name, "external": True})
        assert status == 201
        assert (await platform.http.get(f"/workspaces/{body['id']}")).json()["name"] == name


async def test_fields_and_defaults_are_stored(platform: Platform) -> None:
    """Absent, null and zero mean the default; unknown fields are ignored (contract 3.1, 3.3)."""
    _, plain = await create(platform, {"name": "plain", "runtime": "external", "tier": 0, "role": None, "new": 1})
    _, full = await create(
        platform,
        {
            "name": "full",
            "role": "sre",
            "external": True,
            "tier": 4,
            "parent_id": plain["id"].upper(),
            "budget_limit": 500,
            "max_concurrent_tasks": 3,
            "canvas": {"x": 10, "y": 20.5},
            "delivery_mode": "poll",
        },
    )
    rows = {row["name"]: row for row in (await platform.http.get("/workspaces")).json()}
    chosen = ("role", "tier", "parent_id", "budget_limit", "max_concurrent_tasks", "x", "y", "delivery_mode", "runtime")
    assert [rows["plain"][key] for key in chosen] == [None, 3, None, None, 1, 0, 0, "push", "external"]
    assert [rows["full"][key] for key in chosen] == ["sre", 4, plain["id"], 500, 3, 10, 20.5, "poll", "external"]
    assert full["status"] == "awaiting_agent"


async def test_connection_names_the_public_address(config: PlatformConfig, platform: Platform) -> None:
    """Configured address, else what the proxy forwards, else the request's own (contract 3.1)."""
    body = {"name": "a", "external": True}
    _, own = await create(platform, body)
    assert own["connection"]["platform_url"] == BASE_URL
    assert own["connection"]["registry_endpoint"] == f"{BASE_URL}/registry/register"
    assert own["connection"]["heartbeat_endpoint"] == f"{BASE_URL}/registry/heartbeat"
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "molecule.example"}
    reply = await platform.http.post("/workspaces", json=body, headers=forwarded)
    assert reply.json()["connection"]["platform_url"] == "https://molecule.example"
    async with running(replace(config, external_url="https://public.example")) as public:
        _, configured = await create(public, body)
        assert configured["connection"]["platform_url"] == "https://public.example"


async def test_list_is_ordered_by_creation_without_removed_rows(platform: Platform, clock: ManualClock) -> None:
    """Oldest first (contract 3.3)."""
    members = []
    for name in ("c", "a", "b"):
        members.append(await platform.create(name))
        clock.advance(1)
    await platform.http.delete(f"/workspaces/{members[1].id}")
    assert [row["name"] for row in (await platform.http.get("/workspaces")).json()] == ["c", "b"]


async def test_removed_workspace_is_410_until_purged(platform: Platform, clock: ManualClock) -> None:
    """GET is the agent's test for removal; include_removed shows the row (contract 3.4, 3.7)."""
    member = await platform.join()
    clock.advance(5)
    with platform.parts.bus.subscribe() as events:
        reply = await platform.http.delete(f"/workspaces/{member.id}")
        assert reply.json() == {"status": "removed", "cascade_deleted": 0}
        assert await platform.heard(events) == [("WORKSPACE_REMOVED", {"cascade_deleted": 0})]
        gone = await platform.http.get(f"/workspaces/{member.id}")
        assert (gone.status_code, gone.json()) == (
            410,
            {
                "error": "workspace removed",
                "id": member.id,
                "hint": "Regenerate workspace + token from the canvas → Tokens tab",
                "removed_at": "2026-01-01T00:00:05.000000Z",
            },
        )
        shown = await platform.http.get(f"/workspaces/{member.id}?include_removed=true")
        assert (shown.status_code, shown.json()["status"]) == (200, "removed")
        again = await platform.http.delete(f"/workspaces/{member.id}")
        assert again.json() == {"status": "removed", "cascade_deleted": 0}
        purged = await platform.http.delete(f"/workspaces/{member.id}?purge=true")
        assert purged.json() == {"status": "purged", "cascade_deleted": 0}
        assert await platform.heard(events) == []
    assert (await platform.http.get(f"/workspaces/{member.id}")).status_code == 404


async def test_delete_of_an_unknown_id_is_200(platform: Platform) -> None:
    """Deleting what is not there has succeeded (contract 3.7)."""
    reply = await platform.http.delete(f"/workspaces/{NOBODY}")
    assert (reply.status_code, reply.json()) == (200, {"status": "removed", "cascade_deleted": 0})


async def test_children_need_confirmation_and_go_along(
    platform: Platform, database: Database, clock: ManualClock
) -> None:
    """409 lists the children; confirm removes the subtree, its tokens first of all (contract 3.7)."""
    root = await platform.join("root")
    clock.advance(1)
    child = await platform.join("child", parent_id=root.id)
    clock.advance(1)
    grandchild = await platform.join("grandchild", parent_id=child.id)
    await platform.join("bystander")
    blocked = await platform.http.delete(f"/workspaces/{root.id}")
    assert blocked.status_code == 409
    assert blocked.json() == {
        "status": "confirmation_required",
        "message": blocked.json()["message"],
        "children": [{"id": child.id, "name": "child"}],
        "children_count": 1,
    }
    assert await platform.status(child) == "online"
    with platform.parts.bus.subscribe() as events:
        done = await platform.http.delete(f"/workspaces/{root.id}?confirm=true")
        assert done.json() == {"status": "removed", "cascade_deleted": 2}
        assert await platform.heard(events) == [
            ("WORKSPACE_REMOVED", {}),
            ("WORKSPACE_REMOVED", {}),
            ("WORKSPACE_REMOVED", {"cascade_deleted": 2}),
        ]
    for member in (root, child, grandchild):
        assert (await platform.http.get(f"/workspaces/{member.id}/activity", headers=member.headers)).status_code == 401
    assert database.sql("SELECT count(*) FROM workspace_tokens WHERE revoked_at IS NULL") == [(1,)]
    assert [row["name"] for row in (await platform.http.get("/workspaces")).json()] == ["bystander"]


async def test_purge_deletes_every_row_of_the_subtree(platform: Platform, database: Database) -> None:
    """After a purge the ids are unknown, removed descendants included (contract 3.7)."""
    root = await platform.join("root")
    child = await platform.join("child", parent_id=root.id)
    grandchild = await platform.join("grandchild", parent_id=child.id)
    await platform.say(grandchild)
    await platform.http.delete(f"/workspaces/{grandchild.id}")
    done = await platform.http.delete(f"/workspaces/{root.id}?confirm=true&purge=true")
    assert done.json() == {"status": "purged", "cascade_deleted": 1}
    for table in ("workspaces", "workspace_tokens", "activity_logs"):
        assert database.sql(f"SELECT count(*) FROM {table}") == [(0,)]


async def test_state_tells_paused_and_deleted(platform: Platform, database: Database) -> None:
    """The light poll: 200 with the status, 404 deleted for callers without a workspace token (contract 3.5)."""
    member = await platform.join()
    database.sql("UPDATE workspaces SET status = 'paused'")
    url = f"/workspaces/{member.id}/state"
    paused = await platform.http.get(url, headers=member.headers)
    assert paused.json() == {"workspace_id": member.id, "status": "paused", "paused": True, "deleted": False}
    await platform.http.delete(f"/workspaces/{member.id}")
    removed = await platform.http.get(url)
    assert (removed.status_code, removed.json()) == (
        404,
        {"workspace_id": member.id, "deleted": True, "status": "removed"},
    )
    await platform.http.delete(f"/workspaces/{member.id}?purge=true")
    purged = await platform.http.get(url)
    assert (purged.status_code, purged.json()) == (404, {"workspace_id": member.id, "deleted": True})


async def test_store_failures_are_told_apart_from_not_found(platform: Platform, database: Database) -> None:
    """500 with the route's text when the table cannot be read (contract 3.1, 3.4, R22)."""
    member = await platform.join()
    database.sql("ALTER TABLE workspaces RENAME TO hidden")
    read = await platform.http.get(f"/workspaces/{member.id}")
    assert (read.status_code, read.json()) == (500, {"error": "query failed"})
    assert await create(platform, {"name": "a", "external": True}) == (500, {"error": "failed to create workspace"})
    removed = await platform.http.delete(f"/workspaces/{member.id}")
    assert removed.status_code == 500


@pytest.mark.parametrize("path", ["/workspaces/nope", "/workspaces/nope/state", "/registry/nope/peers", "/nope"])
async def test_ids_that_are_no_uuid_and_unknown_routes(platform: Platform, path: str) -> None:
    """400 names the id, 404 the route; both as JSON (contract, conventions)."""
    reply = await platform.http.get(path)
    expected = (404, {"error": "not found"}) if path == "/nope" else (400, {"error": "invalid workspace ID"})
    assert (reply.status_code, reply.json()) == expected


async def test_wrong_method_is_405_in_json_and_slashes_do_not_redirect(platform: Platform) -> None:
    """Starlette's own refusals take the contract's form (contract, conventions)."""
    reply = await platform.http.put("/workspaces")
    assert (reply.status_code, reply.json()) == (405, {"error": "method not allowed"})
    assert (await platform.http.get("/workspaces/")).status_code == 404


@pytest.mark.parametrize("route", ["expand", "collapse"])
async def test_removed_routes_stay_removed(platform: Platform, route: str) -> None:
    """There is no /expand and no /collapse (contract 3.6, R21)."""
    member = await platform.join()
    reply = await platform.http.post(f"/workspaces/{member.id}/{route}", headers=member.headers)
    assert reply.status_code == 404
