"""What `molecule_runtime` offers, and that looking at it costs nothing."""

from __future__ import annotations

import pytest

import molecule_runtime

from .support import python


def test_every_public_name_can_be_used() -> None:
    """design: public names, __all__, __version__."""
    assert molecule_runtime.__all__ == sorted(molecule_runtime.__all__)
    for name in molecule_runtime.__all__:
        assert getattr(molecule_runtime, name) is not None
    assert molecule_runtime.ManualClock is molecule_runtime.ManualClock


def test_another_name_is_an_attribute_error() -> None:
    """Ours: as of any module."""
    with pytest.raises(AttributeError):
        molecule_runtime.no_such_name  # noqa: B018 - the access is the test


def test_the_import_brings_neither_an_http_client_nor_pydantic() -> None:
    """agent-side 7: `--version` answers at once."""
    code = """
import sys
import molecule_runtime
heavy = {"httpx", "pydantic", "structlog", "tenacity", "websockets", "anyio", "sqlalchemy", "mcp"}
print(sorted(heavy & set(sys.modules)), molecule_runtime.__version__)
"""
    assert python(code).stdout == f"[] {molecule_runtime.__version__}\n"
