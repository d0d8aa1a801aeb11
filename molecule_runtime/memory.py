"""What an agent remembers beyond its session: kept by the platform, written through the journal (contract 7).

A memory has its id before it is sent, so that it is stored once, however often it has to be tried. While the platform
is away it waits in the journal and is sent when the platform is back; only then does it count as stored.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import structlog

from molecule_runtime.client import PlatformClient
from molecule_runtime.clock import Clock, wait_for_event
from molecule_runtime.errors import (
    BadReply,
    InvalidArgument,
    JournalUnusable,
    MemoryUnknown,
    MoleculeError,
    NotFound,
    Retry,
    Unavailable,
    Unreachable,
    outcome,
)
from molecule_runtime.inbox.journal import Journal
from molecule_runtime.inbox.memories import PendingMemory
from molecule_runtime.messages import check_length
from molecule_runtime.retry import MEMORIES
from molecule_runtime.text import well_formed
from molecule_runtime.wire.memories import CommitMemoryRequest, MemoryRow, MemoryScope

V1 = "commit_memory"
"""The way of v1; every other is a tool of the platform's MCP bridge (contract 7.3)."""
MOST_FAILURES = 3
"""After so many of them in a row the platform is away; before that, one memory may be the reason."""
LOOK_S = 3_600.0
"""How long nothing is to be sent while nothing waits; a commit ends it."""
MAX_RECALLED = 50
"""As many as v1 gives at once (contract 7.1)."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Committed:
    """A memory that was given away: stored on the platform, or kept here until it can be."""

    id: str
    is_stored: bool
    namespace: str = ""


class Memories:
    """The memories of one workspace. For one event loop."""

    def __init__(
        self,
        client: PlatformClient,
        journal: Journal,
        *,
        clock: Clock,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_change` hears of every memory that is stored or forgotten."""
        self._on_change = on_change
        self._client = client
        self._journal = journal
        self._clock = clock
        self._kicked = asyncio.Event()
        self._sending = asyncio.Lock()
        self._in_hand: Counter[str] = Counter()
        self.waiting: tuple[PendingMemory, ...] = ()
        """What is to be stored when the platform is back; this and `refused` are for `runtime_status`."""
        self.refused: tuple[PendingMemory, ...] = ()
        """What the platform did not take after it had been away."""

    async def commit(self, content: str, scope: MemoryScope = MemoryScope.LOCAL) -> Committed:
        """Remember something, by v1.

        Raises:
            InvalidArgument: it is blank or too long.
            PlatformError: the platform does not take it.
            JournalUnusable: it cannot be kept here, and nothing was sent.
        """
        return await self._commit(V1, {"content": content, "scope": scope.value})

    async def commit_by(self, tool: str, arguments: Mapping[str, Any]) -> Committed:
        """Remember something by `commit_memory_v2` or `commit_summary` of the platform.

        Raises:
            InvalidArgument, PlatformError, JournalUnusable: as `commit`.
            ToolRefused: the platform does not take it.
        """
        return await self._commit(tool, arguments)

    async def _commit(self, tool: str, arguments: Mapping[str, Any]) -> Committed:
        given = {**arguments, "content": well_formed(str(arguments["content"]))}
        if not given["content"].strip():
            raise InvalidArgument(argument="content", reason="it must not be blank")
        check_length("content", given["content"])
        memory = PendingMemory(str(uuid.uuid4()), tool, given, self._clock.now().timestamp())
        records = self._journal.memories
        memory = replace(memory, memory_id=await self._journal.off_loop(records.begin, memory))
        is_left = True
        self._in_hand[memory.memory_id] += 1
        try:
            stored = await self._send(memory)
        except (Unreachable, Unavailable) as away:
            log.info("memory.queued", error=type(away).__name__)
            await self._look()
            return Committed(memory.memory_id, is_stored=False)
        except MoleculeError:
            await self._journal.off_loop(records.stored, memory.memory_id)
            is_left = False
            raise
        else:
            await self._journal.off_loop(records.stored, memory.memory_id)
            is_left = False
        finally:
            self._in_hand -= Counter((memory.memory_id,))  # drops what is not counted any more
            if is_left:
                self._kicked.set()
        self._on_change()
        return stored

    async def recall(self, query: str, scope: MemoryScope | None, limit: int) -> list[MemoryRow]:
        """What is remembered: of one scope, or of all that this workspace may read; best first, or newest first.

        Raises:
            PlatformError
        """
        limit = min(limit, MAX_RECALLED)
        if scope is not None:
            return (await self._client.memories(scope=scope.value, query=query, limit=limit))[:limit]
        found, is_all = await self._client.readable_memories(query=query, limit=limit)
        if is_all:
            return found[:limit]
        of_others = (MemoryScope.TEAM, MemoryScope.GLOBAL)
        asked = (self._client.memories(scope=one.value, query=query, limit=limit) for one in of_others)
        return merged([found, *await asyncio.gather(*asked)], ranked=bool(query))[:limit]

    async def forget(self, memory_id: str) -> None:
        """Delete a memory for good; one that waits to be stored never is.

        Raises:
            MemoryUnknown: there is no such memory of this workspace.
            PlatformError, JournalUnusable
        """
        async with self._sending:  # or it could be on its way right now
            waited = await self._journal.off_loop(self._journal.memories.stored, memory_id)
        await self._look()
        try:
            await self._client.forget_memory(memory_id)
        except NotFound:
            if not waited:
                raise MemoryUnknown(memory_id=memory_id) from None
        except MoleculeError:
            if not waited:
                raise
        self._on_change()

    async def ask(self, tool: str, arguments: Mapping[str, Any]) -> Any:
        """The JSON that a tool of the platform gives.

        Raises:
            ToolRefused, PlatformError
        """
        text = await self._client.use_tool(tool, arguments)
        try:
            return json.loads(text)
        except ValueError:
            odd = f"{tool} gave no JSON"
            raise BadReply(endpoint="POST /workspaces/:id/mcp", base_url=self._client.base_url, detail=odd) from None

    def kick(self) -> None:
        """Try what waits, now."""
        self._kicked.set()

    async def send_forever(self) -> None:
        """Send what waits until cancelled: at once, when the platform is back, and with growing pauses."""
        failures = 0
        while True:
            self._kicked.clear()
            try:
                left = await self._send_waiting()
            except Exception as bug:  # the edge of the loop: one bad memory must not keep the others
                log.exception("memory.sending_failed", error=type(bug).__name__)
                left = True
            failures = failures + 1 if left else 0
            await wait_for_event(self._kicked, MEMORIES.delay(failures) if left else LOOK_S, self._clock)

    async def _send_waiting(self) -> bool:
        """Send what waits, oldest first, until the platform is away; whether something is left.

        One at which the platform fails again and again must not keep the others.
        """
        await self._look()
        left, failures = False, 0
        for memory in await self._journal.off_loop(self._journal.memories.waiting):
            if memory.memory_id in self._in_hand:  # a call sends it right now
                continue
            async with self._sending:
                failed = await self._send_later(memory)
            if failed is None:
                failures = 0
                continue
            left, failures = True, failures + 1
            if isinstance(failed, Unreachable) or failures == MOST_FAILURES:
                break
        await self._look()
        return left

    async def _send_later(self, memory: PendingMemory) -> MoleculeError | None:
        """Send one that waits; why it still does, and None when it does not any more."""
        records = self._journal.memories
        try:
            await self._send(memory)
        except MoleculeError as error:
            if outcome(error).retry is not Retry.NO:
                return error
            log.warning("memory.refused", error=type(error).__name__)
            await self._journal.off_loop(records.refuse, memory.memory_id, str(error))
            return None
        await self._journal.off_loop(records.stored, memory.memory_id)
        self._on_change()
        log.info("memory.stored_later")
        return None

    async def _send(self, memory: PendingMemory) -> Committed:
        if memory.tool == V1:
            reply = await self._client.commit_memory(CommitMemoryRequest(**memory.arguments, id=memory.memory_id))
            return Committed(reply.id, is_stored=True, namespace=reply.namespace)
        said = await self.ask(memory.tool, {**memory.arguments, "id": memory.memory_id})
        written = said if isinstance(said, dict) else {}
        return Committed(
            str(written.get("id") or memory.memory_id), is_stored=True, namespace=str(written.get("namespace") or "")
        )

    async def _look(self) -> None:
        try:
            self.waiting = tuple(await self._journal.off_loop(self._journal.memories.waiting))
            self.refused = tuple(await self._journal.off_loop(self._journal.memories.refused))
        except JournalUnusable as error:
            log.debug("memory.not_looked", detail=str(error))


def merged(lists: Sequence[Sequence[MemoryRow]], *, ranked: bool) -> list[MemoryRow]:
    """Lists of several scopes as one, each memory once: the best of each in turn, or the newest first."""
    found: dict[str, MemoryRow] = {}
    for rows in zip_longest(*lists):
        for row in rows:
            if row is not None:
                found.setdefault(row.id, row)
    rows_in_turn = list(found.values())
    return rows_in_turn if ranked else sorted(rows_in_turn, key=lambda row: row.created_at, reverse=True)
