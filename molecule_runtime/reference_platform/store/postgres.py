"""PostgreSQL over asyncpg; the driver is loaded only for such a URL (extra [postgres]).

Reading is REPEATABLE READ, so that a work of several statements sees one snapshot as it does on SQLite. Writing is READ
COMMITTED: an UPDATE of a row that another transaction has just changed judges the changed row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from molecule_runtime.reference_platform.store.schema import upgrade_to_head

CONNECTIONS = 8
"""Connections of one platform process, and no more: beyond a few per core a server only queues."""
CONNECT_TIMEOUT_S = 10

T = TypeVar("T")


class PostgresDatabase:
    """One database on a server."""

    failures: tuple[type[Exception], ...]

    def __init__(self, url: URL) -> None:
        import asyncpg

        # asyncpg reports a refused connection as an OSError, a wrong password or name as an error of its own.
        self.failures = (SQLAlchemyError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
        self._url = url
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

    async def _migrate(self) -> None:
        engine = create_async_engine(
            self._url, poolclass=NullPool, hide_parameters=True, connect_args={"timeout": CONNECT_TIMEOUT_S}
        )
        try:
            async with engine.begin() as connection:
                await connection.run_sync(upgrade_to_head)
        finally:
            await engine.dispose()
