"""Bringing a database to the newest revision: Alembic, driven from here, without an ini file.

The revisions live beside this file in `migrations/versions` and ship with the package.
"""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from molecule_runtime.reference_platform.store.locks import Lock, exclusively

MIGRATIONS = Path(__file__).parent / "migrations"
_ALEMBIC = threading.Lock()
"""Alembic keeps the running migration in a module, so only one thread of a process may migrate at a time."""


def upgrade_to_head(connection: Connection) -> None:
    """Apply what is missing inside the caller's transaction: all of it or nothing."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    exclusively(connection, Lock.MIGRATION)
    with _ALEMBIC:
        command.upgrade(config, "head")
