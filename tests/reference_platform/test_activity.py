"""The feed that inboxes poll: filters, their order of validation, the cursor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.services.activity import CURSOR_GONE

from .support import NOBODY, Database, Member, Platform, fill, running, until


async def get(platform: Platform, member: Member, **params: Any) -> tuple[int, Any]:
    reply = await platform.http.get(f"/workspaces/{member.id}/activity", params=params, headers=member.headers)
    return reply.status_code, reply.json()


async def said(platform: Platform, member: Member, *texts: str) -> list[str]:
    """Ids of new user messages, oldest first."""
    for text in texts:
        await platform.say(member, text)
    return [row["id"] for row in reversed(await platform.rows(member, limit=len(texts)))]


async def test_newest_first_without_cursor_oldest_first_with_it(platform: Platform) -> None:
    """The two orders of the feed (contract 4.3)."""
    member = await platform.join()
    ids = await said(platform, member, "a", "b", "c", "d")
    assert [row["id"] for row in await platform.rows(member)] == ids[::-1]
    assert [row["id"] for row in await platform.rows(member, since_id=ids[0])] == ids[1:]
    assert [row["id"] for row in await platform.rows(member, since_id=ids[0], limit=2)] == ids[1:3]
    assert [row["id"] for row in await platform.rows(member, since_id=ids[0].upper())] == ids[1:]
    assert await platform.rows(member, since_id=ids[-1]) == []


async def test_times_of_a_workspace_strictly_increase_though_the_clock_stands_still(platform: Platform) -> None:
    """No two rows of a workspace share a timestamp, so before_ts loses none; seq counts from 1 (contract 0.7)."""
    member = await platform.join()
    await said(platform, member, "a", "b", "c")
    rows = (await platform.rows(member))[::-1]
    assert [row["seq"] for row in rows] == [1, 2, 3]
    assert [row["created_at"] for row in rows] == [f"2026-01-01T00:00:00.00000{n}Z" for n in range(3)]
    older = await platform.rows(member, before_ts=rows[2]["created_at"])
    assert [row["id"] for row in older] == [rows[1]["id"], rows[0]["id"]]


async def test_cursor_that_is_no_row_of_this_workspace_is_410(
    platform: Platform, clock: ManualClock, database: Database
) -> None:
    """Deleted, foreign, malformed and the all-zero cursor: drop it and start over (contract 4.3)."""
    member, other = await platform.join("one"), await platform.join("two")
    (pruned,) = await said(platform, member, "x")
    assert (await get(platform, member, since_id=pruned))[0] == 200
    clock.advance(8 * 86_400)
    assert await platform.parts.activity.prune(clock.now()) == 1
    (foreign,) = await said(platform, other, "x")
    (alive,) = await said(platform, member, "y")
    for cursor in (pruned, foreign, NOBODY, "nope", "7", "00000000-0000-0000-0000-000000000000", alive + "x"):
        assert await get(platform, member, since_id=cursor) == (410, {"error": CURSOR_GONE})
    assert await get(platform, member, since_id=alive) == (200, [])


async def test_sequence_goes_on_after_all_rows_are_pruned(platform: Platform, clock: ManualClock) -> None:
    """Numbers are never used twice (contract 0.7)."""
    member = await platform.join()
    await said(platform, member, "a", "b")
    clock.advance(60)
    await platform.parts.activity.prune(clock.now())
    await platform.say(member, "c")
    assert [row["seq"] for row in await platform.rows(member)] == [3]


async def test_old_rows_go_with_the_first_cleanup_one_interval_after_the_start(
    config: PlatformConfig, clock: ManualClock
) -> None:
    """Every 6 hours what is older than 7 days is deleted, and a cursor on it is 410 (contract 4.3)."""
    config = replace(config, sweep_interval_s=1800)
    async with running(config, clock) as platform:
        member = await platform.join()
        old = await said(platform, member, "a", "b", "c")
    clock.advance(7 * 86_400)
    async with running(config, clock) as platform:
        (young,) = await said(platform, member, "young")

        async def asleep() -> bool:
            return clock.sleepers == 3  # the sweepers of files and delegations sleep for ever

        async def old_gone() -> bool:
            return (await get(platform, member, since_id=old[0]))[0] == 410

        for _ in range(11):
            await until(asleep)
            clock.advance(1800)
        await until(asleep)
        assert not await old_gone()
        clock.advance(1800)
        await until(old_gone)
        assert [row["id"] for row in await platform.rows(member)] == [young]


async def test_pruning_goes_on_until_nothing_old_is_left(
    platform: Platform, clock: ManualClock, database: Database
) -> None:
    """Rows are deleted in portions, all of them, and younger ones stay (ours)."""
    member = await platform.join()
    fill(database, member, 1100)
    clock.advance(60)
    assert await platform.parts.activity.prune(clock.now()) == 1100
    assert await platform.rows(member) == []


async def test_every_filter_and_all_together(platform: Platform, clock: ManualClock) -> None:
    """type, source, peer_id, before_ts, since_secs, since_id hold at the same time (contract 4.3)."""
    member, peer = await platform.join("ours"), await platform.join("peer")
    first = (await said(platform, member, "early"))[0]
    clock.advance(100)
    body = {"method": "message/send", "params": {"message": {"parts": []}}}
    await platform.http.post(f"/workspaces/{member.id}/a2a", json=body, headers=peer.headers)
    from_peer = (await platform.rows(member))[0]["id"]
    clock.advance(100)
    (late,) = await said(platform, member, "late")

    async def ids(**params: Any) -> list[str]:
        return [row["id"] for row in await platform.rows(member, **params)]

    assert await ids(type="a2a_receive") == [late, from_peer, first]
    assert await ids(type="delegation") == []
    assert await ids(source="canvas") == [late, first]
    assert await ids(source="agent") == [from_peer]
    assert await ids(peer_id=peer.id) == [from_peer]
    assert await ids(peer_id=member.id) == [late, from_peer, first]
    assert await ids(since_secs=100) == [late, from_peer]
    assert await ids(since_secs=99) == [late]
    assert await ids(since_secs=10**12) == [late, from_peer, first]
    assert await ids(before_ts="2026-01-01T00:01:40Z") == [first]
    assert await ids(before_ts="2026-01-01T01:01:40.000001+01:00") == [from_peer, first]
    assert await ids(limit=1) == [late]
    assert await ids(source="canvas", since_id=first, since_secs=500, type="a2a_receive") == [late]
    assert await ids(unknown="ignored", order="asc") == [late, from_peer, first]


@pytest.mark.parametrize(("limit", "count"), [("0", 100), ("-1", 100), ("x", 100), ("7", 7), ("999", 500), ("", 100)])
async def test_limit_has_a_default_and_a_cap(platform: Platform, database: Database, limit: str, count: int) -> None:
    """Default 100, at most 500, nonsense is the default (contract 4.3)."""
    member = await platform.join()
    fill(database, member, 600)
    rows = await platform.rows(member, limit=limit)
    assert len(rows) == count
    assert rows[0]["seq"] == 600


async def test_parameters_are_judged_in_the_contracts_order(platform: Platform) -> None:
    """peer_id, before_ts, since_secs, since_id, source: the first bad one answers (contract 4.3)."""
    member = await platform.join()
    bad = {"peer_id": "x", "before_ts": "x", "since_secs": "x", "since_id": "x", "source": "x"}
    answers = [
        (400, {"error": "peer_id must be a UUID"}),
        (400, {"error": "before_ts must be an RFC3339 timestamp (e.g. 2026-05-05T10:00:00Z)"}),
        (400, {"error": "since_secs must be a positive integer"}),
        (410, {"error": CURSOR_GONE}),
        (400, {"error": "source must be 'canvas' or 'agent'"}),
    ]
    for name, answer in zip(list(bad), answers, strict=True):
        assert await get(platform, member, **bad) == answer
        del bad[name]
    assert await get(platform, member, **bad) == (200, [])


@pytest.mark.parametrize(
    "moment", ["2026-05-05", "2026-05-05T10:00:00", "2026-W01-1T10:00:00Z", "2026-13-05T10:00:00Z"]
)
async def test_before_ts_must_be_a_full_instant(platform: Platform, moment: str) -> None:
    """A date, a time without zone or an impossible month is no RFC3339 instant (contract 4.3)."""
    member = await platform.join()
    assert (await get(platform, member, before_ts=moment))[0] == 400


@pytest.mark.parametrize("seconds", ["0", "-5", "1.5", "1e3", "٣"])
async def test_since_secs_must_be_a_positive_integer(platform: Platform, seconds: str) -> None:
    """Only ASCII digits above zero (contract 4.3)."""
    member = await platform.join()
    assert (await get(platform, member, since_secs=seconds))[0] == 400


async def test_store_failure_is_500(platform: Platform, database: Database) -> None:
    """An unreadable log is neither empty nor a lost cursor (contract 4.3, R22)."""
    member = await platform.join()
    database.sql("DROP TABLE activity_logs")
    assert await get(platform, member) == (500, {"error": "query failed"})
    assert await get(platform, member, since_id=NOBODY) == (500, {"error": "query failed"})
