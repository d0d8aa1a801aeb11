"""Migrating from the packaged wheel, not from the source tree: the revisions must be in it."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from molecule_runtime.memory_plugin.store.tables import SCHEMA
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.reference_platform.store.schema import PLATFORM, Schema
from tests.reference_platform.support import Database, PostgresDatabase, SqliteFile, schema
from tests.support.platform import clean_env
from tests.support.postgres import Cluster

ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio, json, sys
from molecule_runtime import __file__ as origin
from molecule_runtime.memory_plugin.store.tables import SCHEMA
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.reference_platform.store.schema import PLATFORM

async def migrate(url, schema):
    store = Store(url, schema)
    await store.migrate()
    await store.close()

async def main(plugins, platforms):
    for url in plugins:
        await migrate(url, SCHEMA)
    for url in platforms:
        await migrate(url, PLATFORM)

asyncio.run(main(*json.loads(sys.argv[1])))
print(origin)
"""


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A directory with what the wheel installs."""
    built, unpacked = tmp_path / "built", tmp_path / "unpacked"
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(unpacked)
    return unpacked


def url_of(database: Database) -> str:
    return database.url if "://" in database.url else f"sqlite:///{database.url}"


async def test_the_wheel_migrates_an_empty_database_and_again_changes_nothing(
    wheel: Path, tmp_path: Path, cluster: Cluster
) -> None:
    """The plugin's and the platform's revisions, on both databases; the schema that the source makes (ours)."""
    plugins: list[Database] = [SqliteFile(tmp_path / "m.sqlite3"), PostgresDatabase(cluster, cluster.create())]
    platforms: list[Database] = [SqliteFile(tmp_path / "p.sqlite3"), PostgresDatabase(cluster, cluster.create())]

    def migrate() -> list[object]:
        urls = [[url_of(each) for each in kind] for kind in (plugins, platforms)]
        # -P and another directory: nothing but the wheel's directory may come before the installed packages.
        command = [sys.executable, "-P", "-c", PROGRAM, json.dumps(urls)]
        done = subprocess.run(
            command, cwd=tmp_path, env=clean_env(PYTHONPATH=str(wheel)), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()).is_relative_to(wheel)
        return [schema(each) for each in plugins + platforms]

    def versions() -> list[object]:
        asked = [(each, "memory_version") for each in plugins] + [(each, "alembic_version") for each in platforms]
        return [each.sql(f"SELECT version_num FROM {table}") for each, table in asked]

    first = migrate()
    assert versions() == [[("0001",)], [("0001",)], [("0005",)], [("0005",)]]
    assert migrate() == first
    assert versions() == [[("0001",)], [("0001",)], [("0005",)], [("0005",)]]
    assert await from_source(tmp_path, cluster) == first


async def from_source(tmp_path: Path, cluster: Cluster) -> list[object]:
    """The schemas as this source tree makes them, in the same order."""
    schemas: list[tuple[str, Schema]] = [("m", SCHEMA), ("p", PLATFORM)]
    made: list[object] = []
    for name, of in schemas:
        for database in (SqliteFile(tmp_path / f"{name}2.sqlite3"), PostgresDatabase(cluster, cluster.create())):
            store = Store(url_of(database), of)
            await store.migrate()
            await store.close()
            made.append(schema(database))
    return made
