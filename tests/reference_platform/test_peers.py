"""The list of peers."""

from __future__ import annotations

from molecule_runtime.clock import ManualClock

from .support import NOBODY, Database, Member, Platform, only


async def names(platform: Platform, member: Member, q: str | None = None) -> list[str]:
    params = {} if q is None else {"q": q}
    reply = await platform.http.get(f"/registry/{member.id}/peers", params=params, headers=member.headers)
    assert reply.status_code == 200, reply.text
    return [peer["name"] for peer in reply.json()]


async def test_siblings_then_children_then_parent(platform: Platform, clock: ManualClock) -> None:
    """By creation within each group; roots are siblings; nobody else and not oneself (contract 2.6)."""
    made: dict[str, Member] = {}
    for name, parent in (
        ("root", None),
        ("child", "root"),
        ("twin", "root"),
        ("sister", "root"),
        ("grandchild", "child"),
        ("other root", None),
        ("nephew", "twin"),
    ):
        made[name] = await platform.create(name, **({} if parent is None else {"parent_id": made[parent].id}))
        clock.advance(1)
    assert await names(platform, made["child"]) == ["twin", "sister", "grandchild", "root"]
    assert await names(platform, made["root"]) == ["other root", "child", "twin", "sister"]
    assert await names(platform, made["grandchild"]) == ["child"]
    await platform.http.delete(f"/workspaces/{made['twin'].id}?confirm=true")
    assert await names(platform, made["child"]) == ["sister", "grandchild", "root"]


@only("sqlite")
async def test_a_peer_tells_when_it_was_last_heard(platform: Platform, clock: ManualClock) -> None:
    """Null until its first beat; afterwards the beat, though it is silent since (ours)."""
    member, peer = await platform.join("me"), await platform.create("peer")
    url = f"/registry/{member.id}/peers"

    async def heard() -> str | None:
        (found,) = (await platform.http.get(url, headers=member.headers)).json()
        moment: str | None = found["last_heartbeat_at"]
        return moment

    clock.advance(5)
    assert await heard() is None
    await platform.beat(peer)
    clock.advance(3600)
    assert await heard() == "2026-01-01T00:00:05.000000Z"


async def test_q_searches_name_and_role_without_case(platform: Platform) -> None:
    """A trimmed substring of either; blank means everybody (contract 2.6)."""
    member = await platform.create("me")
    await platform.create("Ops Agent", role="SRE")
    await platform.create("writer", role="poet of ops")
    await platform.create("straße")
    assert sorted(await names(platform, member, " OPS ")) == ["Ops Agent", "writer"]
    assert await names(platform, member, "sre") == ["Ops Agent"]
    assert await names(platform, member, "STRASSE") == ["straße"]
    assert len(await names(platform, member, "  ")) == 3
    assert await names(platform, member, "me") == []


async def test_unknown_workspace_is_404_and_a_sick_store_500(platform: Platform, database: Database) -> None:
    """Not-found and failure are told apart, after authentication (contract 2.6, R22)."""
    member = await platform.create()
    unknown = await platform.http.get(f"/registry/{NOBODY}/peers")
    assert (unknown.status_code, unknown.json()) == (404, {"error": "workspace not found"})
    # A column only the list reads: authentication goes on working.
    database.sql("ALTER TABLE workspaces RENAME COLUMN agent_card TO hidden")
    failed = await platform.http.get(f"/registry/{member.id}/peers", headers=member.headers)
    assert (failed.status_code, failed.json()) == (500, {"error": "lookup failed"})


async def test_lineage_is_walked_at_most_32_levels_and_never_in_a_circle(
    platform: Platform, database: Database
) -> None:
    """A chain that is too long or closed in itself ends the walk instead of the platform (contract 2.9)."""
    chain = [await platform.create("0")]
    for depth in range(1, 40):
        chain.append(await platform.create(str(depth), parent_id=chain[-1].id))
    related = platform.parts.peers.can_communicate
    assert await related(chain[0].id, chain[32].id)
    assert not await related(chain[0].id, chain[33].id)
    assert not await related(chain[0].id, NOBODY)
    assert not await related(NOBODY, NOBODY)
    database.sql(f"UPDATE workspaces SET parent_id = '{chain[39].id}' WHERE id = '{chain[0].id}'")
    assert await related(chain[5].id, chain[30].id)
    database.sql("ALTER TABLE workspaces RENAME TO hidden")
    assert not await related(chain[0].id, chain[1].id)
