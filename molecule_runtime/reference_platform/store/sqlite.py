"""SQLite: one thread that writes, a few that read.

The writer takes what has queued up as one group: one transaction (BEGIN IMMEDIATE, so that nothing can change below
a work that reads and then writes), a savepoint for each work, one commit. A work that fails is rolled back to its
savepoint alone; nobody hears of success before the commit. Under load this is what makes a small file keep up with
thousands of workspaces, and alone a work waits for nobody.

Readers have connections of their own and, with the write-ahead log, never wait for a writer. Other processes may use
the same file.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio.to_thread
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from molecule_runtime.reference_platform.store.schema import Schema

BUSY_TIMEOUT_MS = 5_000
"""How long a writer waits for another process's transaction before it gives up."""
WAL_RETRY_S = 0.02
"""Seconds between two attempts to switch a new file to its write-ahead log while others try the same."""
LOG_BYTES = 64 * 1024 * 1024
"""What is left of the write-ahead log when it begins anew: an upload of 50 MB makes it grow far beyond."""
READERS = 2
"""Reading threads: SQLite's part of a read is short, and Python runs one thread at a time."""
LOOK_S = 0.05
"""Seconds between two looks at the file's version: how late an event of another process may come."""
GROUP = 64
"""Works in one transaction at most, so that the first of a long queue does not wait for the last."""
_CREATION = threading.Lock()

T = TypeVar("T")


class _Vanished(sqlite3.OperationalError):
    """SQLite ended the transaction by itself (disk full, I/O error): nothing of the group stays."""


@dataclass
class _Job:
    """A work, who waits for it, and what became of it."""

    work: Callable[[Connection], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def settle(self) -> None:
        """Answer the one who waits; in the loop's thread."""
        if self.future.done():  # cancelled meanwhile
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class SqliteDatabase:
    """One SQLite file; see the top of the module. Threads start with the first use and end with `close`."""

    failures: tuple[type[Exception], ...] = (SQLAlchemyError, sqlite3.Error, OSError)

    def __init__(self, url: URL, schema: Schema) -> None:
        self._url = url.set(drivername="sqlite")
        self._schema = schema
        self._writer = _Writer(_engine(self._url, begin="BEGIN IMMEDIATE", read_only=False))
        self._readers = _Readers(_engine(self._url, begin="BEGIN", read_only=True))

    def migrate(self) -> None:
        """Bring the schema to the newest revision; blocks."""
        _create_private(self._url)
        engine = _engine(self._url, begin="BEGIN IMMEDIATE", read_only=False)
        _switch_to_wal(engine)
        with engine.begin() as connection:
            self._schema.upgrade_to_head(connection)

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await self._readers.run(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        return await self._writer.run(work)

    async def watch(self, on_ring: Callable[[], None], on_lost: Callable[[], None]) -> None:
        """Look at the file's version from a thread: a change by any connection but the looking one shows there.

        A look that fails is followed by one that shows the change, so nothing is ever lost.
        """
        loop = asyncio.get_running_loop()
        stop = threading.Event()

        def ring() -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(on_ring)

        watcher = threading.Thread(target=_watch, args=(self._url, ring, stop), name="store-watcher", daemon=True)
        watcher.start()
        try:
            await loop.create_future()
        finally:
            stop.set()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(watcher.join)

    async def close(self) -> None:
        # The writer last: whoever closes the file last folds the write-ahead log into it.
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._readers.close)
            await anyio.to_thread.run_sync(self._writer.close)


def _watch(url: URL, ring: Callable[[], None], stop: threading.Event) -> None:
    version = None
    with closing(_engine(url, begin="BEGIN", read_only=True).raw_connection()) as connection:
        cursor = connection.cursor()
        while not stop.wait(LOOK_S):
            with suppress(sqlite3.Error):  # the next look tells
                seen = cursor.execute("PRAGMA data_version").fetchone()
                if seen != version:
                    version = seen
                    ring()


class _Writer:
    """The writing thread and its queue."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, work: Callable[[Connection], T]) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work_off, name="store-writer", daemon=True)
            self._thread.start()
        self._jobs.put(_Job(work, loop, future))
        return await future

    def close(self) -> None:
        """Finish what is queued and end the thread."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work_off(self) -> None:
        connection: Connection | None = None
        while group := self._next_group():
            try:
                if connection is None:
                    connection = self._engine.connect()
                _commit_together(connection, group)
            except Exception as error:  # noqa: BLE001 - each job's waiter gets it, and the thread goes on
                for job in group:
                    job.error = job.error or error
                if connection is not None:
                    connection.close()  # a fresh connection for the next group: this one's state is unknown
                    connection = None
            _settle(group)
        if connection is not None:
            connection.close()

    def _next_group(self) -> list[_Job]:
        """What is queued, at least one job; empty at the end."""
        first = self._jobs.get()
        if first is None:
            return []
        group = [first]
        with suppress(queue.Empty):
            while len(group) < GROUP:
                job = self._jobs.get_nowait()
                if job is None:
                    self._jobs.put(None)  # the end comes after this group
                    break
                group.append(job)
        return group


def _commit_together(connection: Connection, group: list[_Job]) -> None:
    """One transaction for the group; a job's own failure is noted in it, a common one raised."""
    with connection.begin():
        raw: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
        for job in group:
            raw.execute("SAVEPOINT work")
            try:
                job.result = job.work(connection)
            except BaseException as error:
                job.error = error
                if not raw.in_transaction:
                    raise _Vanished from error
                raw.execute("ROLLBACK TO work")
            raw.execute("RELEASE work")


def _settle(group: list[_Job]) -> None:
    """Answer all who wait, with one call into each loop."""
    for loop in {job.loop for job in group}:
        jobs = [job for job in group if job.loop is loop]
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle_in_loop, jobs)


def _settle_in_loop(jobs: list[_Job]) -> None:
    for job in jobs:
        job.settle()


class _Readers:
    """Threads with a reading connection each."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")
        self._own = threading.local()
        self._opened: list[Connection] = []

    async def run(self, work: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, work)

    def close(self) -> None:
        self._threads.shutdown()
        for connection in self._opened:
            connection.close()

    def _read(self, work: Callable[[Connection], T]) -> T:
        connection: Connection | None = getattr(self._own, "connection", None)
        if connection is None or connection.invalidated:
            connection = self._own.connection = self._engine.connect()
            self._opened.append(connection)
        with connection.begin():
            return work(connection)


def _engine(url: URL, *, begin: str, read_only: bool) -> Engine:
    """Connections that start transactions with `begin`, made for several processes on one file."""
    engine = create_engine(url, poolclass=NullPool, hide_parameters=True, connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _prepare(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.isolation_level = None  # the driver must not begin transactions by itself
        cursor = dbapi_connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        if read_only:
            cursor.execute("PRAGMA query_only = ON")
        else:  # the writer begins the log anew, and without a limit it never gives its room back
            cursor.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _create_private(url: URL) -> None:
    """Make a missing database file, readable by its owner alone: SQLite would go by the umask.

    The write-ahead log and its index take their modes from the file. One that is there is not touched. What cannot be
    made is left to SQLite, which says why.
    """
    if not url.database or url.database == ":memory:" or "uri" in url.query:
        return
    # Closing a file ends every lock that this process has on it, so no other store may open it in between.
    with _CREATION, suppress(OSError):
        # SQLite creates what a dangling link names, O_EXCL refuses to.
        os.close(os.open(os.path.realpath(url.database), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


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
