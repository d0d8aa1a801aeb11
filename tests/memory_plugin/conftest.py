"""Fixtures of the memory plugin's tests."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from molecule_runtime.clock import ManualClock
from molecule_runtime.memory_plugin.config import PluginConfig
from molecule_runtime.memory_plugin.store.tables import SCHEMA, metadata
from molecule_runtime.reference_platform.store.engine import Store
from tests.reference_platform.conftest import SharedDatabase
from tests.reference_platform.support import Database, PostgresDatabase, SqliteFile
from tests.support import postgres

from .support import Plugin, running


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Keep logs out of the output: rendering a traceback for a console takes seconds."""
    with capture_logs():
        yield


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def _migrate(url: str) -> None:
    store = Store(url, SCHEMA)
    await store.migrate()
    await store.close()


@pytest.fixture(scope="session")
def shared_memories(cluster: postgres.Cluster) -> SharedDatabase:
    return SharedDatabase(cluster, _migrate, [table.name for table in reversed(metadata.sorted_tables)])


@pytest.fixture(scope="session")
def migrated_memories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with all tables and no rows: copying it is quicker than migrating another."""
    file = tmp_path_factory.mktemp("template") / "memory.sqlite3"
    asyncio.run(_migrate(f"sqlite:///{file}"))
    return file


@pytest.fixture
def sqlite_file(tmp_path: Path, migrated_memories: Path) -> SqliteFile:
    file = tmp_path / "memory.sqlite3"
    shutil.copy(migrated_memories, file)
    return SqliteFile(file)


@pytest.fixture
def postgres_database(shared_memories: SharedDatabase) -> Iterator[PostgresDatabase]:
    with shared_memories.lend() as database:
        yield database


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Database:
    """A fresh database of each kind, with its tables."""
    database: Database = request.getfixturevalue("sqlite_file" if request.param == "sqlite" else "postgres_database")
    return database


@pytest.fixture
def config(database: Database) -> PluginConfig:
    return configured(database)


def configured(database: Database) -> PluginConfig:
    """Its own sweep never comes, so that it does not race with a test's."""
    config = PluginConfig.from_env({}, port=0, database=database.url, default_database=Path("nowhere"))
    return replace(config, sweep_interval_s=10.0**9)


@pytest.fixture
async def plugin(config: PluginConfig, clock: ManualClock) -> AsyncIterator[Plugin]:
    async with running(config, clock) as plugin:
        yield plugin


@pytest.fixture
async def sqlite_plugin(sqlite_file: SqliteFile, clock: ManualClock) -> AsyncIterator[Plugin]:
    """For what never reaches a database."""
    async with running(configured(sqlite_file), clock) as plugin:
        yield plugin
