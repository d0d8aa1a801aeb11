"""Several platform processes on one database: events reach everybody's listeners, sweeps happen once."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import pytest
from websockets.sync.client import ClientConnection, connect

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.bus import Subscription
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.wire.events import EventName
from tests.support.platform import PlatformProcess, eventually

from .support import NOBODY, Database, Member, Platform, PostgresDatabase, only, running, until


@dataclass
class Pair:
    """Two platforms in one process with nothing in common but the database and the clock."""

    one: Platform
    other: Platform


@pytest.fixture
async def pair(config: PlatformConfig, clock: ManualClock) -> AsyncIterator[Pair]:
    async with running(config, clock) as one, running(config, clock) as other:
        pair = Pair(one, other)
        await until(lambda: both_know(pair))
        yield pair


async def both_know(pair: Pair) -> bool:
    return pair.one.parts.relay.has_company and pair.other.parts.relay.has_company


async def numbers(subscription: Subscription, count: int) -> list[int]:
    """The `n` of the next events; each must come within seconds."""
    found = []
    with anyio.fail_after(10):
        while len(found) < count:
            found.append((await anext(subscription)).payload["n"])
    return found


async def test_events_arrive_whole_in_order_and_once(pair: Pair) -> None:
    """Small and large (beyond the 8000 bytes of a NOTIFY) ones, in the publisher's order, at both sides (8.2, ours)."""
    text = "ä\x00😀" * 5000
    with pair.one.parts.bus.subscribe() as here, pair.other.parts.bus.subscribe() as there:
        for number in range(100):
            payload = {"n": number, "text": text if number % 25 == 7 else ""}
            await pair.one.parts.bus.emit(EventName.TASK_UPDATED, NOBODY, payload)
            if number % 10 == 0:
                await anyio.lowlevel.checkpoint()  # some go out one by one, some together
        assert await numbers(there, 100) == list(range(100))
        # An answer from the other side comes behind everything that could come twice.
        await pair.other.parts.bus.emit(EventName.TASK_UPDATED, NOBODY, {"n": -1})
        assert await numbers(here, 101) == [*range(100), -1]
        assert await numbers(there, 1) == [-1]
        assert (here.dropped, there.dropped) == (0, 0)


async def test_a_row_is_there_when_its_event_is_heard_elsewhere(pair: Pair) -> None:
    """ACTIVITY_LOGGED follows the commit, also for the listeners of another process (contract 4.4)."""
    member = await pair.one.join()
    with pair.other.parts.bus.subscribe() as there:
        await pair.one.say(member, "hello")
        with anyio.fail_after(10):
            async for event in there:
                if event.event == EventName.ACTIVITY_LOGGED:
                    break
        assert len(await pair.other.rows(member)) == 1


async def test_a_platform_alone_writes_no_events(platform: Platform, database: Database) -> None:
    """Whoever has no company pays nothing for the relay (ours)."""
    member = await platform.join()
    await platform.beat(member)
    await platform.parts.relay.renew()
    assert not platform.parts.relay.has_company
    assert database.sql("SELECT count(*) FROM platform_events") == [(0,)]
    assert database.sql("SELECT count(*) FROM platform_processes") == [(1,)]


async def test_company_ends_when_a_process_leaves_or_its_term_does(
    config: PlatformConfig, platform: Platform, database: Database
) -> None:
    """One that ends says so; one that was killed counts as gone after its term (ours)."""
    relay = platform.parts.relay

    async def company() -> bool:
        return relay.has_company

    async def no_company() -> bool:
        return not relay.has_company

    async with running(config):
        await until(company)
    await until(no_company)
    database.sql("INSERT INTO platform_processes (id, expires_s) VALUES ('killed', 99999999999) RETURNING id")
    await relay.renew()
    await until(company)
    database.sql("UPDATE platform_processes SET expires_s = 1 WHERE id = 'killed' RETURNING id")
    await relay.renew()
    await until(no_company)
    assert database.sql("SELECT count(*) FROM platform_processes") == [(1,)]


async def test_a_process_taken_for_gone_comes_back_and_old_events_go(pair: Pair, database: Database) -> None:
    """After a long sleep the next sweep makes it known again; events are kept for minutes only (ours)."""
    database.sql("DELETE FROM platform_processes WHERE id <> '' RETURNING id")
    database.sql("INSERT INTO platform_events (process_id, events, created_s) VALUES ('gone', '[]', 5) RETURNING id")
    for platform in (pair.one, pair.other):
        await platform.parts.relay.renew()
    assert database.sql("SELECT count(*) FROM platform_events") == [(0,)]
    await until(lambda: both_know(pair))
    with pair.other.parts.bus.subscribe() as there:
        await pair.one.parts.bus.emit(EventName.TASK_UPDATED, NOBODY, {"n": 1})
        assert await numbers(there, 1) == [1]


async def test_a_sick_relay_harms_nobody(pair: Pair, database: Database) -> None:
    """Events that cannot be passed on are dropped; requests and own listeners do not notice (ours, R22)."""
    database.refuse("INSERT", "platform_events")
    member = await pair.one.create()
    with pair.one.parts.bus.subscribe() as here:
        await pair.one.beat(member)
        with anyio.fail_after(5):
            assert (await anext(here)).event == EventName.WORKSPACE_ONLINE
    assert await pair.other.status(member) == "online"


async def test_two_sweeps_at_once_find_each_silent_workspace_once(pair: Pair, clock: ManualClock) -> None:
    """Each change of status belongs to one process, and so does its WORKSPACE_OFFLINE (contract 2.4)."""
    members = [await pair.one.join(str(number)) for number in range(8)]
    clock.advance(91)
    found: list[str] = []

    async def sweep(platform: Platform) -> None:
        found.extend(await platform.parts.sweeper.sweep_once())

    async with anyio.create_task_group() as tasks:
        for platform in (pair.one, pair.other) * 3:
            tasks.start_soon(sweep, platform)
    assert sorted(found) == sorted(member.id for member in members)


@only("postgresql")  # a file has no connections to cut
async def test_the_relay_recovers_after_its_connection_is_killed(pair: Pair, database: PostgresDatabase) -> None:
    """Events published while nobody listened are delivered after the reconnect, once and in order (ours)."""
    listening = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"

    async def listeners() -> int:
        return len(database.sql(listening))

    async def both_listen() -> bool:
        return await listeners() == 2

    await until(both_listen)
    with pair.other.parts.bus.subscribe() as there:
        database.sql(listening.replace("SELECT pid", "SELECT pg_terminate_backend(pid)"))
        for number in range(5):
            await pair.one.parts.bus.emit(EventName.TASK_UPDATED, NOBODY, {"n": number})
        assert await numbers(there, 5) == list(range(5))
        await until(both_listen)
        await pair.one.parts.bus.emit(EventName.TASK_UPDATED, NOBODY, {"n": 5})
        assert await numbers(there, 1) == [5]


# real processes


@dataclass
class Canvas:
    """A canvas at one process, with all that it has heard."""

    socket: ClientConnection
    heard: list[tuple[str, str]] = field(default_factory=list)

    def hears(self, name: str, workspace_id: str, within_s: float = 15) -> None:
        """Listen until this event has come."""
        deadline = time.monotonic() + within_s
        while (name, workspace_id) not in self.heard:
            frame = json.loads(self.socket.recv(timeout=max(0.01, deadline - time.monotonic())))
            self.heard.append((frame["event"], frame["workspace_id"]))


@pytest.fixture
def processes(database: Database) -> Iterator[tuple[PlatformProcess, PlatformProcess]]:
    quick = {"REMOTE_LIVENESS_STALE_AFTER": "2", "REMOTE_LIVENESS_SWEEP_S": "0.25"}
    with PlatformProcess(database.url, **quick) as one, PlatformProcess(database.url, **quick) as other:
        yield one, other


def test_two_processes_behave_as_one(processes: tuple[PlatformProcess, PlatformProcess]) -> None:
    """A message posted at one rings the canvas at the other; a silence is noticed once for both (8.2, 2.4)."""
    with ExitStack() as stack:
        one, other = (
            Canvas(stack.enter_context(connect(process.url.replace("http", "ws") + "/ws"))) for process in processes
        )
        here, there = processes
        # The first process learns of the second within the next look at the database.
        eventually(lambda: rings(here, other), within_s=10)
        settings = here.create_workspace("laptop")
        member = Member(settings["WORKSPACE_ID"], settings["MOLECULE_WORKSPACE_TOKEN"])
        beat = there.http.post("/registry/heartbeat", json={"workspace_id": member.id}, headers=member.headers)
        assert beat.status_code == 200
        here.say(member.id, "hello")
        for canvas in (one, other):
            canvas.hears(EventName.ACTIVITY_LOGGED, member.id)
            canvas.hears(EventName.WORKSPACE_OFFLINE, member.id)
        # Whatever would come twice comes before this.
        last = there.create_workspace("last")["WORKSPACE_ID"]
        for canvas in (one, other):
            canvas.hears(EventName.WORKSPACE_AWAITING_AGENT, last)
            names = [name for name, workspace_id in canvas.heard if workspace_id == member.id]
            assert sorted(names) == [
                "ACTIVITY_LOGGED",
                "WORKSPACE_AWAITING_AGENT",
                "WORKSPACE_HEARTBEAT",
                "WORKSPACE_OFFLINE",
                "WORKSPACE_ONLINE",
                "WORKSPACE_PROVISIONING",
            ]


def rings(process: PlatformProcess, canvas: Canvas) -> bool:
    """Whether what happens at the process is heard at the canvas now."""
    workspace_id = process.create_workspace("ring")["WORKSPACE_ID"]
    try:
        canvas.hears(EventName.WORKSPACE_AWAITING_AGENT, workspace_id, within_s=0.5)
    except TimeoutError:
        return False
    return True
