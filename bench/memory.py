"""Memories: committing and recalling through a real server, beside the same search in bare SQLite and one HTTP call.

Alone: `python -m bench.memory`; the largest store takes a minute to fill.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import httpx
from rich.console import Console
from sqlalchemy import Connection

from bench.agent_side import Figure, table_of
from molecule_runtime.memory_plugin import memories
from molecule_runtime.memory_plugin.store.tables import SCHEMA
from molecule_runtime.reference_platform.identifiers import new_id
from molecule_runtime.reference_platform.services import agent_memories
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.wire.memories import MemoryKind, MemoryScope, MemorySource
from tests.support.host import Host
from tests.support.platform import PlatformProcess, eventually

SIZES = (1_000, 10_000, 100_000)
MEASURED = 10_000
ROUNDS = 120
LIMIT = 10
SEED = 20_261_124
VOCABULARY = 4_000
WORDS = 30
"""In each memory, of a vocabulary in which some are frequent and most are rare, as in any language."""
RECALL_GOAL = 5.0
GROWTH_GOAL = 2.0


def figures(root: Path) -> list[list[Figure]]:
    """Every size as a block; about five minutes."""
    blocks = []
    for where in ("table", "plugin"):
        recalls = {}
        for size in SIZES:
            block, recalls[size] = stored(root / f"{where}-{size}", size, in_plugin=where == "plugin")
            blocks.append(block)
        growth = recalls[SIZES[-1]] / recalls[SIZES[0]]
        case = f"{where}, recall of {SIZES[-1]:,} against {SIZES[0]:,}"
        blocks.append([Figure(case, "how many times as long", growth, "times", GROWTH_GOAL)])
    return blocks


def texts(count: int) -> list[str]:
    chance = random.Random(SEED)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(4, 9))) for _ in range(VOCABULARY)]
    weights = [1 / rank for rank in range(1, VOCABULARY + 1)]
    return [" ".join(chance.choices(words, weights, k=WORDS)) for _ in range(count)]


def queries(contents: list[str]) -> list[str]:
    """Two words of one memory each, so that there is something to find."""
    chance = random.Random(SEED + 1)
    return [" ".join(chance.sample(chance.choice(contents).split(), 2)) for _ in range(ROUNDS)]


def stored(directory: Path, size: int, *, in_plugin: bool) -> tuple[list[Figure], float]:
    """The figures of a store of this size, and the time of a recall in ms.

    Memories are in the platform's own table, or in the plugin beside it.
    """
    directory.mkdir(parents=True)
    contents = texts(size)
    asked = queries(contents)
    database = directory / "platform.sqlite3"
    with (
        PlatformProcess(database, memory=in_plugin) as platform,
        closing(bare_table(directory / "bare.sqlite3", contents)) as bare,
        httpx.Client(base_url=platform.url, headers={"Origin": platform.url}, trust_env=False) as http,
    ):
        settings = platform.create_workspace("memories")
        workspace_id = settings["WORKSPACE_ID"]
        if in_plugin:
            asyncio.run(fill_plugin(Path(f"{database}.memory.sqlite3"), workspace_id, contents))
        else:
            asyncio.run(fill_table(database, workspace_id, contents))
        with Host(settings, state=directory / "state") as host:
            host.initialize()
            eventually(lambda: platform.status(workspace_id), within_s=10, until="online".__eq__)
            times = in_turn(
                asked,
                {
                    "bare": lambda query: searched(bare, query),
                    "http": lambda _query: len(http.get("/health").content),
                    "recall": lambda query: len(host.call("recall_memory", query=query, limit=LIMIT)["memories"]),
                    "commit": lambda query: len(host.call("commit_memory", content=f"{query} committed {time.time()}")),
                },
            )
    floor = times["bare"] + times["http"]
    goal = RECALL_GOAL if size == MEASURED else None
    case = f"{size:,} in the {'plugin' if in_plugin else 'table'}"
    return [
        Figure(case, "the same search in bare SQLite", times["bare"], "ms"),
        Figure(case, "one bare HTTP call", times["http"], "ms"),
        Figure(case, "recall_memory", times["recall"], "ms"),
        Figure(case, "commit_memory", times["commit"], "ms"),
        Figure(case, "recall_memory / both floors", times["recall"] / floor, "times", goal),
    ], times["recall"]


def in_turn(asked: list[str], contestants: dict[str, Callable[[str], int]]) -> dict[str, float]:
    """The median time of each in ms, measured in turn so that noise meets all of them."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for query in asked:
        for name, ask in contestants.items():
            began = time.perf_counter()
            assert ask(query), f"{name} found nothing for {query!r}"
            taken[name].append((time.perf_counter() - began) * 1000)
    return {name: statistics.median(times) for name, times in taken.items()}


def bare_table(file: Path, contents: list[str]) -> sqlite3.Connection:
    """The rival: FTS5 as its manual shows it, and nothing else."""
    database = sqlite3.connect(file)
    database.execute("CREATE VIRTUAL TABLE bare USING fts5(content)")
    with database:
        database.executemany("INSERT INTO bare VALUES (?)", [(content,) for content in contents])
    return database


def searched(database: sqlite3.Connection, query: str) -> int:
    found = database.execute("SELECT content FROM bare WHERE bare MATCH ? ORDER BY rank LIMIT ?", (query, LIMIT))
    return len(found.fetchall())


async def fill_plugin(file: Path, workspace_id: str, contents: list[str]) -> None:
    """Write memories as the plugin does, in one transaction."""
    now = datetime.now(UTC)

    def write(connection: Connection) -> None:
        for content in contents:
            new = memories.NewMemory(None, content, MemoryKind.FACT, MemorySource.AGENT, False, None, None)
            memories._write(connection, f"workspace:{workspace_id}", new, now)

    await _fill(Store(f"sqlite+aiosqlite:///{file}", SCHEMA), write)


async def fill_table(file: Path, workspace_id: str, contents: list[str]) -> None:
    """Write memories as the platform does, in one transaction."""
    now = datetime.now(UTC)

    def write(connection: Connection) -> None:
        for content in contents:
            agent_memories.add(connection, new_id(), workspace_id, MemoryScope.LOCAL, "general", content, now)

    await _fill(Store(f"sqlite+aiosqlite:///{file}"), write)


async def _fill(store: Store, write: Callable[[Connection], None]) -> None:
    await store.write(write)
    await store.close()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="molecule-bench-") as directory:
        Console().print(table_of(figures(Path(directory))))


if __name__ == "__main__":
    main()
