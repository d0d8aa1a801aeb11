"""Several platform processes on one database behave as one: what one announces, the listeners of all hear.

    bus.publish -> own listeners, at once
                -> outbox -> one row of platform_events for all that queued up, committed
                          -> doorbell (PostgreSQL: NOTIFY; SQLite: the file's data_version, looked at every 50 ms)
                          -> every other process reads the rows behind its cursor -> its bus.deliver

The doorbell carries nothing, so no event is too large for it, and whoever missed it finds the rows at its next look, at
the latest with the next sweep. Rows become visible in the order of their ids (a lock on PostgreSQL, the only writer on
SQLite), so a cursor misses none; the events of one process arrive in their order, and none comes back to its publisher.

A process keeps a row with a term in platform_processes. Events are written only while another one is there, or may be
because the doorbell's connection is down: alone, as most platforms are, a process pays nothing. A process that joins
hears what is published from the moment that the others have seen it, some milliseconds on PostgreSQL and up to 50 on
SQLite.

A database that fails is tried again; events wait meanwhile, and the oldest make room. One whose commit was answered by
a cut connection may come twice: an event is a doorbell, the data is in the store.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

import anyio
import structlog
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import BigInteger, ColumnElement, Connection, cast, delete, exists, func, insert, select, update

from molecule_runtime.reference_platform.bus import EventBus
from molecule_runtime.reference_platform.identifiers import new_id
from molecule_runtime.reference_platform.store.doorbell import ring
from molecule_runtime.reference_platform.store.engine import Store, StoreError
from molecule_runtime.reference_platform.store.locks import Lock, exclusively
from molecule_runtime.reference_platform.store.tables import platform_events, platform_processes
from molecule_runtime.wire.events import Event

TERM_S = 60
"""Seconds after which a process that no longer renews its row counts as gone; four sweeps of 15 s."""
KEPT_S = 120
"""Seconds that events wait for a process that lost its connection."""
OUTBOX = 5_000
"""Events that wait for a database that does not answer; the oldest make room."""
BATCH = 500
"""Events in one row."""
RETRY_FIRST_S = 0.1
RETRY_LONGEST_S = 5.0
"""Pauses after a failure, doubling."""
LEAVE_S = 4.0
FAREWELL_S = 2.0
"""Seconds that a process which ends takes at most to pass on its last events."""

_EVENTS = TypeAdapter(list[Event])

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _News:
    """What a look at the database showed."""

    others: bool
    cursor: int
    batches: list[str]


class Relay:
    """Passes events between this process's bus and the others."""

    def __init__(self, store: Store, bus: EventBus, *, term_s: float = TERM_S) -> None:
        self._store = store
        self._bus = bus
        self._term_s = max(TERM_S, int(term_s))
        self._id = new_id()
        self._cursor = 0
        self._others = False
        self._hears = True
        self._outbox: deque[str] = deque(maxlen=OUTBOX)
        self._in_hand: list[str] = []
        self._sending = asyncio.Event()
        self._sent = asyncio.Event()
        self._sent.set()
        self._looking = asyncio.Event()

    @property
    def has_company(self) -> bool:
        """Whether another process was there at the last look, or nobody can say."""
        return self._others

    def pass_on(self, event: Event) -> None:
        """Queue an event for the other processes, if there are any; never waits."""
        if self._others:
            if len(self._outbox) == OUTBOX:
                log.warning("relay.overflowed", event_name=event.event, workspace_id=event.workspace_id)
            self._outbox.append(event.model_dump_json())
            self._sent.clear()
            self._sending.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take part while the context lasts.

        Raises:
            StoreError: the database failed at the start.
        """
        self._cursor = await self._store.write(_join, self._id, self._term_s)
        steps = (self._watch, self._receive, self._send)
        tasks = [asyncio.create_task(_forever(step), name=f"relay{step.__name__}") for step in steps]
        self._look()
        try:
            yield
        finally:
            # Bounded, because a database that does not answer must not hold up the end of the process.
            with anyio.move_on_after(LEAVE_S, shield=True):
                await self._say_farewell()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                with suppress(StoreError):
                    await self._store.write(_leave, self._id)

    async def renew(self) -> None:
        """Prolong this process's term, delete what is too old, and look for missed events: a chore of the sweeper.

        Raises:
            StoreError: the database failed.
        """
        await self._store.write(_renew, self._id, self._term_s)
        self._look()

    def _look(self) -> None:
        self._looking.set()

    async def _watch(self) -> None:
        await self._store.watch(self._hear, self._go_deaf)

    def _hear(self) -> None:
        self._hears = True
        self._look()

    def _go_deaf(self) -> None:
        """Others may come and go unheard from now on."""
        self._hears, self._others = False, True

    async def _receive(self) -> None:
        await self._looking.wait()
        self._looking.clear()
        try:
            news = await self._store.read(_news, self._id, self._cursor)
        except StoreError:
            self._look()
            raise
        self._others = news.others or not self._hears
        self._cursor = news.cursor
        for batch in news.batches:
            try:
                events = _EVENTS.validate_json(batch)
            except ValidationError:
                log.exception("relay.batch_unreadable")  # another version's: the next batch may be better
                continue
            for event in events:
                self._bus.deliver(event)

    async def _send(self) -> None:
        """Write what is queued, at most a batch; what could not be written stays in hand for the next time."""
        await self._sending.wait()
        if not self._in_hand:
            self._in_hand = [self._outbox.popleft() for _ in range(min(BATCH, len(self._outbox)))]
        if self._in_hand:
            await self._store.write(_append, self._id, f"[{','.join(self._in_hand)}]")
            self._in_hand = []
        if not self._outbox:
            self._sending.clear()
            self._sent.set()

    async def _say_farewell(self) -> None:
        with anyio.move_on_after(FAREWELL_S):
            await self._sent.wait()


async def _forever(step: Callable[[], Awaitable[None]]) -> NoReturn:
    """Repeat a step; after a failure again, ever more slowly.

    The pauses are real time, not the platform's clock: they pace a network, and no test waits for them to pass.
    """
    pause_s = RETRY_FIRST_S
    while True:
        try:
            await step()
            pause_s = RETRY_FIRST_S
        except Exception as error:  # the edge of the loop: one bad turn must not end all others
            reason = error.reason if isinstance(error, StoreError) else type(error).__name__
            log.warning("relay.step_failed", detail=reason, retry_s=pause_s, exc_info=not isinstance(error, StoreError))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_LONGEST_S)


def _now_s(connection: Connection) -> ColumnElement[int]:
    """Seconds since 1970 by the database's clock."""
    if connection.dialect.name == "sqlite":
        return cast(func.strftime("%s", "now"), BigInteger)
    return cast(func.extract("epoch", func.clock_timestamp()), BigInteger)


def _join(connection: Connection, process_id: str, term_s: int) -> int:
    """Make the process known; the id of the newest event before it."""
    exclusively(connection, Lock.EVENTS)  # whoever is just publishing without us has committed when we look
    connection.execute(insert(platform_processes).values(id=process_id, expires_s=_now_s(connection) + term_s))
    ring(connection)
    newest: int = connection.execute(select(func.coalesce(func.max(platform_events.c.id), 0))).scalar_one()
    return newest


def _renew(connection: Connection, process_id: str, term_s: int) -> None:
    now = _now_s(connection)
    expires = now + term_s
    mine = platform_processes.c.id == process_id
    if not connection.execute(update(platform_processes).where(mine).values(expires_s=expires)).rowcount:
        connection.execute(insert(platform_processes).values(id=process_id, expires_s=expires))
        ring(connection)  # others had taken this process for gone
    connection.execute(delete(platform_processes).where(platform_processes.c.expires_s < now))
    connection.execute(delete(platform_events).where(platform_events.c.created_s < now - KEPT_S))


def _leave(connection: Connection, process_id: str) -> None:
    connection.execute(delete(platform_processes).where(platform_processes.c.id == process_id))
    ring(connection)


def _append(connection: Connection, process_id: str, events: str) -> None:
    exclusively(connection, Lock.EVENTS)
    values = {"process_id": process_id, "events": events, "created_s": _now_s(connection)}
    connection.execute(insert(platform_events).values(values))
    ring(connection)


def _news(connection: Connection, process_id: str, cursor: int) -> _News:
    living = platform_processes.c.expires_s >= _now_s(connection)
    others = select(exists().where(platform_processes.c.id != process_id, living))
    rows = connection.execute(
        select(platform_events).where(platform_events.c.id > cursor).order_by(platform_events.c.id)
    ).all()
    return _News(
        others=bool(connection.execute(others).scalar_one()),
        cursor=rows[-1].id if rows else cursor,
        batches=[row.events for row in rows if row.process_id != process_id],
    )
