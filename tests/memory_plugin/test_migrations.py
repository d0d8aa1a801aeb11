"""The plugin's schema: as the tables in code say, beside a platform's, and from a directory of somebody's own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from molecule_runtime.memory_plugin.config import PluginConfig
from molecule_runtime.memory_plugin.store.tables import MIGRATIONS, SCHEMA, VERSION_TABLE, metadata
from molecule_runtime.reference_platform.store.engine import Store, StoreError
from molecule_runtime.reference_platform.store.schema import PLATFORM, Schema
from tests.reference_platform.support import Database, SqliteFile, tables

from .support import running


async def migrate(database: Database, schema: Schema = SCHEMA) -> None:
    url = database.url if "://" in database.url else f"sqlite:///{database.url}"
    store = Store(url, schema)
    try:
        await store.migrate()
    finally:
        await store.close()


async def test_migrations_and_tables_say_the_same(config: PluginConfig, database: Database) -> None:
    """Alembic finds no difference between the live schema and the tables in code (ours)."""

    def comparable(_item: object, name: str | None, kind: str, *_: object) -> bool:
        # On SQLite the terms are in a virtual table, of which Alembic sees neither types nor keys.
        return database.kind == "postgresql" or kind != "table" or not (name or "").startswith("memory_terms")

    def differences(connection: Connection) -> list[object]:
        opts = {"compare_type": True, "include_object": comparable, "version_table": VERSION_TABLE}
        return list(compare_metadata(MigrationContext.configure(connection, opts=opts), metadata))

    store = Store(config.database_url, SCHEMA)
    assert await store.read(differences) == []
    await store.close()
    assert tables(database) == {VERSION_TABLE, *metadata.tables}


async def test_a_platform_may_live_in_the_same_database(tmp_path: Path) -> None:
    """No name of one is a name of the other, whoever comes second (ours)."""
    for order in ((SCHEMA, PLATFORM), (PLATFORM, SCHEMA)):
        database = SqliteFile(tmp_path / f"{order[0].version_table}.sqlite3")
        for schema in (*order, *order):
            await migrate(database, schema)
        assert {VERSION_TABLE, "alembic_version", "memory_records", "agent_memories"} <= tables(database)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A directory with a copy of the plugin's revisions."""
    directory = tmp_path / "own %(here)s"
    shutil.copytree(MIGRATIONS, directory, ignore=shutil.ignore_patterns("__pycache__", "__init__.py"))
    return directory


REVISION = '''
"""Somebody's own."""
from alembic import op
revision = "{number}"
down_revision = "{after}"
def upgrade() -> None:
    op.execute("CREATE TABLE own_{number} (x integer)")
'''


async def test_revisions_of_ones_own_take_the_place_of_the_packaged(
    config: PluginConfig, database: Database, own: Path
) -> None:
    """MEMORY_PLUGIN_MIGRATIONS_DIR: what it adds is applied, in order, to a database that is there (7.5)."""
    (own / "0003_more.py").write_text(REVISION.format(number="0003", after="0002"))
    (own / "0002_more.py").write_text(REVISION.format(number="0002", after="0001"))
    async with running(replace(config, migrations=own)) as plugin:
        await plugin.write("kept")
    assert {"own_0002", "own_0003"} < tables(database)
    assert database.sql(f"SELECT version_num FROM {VERSION_TABLE}") == [("0003",)]
    database.sql("DROP TABLE own_0002")  # a database that a test altered is not lent again


@pytest.mark.parametrize("mistake", ["two heads", "newer database"])
async def test_revisions_that_cannot_be_applied_are_a_store_error(
    sqlite_file: SqliteFile, own: Path, mistake: str
) -> None:
    """Whoever starts it is told in a sentence, not by a traceback (ours, R22)."""
    if mistake == "newer database":
        sqlite_file.sql(f"UPDATE {VERSION_TABLE} SET version_num = '0009'")
    for number in ("0002", "0003") if mistake == "two heads" else ():
        (own / f"{number}_more.py").write_text(REVISION.format(number=number, after="0001"))
    with pytest.raises(StoreError) as failure:
        await migrate(sqlite_file, Schema(own, VERSION_TABLE))
    assert failure.value.reason
