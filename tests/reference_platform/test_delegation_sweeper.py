"""The sweeper of delegations: which it ends and which it leaves, and what it lives through (contract 6.7)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

from structlog.testing import capture_logs

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.services.delegation_records import DelegationRecords, Verdict
from molecule_runtime.reference_platform.services.delegations import SweptDelegations
from molecule_runtime.reference_platform.sweeper import DelegationSweeper

from .delegations import Pair, a_pair, answer, beat, delegate, delegated, inbox, ledger_of, rows_of, state
from .push_agents import closed_port
from .support import Database, Platform, only, running, until
from .test_delegation_dispatch import left_uncalled
from .test_upload_sweeper import asleep, blocked

DEADLINE = 6 * 3600
STUCK = 600
MOMENT = 0.000_001
LATE = ("failed", None, "deadline exceeded by sweeper")


async def sweep(platform: Platform) -> tuple[int, int, int]:
    """One sweep: deadline failures, stuck ones, errors."""
    swept = await platform.parts.delegation_sweeper.sweep_once()
    return swept.deadline_failures, swept.stuck, swept.errors


async def test_each_arm_ends_just_what_is_due(platform: Platform, database: Database, clock: ManualClock) -> None:
    """Stale heartbeat, never heartbeaten, healthy, past deadline, to the microsecond (contract 6.7, 6.5)."""
    pair = await a_pair(platform)
    stale, healthy, silent, uncalled, odd = [await delegated(platform, pair.boss, pair.worker) for _ in range(5)]
    database.sql(f"UPDATE delegations SET status = 'queued' WHERE delegation_id = '{uncalled}'")
    for delegation_id in (stale, healthy, odd):
        await beat(platform, pair.worker, delegation_id)
    database.sql(f"UPDATE delegations SET status = 'dispatched' WHERE delegation_id = '{odd}'")
    clock.advance(STUCK)
    assert await sweep(platform) == (0, 0, 0)
    await beat(platform, pair.worker, healthy)
    clock.advance(MOMENT)
    # A dispatched one cannot be stuck by the ledger's rules; it is counted and left.
    with platform.parts.bus.subscribe() as events:
        assert await sweep(platform) == (0, 1, 1)
        heard = await platform.heard(events)
    error = "no heartbeat for 10m0s"
    assert await state(platform, pair.boss, stale) == ("stuck", None, error)
    assert heard == [
        ("DELEGATION_FAILED", {"delegation_id": stale, "target_id": pair.worker.id, "error": error}),
    ]
    (told,) = await inbox(platform, pair.boss)
    assert (told["method"], told["status"], told["error_detail"]) == ("delegate_result", "error", error)
    assert await sweep(platform) == (0, 0, 1)

    await answer(platform, pair.worker, pair.boss, odd, "done")
    clock.advance(DEADLINE - STUCK - MOMENT)
    await beat(platform, pair.worker, healthy)
    assert await sweep(platform) == (0, 0, 0)
    clock.advance(MOMENT)
    assert await sweep(platform) == (3, 0, 0)
    for delegation_id in (healthy, silent, uncalled):
        assert await state(platform, pair.boss, delegation_id) == LATE
    assert [row["status"] for row in await inbox(platform, pair.boss)] == ["error", "ok", "error", "error", "error"]
    assert {status for _, status in await rows_of(platform, pair.boss)} == {"failed", "completed"}
    assert await sweep(platform) == (0, 0, 0)


async def test_two_platforms_end_each_delegation_once(
    config: PlatformConfig, clock: ManualClock, database: Database
) -> None:
    """Each is counted by one of them and told once, with an answer that comes in between (issue's invariant)."""
    async with running(config, clock) as one, running(config, clock) as two:
        pair = await a_pair(one)
        ids = [await delegated(one, pair.boss, pair.worker) for _ in range(8)]
        clock.advance(DEADLINE + 1)
        first, second, *answers = await asyncio.gather(
            sweep(one), sweep(two), *(answer(one, pair.worker, pair.boss, one_of, "done") for one_of in ids[::2])
        )
        assert [status for status, _ in answers] == [200] * 4
        ended = [(await state(one, pair.boss, delegation_id))[0] for delegation_id in ids]
        late = ended.count("failed")
        assert (first[0] + second[0], first[2] + second[2]) == (late, 0)
        assert (late, ended.count("completed")) == (late, 8 - late)
        told = [row for row in await inbox(one, pair.boss) if row["method"] == "delegate_result"]
        assert sorted(row["request_body"]["delegation_id"] for row in told) == sorted(ids)
        assert len(await inbox(one, pair.boss)) == 8 + sum(status == "failed" for status in ended[::2])
        assert database.sql("SELECT count(*) FROM delegations WHERE status NOT IN ('failed', 'completed')") == [(0,)]


@only("sqlite")
async def test_a_worker_that_is_heard_meanwhile_is_left_alone(platform: Platform, clock: ManualClock) -> None:
    """Between the look and the end it is judged once more (ours)."""
    pair = await a_pair(platform)
    delegation_id = await delegated(platform, pair.boss, pair.worker)
    await beat(platform, pair.worker, delegation_id)
    clock.advance(STUCK + 1)
    await beat(platform, pair.worker, delegation_id)
    judged = await platform.parts.store.write(
        DelegationRecords().sweep, pair.boss.id, delegation_id, clock.now(), timedelta(seconds=STUCK)
    )
    assert judged == (Verdict.HEALTHY, ())
    assert await state(platform, pair.boss, delegation_id) == ("in_progress", None, None)
    clock.advance(3661 + STUCK)
    assert await sweep(platform) == (0, 1, 0)
    assert await state(platform, pair.boss, delegation_id) == ("stuck", None, "no heartbeat for 1h11m1s")


@only("sqlite")
async def test_one_that_cannot_be_ended_is_an_error_and_ends_with_the_next_sweep(
    platform: Platform, database: Database, clock: ManualClock
) -> None:
    """The others of the sweep are tried all the same (contract 6.7)."""
    pair = await a_pair(platform)
    ids = [await delegated(platform, pair.boss, pair.worker) for _ in range(2)]
    clock.advance(DEADLINE + 1)
    database.refuse("UPDATE", "delegations")
    with platform.parts.bus.subscribe() as events:
        assert await sweep(platform) == (0, 0, 2)
        assert await platform.heard(events) == []
    database.heal("UPDATE", "delegations")
    assert await state(platform, pair.boss, ids[0]) == ("dispatched", None, None)
    assert await sweep(platform) == (2, 0, 0)
    assert len(await inbox(platform, pair.boss)) == 2


@only("sqlite")
async def test_the_loop_sweeps_at_the_start_then_every_five_minutes_and_outlives_its_store(
    config: PlatformConfig, database: Database, clock: ManualClock
) -> None:
    """What fell due while nobody was there ends at once; what was left uncalled is begun (contract 6.7)."""
    async with running(config, clock) as platform:
        pair = await a_pair(platform)
        before = await delegated(platform, pair.boss, pair.worker)
    clock.advance(DEADLINE + 1)
    async with running(replace(config, delegation_sweeper_interval_s=300), clock) as platform:
        await until(told(platform, pair, 1))
        assert await state(platform, pair.boss, before) == LATE
        after = await delegated(platform, pair.boss, pair.worker)
        await asleep(clock)
        database.sql("ALTER TABLE delegations RENAME TO hidden")
        with capture_logs() as logs:
            clock.advance(DEADLINE + 1)

            async def failed() -> bool:
                return [entry["event"] for entry in logs] == ["sweeper.failed"]

            await until(failed)
            await asleep(clock)
        database.sql("ALTER TABLE hidden RENAME TO delegations")
        unreachable = await platform.create("unreachable")
        await platform.register(unreachable, delivery_mode="push", url=f"http://localhost:{closed_port()}/a2a")
        uncalled = await left_uncalled(platform, pair.boss, unreachable)
        clock.advance(300)
        await until(told(platform, pair, 2))
        assert await state(platform, pair.boss, after) == LATE

        async def claimed() -> bool:
            return (await state(platform, pair.boss, uncalled))[0] == "dispatched"

        await until(claimed)  # by the next round, since no start will find it


def told(platform: Platform, pair: Pair, count: int) -> Callable[[], Awaitable[bool]]:
    """The condition that so many results are in the delegator's inbox."""

    async def condition() -> bool:
        return len(await inbox(platform, pair.boss)) == count

    return condition


@only("sqlite")
async def test_a_sweep_that_cannot_end_is_given_up_at_its_deadline(platform: Platform, clock: ManualClock) -> None:
    """A blocked database costs one sweep, not the loop (ours)."""
    pair = await a_pair(platform)
    delegation_id = await delegated(platform, pair.boss, pair.worker)
    clock.advance(DEADLINE + 1)
    parts = platform.parts
    sweeper = DelegationSweeper(
        parts.delegations, parts.dispatcher, clock, interval_s=300, stuck_after=timedelta(seconds=1), deadline_s=0.1
    )
    async with blocked(parts.store):
        loop = asyncio.create_task(sweeper.run())

        async def given_up() -> bool:
            return clock.sleepers == 4

        await until(given_up)
        assert await state(platform, pair.boss, delegation_id) == ("dispatched", None, None)

    async def ended() -> bool:
        clock.advance(300)
        return await state(platform, pair.boss, delegation_id) == LATE

    await until(ended)
    loop.cancel()
    await asyncio.wait((loop,))


@only("sqlite")
async def test_a_line_whose_rows_are_gone_or_ended_is_closed_too(
    config: PlatformConfig, database: Database, clock: ManualClock
) -> None:
    """Of a removed delegator, without rows, and ended while no ledger was kept: each comes to rest (ours)."""
    async with running(config, clock) as platform:
        pair = await a_pair(platform)
        answered, orphan, removed = [await delegated(platform, pair.boss, pair.worker) for _ in range(3)]
    async with running(replace(config, delegation_ledger_write=False), clock) as platform:
        await answer(platform, pair.worker, pair.boss, answered, "done")
        database.sql(f"DELETE FROM activity_logs WHERE delegation_id = '{orphan}'")
        await platform.http.delete(f"/workspaces/{pair.boss.id}")
        clock.advance(DEADLINE + 1)
        assert await sweep(platform) == (0, 0, 0)
        assert ledger_of(database, orphan)["status"] == "dispatched"
    async with running(config, clock) as platform:
        await until(lambda: _all_ended(database))
        assert [ledger_of(database, one)["status"] for one in (answered, orphan, removed)] == [
            "completed",
            "failed",
            "failed",
        ]
        assert await sweep(platform) == (0, 0, 0)
    query = f"SELECT status FROM activity_logs WHERE delegation_id = '{removed}' AND method = 'delegate'"
    assert database.sql(query) == [("failed",)]


async def _all_ended(database: Database) -> bool:
    return database.sql("SELECT count(*) FROM delegations WHERE status = 'dispatched'") == [(0,)]


@only("sqlite")
async def test_a_key_is_free_again_after_the_deadline(platform: Platform, clock: ManualClock) -> None:
    """A delegation that the sweeper ended has failed like any other (contract 6.1)."""
    pair = await a_pair(platform)
    first = await delegated(platform, pair.boss, pair.worker, idempotency_key="k")
    clock.advance(DEADLINE + 1)
    assert await sweep(platform) == (1, 0, 0)
    assert (await delegate(platform, pair.boss, pair.worker.id, idempotency_key="k"))[0] == 202
    assert await state(platform, pair.boss, first) == LATE


@only("sqlite")
async def test_the_ledger_is_pruned_with_the_activity(
    platform: Platform, database: Database, clock: ManualClock
) -> None:
    """After seven days, in the round that deletes the rows (contract 4.3, ours)."""
    pair = await a_pair(platform)
    await delegated(platform, pair.boss, pair.worker)
    clock.advance(7 * 86_400)
    await delegated(platform, pair.boss, pair.worker)
    assert await platform.parts.sweeper.retain_if_due() == 0
    assert database.sql("SELECT count(*) FROM delegations") == [(2,)]
    clock.advance(6 * 3600)
    assert await platform.parts.sweeper.retain_if_due() == 3
    assert database.sql("SELECT count(*) FROM delegations") == [(1,)]


def test_counters_add_up() -> None:
    """Each of the three by itself (ours)."""
    assert SweptDelegations(1, 2, 3) + SweptDelegations(10, 20, 30) == SweptDelegations(11, 22, 33)
