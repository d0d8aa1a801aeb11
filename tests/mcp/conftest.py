"""Fixtures of the in-process tests: a real runtime thread without a platform."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from molecule_runtime.runtime import Runtime, RuntimeThread
from molecule_runtime.settings import Settings
from molecule_runtime.state import StateDir
from tests.support.platform import eventually, no_platform


@dataclass(frozen=True)
class Running:
    """What `build_server` wants: settings, and the bridge to a runtime that runs."""

    settings: Settings
    bridge: RuntimeThread


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """A runtime whose platform cannot be reached and which does not beat, so that no presence is told."""
    settings = Settings.from_env(no_platform() | {"MOLECULE_MCP_DISABLE_HEARTBEAT": "1"})
    bridge = RuntimeThread(lambda: Runtime(settings, state_dir=StateDir.open(tmp_path, home=tmp_path)))
    bridge.start()
    eventually(lambda: bridge.glance(lambda runtime: runtime), within_s=10)
    yield Running(settings, bridge)
    assert bridge.stop(5)
