"""Many beats at once: one transaction for a group, an answer for each; tokens are judged where the beat is written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel
import asyncpg
import pytest

from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.services.groups import GROUP, Groups
from molecule_runtime.wire.events import EventName

from .support import NOBODY, Database, Member, Platform, PostgresDatabase, bearer, only, running, until


async def beat(platform: Platform, workspace_id: str, headers: dict[str, str], **fields: Any) -> int:
    body = {"workspace_id": workspace_id} | fields
    return (await platform.http.post("/registry/heartbeat", json=body, headers=headers)).status_code


async def test_each_of_many_beats_gets_its_own_answer(platform: Platform) -> None:
    """Good, wrong, missing, another's and removed tokens and an unknown workspace in one group (contract 1.5, 2.3)."""
    members = [await platform.join(str(number)) for number in range(6)]
    removed = await platform.join("removed")
    await platform.http.delete(f"/workspaces/{removed.id}", headers=platform.admin)
    first, second, *others = members
    with platform.parts.bus.subscribe() as events:
        statuses = await asyncio.gather(
            beat(platform, first.id, bearer("wrong")),
            beat(platform, second.id, first.headers),
            beat(platform, removed.id, removed.headers),
            beat(platform, NOBODY, {}),
            *(beat(platform, each.id, each.headers, uptime_seconds=7) for each in others),
        )
        heard = await platform.heard(events)
    assert statuses == [401, 401, 401, 200, 200, 200, 200, 200]
    assert heard == [("WORKSPACE_HEARTBEAT", {"active_tasks": 0, "uptime_seconds": 7})] * 4


async def test_beats_of_one_workspace_keep_their_order(platform: Platform) -> None:
    """They are never in one group, so each sees what the one before it wrote (contract 2.3)."""
    member, other = await platform.join("one"), await platform.join("other")
    with platform.parts.bus.subscribe() as events:
        tasks = [beat(platform, member.id, member.headers, current_task=f"task {number}") for number in range(12)]
        assert await asyncio.gather(*tasks, beat(platform, other.id, other.headers)) == [200] * 13
        heard = await platform.heard(events)
    changes = [payload["current_task"] for name, payload in heard if name == EventName.TASK_UPDATED]
    assert changes == [f"task {number}" for number in range(12)]


async def test_a_token_revoked_at_one_process_opens_nothing_at_the_other(config: PlatformConfig) -> None:
    """With the very next beat, alone or among others: nothing is remembered between two beats (contract 1.2)."""
    async with running(config) as one, running(config) as other:
        members = [await one.join(str(number)) for number in range(5)]
        assert await beats(one, members) == [200] * 5
        gone = members[2]
        (token,) = (await other.http.get(f"/workspaces/{gone.id}/tokens", headers=gone.headers)).json()["tokens"]
        url = f"/workspaces/{gone.id}/tokens/{token['id']}"
        assert (await other.http.delete(url, headers=gone.headers)).status_code == 200
        assert await beats(one, members) == [200, 200, 401, 200, 200]
        assert await beat(one, gone.id, gone.headers) == 401


async def beats(platform: Platform, members: Sequence[Member]) -> list[int]:
    return await asyncio.gather(*(beat(platform, member.id, member.headers) for member in members))


async def test_one_bad_beat_harms_no_other(platform: Platform, database: Database) -> None:
    """A group that cannot be written is tried one by one (contract 2.3, R22)."""
    members = [await platform.join(str(number)) for number in range(5)]
    poison(database)
    tasks = [
        beat(platform, member.id, member.headers, current_task="poison" if number == 2 else "")
        for number, member in enumerate(members)
    ]
    assert await asyncio.gather(*tasks) == [200, 200, 500, 200, 200]


def poison(database: Database) -> None:
    """Make updates that set this task fail."""
    when = "CREATE TRIGGER poison BEFORE UPDATE ON workspaces"
    if database.kind == "sqlite":
        database.sql(f"{when} WHEN NEW.current_task = 'poison' BEGIN SELECT RAISE(ABORT, 'sick'); END")
        return
    database.sql(
        "CREATE FUNCTION poisoned() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'sick'; END $$"
    )
    database.sql(f"{when} FOR EACH ROW WHEN (NEW.current_task = 'poison') EXECUTE FUNCTION poisoned()")


async def test_two_processes_that_note_the_same_workspaces_never_lock_each_other_out(config: PlatformConfig) -> None:
    """Groups in opposite orders, with sweeps between them (ours)."""
    async with running(config) as one, running(config) as other:
        members = [await one.join(str(number)) for number in range(20)]
        for _ in range(5):
            found = await asyncio.gather(
                beats(one, members),
                beats(other, members[::-1]),
                one.parts.sweeper.sweep_once(),
                other.parts.sweeper.sweep_once(),
            )
            assert found[0] + found[1] == [200] * 40


@only("postgresql")  # SQLite locks no rows
async def test_a_locked_row_holds_up_its_own_beat_only(platform: Platform, database: PostgresDatabase) -> None:
    """The others of its group and of later ones are answered while it waits (ours)."""
    members = [await platform.join(str(number)) for number in range(3)]
    stuck = members[1]
    holder = await asyncpg.connect(host=str(database.cluster.directory), user="postgres", database=database.name)
    try:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute(f"SELECT 1 FROM workspaces WHERE id = '{stuck.id}' FOR UPDATE")
        waiting = [asyncio.create_task(beat(platform, each.id, each.headers)) for each in members]
        with anyio.fail_after(10):
            assert [await waiting[0], await waiting[2]] == [200, 200]
            assert await beats(platform, [members[0], members[2]]) == [200, 200]
            assert not waiting[1].done()
            await transaction.rollback()
            assert await waiting[1] == 200
    finally:
        await holder.close()


# the groups themselves


class Recorder:
    """A work that remembers its groups and holds each until it is let go; entries that are exceptions fail."""

    def __init__(self) -> None:
        self.groups: list[list[Any]] = []
        self.gate = asyncio.Event()

    async def work(self, entries: Sequence[Any]) -> list[Any]:
        self.groups.append(list(entries))
        await self.gate.wait()
        if entries == ["break"]:
            raise RuntimeError("broken")
        return [entry if isinstance(entry, Exception) else f"{entry} done" for entry in entries]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


async def started(groups: Groups[Any, Any], *entries: tuple[str, Any]) -> list[asyncio.Task[Any]]:
    tasks = []
    for key, entry in entries:
        tasks.append(asyncio.create_task(groups.add(key, entry)))
        await anyio.lowlevel.checkpoint()
    return tasks


async def test_what_arrives_during_a_group_makes_up_the_next(recorder: Recorder) -> None:
    """The first waits for nobody; keys that repeat wait for another group (ours)."""
    groups: Groups[Any, Any] = Groups(recorder.work)
    tasks = await started(groups, ("a", 1), ("a", 2), ("b", 3), ("c", ValueError("no")), ("b", 4), ("a", 5))
    recorder.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [group if len(group) < 3 else group[:2] for group in recorder.groups] == [[1], [2, 3], [4, 5]]
    assert [str(result) for result in results] == ["1 done", "2 done", "3 done", "no", "4 done", "5 done"]


async def test_a_group_has_an_upper_size(recorder: Recorder) -> None:
    """So that the first of a long queue does not wait for the last (ours)."""
    groups: Groups[Any, Any] = Groups(recorder.work)
    recorder.gate.set()
    await asyncio.gather(*(groups.add(number, number) for number in range(2 * GROUP + 1)))
    assert [len(group) for group in recorder.groups] == [GROUP, GROUP, 1]


async def test_work_that_breaks_fails_its_group_only(recorder: Recorder) -> None:
    """And what was cancelled before its group is not done (ours)."""
    groups: Groups[Any, Any] = Groups(recorder.work)
    broken, cancelled, fine = await started(groups, ("a", "break"), ("b", 1), ("c", 2))
    cancelled.cancel()

    async def is_cancelled() -> bool:
        return cancelled.done()

    await until(is_cancelled)
    recorder.gate.set()
    with pytest.raises(RuntimeError, match="broken"):
        await broken
    assert await fine == "2 done"
    assert recorder.groups == [["break"], [2]]
