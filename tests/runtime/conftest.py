"""Fixtures of the agent side's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.state import WorkspaceState
from tests.reference_platform.support import Member, Platform
from tests.reference_platform.support import running as running_platform

from .support import state_in


@pytest.fixture
def clock() -> ManualClock:
    """The agent's clock; the platform has one of its own."""
    return ManualClock()


@pytest.fixture
def platform_clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def state(tmp_path: Path) -> WorkspaceState:
    return state_in(tmp_path / "state")


@pytest.fixture
async def platform(tmp_path: Path, platform_clock: ManualClock) -> AsyncIterator[Platform]:
    """A reference platform in process, in development mode."""
    config = PlatformConfig(database=str(tmp_path / "platform.sqlite3"), port=0)
    async with running_platform(config, platform_clock) as platform:
        yield platform


@pytest.fixture
async def member(platform: Platform) -> Member:
    """A polling workspace whose agent has not come yet."""
    return await platform.create("laptop", delivery_mode="poll")
