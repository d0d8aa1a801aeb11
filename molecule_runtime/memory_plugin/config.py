"""The plugin's configuration: one frozen object, read once from a mapping (contract 7.5). All problems come together.

Nothing else of the plugin reads the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from molecule_runtime.errors import Problem, SettingsError

HOST = "127.0.0.1"
PORT = 9100
LISTEN_ADDR = "MEMORY_PLUGIN_LISTEN_ADDR"
DATABASE_URL = "MEMORY_PLUGIN_DATABASE_URL"
MIGRATIONS_DIR = "MEMORY_PLUGIN_MIGRATIONS_DIR"
SWEEP_INTERVAL_S = 60.0
POSTGRESQL = "postgresql"
"""As a database it means: PostgreSQL, at the URL in DATABASE_URL, so that no password is in the list of processes."""
DRIVER = "postgresql+asyncpg"
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\s/\[\]]*):(?P<port>[0-9]{1,5})", re.ASCII)


@dataclass(frozen=True)
class PluginConfig:
    """Everything the plugin needs to know. `port` 0 lets the system choose; `database_url` is an SQLAlchemy URL.

    `migrations` is a directory that takes the place of the packaged one.
    """

    database_url: str = field(repr=False)
    host: str = HOST
    port: int = PORT
    migrations: Path | None = None
    sweep_interval_s: float = SWEEP_INTERVAL_S

    @classmethod
    def from_env(
        cls, env: Mapping[str, str] | None = None, *, port: int | None, database: str | None, default_database: Path
    ) -> PluginConfig:
        """Read the configuration from `env` (the process environment when None); `port` and `database` go before it.

        `database` is the path of a SQLite file, a URL, or `postgresql` for the URL in the environment.

        Raises:
            SettingsError: values that cannot be used, or a database URL that was asked for and is missing.
        """
        values = os.environ if env is None else env
        problems: list[Problem] = []
        host, listen_port = _address(values.get(LISTEN_ADDR, ""), problems)
        url = _database(database, values.get(DATABASE_URL), default_database, problems)
        migrations = _directory(values.get(MIGRATIONS_DIR, ""), problems)
        if problems:
            raise SettingsError(tuple(problems))
        return cls(database_url=url, host=host, port=listen_port if port is None else port, migrations=migrations)


def _address(text: str, problems: list[Problem]) -> tuple[str, int]:
    """`host:port`; no host means every address of the machine, as the same variable means elsewhere."""
    bare = text.strip()
    if not bare:
        return HOST, PORT
    match = _ADDRESS.fullmatch(bare)
    if match is None or int(match["port"]) > 65_535:
        fix = f"Write an address and a port, such as {HOST}:{PORT} or [::1]:{PORT}."
        problems.append(Problem("memory_plugin.listen_addr", f"{LISTEN_ADDR} is not an address", fix))
        return HOST, PORT
    return match["host"] or "0.0.0.0", int(match["port"])


def _database(asked: str | None, from_env: str | None, default: Path, problems: list[Problem]) -> str:
    given = asked
    if asked == POSTGRESQL or (asked is None and from_env is not None):
        given = (from_env or "").strip()
        if not given:
            fix = f"Set {DATABASE_URL} to {DRIVER}://user:password@host/name; for a SQLite file unset it or give --db."
            problems.append(Problem("memory_plugin.database_url", f"{DATABASE_URL} is empty or not set", fix))
            return ""
    if given is None:
        return f"sqlite:///{default}"
    if "://" not in given:
        return f"sqlite:///{Path(given).expanduser().absolute()}"
    scheme, _, rest = given.partition("://")
    if scheme in ("postgres", POSTGRESQL, DRIVER):
        return f"{DRIVER}://{rest}".replace("sslmode=", "ssl=")  # the word of other drivers
    if scheme == "sqlite":
        return given
    summary = f"no database of the kind {scheme!r} is known"
    fix = f"Give the path of a SQLite file, or a URL that starts with sqlite:// or {DRIVER}://."
    problems.append(Problem("memory_plugin.database", summary, fix))
    return ""


def _directory(text: str, problems: list[Problem]) -> Path | None:
    if not text.strip():
        return None
    directory = Path(text.strip()).expanduser().absolute()
    if not any(directory.glob("*.py")):
        fix = "Name a directory of Alembic revisions, or unset it for those of the package."
        problems.append(Problem("memory_plugin.migrations_dir", f"{MIGRATIONS_DIR} holds no migrations", fix))
    return directory
