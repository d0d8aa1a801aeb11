"""The doorbell between processes: a write rings it, `Store.watch` hears it. It carries nothing."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

CHANNEL = "molecule_platform"


def ring(connection: Connection) -> None:
    """Tell the other processes, with the commit, that there is something to read.

    On SQLite the commit itself is what they notice.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_notify(CHANNEL, "")))
