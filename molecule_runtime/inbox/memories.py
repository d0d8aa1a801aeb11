"""The journal's record of memories that are not stored yet: each has the id under which the platform will know it.

A memory is written here before it is sent, and taken out when the platform has it. What the platform could not be asked
for stays and is sent later under the same id; what it refused stays too, with the reason, until somebody forgets it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

SCHEMA = """
CREATE TABLE pending_memories (
  ord        INTEGER PRIMARY KEY AUTOINCREMENT,
  memory_id  TEXT NOT NULL UNIQUE,
  tool       TEXT NOT NULL,
  arguments  TEXT NOT NULL,
  created_at REAL NOT NULL,
  refused    TEXT
)"""
"""Part of the journal's schema. `tool` is the platform's name for the way it goes, `arguments` what goes with it."""


@dataclass(frozen=True)
class PendingMemory:
    """A memory on its way. `refused` says why the platform does not take it; None while it may."""

    memory_id: str
    tool: str
    arguments: dict[str, Any]
    created_at: float
    refused: str | None = None


class PendingMemories:
    """The records, in the transactions of a journal; every method raises `JournalUnusable` as the journal does."""

    def __init__(
        self,
        reading: Callable[[], AbstractContextManager[sqlite3.Connection]],
        writing: Callable[[], AbstractContextManager[sqlite3.Connection]],
    ) -> None:
        self._reading = reading
        self._writing = writing

    def begin(self, memory: PendingMemory) -> str:
        """Keep a memory before it is sent; the id under which it goes.

        One that waits with the same words in the same way is the same memory: a caller that was told "queued", or
        nothing at all, and says it again does not mean two.
        """
        arguments = json.dumps(memory.arguments, ensure_ascii=False, sort_keys=True)
        with self._writing() as db:
            same = db.execute(
                "SELECT memory_id FROM pending_memories WHERE tool = ? AND arguments = ? AND refused IS NULL",
                (memory.tool, arguments),
            ).fetchone()
            if same is not None:
                return str(same[0])
            db.execute(
                "INSERT INTO pending_memories (memory_id, tool, arguments, created_at) VALUES (?, ?, ?, ?)",
                (memory.memory_id, memory.tool, arguments, memory.created_at),
            )
        return memory.memory_id

    def stored(self, memory_id: str) -> bool:
        """The platform has it, or nobody wants it any more; False when it was not waiting."""
        with self._writing() as db:
            done = db.execute("DELETE FROM pending_memories WHERE memory_id = ?", (memory_id,))
        return done.rowcount > 0

    def refuse(self, memory_id: str, reason: str) -> None:
        """The platform does not take it."""
        with self._writing() as db:
            db.execute("UPDATE pending_memories SET refused = ? WHERE memory_id = ?", (reason, memory_id))

    def waiting(self) -> list[PendingMemory]:
        """What is to be sent, oldest first."""
        return self._select("refused IS NULL")

    def refused(self) -> list[PendingMemory]:
        """What the platform did not take, oldest first."""
        return self._select("refused IS NOT NULL")

    def _select(self, where: str) -> list[PendingMemory]:
        with self._reading() as db:
            rows = db.execute(
                f"SELECT memory_id, tool, arguments, created_at, refused FROM pending_memories WHERE {where}"
                " ORDER BY ord"
            ).fetchall()
        return [PendingMemory(row[0], row[1], json.loads(row[2]), row[3], row[4]) for row in rows]
