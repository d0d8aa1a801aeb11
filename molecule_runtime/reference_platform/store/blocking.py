"""Blocking calls inside a work, such as reading a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import anyio.to_thread
from sqlalchemy import Connection

T = TypeVar("T")


def off_the_loop(connection: Connection, call: Callable[[], T]) -> T:
    """What `call` returns. SQLite's works have a thread of their own; PostgreSQL's run in the loop, which goes on."""
    driver: Any = connection.connection.dbapi_connection
    if connection.dialect.name != "postgresql":
        return call()
    result: T = driver.run_async(lambda _driver: anyio.to_thread.run_sync(call))
    return result
