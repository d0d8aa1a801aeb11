"""The store: migrations, transactions, readers beside writers, on both databases."""

from __future__ import annotations

import sqlite3
import threading
import traceback
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, select, text

from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.store.engine import Store, StoreError
from molecule_runtime.reference_platform.store.tables import metadata, workspaces

from .support import Database, PostgresDatabase, SqliteFile, only, running, schema, tables, until

NEWEST = [("0005",)]
INSERT = (
    "INSERT INTO workspaces (id, name, tier, status, runtime, delivery_mode, url, active_tasks, "
    "max_concurrent_tasks, last_error_rate, last_sample_error, uptime_seconds, current_task, monthly_spend, x, y, "
    "collapsed, last_seq, last_row_us, created_at, updated_at) VALUES "
    "('{id}', '{id}', 3, 'online', 'external', 'poll', '', 0, 1, 0, '', 0, '', 0, 0, 0, false, 0, 0, "
    "'2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000')"
)


@pytest.fixture
async def store(config: PlatformConfig) -> AsyncIterator[Store]:
    store = Store(config.database_url)
    await store.migrate()
    yield store
    await store.close()


def add(connection: Connection, name: str) -> None:
    connection.exec_driver_sql(INSERT.format(id=name))


def names(connection: Connection) -> list[str]:
    return list(connection.execute(select(workspaces.c.id).order_by(workspaces.c.id)).scalars())


@pytest.mark.unmigrated
async def test_a_fresh_database_is_migrated_and_a_second_start_changes_nothing(
    config: PlatformConfig, database: Database
) -> None:
    """The lifespan brings a new database to the newest revision and keeps what an old one holds (ours, style 3.17)."""
    async with running(config) as platform:
        member = await platform.join()
    first = schema(database)
    assert tables(database) == {"alembic_version", *metadata.tables}
    assert database.sql("SELECT version_num FROM alembic_version") == NEWEST
    async with running(config) as platform:
        assert await platform.status(member) == "online"
        assert await platform.rows(member) == []
    assert schema(database) == first
    assert database.sql("SELECT version_num FROM alembic_version") == NEWEST


async def test_migrations_and_tables_say_the_same(store: Store) -> None:
    """Alembic finds no difference between the live schema and the tables in code (ours)."""

    def comparable(_item: object, name: str | None, kind: str, *_: object) -> bool:
        # On SQLite the terms are in a virtual table, of which Alembic sees neither types nor keys.
        virtual = kind == "table" and (name or "").startswith("agent_memory_terms")
        return not virtual or store.url.get_backend_name() != "sqlite"

    def differences(connection: Connection) -> list[object]:
        opts = {"compare_type": True, "include_object": comparable}
        context = MigrationContext.configure(connection, opts=opts)
        return list(compare_metadata(context, metadata))

    assert await store.read(differences) == []


@pytest.mark.unmigrated
async def test_several_platforms_may_start_on_one_new_database_at_once(
    config: PlatformConfig, database: Database
) -> None:
    """Migrating takes a lock first, so the second finds it done (ours)."""
    stores = [Store(config.database_url) for _ in range(3)]
    async with anyio.create_task_group() as tasks:
        for store in stores:
            tasks.start_soon(store.migrate)
    for store in stores:
        await store.close()
    assert database.sql("SELECT version_num FROM alembic_version") == NEWEST


async def test_a_file_that_cannot_be_opened_is_a_store_error(tmp_path: Path) -> None:
    """A missing directory and a file of another kind stop the start with the typed error (R22)."""
    for path in (tmp_path / "missing" / "x.sqlite3", tmp_path / "text.sqlite3"):
        (tmp_path / "text.sqlite3").write_text("this is no database, but it is long enough to look at" * 50)
        store = Store(PlatformConfig(database=str(path)).database_url)
        with pytest.raises(StoreError):
            await store.migrate()
        with pytest.raises(StoreError):
            await store.read(names)
        with pytest.raises(StoreError):
            await store.write(add, "a")
        await store.close()


@only("postgresql")  # a server has more ways not to be there than a file
@pytest.mark.parametrize("change", [{"database": "nowhere"}, {"host": "127.0.0.1", "port": 9, "query": {}}])
async def test_a_server_that_cannot_be_used_is_a_store_error(store: Store, change: dict[str, object]) -> None:
    """Nobody listens, or there is no such database: the typed error for every kind of use (R22)."""
    lost = Store(store.url.set(**change).render_as_string(hide_password=False))  # type: ignore[arg-type]
    for use in (lost.migrate, lambda: lost.read(names), lambda: lost.write(add, "a")):
        with anyio.fail_after(5), pytest.raises(StoreError):
            await use()
    await lost.close()


async def test_a_url_that_is_none_is_a_store_error_that_quotes_nothing() -> None:
    """What cannot be parsed may hold a password anywhere (ours)."""
    for url in ("postgresql+asyncpg://me:secret@host:port/d", "secret"):
        with pytest.raises(StoreError) as failure:
            Store(url)
        assert "secret" not in "".join(traceback.format_exception(failure.value)).replace('"secret"', "")


@only("sqlite")  # pragmas are SQLite's
async def test_connections_are_set_up_for_several_processes(store: Store) -> None:
    """WAL, NORMAL, foreign keys, a busy timeout; readers cannot write; a log that was large is cut (ours)."""

    def pragmas(connection: Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "query_only", "journal_size_limit")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

    assert await store.write(pragmas) == ["wal", 1, 1, 5000, 0, 67_108_864]
    assert await store.read(pragmas) == ["wal", 1, 1, 5000, 1, -1]


async def test_a_read_sees_one_snapshot(store: Store, database: Database) -> None:
    """What is committed between two statements of one read is not seen by the second (ours)."""

    def look_twice(connection: Connection) -> tuple[list[str], list[str]]:
        before = names(connection)
        database.sql(INSERT.format(id="b"))
        return before, names(connection)

    await store.write(add, "a")
    assert await store.read(look_twice) == (["a"], ["a"])
    assert await store.read(names) == ["a", "b"]


@only("sqlite")  # a PostgreSQL server has no lock on the whole database
async def test_a_read_goes_on_while_another_process_holds_the_write_lock(store: Store, database: SqliteFile) -> None:
    """Readers never wait for a writer (ours)."""
    with closing(sqlite3.connect(database.path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with anyio.fail_after(2):
            assert await store.read(lambda c: c.execute(text("SELECT count(*) FROM workspaces")).scalar()) == 0
        writer.execute("ROLLBACK")


@only("sqlite")  # on PostgreSQL a work locks the rows it judges instead
async def test_a_write_holds_the_lock_from_its_beginning(store: Store, database: SqliteFile) -> None:
    """A transaction that will write cannot be overtaken between its read and its write (ours, style 3.17)."""

    def another_writer_is_shut_out(_connection: Connection) -> str:
        with closing(sqlite3.connect(database.path, timeout=0, isolation_level=None)) as rival:
            try:
                rival.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                return str(error)
        return "let in"

    assert await store.write(another_writer_is_shut_out) == "database is locked"
    assert await store.read(another_writer_is_shut_out) == "let in"


async def test_a_write_that_raises_leaves_nothing_and_the_store_goes_on(store: Store, database: Database) -> None:
    """Work is all or nothing; its own exceptions pass through unchanged (ours)."""

    def insert_and_fail(connection: Connection) -> None:
        add(connection, "a")
        raise KeyError("ours")

    with pytest.raises(KeyError):
        await store.write(insert_and_fail)
    assert database.sql("SELECT count(*) FROM workspaces") == [(0,)]
    with pytest.raises(StoreError):
        await store.write(lambda connection: connection.exec_driver_sql("INSERT INTO nowhere VALUES (1)"))
    with pytest.raises(StoreError):
        await store.read(add, "a")
    await store.write(add, "a")
    assert database.sql("SELECT count(*) FROM workspaces") == [(1,)]


class Gate:
    """A work that holds the writing thread, so that what comes after it queues up and makes one group."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._reached = threading.Event()

    def work(self, _connection: Connection) -> None:
        self._reached.set()
        self._open.wait(10)

    async def reached(self) -> bool:
        return self._reached.is_set()

    def open(self) -> None:
        self._open.set()


@only("sqlite")  # groups are made for SQLite, where a commit is dear and writers come one by one
async def test_of_a_group_only_the_work_that_fails_is_undone(store: Store, database: Database) -> None:
    """Works that share a transaction do not share a failure, whoever raises it (ours)."""
    gate = Gate()
    seen: list[object] = []

    async def attempt(name: str, work: object = add) -> None:
        try:
            await store.write(work, name)  # type: ignore[arg-type]
        except (KeyError, StoreError) as error:
            seen.append((name, type(error).__name__))

    def add_and_fail(connection: Connection, name: str) -> None:
        add(connection, name)
        raise KeyError(name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.write, gate.work)
        await until(gate.reached)
        tasks.start_soon(attempt, "a")
        tasks.start_soon(attempt, "b", add_and_fail)
        tasks.start_soon(attempt, "a")  # violates the primary key
        tasks.start_soon(attempt, "c")
        await anyio.wait_all_tasks_blocked()
        gate.open()
    assert seen == [("b", "KeyError"), ("a", "StoreError")]
    assert database.sql("SELECT id FROM workspaces ORDER BY id") == [("a",), ("c",)]


@only("sqlite")  # see above
async def test_nobody_hears_of_success_before_the_commit(store: Store, database: SqliteFile) -> None:
    """When the commit fails, every work of the group has failed, and the next group is served (ours, R22)."""
    gate = Gate()
    failed: list[str] = []

    def owe_a_parent(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")  # the debt is noticed at the commit
        add(connection, "child")
        connection.exec_driver_sql("UPDATE workspaces SET parent_id = 'nobody' WHERE id = 'child'")

    async def attempt(name: str, *work: object) -> None:
        try:
            await store.write(*work)  # type: ignore[arg-type]
        except StoreError:
            failed.append(name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.write, gate.work)
        await until(gate.reached)
        tasks.start_soon(attempt, "innocent", add, "a")
        tasks.start_soon(attempt, "debtor", owe_a_parent)
        await anyio.wait_all_tasks_blocked()
        gate.open()
    assert failed == ["innocent", "debtor"]
    assert database.sql("SELECT count(*) FROM workspaces") == [(0,)]
    await store.write(add, "a")
    assert await store.read(names) == ["a"]


async def test_works_that_judge_before_they_write_do_not_overtake_each_other(store: Store) -> None:
    """Twenty increments of one row at once count twenty, on a row that each has locked (ours, style 3.17)."""
    await store.write(add, "a")

    def increment(connection: Connection) -> None:
        row = select(workspaces.c.last_seq).where(workspaces.c.id == "a").with_for_update()
        value = connection.execute(row).scalar_one()
        connection.execute(workspaces.update().where(workspaces.c.id == "a").values(last_seq=value + 1))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(store.write, increment)
    assert await store.read(lambda c: c.execute(select(workspaces.c.last_seq)).scalar_one()) == 20


@only("postgresql")  # a file does not hang up
async def test_connections_that_the_server_cut_are_replaced(store: Store, database: PostgresDatabase) -> None:
    """After a restart of the server nobody gets an error for a connection of before (ours, R22)."""
    await store.write(add, "a")
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> {own}"
    assert (True,) in database.sql(cut.format(own="pg_backend_pid()"))
    await store.write(add, "b")
    assert await store.read(names) == ["a", "b"]


async def test_errors_of_the_store_do_not_quote_what_was_written(store: Store) -> None:
    """Tracebacks are logged, so they must not hold messages or digests (ours, style 4)."""
    statement = text("INSERT INTO nowhere VALUES (:words)")
    words = {"words": " ".join(("secret", "words"))}  # joined, or the traceback would quote this line
    with pytest.raises(StoreError) as failure:
        await store.write(lambda connection: connection.execute(statement, words))
    told = "".join(traceback.format_exception(failure.value))
    assert "nowhere" in told
    assert "secret words" not in told
