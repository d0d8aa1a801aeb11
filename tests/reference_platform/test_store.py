"""The store: migrations, transactions, readers beside writers."""

from __future__ import annotations

import sqlite3
import traceback
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, text

from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.store.engine import Store, StoreError
from molecule_runtime.reference_platform.store.tables import metadata

from .support import running, sql


@pytest.fixture
async def store(config: PlatformConfig) -> AsyncIterator[Store]:
    store = Store(config.database_url)
    await store.migrate()
    yield store
    await store.close()


def schema(database: Path) -> list[tuple[str, ...]]:
    return sql(database, "SELECT type, name, sql FROM sqlite_master ORDER BY type, name")


async def test_fresh_file_is_migrated_and_a_second_start_changes_nothing(
    config: PlatformConfig, database: Path
) -> None:
    """The lifespan brings a new file to the newest revision and keeps what an old one holds (ours, style 3.17)."""
    async with running(config) as platform:
        member = await platform.join()
    first = schema(database)
    assert {name for kind, name, _ in first if kind == "table"} == {
        "alembic_version",
        "workspaces",
        "workspace_tokens",
        "activity_logs",
    }
    revision = sql(database, "SELECT version_num FROM alembic_version")
    async with running(config) as platform:
        assert await platform.status(member) == "online"
        assert await platform.rows(member) == []
    assert schema(database) == first
    assert sql(database, "SELECT version_num FROM alembic_version") == revision == [("0001",)]


async def test_migrations_and_tables_say_the_same(store: Store, database: Path) -> None:
    """Alembic finds no difference between the live schema and the tables in code (ours)."""
    engine = create_engine(f"sqlite:///{database}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


async def test_two_platforms_may_start_on_one_new_file_at_once(config: PlatformConfig, database: Path) -> None:
    """Migrating takes the write lock first, so the second finds it done (ours)."""
    stores = [Store(config.database_url) for _ in range(3)]
    async with anyio.create_task_group() as tasks:
        for store in stores:
            tasks.start_soon(store.migrate)
    for store in stores:
        await store.close()
    assert sql(database, "SELECT version_num FROM alembic_version") == [("0001",)]


async def test_a_database_that_cannot_be_opened_is_a_store_error(tmp_path: Path) -> None:
    """A missing directory and a file of another kind stop the start with the typed error (R22)."""
    for path in (tmp_path / "missing" / "x.sqlite3", tmp_path / "text.sqlite3"):
        (tmp_path / "text.sqlite3").write_text("this is no database, but it is long enough to look at" * 50)
        store = Store(PlatformConfig(database=str(path)).database_url)
        with pytest.raises(StoreError):
            await store.migrate()
        await store.close()


async def test_connections_are_set_up_for_several_processes(store: Store) -> None:
    """WAL, NORMAL, foreign keys, a busy timeout; readers cannot write (ours)."""

    def pragmas(connection: Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "query_only")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

    assert await store.write(pragmas) == ["wal", 1, 1, 5000, 0]
    assert await store.read(pragmas) == ["wal", 1, 1, 5000, 1]


async def test_a_read_goes_on_while_another_process_holds_the_write_lock(store: Store, database: Path) -> None:
    """Readers never wait for a writer (ours)."""
    with closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with anyio.fail_after(2):
            assert await store.read(lambda c: c.execute(text("SELECT count(*) FROM workspaces")).scalar()) == 0
        writer.execute("ROLLBACK")


async def test_a_write_holds_the_lock_from_its_beginning(store: Store, database: Path) -> None:
    """A transaction that will write cannot be overtaken between its read and its write (ours, style 3.17)."""

    def another_writer_is_shut_out(_connection: Connection) -> str:
        with closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as rival:
            try:
                rival.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                return str(error)
        return "let in"

    assert await store.write(another_writer_is_shut_out) == "database is locked"
    assert await store.read(another_writer_is_shut_out) == "let in"


async def test_a_write_that_raises_leaves_nothing_and_the_store_goes_on(store: Store, database: Path) -> None:
    """Work is all or nothing; its own exceptions pass through unchanged (ours)."""
    row = (
        "INSERT INTO workspaces (id, name, tier, status, runtime, delivery_mode, url, active_tasks, "
        "max_concurrent_tasks, last_error_rate, last_sample_error, uptime_seconds, current_task, monthly_spend, x, y, "
        "collapsed, last_seq, last_row_us, created_at, updated_at) VALUES "
        "('a', 'a', 3, 'online', 'external', 'poll', '', 0, 1, 0, '', 0, '', 0, 0, 0, 0, 0, 0, "
        "'2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000')"
    )

    def insert_and_fail(connection: Connection) -> None:
        connection.exec_driver_sql(row)
        raise KeyError("ours")

    with pytest.raises(KeyError):
        await store.write(insert_and_fail)
    assert sql(database, "SELECT count(*) FROM workspaces") == [(0,)]
    with pytest.raises(StoreError):
        await store.write(lambda connection: connection.exec_driver_sql("INSERT INTO nowhere VALUES (1)"))
    with pytest.raises(StoreError):
        await store.read(lambda connection: connection.exec_driver_sql(row))
    await store.write(lambda connection: connection.exec_driver_sql(row))
    assert sql(database, "SELECT count(*) FROM workspaces") == [(1,)]


async def test_errors_of_the_store_do_not_quote_what_was_written(store: Store) -> None:
    """Tracebacks are logged, so they must not hold messages or digests (ours, style 4)."""
    statement = text("INSERT INTO nowhere VALUES (:words)")
    words = {"words": " ".join(("secret", "words"))}  # joined, or the traceback would quote this line
    with pytest.raises(StoreError) as failure:
        await store.write(lambda connection: connection.execute(statement, words))
    told = "".join(traceback.format_exception(failure.value))
    assert "nowhere" in told
    assert "secret words" not in told
