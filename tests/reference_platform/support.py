"""What the platform's tests share: a running platform, its members, and ways to break its database."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import anyio
import httpx
import pytest
from starlette.applications import Starlette

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.app import create_app, serve
from molecule_runtime.reference_platform.bus import Subscription
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.parts import Parts
from molecule_runtime.wire.events import EventName
from tests.support.postgres import Cluster

BASE_URL = "http://127.0.0.1:8080"
ADMIN = "an-admin-token-of-some-length"
NOBODY = "99999999-9999-4999-8999-999999999999"
CARD = {"name": "laptop", "description": "keeps the lights on", "skills": [{"name": "deploy"}]}


def canvas_message(text: str = "hello") -> dict[str, Any]:
    """What a canvas posts: no jsonrpc, no id (contract 4.1)."""
    return {
        "method": "message/send",
        "params": {"message": {"role": "user", "parts": [{"kind": "text", "text": text}]}, "metadata": {}},
    }


def bearer(token: str | None, **extra: str) -> dict[str, str]:
    """Request headers with this bearer, or without one."""
    return ({} if token is None else {"Authorization": f"Bearer {token}"}) | extra


@dataclass(frozen=True)
class Member:
    """A workspace and its token."""

    id: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return bearer(self.token)


@dataclass(frozen=True)
class Platform:
    """A platform in process: talk to it through `http`, look behind it through `parts`."""

    app: Starlette
    http: httpx.AsyncClient
    admin: dict[str, str]

    @property
    def parts(self) -> Parts:
        parts: Parts = self.app.state.parts
        return parts

    async def create(self, name: str = "laptop", **fields: Any) -> Member:
        """A workspace as an operator makes it: awaiting its agent."""
        reply = await self.http.post("/workspaces", json={"name": name, "external": True} | fields, headers=self.admin)
        assert reply.status_code == 201, reply.text
        return Member(id=reply.json()["id"], token=reply.json()["connection"]["auth_token"])

    async def join(self, name: str = "laptop", **fields: Any) -> Member:
        """A workspace whose agent has registered to poll."""
        member = await self.create(name, **fields)
        await self.register(member)
        return member

    async def register(self, member: Member, **fields: Any) -> dict[str, Any]:
        body = {"id": member.id, "delivery_mode": "poll", "agent_card": CARD} | fields
        reply = await self.http.post("/registry/register", json=body, headers=member.headers)
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    async def beat(self, member: Member, **fields: Any) -> None:
        reply = await self.http.post(
            "/registry/heartbeat", json={"workspace_id": member.id} | fields, headers=member.headers
        )
        assert reply.status_code == 200, reply.text

    async def say(self, target: Member, text: str = "hello") -> None:
        """The user writes to an agent."""
        reply = await self.http.post(f"/workspaces/{target.id}/a2a", json=canvas_message(text), headers=self.admin)
        assert reply.status_code == 200, reply.text

    async def rows(self, member: Member, **params: Any) -> list[dict[str, Any]]:
        reply = await self.http.get(f"/workspaces/{member.id}/activity", params=params, headers=member.headers)
        assert reply.status_code == 200, reply.text
        rows: list[dict[str, Any]] = reply.json()
        return rows

    async def status(self, member: Member) -> str:
        reply = await self.http.get(f"/workspaces/{member.id}?include_removed=true")
        status: str = reply.json()["status"]
        return status

    async def heard(self, subscription: Subscription) -> list[tuple[str, dict[str, Any]]]:
        """(name, payload) of everything emitted since the last call; a marker tells where it ends."""
        await self.parts.bus.emit(EventName.CRON_SKIPPED, NOBODY, {"marker": True})
        events = []
        with anyio.fail_after(5):
            async for event in subscription:
                if event.workspace_id == NOBODY:
                    break
                events.append((event.event, event.payload))
        return events


@asynccontextmanager
async def running(config: PlatformConfig, clock: Clock | None = None) -> AsyncIterator[Platform]:
    """A platform in process, its lifespan entered."""
    app = create_app(config, clock=clock)
    admin = bearer(config.admin_token or None)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=BASE_URL) as http:
            yield Platform(app=app, http=http, admin=admin)


@asynccontextmanager
async def served(config: PlatformConfig) -> AsyncIterator[str]:
    """A platform behind a real socket; its URL."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(config, on_ready=ready.set_result))
    try:
        with anyio.fail_after(10):
            await asyncio.wait((ready, serving), return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                await serving
        yield ready.result()
    finally:
        serving.cancel()
        await asyncio.wait((serving,))


async def until(condition: Any) -> None:
    """Wait until an async condition holds, at most 15 s."""
    with anyio.fail_after(15):
        while not await condition():  # noqa: ASYNC110 - any condition, not only one that an event could announce
            await anyio.sleep(0.002)  # without a pause this loop would keep the interpreter from the store's threads


class Database(Protocol):
    """A database of either kind, as a test sees it behind the platform's back."""

    kind: str
    url: str

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement and commit; its rows."""

    def refuse(self, operation: str, table: str) -> None:
        """Make every INSERT or UPDATE of a table fail from now on."""

    def heal(self, operation: str, table: str) -> None:
        """Take that back."""

    def everything(self) -> bytes:
        """All that a thief of the database would have."""


@dataclass(frozen=True)
class SqliteFile:
    path: Path
    kind = "sqlite"

    @property
    def url(self) -> str:
        return str(self.path)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.path, timeout=5)) as connection, connection:
            return connection.execute(statement).fetchall()

    def refuse(self, operation: str, table: str) -> None:
        self.sql(
            f"CREATE TRIGGER sick_{operation} BEFORE {operation} ON {table} "
            "BEGIN SELECT RAISE(ABORT, 'the disk is sick'); END"
        )

    def heal(self, operation: str, table: str) -> None:
        self.sql(f"DROP TRIGGER sick_{operation}")

    def everything(self) -> bytes:
        return b"".join(file.read_bytes() for file in self.path.parent.glob(f"{self.path.name}*"))


@dataclass
class PostgresDatabase:
    """`altered` tells that a test changed the tables themselves, not only their rows."""

    cluster: Cluster
    name: str
    altered: bool = False
    kind = "postgresql"

    @property
    def url(self) -> str:
        return self.cluster.url(self.name)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        self.altered = self.altered or statement.startswith(("ALTER", "CREATE", "DROP"))
        return self.cluster.sql(self.name, statement)

    def refuse(self, operation: str, table: str) -> None:
        self.sql(
            "CREATE OR REPLACE FUNCTION sick() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'the disk is sick'; END $$"
        )
        self.sql(f"CREATE TRIGGER sick_{operation} BEFORE {operation} ON {table} FOR EACH ROW EXECUTE FUNCTION sick()")

    def heal(self, operation: str, table: str) -> None:
        self.sql(f"DROP TRIGGER sick_{operation} ON {table}")

    def everything(self) -> bytes:
        tables = self.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return repr([self.sql(f"SELECT t::text FROM {table} t") for (table,) in tables]).encode()


def fill(database: Database, member: Member, count: int) -> None:
    """Give a workspace many activity rows at once, a microsecond apart."""
    instant = "'2026-01-01 00:00:00.' || substr(CAST(1000000 + i AS TEXT), 2)"
    if database.kind == "postgresql":
        instant = f"CAST({instant} || '+00' AS timestamptz)"
    database.sql(
        f"""WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
        INSERT INTO activity_logs (id, workspace_id, seq, activity_type, status, created_at, response_body)
        SELECT '00000000-0000-4000-8000-' || substr(CAST(1000000000000 + i AS TEXT), 2), '{member.id}', i,
               'a2a_receive', 'ok', {instant}, '{{"result": "x"}}' FROM n"""
    )


def only(kind: str) -> pytest.MarkDecorator:
    """Run a test on one kind of database; say why beside it."""
    return pytest.mark.parametrize("database", [kind], indirect=True)


def schema(database: Database) -> list[tuple[str, ...]]:
    """All that makes up the database's schema, to be compared with another's of its kind."""
    if database.kind == "sqlite":
        return database.sql("SELECT name, type, sql FROM sqlite_master ORDER BY type, name")
    return database.sql(
        "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public' "
        "UNION ALL SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2"
    )


def tables(database: Database) -> set[str]:
    """The names of its tables."""
    if database.kind == "sqlite":
        rows = database.sql(  # a full text index brings tables of its own, which are none of ours
            "SELECT name FROM pragma_table_list WHERE type != 'shadow' AND schema = 'main' AND name NOT LIKE 'sqlite_%'"
        )
    else:
        rows = database.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return {name for (name,) in rows}
