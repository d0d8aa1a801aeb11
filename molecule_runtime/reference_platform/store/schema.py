"""Bringing a database to the newest revision: Alembic, driven from here, without an ini file.

A schema is a directory of numbered revisions, which ship with the package, and the table that says how far a database
has come: so the platform and the memory plugin may share a database.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from molecule_runtime.reference_platform.store.locks import Lock, exclusively

ENVIRONMENT = Path(__file__).parent / "migrations"
"""Holds the env.py with which the revisions of every schema are run."""
_ALEMBIC = threading.Lock()
"""Alembic keeps the running migration in a module, so only one thread of a process may migrate at a time."""


@dataclass(frozen=True)
class Schema:
    """Where the revisions are, and the name of the table that holds the newest one applied."""

    revisions: Path
    version_table: str

    def upgrade_to_head(self, connection: Connection) -> None:
        """Apply what is missing inside the caller's transaction: all of it or nothing."""
        config = self.config()
        config.attributes["connection"] = connection
        exclusively(connection, Lock.MIGRATION)
        with _ALEMBIC:
            command.upgrade(config, "head")

    def config(self) -> Config:
        """What Alembic needs to know, without a connection."""
        config = Config()
        config.set_main_option("script_location", _quoted(ENVIRONMENT))
        config.set_main_option("version_locations", _quoted(self.revisions))
        config.set_main_option("path_separator", "newline")
        config.attributes["version_table"] = self.version_table
        return config


PLATFORM = Schema(ENVIRONMENT / "versions", "alembic_version")


def _quoted(path: Path) -> str:
    return str(path).replace("%", "%%")
