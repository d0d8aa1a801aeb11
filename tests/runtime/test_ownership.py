"""Who does a job: one at a time, the next when the owner is gone or silent, and the old one steps down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from molecule_runtime.clock import ManualClock
from molecule_runtime.inbox.journal import Journal
from molecule_runtime.ownership import CHECK_S, STALE_S, STAMP_EVERY_S, Ownership, Register
from molecule_runtime.state import OwnerLock

from .support import running, until


class Contender:
    """A process that wants the job: its clock can be stopped while the world goes on, as SIGSTOP does."""

    def __init__(self, name: str, directory: Path, living: set[str]) -> None:
        self.name = name
        self.clock = ManualClock()
        self.journal = Journal.open(directory / "inbox.sqlite3")
        self.turns = 0
        living.add(name)
        register = Register(self.journal, name, pid=len(living), is_alive=lambda session: session in living)
        self.ownership = Ownership(
            "beat",
            OwnerLock(directory / "beat.lock"),
            clock=self.clock,
            register=lambda: register,
            needs_lock=True,
        )

    @property
    def holds(self) -> bool:
        return self.ownership.held

    async def run(self) -> None:
        await self.ownership.hold(self._work)

    async def _work(self) -> None:
        self.turns += 1
        await anyio.sleep_forever()

    async def live(self, seconds: float) -> None:
        """Let its time pass in small steps, and what it does in them be done."""
        for _ in range(int(seconds / CHECK_S)):
            with anyio.fail_after(5):
                await until(lambda: self.clock.sleepers > 0)
            self.clock.advance(CHECK_S)


@asynccontextmanager
async def contenders(directory: Path, *names: str) -> AsyncIterator[list[Contender]]:
    living: set[str] = set()
    them = [Contender(name, directory, living) for name in names]
    async with running(them[0].run):
        await until(lambda: them[0].holds)
        async with anyio.create_task_group() as tasks:
            for one in them[1:]:
                tasks.start_soon(one.run)
            yield them
            tasks.cancel_scope.cancel()
    for one in them:
        one.journal.close()


async def everybody_lives(them: list[Contender], seconds: float) -> None:
    for _ in range(int(seconds / CHECK_S)):
        for one in them:
            await one.live(CHECK_S)


async def test_a_healthy_owner_keeps_its_job_however_long_others_wait(tmp_path: Path) -> None:
    """agent-side 4, Owners: nobody kills anybody."""
    async with contenders(tmp_path, "first", "second") as them:
        await everybody_lives(them, 4 * STALE_S)
        assert [one.holds for one in them] == [True, False]
        assert them[0].turns == 1


async def test_a_stopped_owner_is_replaced_within_90_s_and_steps_down_when_it_wakes(tmp_path: Path) -> None:
    """agent-side 4: a stamp older than 60 s lets another act under a higher epoch; the old one sees that."""
    async with contenders(tmp_path, "first", "second") as (first, second):
        await second.live(90)
        await until(lambda: second.holds)
        assert first.holds, "it is stopped and knows nothing"
        owner = second.journal.owner("beat")
        assert owner is not None
        assert (owner.session, owner.epoch) == ("second", 2)
        with capture_logs() as logs:
            first.clock.advance(90)
            await until(lambda: not first.holds)
        assert [entry["event"] for entry in logs if entry["event"] == "ownership.stepped_down"]
        await everybody_lives([first, second], 2 * STAMP_EVERY_S)
        assert [first.holds, second.holds] == [False, True]
        assert (first.turns, second.turns) == (1, 1)


async def test_one_that_stands_in_for_a_stopped_owner_is_replaced_in_turn(tmp_path: Path) -> None:
    """agent-side 4: the lock stays with the stopped process; the stamps go on deciding."""
    async with contenders(tmp_path, "first", "second", "third") as (first, second, third):
        await second.live(90)
        await until(lambda: second.holds)
        third.clock.advance(90)
        await third.live(90)
        await until(lambda: third.holds)
        second.clock.advance(90)
        first.clock.advance(180)
        await until(lambda: not first.holds and not second.holds)
        await everybody_lives([first, second, third], STALE_S)
        assert [first.holds, second.holds, third.holds] == [False, False, True]


async def test_the_owner_that_ended_is_replaced_at_the_next_look(tmp_path: Path) -> None:
    """agent-side 4: take-over within 10 s of a kill; the lock is free and its session is gone."""
    living: set[str] = set()
    first, second = (Contender(name, tmp_path, living) for name in ("first", "second"))
    async with running(first.run) as owner, anyio.create_task_group() as tasks:
        await until(lambda: first.holds)
        tasks.start_soon(second.run)
        await second.live(CHECK_S)
        owner.cancel()
        living.discard("first")
        await until(lambda: not first.holds)
        await second.live(2 * CHECK_S)
        await until(lambda: second.holds)
        tasks.cancel_scope.cancel()


async def test_a_lock_that_is_free_is_not_enough_while_somebody_stands_in(tmp_path: Path) -> None:
    """Ours: the woken owner lets go of the lock, and a third must not take the job from the one that acts."""
    async with contenders(tmp_path, "first", "second") as (first, second):
        await second.live(90)
        await until(lambda: second.holds)
        first.clock.advance(90)
        await until(lambda: not first.holds)
        for _ in range(5):
            await first.live(CHECK_S)
        assert not first.holds
        assert second.holds


async def test_without_a_journal_the_lock_alone_decides(tmp_path: Path) -> None:
    """Ours: presence goes on when the journal cannot be opened."""
    clock = ManualClock()
    began: list[str] = []

    def contender(name: str) -> Ownership:
        return Ownership(
            "beat", OwnerLock(tmp_path / "beat.lock"), clock=clock, register=lambda: None, needs_lock=False
        )

    async def work() -> None:
        began.append("once")
        await anyio.sleep_forever()

    first, second = contender("first"), contender("second")
    async with running(lambda: first.hold(work)):
        await until(lambda: first.held)
        async with running(lambda: second.hold(work)):
            await until(lambda: clock.sleepers >= 2)
            clock.advance(2 * STALE_S)
            await until(lambda: clock.sleepers >= 2)
            assert (first.held, second.held, began) == (True, False, ["once"])


@pytest.mark.parametrize(("after", "epoch"), [(0, 1), (1, None)])
def test_an_epoch_begins_only_after_the_one_that_was_seen(tmp_path: Path, after: int, epoch: int | None) -> None:
    """Ours: two that find a stale stamp at once do not both begin."""
    journal = Journal.open(tmp_path / "inbox.sqlite3")
    assert journal.begin_epoch("beat", session="a", pid=1, now=1.0, after=after) == epoch
    journal.close()


async def test_a_beat_goes_on_unsigned_when_the_stopped_owner_holds_the_journal(tmp_path: Path) -> None:
    """agent-side 4: a process stopped in the middle of a write keeps everybody from signing, but not from beating."""
    async with contenders(tmp_path, "stopped", "next") as (stopped, after):
        after.ownership._needs_lock = False  # as the beat is
        after.journal._db.execute("PRAGMA busy_timeout = 20")
        stopped.journal._db.execute("BEGIN IMMEDIATE")  # where it was stopped
        await after.live(STALE_S - 2 * CHECK_S)
        assert not after.holds
        with anyio.fail_after(10):
            while not after.holds:
                await after.live(CHECK_S)
        assert after.ownership.sign_error is not None
        stopped.journal._db.execute("ROLLBACK")
        await after.live(2 * STAMP_EVERY_S)
        assert after.ownership.sign_error is None
        await until(lambda: after.journal.owner("beat").session == "next")
