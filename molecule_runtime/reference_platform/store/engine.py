"""The way into the database: `read` and `write` run a function of a connection inside one transaction.

A work function is plain synchronous SQLAlchemy Core, `work(connection, *args)`, so the same function runs on both
databases: SQLite on threads of our own (`sqlite.py`), PostgreSQL over asyncpg (`postgres.py`). A reader sees one
snapshot and cannot write. Two writers never see each other half done: SQLite has one writer at a time, on PostgreSQL
work locks the row it judges (`with_for_update`) or takes a named lock (`locks.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import anyio.to_thread
from alembic.util.exc import CommandError
from sqlalchemy import Connection
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from molecule_runtime.reference_platform.store.postgres import PostgresDatabase
from molecule_runtime.reference_platform.store.schema import PLATFORM, Schema
from molecule_runtime.reference_platform.store.sqlite import SqliteDatabase

P = ParamSpec("P")
T = TypeVar("T")


class StoreError(Exception):
    """The database did not do what it was asked: never a statement about what is or is not in it."""

    @property
    def reason(self) -> str:
        """One line for the operator: what the driver said."""
        cause = self.__cause__
        said = str(getattr(cause, "orig", None) or cause or "").strip()
        return said.splitlines()[0] if said else str(self)


class Database(Protocol):
    """What `Store` needs of each kind of database. `failures` are the exceptions that mean "the database failed"."""

    failures: tuple[type[Exception], ...]

    def migrate(self) -> None:
        """Bring the schema to the newest revision; blocks."""

    async def read(self, work: Callable[[Connection], T]) -> T: ...

    async def write(self, work: Callable[[Connection], T]) -> T: ...

    async def watch(self, on_ring: Callable[[], None], on_lost: Callable[[], None]) -> None:
        """Call `on_ring` in this loop whenever another process may have written something; until cancelled.

        `on_lost` says that rings are missed from now on, until the next `on_ring`.
        """

    async def close(self) -> None: ...


class Store:
    """One database. Create it inside the loop that uses it; `close` it there.

    Parameters are hidden in errors, since errors are logged and parameters are messages and token digests.
    """

    def __init__(self, url: str, schema: Schema = PLATFORM) -> None:
        """Nothing is opened yet. `schema` is what `migrate` brings the database to.

        Raises:
            StoreError: `url` is no database URL.
        """
        self.url = _parsed(url)
        self._migrated = False
        self._database: Database = (
            SqliteDatabase(self.url, schema)
            if self.url.get_backend_name() == "sqlite"
            else PostgresDatabase(self.url, schema)
        )

    async def migrate(self) -> None:
        """Bring the schema to the newest revision, once for each store; nothing happens when it is there already.

        Raises:
            StoreError: the database cannot be opened or altered, or is not one that the revisions lead on from: a newer
                program has made it.
        """
        if self._migrated:
            return
        failures: tuple[type[Exception], ...] = (*self._database.failures, CommandError)
        try:
            await anyio.to_thread.run_sync(self._database.migrate)  # Alembic reads files and blocks
        except failures as error:
            raise StoreError(type(error).__name__) from error
        self._migrated = True

    async def read(self, work: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` on one consistent snapshot; it must not write.

        Raises:
            StoreError: the database failed.
        """
        try:
            return await self._database.read(lambda connection: work(connection, *args, **kwargs))
        except self._database.failures as error:
            raise StoreError(type(error).__name__) from error

    async def write(self, work: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in a transaction and commit; when it raises, nothing of it stays.

        Whoever is cancelled while it waits does not learn whether the work was done.

        Raises:
            StoreError: the database failed, or another process held the write lock for too long.
        """
        try:
            return await self._database.write(lambda connection: work(connection, *args, **kwargs))
        except self._database.failures as error:
            raise StoreError(type(error).__name__) from error

    async def watch(self, on_ring: Callable[[], None], on_lost: Callable[[], None]) -> None:
        """Call `on_ring` when a process has rung the doorbell, and whenever rings may have been missed.

        Runs until cancelled; a database that goes away is waited for, which `on_lost` announces.
        """
        await self._database.watch(on_ring, on_lost)

    async def close(self) -> None:
        await self._database.close()


def shown(url: str) -> str:
    """A database URL as people may see it: without password and without options, which can hold one too."""
    try:
        return make_url(url).set(query={}).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return url.partition("://")[0] + "://..."


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        raise StoreError("not a database URL") from None  # the parser's own words may quote a password
