"""The sweeper of staged files: what it deletes and when, and what it lives through (contract 5.6, 9.1, R9)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import Connection
from structlog.testing import capture_logs

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.services.pending_uploads import SWEPT_AT_ONCE, Swept, UploadTables
from molecule_runtime.reference_platform.store.blocking import off_the_loop
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.reference_platform.store.locks import Lock, exclusively
from molecule_runtime.reference_platform.sweeper import UploadSweeper

from .support import Database, Platform, running, until
from .uploads import ack, staged, stock

HOUR = 3600
DAY = 86_400
MOMENT = 0.000_001


def sweeping(config: PlatformConfig) -> PlatformConfig:
    """The configuration with the sweeper's own period."""
    return replace(config, pending_uploads_sweep_s=300)


async def swept(platform: Platform) -> tuple[int, int, int]:
    """The counters of the metrics page: acked, expired, error."""
    lines = (await platform.http.get("/metrics")).text.splitlines()
    name = 'molecule_pending_uploads_swept_total{outcome="'
    found = {line[len(name) :].partition('"')[0]: line.rpartition(" ")[2] for line in lines if line.startswith(name)}
    acked, expired, error = (int(float(found[outcome])) for outcome in ("acked", "expired", "error"))
    return acked, expired, error


def counting(platform: Platform, expected: tuple[int, int, int]) -> Callable[[], AsyncIterator[bool]]:
    async def condition() -> bool:
        return await swept(platform) == expected

    return condition  # type: ignore[return-value]


async def asleep(clock: ManualClock) -> None:
    """Wait until all three sweepers wait for time to pass."""

    async def all_of_them() -> bool:
        return clock.sleepers == 3

    await until(all_of_them)


async def test_each_arm_deletes_just_what_is_due(platform: Platform, database: Database, clock: ManualClock) -> None:
    """Acked an hour ago, expired after 24 hours, to the microsecond; one call tells both counts (contract 5.6, R7)."""
    member = await platform.join()
    pending = platform.parts.pending_uploads
    first, second, _third, late = await staged(platform, member, b"1", b"2", b"3" * 3_000_000, b"4")
    clock.advance(DAY - HOUR)
    assert (await ack(platform, member, first))[0] == (await ack(platform, member, second))[0] == 200
    clock.advance(HOUR - MOMENT)
    assert await pending.sweep(timedelta(hours=1)) == Swept(acked=0, expired=0)
    assert stock(database)[:2] == (4, 6)
    clock.advance(MOMENT)
    assert (await ack(platform, member, late))[0] == 404
    assert await pending.sweep(timedelta(hours=1)) == Swept(acked=2, expired=2)
    assert stock(database)[:2] == (0, 0)
    assert await pending.sweep(timedelta(hours=1)) == Swept(acked=0, expired=0)


async def test_what_is_acked_late_is_kept_for_its_hour(
    platform: Platform, database: Database, clock: ManualClock
) -> None:
    """An acked file goes by its ack, however old it is; a young one stays whatever the other arm deletes (5.6)."""
    member = await platform.join()
    pending = platform.parts.pending_uploads
    (file,) = await staged(platform, member)
    clock.advance(DAY - MOMENT)
    await ack(platform, member, file)
    (young,) = await staged(platform, member)
    clock.advance(HOUR - MOMENT)
    assert await pending.sweep(timedelta(hours=1)) == Swept()
    clock.advance(MOMENT)
    assert await pending.sweep(timedelta(hours=1)) == Swept(acked=1)
    assert database.sql("SELECT file_id FROM pending_uploads") == [(young,)]


async def test_a_retention_of_nothing_or_less_means_at_once(platform: Platform, database: Database) -> None:
    """Zero and negative alike, in the microsecond of the ack; what is not acked stays (contract 5.6)."""
    member = await platform.join()
    for retention in (timedelta(), timedelta(days=-400)):
        first, _second = await staged(platform, member, b"1", b"2")
        await ack(platform, member, first)
        assert await platform.parts.pending_uploads.sweep(retention) == Swept(acked=1)
    assert stock(database)[:2] == (2, 2)


async def test_both_arms_find_their_rows_by_an_index(platform: Platform, database: Database) -> None:
    """Partial indexes, one for each arm: a sweep does not read all files (R7)."""
    arms = {
        "ix_pending_uploads_acked_at": "acked_at IS NOT NULL AND acked_at <= '2026-01-01 00:00:00+00'",
        "ix_pending_uploads_expires_at": "acked_at IS NULL AND expires_at <= '2026-01-01 00:00:00+00'",
    }
    where = " OR ".join(f"({arm})" for arm in arms.values())
    if database.kind == "sqlite":
        plan = database.sql(f"EXPLAIN QUERY PLAN SELECT file_id FROM pending_uploads WHERE {where} LIMIT 16")
    else:
        database.sql("INSERT INTO pending_uploads SELECT i::text, 'w', 'f', '', 1, now(), null, null, "
                     "now() + interval '1 day' FROM generate_series(1, 5000) i")  # fmt: skip
        database.sql("ANALYZE pending_uploads")
        plan = database.sql(f"EXPLAIN SELECT file_id FROM pending_uploads WHERE {where} LIMIT 16")
    for index in arms:
        assert index in str(plan)


async def test_the_first_sweep_comes_with_the_start_and_then_every_five_minutes(
    config: PlatformConfig, database: Database, clock: ManualClock
) -> None:
    """What expired while nobody was there goes at once; the page counts it, one line says it (5.6, R9)."""
    async with running(config, clock) as platform:
        member = await platform.join()
        await staged(platform, member, b"1", b"2")
    clock.advance(DAY)
    with capture_logs() as logs:
        async with running(sweeping(config), clock) as platform:
            await until(counting(platform, (0, 2, 0)))
            assert stock(database)[:2] == (0, 0)
            first, *_ = await staged(platform, member, b"1", b"2", b"3")
            await ack(platform, member, first)
            for _ in range(11):
                await asleep(clock)
                clock.advance(300)
            await asleep(clock)
            assert await swept(platform) == (0, 2, 0)
            clock.advance(300)
            await until(counting(platform, (1, 2, 0)))
            await asleep(clock)
            clock.advance(DAY)
            await until(counting(platform, (1, 4, 0)))
    assert [entry["event"] for entry in logs if entry["event"].startswith("pendinguploads")] == [
        "pendinguploads sweeper: deleted acked=0 expired=2 total=2",
        "pendinguploads sweeper: deleted acked=1 expired=0 total=1",
        "pendinguploads sweeper: deleted acked=0 expired=2 total=2",
    ]


async def test_a_sweep_that_fails_is_counted_and_the_next_one_works(
    config: PlatformConfig, database: Database, clock: ManualClock
) -> None:
    """The loop outlives its store (R9)."""
    async with running(sweeping(config), clock) as platform:
        member = await platform.join()
        await staged(platform, member)
        await asleep(clock)
        database.sql("ALTER TABLE pending_uploads RENAME TO hidden")
        for count in (1, 2):
            with capture_logs() as logs:
                clock.advance(DAY)
                await until(counting(platform, (0, 0, count)))
            await asleep(clock)
            assert [entry["event"] for entry in logs] == ["pendinguploads.sweep_failed"]
        database.sql("ALTER TABLE hidden RENAME TO pending_uploads")
        clock.advance(300)
        await until(counting(platform, (0, 1, 2)))
    assert stock(database)[:2] == (0, 0)


@asynccontextmanager
async def blocked(store: Store) -> AsyncIterator[None]:
    """Hold what a sweep needs: on SQLite the writing thread, on PostgreSQL the lock of all sweepers."""
    reached, release = threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        exclusively(connection, Lock.UPLOAD_SWEEP)
        reached.set()
        off_the_loop(connection, lambda: release.wait(30))

    async def held() -> bool:
        return reached.is_set()

    holding = asyncio.create_task(store.write(hold))
    try:
        await until(held)
        yield
    finally:
        release.set()
        await holding


async def test_a_sweep_that_cannot_end_is_given_up_at_its_deadline(
    platform: Platform, database: Database, clock: ManualClock
) -> None:
    """A blocked database costs one cycle, not the loop (contract 5.6)."""
    member = await platform.join()
    await staged(platform, member)
    clock.advance(DAY)
    parts = platform.parts
    sweeper = UploadSweeper(
        parts.pending_uploads, parts.metrics, clock, interval_s=300, acked_for=timedelta(), deadline_s=0.1
    )
    async with blocked(parts.store):
        loop = asyncio.create_task(sweeper.run())
        await until(counting(platform, (0, 0, 1)))
        assert stock(database)[0] == 1
    await staged(platform, member)

    async def gone() -> bool:
        clock.advance(DAY)  # again and again: on a busy machine a sweep may miss this short deadline
        return stock(database)[0] == 0

    await until(gone)
    loop.cancel()
    await asyncio.wait((loop,))


async def test_very_many_files_go_in_portions(platform: Platform, database: Database, clock: ManualClock) -> None:
    """One transaction deletes some, so that others can write between two; a sweep goes on until all are gone (ours)."""
    member = await platform.join()
    await staged(platform, member, *[b"x"] * (2 * SWEPT_AT_ONCE + 1))
    clock.advance(DAY)
    assert await platform.parts.pending_uploads.sweep(timedelta()) == Swept(expired=SWEPT_AT_ONCE)
    assert await platform.parts.upload_sweeper.sweep_once() == Swept(expired=SWEPT_AT_ONCE + 1)
    assert await swept(platform) == (0, SWEPT_AT_ONCE + 1, 0)
    assert stock(database)[:2] == (0, 0)


async def test_platforms_on_one_database_delete_each_file_once(
    config: PlatformConfig, platform: Platform, database: Database, clock: ManualClock
) -> None:
    """Four sweep at the same time: every file is counted by one of them (ours)."""
    member = await platform.join()
    files = await staged(platform, member, *[b"x"] * 60)
    for file in files[::2]:
        await platform.parts.pending_uploads.ack(file)
    clock.advance(DAY)
    stores = [Store(config.database_url) for _ in range(4)]
    tables = [UploadTables(store, clock, ttl=timedelta(days=1)) for store in stores]

    async def sweep_all(uploads: UploadTables) -> Swept:
        done = Swept()
        while (portion := await uploads.sweep(timedelta(hours=1))).total:
            done += portion
        return done

    done = await asyncio.gather(*(sweep_all(uploads) for uploads in tables))
    for store in stores:
        await store.close()
    assert sum(done, Swept()) == Swept(acked=30, expired=30)
    assert stock(database)[:2] == (0, 0)
