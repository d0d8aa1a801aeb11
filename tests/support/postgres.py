"""A throwaway PostgreSQL server for the tests: on a socket in its own directory, without fsync, gone afterwards."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import asyncpg

T = TypeVar("T")

OPTIONS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_connections": "60",
    "shared_buffers": "32MB",
}
ACCOUNT = "postgres"
"""Who runs the server when the tests run as root: it refuses to be root."""


def binaries() -> Path | None:
    """Where PostgreSQL's programs are: behind `initdb` on PATH, else where Debian puts the newest version."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(versions, key=lambda path: int(path.parts[-3]), default=None)
    return None if newest is None else newest.parent


class Cluster:
    """The server, with a connection for chores. Enter it to start, leave it to stop and delete."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._account = ACCOUNT if os.geteuid() == 0 else None
        self._names = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="molecule-pg-"))
        try:
            if self._account is not None:
                shutil.chown(self.directory, self._account)
            self._start()
            self._thread.start()
            self._chores = self._run(self._connect("postgres"))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._chores.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._remove()

    @property
    def pid(self) -> int:
        return self._server.pid

    def create(self) -> str:
        """A new empty database; its name."""
        name = f"test_{next(self._names)}"
        self._run(self._chores.execute(f"CREATE DATABASE {name}"))
        return name

    def empty(self, name: str, tables: Sequence[str]) -> None:
        """Delete all rows; at this size that is quicker than TRUNCATE, which makes new files."""

        async def run() -> None:
            connection = await self._connect(name)
            try:
                await connection.execute(";".join(f"DELETE FROM {table}" for table in tables))
            finally:
                await connection.close()

        self._run(run())

    def drop(self, name: str) -> None:
        self._run(self._chores.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))

    def url(self, name: str) -> str:
        return f"postgresql+asyncpg://{ACCOUNT}@/{name}?host={self.directory}"

    def sql(self, name: str, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement in a database, on a connection of its own; may be called where a loop runs."""

        async def run() -> list[tuple[Any, ...]]:
            connection = await self._connect(name)
            try:
                return [tuple(row) for row in await connection.fetch(statement)]
            finally:
                await connection.close()

        return self._run(run())

    def _start(self) -> None:
        data = self.directory / "data"
        initdb = [self._programs / "initdb", "-D", data, "-U", ACCOUNT, "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
        # From its own directory, since the account may not enter ours.
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=self.directory, user=self._account)
        command = [self._programs / "postgres", "-D", data, "-k", self.directory]
        command += [f"--{name}={value}" for name, value in OPTIONS.items()]  # type: ignore[misc]
        with (self.directory / "log").open("w") as log:
            self._server = subprocess.Popen(command, stderr=log, stdout=log, cwd=self.directory, user=self._account)

    async def _connect(self, database: str) -> asyncpg.Connection[Any]:
        deadline = time.monotonic() + 20
        while True:
            try:
                return await asyncpg.connect(host=str(self.directory), user=ACCOUNT, database=database)
            except (OSError, asyncpg.CannotConnectNowError):
                if time.monotonic() > deadline or self._server.poll() is not None:
                    raise
                await asyncio.sleep(0.02)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _remove(self) -> None:
        server = getattr(self, "_server", None)
        if server is not None:
            for sign in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
                server.send_signal(sign)
                try:
                    server.wait(10)
                    break
                except subprocess.TimeoutExpired:
                    continue
        shutil.rmtree(self.directory, ignore_errors=True)
