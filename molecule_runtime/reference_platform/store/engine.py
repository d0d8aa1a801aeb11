"""The way into the database: `read` and `write` run a function of a connection inside one transaction.

A work function is plain synchronous SQLAlchemy Core, `work(connection, *args)`, so the same function runs over
aiosqlite and asyncpg. A SQLite writer takes the write lock when it begins (BEGIN IMMEDIATE): a transaction that reads
and then writes can neither fail halfway nor see rows change below it. Readers have connections of their own and, with
the write-ahead log, never wait for a writer.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import anyio.to_thread
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from molecule_runtime.reference_platform.store.schema import upgrade_to_head

BUSY_TIMEOUT_MS = 5_000
"""How long a SQLite writer waits for another process's transaction before it gives up with a `StoreError`."""
WAL_RETRY_S = 0.02
"""Seconds between two attempts to switch a new file to its write-ahead log while others try the same."""
READERS = 4
"""Reading connections; each costs a thread with aiosqlite, and there are few cores."""

P = ParamSpec("P")
T = TypeVar("T")


class StoreError(Exception):
    """The database did not do what it was asked: never a statement about what is or is not in it."""


class Store:
    """One database. Create it inside the loop that uses it; `close` it there.

    Parameters are hidden in errors, since errors are logged and parameters are messages and token digests.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._migrated = False
        if make_url(url).get_backend_name() == "sqlite":
            self._writer = _sqlite_engine(url, begin="BEGIN IMMEDIATE", pool_size=1, read_only=False)
            self._reader = _sqlite_engine(url, begin="BEGIN", pool_size=READERS, read_only=True)
        else:
            self._writer = self._reader = create_async_engine(url, pool_pre_ping=True, hide_parameters=True)

    async def migrate(self) -> None:
        """Bring the schema to the newest revision, once for each store; nothing happens when it is there already.

        Raises:
            StoreError: the database cannot be opened or altered.
        """
        if self._migrated:
            return
        try:
            await anyio.to_thread.run_sync(_migrate, self._url)  # Alembic reads files and blocks
        except (SQLAlchemyError, OSError, sqlite3.Error) as error:
            raise StoreError(type(error).__name__) from error
        self._migrated = True

    async def read(self, work: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` on one consistent snapshot; it must not write.

        Raises:
            StoreError: the database failed.
        """
        return await self._run(self._reader, work, *args, **kwargs)

    async def write(self, work: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` as the only writer and commit; when it raises, nothing of it stays.

        Raises:
            StoreError: the database failed, or another process held the write lock for too long.
        """
        return await self._run(self._writer, work, *args, **kwargs)

    async def close(self) -> None:
        await self._writer.dispose()
        await self._reader.dispose()

    async def _run(
        self, engine: AsyncEngine, work: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(lambda sync: work(sync, *args, **kwargs))
        except (SQLAlchemyError, OSError) as error:  # asyncpg reports a refused connection as an OSError
            raise StoreError(type(error).__name__) from error


def _migrate(url: str) -> None:
    """Upgrade the database from a thread of its own."""
    if make_url(url).get_backend_name() != "sqlite":
        asyncio.run(_migrate_async(url))
        return
    engine = create_engine(make_url(url).set(drivername="sqlite"), poolclass=NullPool)
    _set_up_sqlite(engine, begin="BEGIN IMMEDIATE", read_only=False)
    _switch_to_wal(engine)
    with engine.begin() as connection:
        upgrade_to_head(connection)


def _switch_to_wal(engine: Engine) -> None:
    """Give a SQLite file its write-ahead log, for good: the file remembers it.

    SQLite does not wait here for others that do the same at this moment (the busy timeout has no effect), so we do.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    connection = engine.raw_connection()
    try:
        while True:
            try:
                connection.cursor().execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if time.monotonic() > deadline or "locked" not in str(error):
                    raise
                time.sleep(WAL_RETRY_S)
    finally:
        connection.close()


async def _migrate_async(url: str) -> None:
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(upgrade_to_head)
    finally:
        await engine.dispose()


def _sqlite_engine(url: str, *, begin: str, pool_size: int, read_only: bool) -> AsyncEngine:
    engine = create_async_engine(url, pool_size=pool_size, max_overflow=0, hide_parameters=True)
    _set_up_sqlite(engine.sync_engine, begin=begin, read_only=read_only)
    return engine


def _set_up_sqlite(engine: Engine, *, begin: str, read_only: bool) -> None:
    """Start transactions with `begin`, on connections made for several processes on one file."""

    @event.listens_for(engine, "connect")
    def _prepare(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.isolation_level = None  # the driver must not begin transactions by itself
        cursor = dbapi_connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        if read_only:
            cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)
