"""Fixtures of the platform's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.config import PlatformConfig

from .support import ADMIN, Platform, running


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


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "platform.sqlite3"


@pytest.fixture
def config(database: Path) -> PlatformConfig:
    """Development mode: loopback, no ADMIN_TOKEN."""
    return PlatformConfig(database=str(database), port=0)


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
