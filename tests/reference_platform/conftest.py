"""Fixtures of the platform's tests."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.reference_platform.store.tables import metadata
from tests.support import postgres

from .support import ADMIN, Database, Platform, PostgresDatabase, SqliteFile, running


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Keep logs out of the output: rendering a traceback for a console takes seconds."""
    with capture_logs():
        yield


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


class SharedDatabase:
    """One migrated PostgreSQL database that tests use in turn: emptying it is quicker than making another."""

    def __init__(
        self, cluster: postgres.Cluster, migrate: Callable[[str], Coroutine[Any, Any, None]], tables: Sequence[str]
    ) -> None:
        """`tables` in the order in which they can be emptied."""
        self._cluster = cluster
        self._migrate = migrate
        self._tables = tables
        self._name: str | None = None

    @contextmanager
    def lend(self) -> Iterator[PostgresDatabase]:
        """The database, empty. A test that alters its tables leaves it to be thrown away."""
        if self._name is None:
            self._name = self._cluster.create()
            asyncio.run(self._migrate(self._cluster.url(self._name)))
        database = PostgresDatabase(self._cluster, self._name)
        yield database
        if database.altered:
            self._cluster.drop(self._name)
            self._name = None
        else:
            self._cluster.empty(self._name, self._tables)


async def _migrate(url: str) -> None:
    store = Store(url)
    await store.migrate()
    await store.close()


@pytest.fixture(scope="session")
def shared(cluster: postgres.Cluster) -> SharedDatabase:
    return SharedDatabase(cluster, _migrate, [table.name for table in reversed(metadata.sorted_tables)])


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with all tables and no rows: copying it is quicker than migrating another."""
    file = tmp_path_factory.mktemp("template") / "platform.sqlite3"
    asyncio.run(_migrate(f"sqlite:///{file}"))
    return file


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A fresh database of each kind, with its tables unless the test is marked `unmigrated`."""
    if request.param == "sqlite":
        file = tmp_path / "platform.sqlite3"
        if not request.node.get_closest_marker("unmigrated"):
            shutil.copy(request.getfixturevalue("migrated_file"), file)
        yield SqliteFile(file)
        return
    cluster: postgres.Cluster = request.getfixturevalue("cluster")
    if request.node.get_closest_marker("unmigrated"):
        name = cluster.create()
        yield PostgresDatabase(cluster, name)
        cluster.drop(name)
        return
    shared: SharedDatabase = request.getfixturevalue("shared")
    with shared.lend() as database:
        yield database


@pytest.fixture
def config(database: Database) -> PlatformConfig:
    """Development mode: loopback, no ADMIN_TOKEN. Its own sweeps never come, so that they do not race with a test's.

    A memory plugin has time to answer on a busy machine.
    """
    never = 10.0**9
    return PlatformConfig(
        database=database.url,
        port=0,
        sweep_interval_s=never,
        pending_uploads_sweep_s=never,
        delegation_sweeper_interval_s=never,
        memory_plugin_timeout_s=10,
    )


@pytest.fixture
async def platform(config: PlatformConfig, clock: ManualClock) -> AsyncIterator[Platform]:
    """A platform in development mode."""
    async with running(config, clock) as platform:
        yield platform


@pytest.fixture
async def locked(config: PlatformConfig, clock: ManualClock) -> AsyncIterator[Platform]:
    """A platform with ADMIN_TOKEN set."""
    async with running(replace(config, admin_token=ADMIN), clock) as platform:
        yield platform


@pytest.fixture
async def fresh(config: PlatformConfig, clock: ManualClock) -> AsyncIterator[Platform]:
    """A new platform on loopback without ADMIN_TOKEN whose MOLECULE_ENV rules development mode out."""
    async with running(replace(config, environment="production"), clock) as platform:
        yield platform


@pytest.fixture
async def production(fresh: Platform) -> Platform:
    """The same, no longer new: the token of a first workspace is its key to the admin routes (contract 1.4)."""
    operator = await fresh.create("operator")
    return replace(fresh, admin=operator.headers)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "unmigrated: the database of this test has no tables yet")
