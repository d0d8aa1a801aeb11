"""Beating workspaces: a real platform process on each database beside a bare Starlette route, all in one run.

Alone: `python -m bench.platform [WORKSPACES ...]`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, insert

from molecule_runtime.reference_platform.identifiers import new_id
from molecule_runtime.reference_platform.services.tokens import mint
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.reference_platform.store.tables import workspaces
from tests.support import postgres
from tests.support.platform import PlatformProcess

BARE = Path(__file__).parent / "servers" / "bare_starlette.py"
PERIOD_S = 20.0
"""How often an agent beats."""
SECONDS = 20.0
"""How long each load lasts: every workspace beats once."""
STOP_S = 60.0
"""A platform with thousands of connections and a queue of beats takes its time to end."""
SIZES = (5_000, 10_000, 20_000)
"""5,000 workspaces must hold; 10,000 (PostgreSQL) and 20,000 (SQLite) are the goals."""


@dataclass(frozen=True)
class Contestant:
    """Something that answers beats; `cpu_s` reads the CPU seconds it has used so far."""

    what: str
    url: str
    cpu_s: Callable[[], float]


@dataclass(frozen=True)
class Figures:
    """What one load showed. `cpu_ms` is CPU of the server for each beat, its database included."""

    size: int
    what: str
    answered: int
    failed: int
    p50_ms: float
    p99_ms: float
    worst_ms: float
    cpu_ms: float
    client_late_ms: float


def measure(sizes: tuple[int, ...] = SIZES) -> Iterator[list[Figures]]:
    """A block for each size as it is done: the floor first, then the platform on each database that is there."""
    with tempfile.TemporaryDirectory(prefix="molecule-beats-") as directory:
        for size in sizes:
            yield _block(Path(directory), size)


def _block(directory: Path, size: int) -> list[Figures]:
    members = [(new_id(), "") for _ in range(size)]
    with _bare() as contestant:
        figures = [_load(contestant, members, directory)]
    file = directory / f"{size}.sqlite3"
    members = _seed(f"sqlite:///{file}", size)
    with _platform("platform on SQLite", file) as contestant:
        figures.append(_load(contestant, members, directory))
    programs = postgres.binaries()
    if programs is not None:
        with postgres.Cluster(programs) as cluster:
            url = cluster.url(cluster.create())
            members = _seed(url, size)
            with _platform("platform on PostgreSQL", url, cluster.pid) as contestant:
                figures.append(_load(contestant, members, directory))
    return figures


def _seed(url: str, size: int) -> list[tuple[str, str]]:
    """Workspaces that have been online: (id, token) of each."""

    def fill(connection: Connection) -> list[tuple[str, str]]:
        now = datetime.now(UTC)
        row = {"status": "online", "runtime": "external", "delivery_mode": "poll"}
        row |= {"created_at": now, "updated_at": now, "last_heartbeat_at": now}  # type: ignore[dict-item]
        ids = [new_id() for _ in range(size)]
        connection.execute(insert(workspaces), [row | {"id": each, "name": f"agent {each}"} for each in ids])
        return [(each, mint(connection, each, now)) for each in ids]

    async def run() -> list[tuple[str, str]]:
        store = Store(url)
        await store.migrate()
        try:
            return await store.write(fill)
        finally:
            await store.close()

    return asyncio.run(run())


@contextmanager
def _bare() -> Iterator[Contestant]:
    process = subprocess.Popen([sys.executable, str(BARE)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        url = json.loads(process.stdout.readline())["url"]
        yield Contestant("bare Starlette route (floor)", url, lambda: _cpu_s(process.pid))
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


@contextmanager
def _platform(what: str, database: Path | str, server_pid: int | None = None) -> Iterator[Contestant]:
    with PlatformProcess(database, stops_within_s=STOP_S) as platform:
        pids = (platform.pid,) if server_pid is None else (platform.pid, server_pid)
        yield Contestant(what, platform.url, lambda: sum(_cpu_s(pid) for pid in pids))


def _load(contestant: Contestant, members: list[tuple[str, str]], directory: Path) -> Figures:
    file = directory / "members.json"
    file.write_text(json.dumps(members))
    before = contestant.cpu_s()
    command = [sys.executable, "-m", "bench.beats", contestant.url, str(file), str(PERIOD_S), str(SECONDS)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    seen = json.loads(done.stdout)
    return Figures(
        size=len(members),
        what=contestant.what,
        answered=seen["answered"],
        failed=seen["failed"],
        p50_ms=seen["p50_ms"],
        p99_ms=seen["p99_ms"],
        worst_ms=seen["worst_ms"],
        cpu_ms=(contestant.cpu_s() - before) * 1000 / max(1, seen["answered"]),
        client_late_ms=seen["late_ms"],
    )


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process and of all below it, living and gone; 0 where the system has no /proc."""
    spent = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(stat.parent.name) == pid:
            spent += sum(map(int, fields[11:15]))
        elif int(fields[1]) == pid:
            spent += sum(map(int, fields[11:13]))
    return spent / os.sysconf("SC_CLK_TCK")


def table_of(block: list[Figures]) -> Table:
    """One block of the report; `CPU ms` is for each beat."""
    table = Table("workspaces", "what", "beats/s", "p50 ms", "p99 ms", "worst ms", "CPU ms", "failed", "client late ms")
    for row in block:
        rate = f"{row.answered / SECONDS:.0f}"
        times = (f"{each:.1f}" for each in (row.p50_ms, row.p99_ms, row.worst_ms))
        late = f"{row.client_late_ms:.1f}"
        table.add_row(f"{row.size:,}", row.what, rate, *times, f"{row.cpu_ms:.2f}", str(row.failed), late)
    return table


if __name__ == "__main__":
    for block in measure(tuple(map(int, sys.argv[1:])) or SIZES):
        Console(width=140).print(table_of(block))
