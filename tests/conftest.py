"""Fixtures of the whole suite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.support import postgres
from tests.support.platform import PlatformProcess


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _quiet_and_fresh_logging() -> Iterator[None]:
    """Each test starts with structlog as it is at import."""
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgres.Cluster]:
    """A PostgreSQL server for this worker."""
    programs = postgres.binaries()
    if programs is None:
        missing = "PostgreSQL is not installed (initdb neither on PATH nor in /usr/lib/postgresql/*/bin)"
        if os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(missing)
        pytest.skip(missing)
    with postgres.Cluster(programs) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def platform_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlatformProcess]:
    """One platform process for the black-box tests of a worker; each test makes a workspace of its own."""
    database: Path = tmp_path_factory.mktemp("platform") / "platform.sqlite3"
    with PlatformProcess(database, REMOTE_LIVENESS_STALE_AFTER="3", REMOTE_LIVENESS_SWEEP_S="0.25") as platform:
        yield platform
