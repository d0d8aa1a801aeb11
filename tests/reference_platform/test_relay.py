"""Several platform processes on one database: events reach everybody's listeners, sweeps happen once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from sqlalchemy import func, insert, select
from websockets.sync.client import ClientConnection, connect

from molecule_runtime.clock import ManualClock
from molecule_runtime.inbox.mailbox import Mailbox
from molecule_runtime.reference_platform.bus import Subscription
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.store.tables import platform_events
from molecule_runtime.runtime import Runtime, RuntimeThread
from molecule_runtime.settings import Settings
from molecule_runtime.state import StateDir
from molecule_runtime.wire.events import Event, EventName
from tests.support.platform import PlatformProcess, eventually

from .support import NOBODY, Database, Member, Platform, PostgresDatabase, only, running, until

DOORBELL_S = 2.0
"""Within this a message is in the mailbox when its doorbell rang; left alone an agent polls once a minute."""


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


async def test_a_sick_relay_harms_nobody_and_gets_well(pair: Pair, database: Database) -> None:
    """Requests and own listeners notice nothing, and what could not be passed on waits for its time (ours, R22)."""
    database.refuse("INSERT", "platform_events")
    member = await pair.one.create()
    with pair.one.parts.bus.subscribe() as here, pair.other.parts.bus.subscribe() as there:
        await pair.one.beat(member)
        with anyio.fail_after(5):
            assert (await anext(here)).event == EventName.WORKSPACE_ONLINE
        assert await pair.other.status(member) == "online"
        for number in range(3):
            await pair.one.parts.bus.emit(EventName.TASK_UPDATED, NOBODY, {"n": number})
        database.heal("INSERT", "platform_events")
        with anyio.fail_after(10):
            heard = [(await anext(there)).event for _ in range(7)]
    assert heard == [
        "WORKSPACE_PROVISIONING",
        "WORKSPACE_AWAITING_AGENT",
        "WORKSPACE_ONLINE",
        "WORKSPACE_HEARTBEAT",
        *["TASK_UPDATED"] * 3,
    ]


async def test_a_batch_that_cannot_be_read_costs_only_itself(pair: Pair, database: Database) -> None:
    """What another version wrote does not end the relay (ours)."""
    with pair.other.parts.bus.subscribe() as there:
        for events in ("nonsense", '[{"event": 7}]', "[]"):
            database.sql(
                "INSERT INTO platform_events (process_id, events, created_s) "
                f"VALUES ('gone', '{events}', 99999999999) RETURNING id"
            )
        await pair.one.parts.bus.emit(EventName.TASK_UPDATED, NOBODY, {"n": 1})
        assert await numbers(there, 1) == [1]


async def test_the_last_words_of_a_process_are_heard(config: PlatformConfig, platform: Platform) -> None:
    """What happens just before a clean end is passed on (ours)."""
    with platform.parts.bus.subscribe() as there:
        async with running(config) as other:

            async def knows() -> bool:
                return other.parts.relay.has_company

            await until(knows)
            for number in range(3):
                await other.parts.bus.emit(EventName.TASK_UPDATED, NOBODY, {"n": number})
        assert await numbers(there, 3) == [0, 1, 2]


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


@only("postgresql")
async def test_events_survive_when_every_connection_is_cut(pair: Pair, database: PostgresDatabase) -> None:
    """The publisher's connections break too: what it could not write it writes again, so all arrive (ours)."""
    cut = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with pair.other.parts.bus.subscribe() as there:
        for number in range(30):
            await pair.one.parts.bus.emit(EventName.TASK_UPDATED, NOBODY, {"n": number})
            await anyio.lowlevel.checkpoint()
            if number % 10 == 5:
                database.sql(cut)
        seen: list[int] = []
        while len(set(seen)) < 30:
            seen += await numbers(there, 1)
    # One may come twice, when the cut came between its commit and the word of it; none is late or lost.
    assert list(dict.fromkeys(seen)) == list(range(30))


@only("postgresql")
async def test_who_cannot_hear_of_others_assumes_them(platform: Platform, database: PostgresDatabase) -> None:
    """Without its doorbell a lone process writes its events, since another may have come unheard (ours)."""
    listening = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = '{}'"

    async def company() -> bool:
        return platform.parts.relay.has_company

    async def alone() -> bool:
        return not platform.parts.relay.has_company

    async def listens() -> bool:
        return bool(
            database.cluster.sql("postgres", listening.format(database.name).replace("pg_terminate_backend", ""))
        )

    await until(listens)
    await until(alone)
    async with anyio.create_task_group() as tasks:  # connections for what follows: no new ones can be had then
        for _ in range(4):
            tasks.start_soon(
                platform.parts.store.read, lambda connection: connection.execute(select(func.pg_sleep(0.1)))
            )
    database.altered = True
    database.cluster.sql("postgres", f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS false")
    database.cluster.sql("postgres", listening.format(database.name))
    await until(company)
    with platform.parts.bus.subscribe() as here:
        event = Event(event="FOUND", workspace_id=NOBODY, timestamp=platform.parts.clock.now(), payload={"n": 1})
        row = {"process_id": "gone", "events": f"[{event.model_dump_json()}]", "created_s": 99_999_999_999}
        await platform.parts.store.write(lambda connection: connection.execute(insert(platform_events).values(row)))
        await platform.parts.relay.renew()
        assert await numbers(here, 1) == [1]  # it has looked, and still cannot hear who comes in the next moment
        assert platform.parts.relay.has_company
    database.cluster.sql("postgres", f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS true")
    await until(alone)


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


def test_two_processes_behave_as_one(processes: tuple[PlatformProcess, PlatformProcess], tmp_path: Path) -> None:
    """A message posted at one rings at the other, a silence is noticed once, a killed one harms nobody (8.2, 2.4)."""
    here, there = processes
    with ExitStack() as stack:
        one, other = (
            Canvas(stack.enter_context(connect(process.url.replace("http", "ws") + "/ws"))) for process in processes
        )
        # The first process learns of the second within the next look at the database.
        eventually(lambda: rings(here, other), within_s=10)
        assert_a_silence_is_noticed_once(here, there, one, other)
        with agent(here.create_workspace("agent") | {"PLATFORM_URL": there.url}, tmp_path) as mailbox:
            # The canvas and the agent: from now on a message that makes no sound would wait for the next minute.
            eventually(
                lambda: "molecule_websocket_connections_active 2.0" in there.http.get("/metrics").text, within_s=15
            )
            for text in ("from the other side", "again"):
                assert mailbox.gets(lambda workspace_id, text=text: here.say(workspace_id, text)) < DOORBELL_S
            here.kill()
            assert mailbox.gets(lambda workspace_id: there.say(workspace_id, "from this side")) < DOORBELL_S
            assert there.create_workspace("after")["WORKSPACE_ID"]


def assert_a_silence_is_noticed_once(here: PlatformProcess, there: PlatformProcess, one: Canvas, other: Canvas) -> None:
    """Both processes sweep four times a second; each canvas hears of each change once."""
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


class AgentMailbox:
    """What an agent's own runtime has fetched."""

    def __init__(self, bridge: RuntimeThread, workspace_id: str) -> None:
        self._bridge = bridge
        self.workspace_id = workspace_id

    def gets(self, say: Callable[[str], None]) -> float:
        """Have somebody say something; the seconds until it is in the mailbox, after which it is taken out."""
        began = time.monotonic()
        say(self.workspace_id)
        (message,) = eventually(lambda: self._ask(lambda box: box.peek(10)), within_s=10)
        elapsed = time.monotonic() - began
        assert self._ask(lambda box: box.pop(message["activity_id"]))
        return elapsed

    def _ask(self, question: Callable[[Mailbox], Awaitable[Any]]) -> Any:
        async def work(runtime: Runtime) -> Any:
            return await question(await runtime.route().mailbox())

        return asyncio.run(self._bridge.call(work))


@contextmanager
def agent(settings: dict[str, str], state: Path) -> Iterator[AgentMailbox]:
    """The agent side's own runtime."""
    bridge = RuntimeThread(lambda: Runtime(Settings.from_env(settings), state_dir=StateDir.open(state, home=state)))
    bridge.start()
    try:
        yield AgentMailbox(bridge, settings["WORKSPACE_ID"])
    finally:
        assert bridge.stop(timeout_s=5)


def rings(process: PlatformProcess, canvas: Canvas) -> bool:
    """Whether what happens at the process is heard at the canvas now."""
    workspace_id = process.create_workspace("ring")["WORKSPACE_ID"]
    try:
        canvas.hears(EventName.WORKSPACE_AWAITING_AGENT, workspace_id, within_s=0.5)
    except TimeoutError:
        return False
    return True
