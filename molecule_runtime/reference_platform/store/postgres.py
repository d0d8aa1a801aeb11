"""PostgreSQL over asyncpg; the driver is loaded only for such a URL (extra [postgres]).

Reading is REPEATABLE READ, so that a work of several statements sees one snapshot as it does on SQLite. Writing is READ
COMMITTED: an UPDATE of a row that another transaction has just changed judges the changed row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from molecule_runtime.reference_platform.store.doorbell import CHANNEL
from molecule_runtime.reference_platform.store.schema import Schema

CONNECTIONS = 8
"""Connections of one platform process, and no more: beyond a few per core a server only queues."""
CONNECT_TIMEOUT_S = 10
RECONNECT_FIRST_S = 0.1
RECONNECT_LONGEST_S = 5.0
"""Pauses of the doorbell's connection, doubling; events wait in their table meanwhile."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class PostgresDatabase:
    """One database on a server."""

    failures: tuple[type[Exception], ...]

    def __init__(self, url: URL, schema: Schema) -> None:
        import asyncpg

        # asyncpg reports a refused connection as an OSError, a wrong password or name as an error of its own, and a
        # connection that is cut in the middle of a statement as an InternalClientError.
        self.failures = (
            SQLAlchemyError,
            OSError,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
        )
        self._url = url
        self._schema = schema
        self._writer = self._engine()
        self._reader = self._writer.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def migrate(self) -> None:
        """Bring the schema to the newest revision, in a loop of its own; blocks."""
        asyncio.run(self._migrate())

    async def read(self, work: Callable[[Connection], T]) -> T:
        async with self._reader.begin() as connection:
            return await connection.run_sync(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        async with self._writer.begin() as connection:
            return await connection.run_sync(work)

    async def watch(self, on_ring: Callable[[], None], on_lost: Callable[[], None]) -> None:
        """LISTEN on a connection of its own; when it is lost, connect again, ever more slowly."""
        engine = self._single()
        pause_s = RECONNECT_FIRST_S
        while True:
            try:
                async with engine.connect() as connection:
                    lost = asyncio.Event()
                    driver: Any = (await connection.get_raw_connection()).driver_connection
                    driver.add_termination_listener(lambda *_, lost=lost: lost.set())
                    await driver.add_listener(CHANNEL, lambda *_: on_ring())
                    on_ring()  # for what was written while nobody listened
                    pause_s = RECONNECT_FIRST_S
                    await lost.wait()
                    await connection.invalidate()
                reason = "connection lost"
            except self.failures as error:
                reason = type(error).__name__
            on_lost()
            log.warning("store.doorbell_lost", detail=reason, retry_s=pause_s)
            # Real time, not the platform's clock: it paces a network, and no test waits for it to pass.
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RECONNECT_LONGEST_S)

    async def close(self) -> None:
        await self._writer.dispose()

    def _engine(self) -> AsyncEngine:
        return create_async_engine(
            self._url,
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={"timeout": CONNECT_TIMEOUT_S},
        )

    def _single(self) -> AsyncEngine:
        """For one connection at a time, opened when asked for."""
        return create_async_engine(
            self._url, poolclass=NullPool, hide_parameters=True, connect_args={"timeout": CONNECT_TIMEOUT_S}
        )

    async def _migrate(self) -> None:
        engine = self._single()
        try:
            async with engine.begin() as connection:
                await connection.run_sync(self._schema.upgrade_to_head)
        finally:
            await engine.dispose()
