"""Fixtures of the black-box tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.support.host import Host
from tests.support.platform import no_platform

RUDE_SERVER = (sys.executable, "-m", "tests.stdio.servers.rude_tools")


@pytest.fixture(scope="module")
def rude_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """An initialized session with misbehaving tools and no platform, shared by the tests of a module."""
    with Host(no_platform(), state=tmp_path_factory.mktemp("state"), command=RUDE_SERVER) as host:
        host.initialize()
        yield host
