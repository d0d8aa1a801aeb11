"""Namespaces over HTTP: made again and again, changed, deleted with what they hold, and expired."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import anyio
import httpx
import pytest
from sqlalchemy import Connection

from molecule_runtime.clock import ManualClock
from molecule_runtime.wire._base import rfc3339
from tests.reference_platform.support import Database, PostgresDatabase

from .conftest import configured
from .support import HERE, NOBODY, TEAM, Plugin, running

ID = "33333333-3333-4333-8333-333333333333"


def after(clock: ManualClock, seconds: float) -> str:
    return rfc3339(clock.now() + timedelta(seconds=seconds))


async def put(plugin: Plugin, name: str, **body: object) -> httpx.Response:
    return await plugin.http.put(f"/v1/namespaces/{name}", json={"kind": "team"} | body)


def left(database: Database) -> list[int]:
    """Rows of each table."""
    tables = ("memory_namespaces", "memory_records", "memory_terms")
    return [int(database.sql(f"SELECT count(*) FROM {table}")[0][0]) for table in tables]


async def test_a_repeated_put_changes_what_it_names_and_nothing_else(plugin: Plugin, clock: ManualClock) -> None:
    """Idempotent: created_at, memories and what the body lacks stay; null takes away (contract 7.4)."""
    made = (await put(plugin, TEAM, metadata={"b": 1, "a": None}, expires_at=after(clock, 60))).json()
    whole = {"name": TEAM, "kind": "team", "created_at": rfc3339(clock.now()), "expires_at": after(clock, 60)}
    assert made == whole | {"metadata": {"b": 1, "a": None}}
    assert list(made["metadata"]) == ["b", "a"]
    await plugin.write("kept", TEAM)
    clock.advance(1)
    assert (await put(plugin, TEAM)).json() == made
    assert (await put(plugin, TEAM, kind="custom")).json() == made | {"kind": "custom"}
    assert (await put(plugin, TEAM, metadata={})).json() == made | {"metadata": {}}
    bare = {key: made[key] for key in ("name", "kind", "created_at")}
    assert (await put(plugin, TEAM, metadata=None, expires_at=None)).json() == bare
    clock.advance(60)
    assert await plugin.found(None, TEAM) == ["kept"]


async def test_a_patch_changes_what_it_names_of_one_that_is_there(plugin: Plugin, clock: ManualClock) -> None:
    """Expiry, metadata or both; the kind is not its business; 404 makes nothing (contract 7.4)."""
    made = (await put(plugin, TEAM)).json()
    url = f"/v1/namespaces/{TEAM}"
    expiring = made | {"expires_at": after(clock, 60)}
    assert (await plugin.http.patch(url, json={"expires_at": after(clock, 60), "kind": "org"})).json() == expiring
    assert (await plugin.http.patch(url, json={"metadata": {"x": 1}})).json() == expiring | {"metadata": {"x": 1}}
    assert (await plugin.http.patch(url, json={"metadata": None, "expires_at": None})).json() == made
    assert (await plugin.http.patch(f"/v1/namespaces/{NOBODY}", json={"metadata": {}})).status_code == 404
    assert (await plugin.http.delete(f"/v1/namespaces/{NOBODY}")).status_code == 404


async def test_a_deleted_namespace_takes_its_memories_along(
    plugin: Plugin, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In portions, with their terms; others stay, and one of the same name begins empty (contract 7.4)."""
    monkeypatch.setattr("molecule_runtime.memory_plugin.namespaces.PORTION", 2)
    for number in range(5):
        await plugin.write(f"note {number}", TEAM)
    old = await plugin.write("note of old", TEAM, pin=True)
    await plugin.write("note of mine")
    assert (await plugin.http.delete(f"/v1/namespaces/{TEAM}")).status_code == 204
    assert left(database) == [1, 1, 1]
    assert (await plugin.http.delete(f"/v1/namespaces/{TEAM}")).status_code == 404
    assert await plugin.forget(old, TEAM) == 404
    await put(plugin, TEAM)
    assert await plugin.found(None, TEAM, HERE) == await plugin.found("note", TEAM, HERE) == ["note of mine"]
    await plugin.write("note anew", TEAM, id=old)
    assert await plugin.found(None, TEAM) == ["note anew"]


async def test_what_a_deletion_left_behind_is_found_by_nobody_and_swept(
    plugin: Plugin, database: Database, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed between two portions: the name is given up first (ours)."""
    for number in range(3):
        await plugin.write(f"note {number}", TEAM, id=ID if number == 0 else None)

    with monkeypatch.context() as patch:
        patch.setattr("molecule_runtime.memory_plugin.namespaces.delete_portion", interrupted)
        with pytest.raises(RuntimeError):
            await plugin.parts.namespaces.delete(TEAM)
    assert left(database) == [1, 3, 3]
    assert await plugin.found(None, TEAM) == await plugin.found("note", TEAM) == []
    assert await plugin.forget(ID, TEAM) == 404
    assert (await plugin.post("elsewhere", HERE, id=ID)).status_code == 201
    await plugin.write("note anew", TEAM)
    await plugin.parts.sweeper.sweep_once()
    assert left(database) == [2, 2, 2]
    assert await plugin.found(None, TEAM, HERE) == ["note anew", "elsewhere"]


def interrupted(*_: object) -> bool:
    raise RuntimeError


async def test_an_expired_namespace_is_gone_for_every_route(
    plugin: Plugin, clock: ManualClock, database: Database
) -> None:
    """Its memories are not found, also not by a later expiry; the next one of its name is another (contract 7.4)."""
    await put(plugin, TEAM, expires_at=after(clock, 10))
    lost = await plugin.write("lost and lasting", TEAM, pin=True, expires_at=after(clock, 1000))
    assert await plugin.found("lost", TEAM) == ["lost and lasting"]
    clock.advance(10)
    for query in (None, "lost", "l"):
        assert await plugin.found(query, TEAM, HERE) == []
    assert await plugin.forget(lost, TEAM) == 404
    url = f"/v1/namespaces/{TEAM}"
    assert (await plugin.http.patch(url, json={"expires_at": after(clock, 1000)})).status_code == 404
    assert (await plugin.http.delete(url)).status_code == 404
    anew = (await put(plugin, TEAM, expires_at=after(clock, 1000))).json()
    assert anew["created_at"] == rfc3339(clock.now())
    await plugin.write("found", TEAM)
    for query in (None, "lost", "l"):
        assert await plugin.found(query, TEAM) == (["found"] if query is None else [])
    await plugin.parts.sweeper.sweep_once()
    assert left(database) == [1, 1, 1]


async def test_a_write_makes_the_namespace_of_the_kind_that_its_name_begins_with(
    plugin: Plugin, database: Database, clock: ManualClock
) -> None:
    """A kind that is none makes a custom one; an expired one is made anew (contract 7.4, proposed)."""
    for name in (HERE, TEAM, "org:x", "custom:x", "planet:x:y_z-.0"):
        await plugin.write("x", name)
    rows = database.sql("SELECT name, kind FROM memory_namespaces WHERE name IS NOT NULL ORDER BY no")
    kinds = [(HERE, "workspace"), (TEAM, "team"), ("org:x", "org"), ("custom:x", "custom")]
    assert rows == [*kinds, ("planet:x:y_z-.0", "custom")]
    await put(plugin, TEAM, kind="custom", metadata={"old": True}, expires_at=after(clock, 10))
    clock.advance(10)
    await plugin.write("y", TEAM)
    assert await plugin.found(None, TEAM) == ["y"]
    assert (await put(plugin, TEAM)).json().keys() == {"name", "kind", "created_at"}


async def test_the_longest_name(plugin: Plugin) -> None:
    """256 characters, and no more (contract 7.4)."""
    longest = "custom:" + "x" * 249
    assert (await put(plugin, longest)).status_code == 200
    await plugin.write("deep", longest)
    assert await plugin.found("deep", longest) == ["deep"]
    assert (await put(plugin, longest + "x")).status_code == 400


async def test_a_deletion_waits_for_the_write_that_has_begun(
    postgres_database: PostgresDatabase, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL, between the write's look at the namespace and its row; SQLite has one writer at a time (ours)."""
    deletions: list[asyncio.Task[httpx.Response]] = []

    def meanwhile(connection: Connection, *_: object) -> None:
        async def delete(_driver: object) -> None:
            deletions.append(asyncio.create_task(plugin.http.delete(f"/v1/namespaces/{TEAM}")))
            await asyncio.wait(deletions, timeout=0.2)

        driver: Any = connection.connection.dbapi_connection
        driver.run_async(delete)

    async with running(configured(postgres_database), clock) as plugin:
        await plugin.write("first", TEAM)
        monkeypatch.setattr("molecule_runtime.memory_plugin.memories._remove_remains", meanwhile)
        await plugin.write("second", TEAM, id=ID)
        with anyio.fail_after(5):
            assert (await deletions[0]).status_code == 204
        assert await plugin.found(None, TEAM) == []
        assert left(postgres_database) == [0, 0, 0]
