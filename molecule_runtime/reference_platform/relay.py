"""Several platform processes on one database behave as one: what one announces, the listeners of all hear.

    bus.publish -> own listeners, at once
                -> outbox -> one row of platform_events for all that queued up, committed
                          -> doorbell (PostgreSQL: NOTIFY; SQLite: the file's data_version, looked at every 50 ms)
                          -> every other process reads the rows behind its cursor -> its bus.deliver

The doorbell carries nothing, so no event is too large for it, and whoever missed it finds the rows at its next look, at
the latest with the next sweep. Rows become visible in the order of their ids (a lock on PostgreSQL, the only writer on
SQLite), so a cursor misses none; the events of one process arrive in their order, and none comes back to its publisher.

A process keeps a row with a term in platform_processes. Events are written only while another one is there: alone, as
most platforms are, a process pays nothing. A process that joins hears what is published from the moment that the
others have seen it, some milliseconds on PostgreSQL and up to 50 on SQLite.

An event is a doorbell, the data is in the store: one that cannot be passed on is logged, counted and forgotten.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import anyio
import structlog
from pydantic import TypeAdapter
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
        self._outbox: deque[str] = deque(maxlen=OUTBOX)
        self._sending = asyncio.Event()
        self._looking = asyncio.Event()

    @property
    def has_company(self) -> bool:
        """Whether another process was there at the last look."""
        return self._others

    def pass_on(self, event: Event) -> None:
        """Queue an event for the other processes, if there are any; never waits."""
        if self._others:
            self._outbox.append(event.model_dump_json())
            self._sending.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take part while the context lasts.

        Raises:
            StoreError: the database failed at the start.
        """
        self._cursor = await self._store.write(_join, self._id, self._term_s)
        tasks = [asyncio.ensure_future(loop) for loop in (self._store.watch(self._look), self._receive(), self._send())]
        self._look()
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            with anyio.CancelScope(shield=True):
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

    async def _receive(self) -> None:
        while True:
            await self._looking.wait()
            self._looking.clear()
            try:
                news = await self._store.read(_news, self._id, self._cursor)
            except StoreError:
                log.exception("relay.read_failed")
                continue  # the next ring or sweep looks again from the same cursor
            self._others = news.others
            self._cursor = news.cursor
            for batch in news.batches:
                for event in _EVENTS.validate_json(batch):
                    self._bus.deliver(event)

    async def _send(self) -> None:
        while True:
            await self._sending.wait()
            self._sending.clear()
            while self._outbox:
                batch = [self._outbox.popleft() for _ in range(min(BATCH, len(self._outbox)))]
                try:
                    await self._store.write(_append, self._id, f"[{','.join(batch)}]")
                except StoreError:
                    log.exception("relay.send_failed", count=len(batch))


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
