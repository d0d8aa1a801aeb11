"""Named locks shared by all platform processes on one database."""

from __future__ import annotations

from enum import IntEnum

from sqlalchemy import Connection, func, select


class Lock(IntEnum):
    """Keys of PostgreSQL's advisory locks."""

    MIGRATION = 0x6D6F6C01
    STALE_SWEEP = 0x6D6F6C02
    EVENTS = 0x6D6F6C03
    RETENTION = 0x6D6F6C04
    UPLOAD_SWEEP = 0x6D6F6C05


def exclusively(connection: Connection, lock: Lock) -> None:
    """Hold `lock` until the transaction ends; every other transaction that wants it waits.

    A SQLite writer is alone already.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(int(lock))))
