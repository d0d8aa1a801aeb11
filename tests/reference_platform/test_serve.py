"""Serving on a socket: the start, the end, and what goes wrong before."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

import anyio
import httpx
import pytest

from molecule_runtime.errors import SettingsError
from molecule_runtime.reference_platform.app import serve
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.serving import KEEP_ALIVE_S
from molecule_runtime.reference_platform.store.engine import StoreError
from tests.support.postgres import ACCOUNT, Cluster

from .support import Database, served

GONE_S = 15.0
"""SHUTDOWN_S for requests, LEAVE_S for the relay, CLOSE_S for the store, and a little."""
PROGRAM = """
import asyncio, sys
from molecule_runtime.reference_platform.app import serve
from molecule_runtime.reference_platform.config import PlatformConfig
asyncio.run(serve(PlatformConfig(port=0, database=sys.argv[1]), on_ready=lambda url: print(url, flush=True)))
"""


async def test_port_0_is_chosen_and_answers_when_ready_is_called(config: PlatformConfig) -> None:
    """The url given to on_ready answers at once, and no longer after the end (design, ours)."""
    async with served(config) as url, httpx.AsyncClient(base_url=url) as http:
        reply = await http.get("/health")
        assert (reply.status_code, reply.json()) == (200, {"status": "ok"})
        assert (await http.get("/healthz")).json() == {"status": "ok"}
    async with httpx.AsyncClient(base_url=url) as http:
        with pytest.raises(httpx.ConnectError):
            await http.get("/health")


async def test_the_time_an_idle_connection_is_kept_is_announced(config: PlatformConfig) -> None:
    """An agent that knows it keeps one connection for all its beats (shared figures: keep-alive)."""
    async with served(config) as url, httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/health")).headers["Keep-Alive"] == f"timeout={KEEP_ALIVE_S}"


async def test_an_oversized_body_does_not_spoil_the_connection(config: PlatformConfig) -> None:
    """The rest of a cut body is read away, so the next request on the connection is understood (contract 4.1)."""
    async with served(config) as url, httpx.AsyncClient(base_url=url) as http:
        reply = await http.post("/registry/heartbeat", content=b" " * 5_000_000)
        assert (reply.status_code, reply.json()) == (400, {"error": "invalid request body"})
        assert (await http.get("/health")).status_code == 200


async def test_a_taken_port_is_a_settings_error(config: PlatformConfig) -> None:
    """The operator is told in one sentence (ours)."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(SettingsError) as refusal:
            await serve(replace(config, port=taken.getsockname()[1]), on_ready=print)
        assert refusal.value.problems[0].id == "address_unavailable"


async def test_an_unusable_database_is_raised_not_logged_away(config: PlatformConfig, tmp_path: Path) -> None:
    """serve() ends with the typed error (R22)."""
    with pytest.raises(StoreError):
        await serve(replace(config, database=str(tmp_path / "missing" / "p.db")), on_ready=print)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_process_after_a_clean_shutdown(database: Database, sign: signal.Signals) -> None:
    """The database is closed (no write-ahead log stays behind) and the signal then has its usual effect (ours)."""
    write_ahead_log = Path(f"{database.url}-wal")
    command = [sys.executable, "-c", PROGRAM, database.url]
    async with await anyio.open_process(command, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        with anyio.fail_after(20):
            url = (await process.stdout.receive()).decode().strip()
            async with httpx.AsyncClient(base_url=url) as http:
                assert (await http.post("/workspaces", json={"name": "a", "external": True})).status_code == 201
            assert write_ahead_log.exists() == (database.kind == "sqlite")
            os.kill(process.pid, sign)
            assert await process.wait() == -sign
    assert not write_ahead_log.exists()


class Hung:
    """A way to a PostgreSQL server that lets everything through until it hangs, as a lost network does."""

    def __init__(self, server: Path) -> None:
        self._server = str(server)
        self._listener: asyncio.Server | None = None
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: list[asyncio.StreamWriter] = []
        self._passing: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.close()
        for writer in self._writers:
            writer.transport.abort()
        self._flows.set()
        await asyncio.gather(*self._passing, return_exceptions=True)

    def hang(self) -> None:
        self._flows.clear()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passing = asyncio.current_task()
        assert passing is not None
        self._passing.add(passing)
        there, back = await asyncio.open_unix_connection(self._server)
        self._writers += [writer, back]
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                await self._flows.wait()
                sink.write(data)
                await sink.drain()
            sink.close()


async def test_a_database_that_no_longer_answers_does_not_hold_up_the_end(cluster: Cluster) -> None:
    """The process ends within a bound whatever its database does (ours)."""
    name = cluster.create()
    async with Hung(cluster.directory / ".s.PGSQL.5432") as way:
        url = f"postgresql+asyncpg://{ACCOUNT}@127.0.0.1:{way.port}/{name}"
        async with await anyio.open_process([sys.executable, "-c", PROGRAM, url], stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            with anyio.fail_after(20):
                await process.stdout.receive()
            way.hang()
            os.kill(process.pid, signal.SIGTERM)
            with anyio.fail_after(GONE_S):
                await process.wait()
    cluster.drop(name)
