"""Time as a collaborator."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import anyio

from molecule_runtime.clock import ManualClock, SystemClock, wait_for_event

from .support import START, until


async def test_sleepers_wake_in_the_order_of_their_times() -> None:
    """Ours: `advance` wakes those that are due, and only those."""
    clock = ManualClock()
    woken: list[float] = []

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    tasks = [asyncio.create_task(sleep(seconds)) for seconds in (3, 1, 2, 9)]
    await until(lambda: clock.sleepers == 4)
    clock.advance(3)
    await until(lambda: len(woken) == 3)
    assert (woken, clock.sleepers, clock.monotonic(), clock.now()) == (
        [1, 2, 3],
        1,
        3.0,
        START + timedelta(seconds=3),
    )
    tasks[-1].cancel()
    await asyncio.wait(tasks)
    assert clock.sleepers == 0
    clock.advance(10)


async def test_a_suspend_moves_the_wall_clock_alone() -> None:
    """Ours: what a laptop's sleep looks like to a process."""
    clock = ManualClock(datetime(2030, 1, 1, tzinfo=UTC))
    clock.suspend(60)
    assert (clock.monotonic(), clock.now()) == (0.0, datetime(2030, 1, 1, 0, 1, tzinfo=UTC))


async def test_an_event_ends_a_wait_and_so_does_time() -> None:
    """Ours: True when the event was set, False when time ran out; no task is left behind."""
    clock, event = ManualClock(), asyncio.Event()
    with anyio.fail_after(5):
        waiting = asyncio.create_task(wait_for_event(event, 5, clock))
        await until(lambda: clock.sleepers == 1)
        clock.advance(5)
        assert await waiting is False

        waiting = asyncio.create_task(wait_for_event(event, 5, clock))
        await until(lambda: clock.sleepers == 1)
        event.set()
        assert await waiting is True
        assert clock.sleepers == 0
        assert await wait_for_event(event, 5, clock) is True
    assert len(asyncio.all_tasks()) <= 2


async def test_a_cancelled_wait_leaves_nothing() -> None:
    """Ours: a loop that ends takes its waits along."""
    clock, event = ManualClock(), asyncio.Event()
    waiting = asyncio.create_task(wait_for_event(event, 5, clock))
    await until(lambda: clock.sleepers == 1)
    waiting.cancel()
    await asyncio.wait((waiting,))
    assert waiting.cancelled()
    assert clock.sleepers == 0


async def test_the_machines_clock_tells_aware_time_and_sleeps() -> None:
    """Ours: a negative time is no error."""
    clock = SystemClock()
    before = clock.monotonic()
    with anyio.fail_after(5):
        await clock.sleep(-1)
        await clock.sleep(0)
    assert clock.monotonic() >= before
    assert clock.now().tzinfo is UTC
