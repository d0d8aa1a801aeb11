"""What a host may read beside calling tools, and be told of when it changes: the inbox and the memories.

Reading takes nothing: a message stays open until a tool handles it. Subscriptions are those of the handshake era
(`resources/subscribe`); a host that has one is told at most once a second for each resource.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio
import mcp_types
import structlog
from mcp.server.session import ServerSession

from molecule_runtime.errors import MoleculeError, advice
from molecule_runtime.runtime import Runtime, RuntimeEnded, RuntimeThread
from molecule_runtime.text import redact
from molecule_runtime.wire._base import rfc3339

INBOX, MEMORY = "molecule://inbox", "molecule://memory"
MIME_TYPE = "application/json"
MOST_MESSAGES = 50
MOST_MEMORIES = 50
PAUSE_S = 1.0
PAUSE_AFTER_FAILURE_S = 5.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Readable:
    """A resource: what it says of itself, how it is read, and what waits until it has changed."""

    uri: str
    name: str
    title: str
    description: str
    read: Callable[[Runtime], Awaitable[dict[str, Any]]]
    changed: Callable[[Runtime, int | None], Awaitable[int]]

    def describe(self) -> mcp_types.Resource:
        return mcp_types.Resource(
            uri=self.uri, name=self.name, title=self.title, description=self.description, mime_type=MIME_TYPE
        )


async def _inbox(runtime: Runtime) -> dict[str, Any]:
    messages = []
    for workspace in runtime.workspaces:
        messages += await (await workspace.mailbox()).peek(MOST_MESSAGES)
    messages.sort(key=lambda message: str(message["created_at"]))
    return {"messages": messages[:MOST_MESSAGES], "waiting": runtime.waiting()}


async def _memory(runtime: Runtime) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    for workspace in runtime.workspaces:
        for row in await (await workspace.memories()).recall("", None, MOST_MEMORIES):
            found[row.id] = {
                "id": row.id,
                "scope": row.scope,
                "content": row.content,
                "created_at": rfc3339(row.created_at),
            }
    newest_first = sorted(found.values(), key=lambda memory: str(memory["created_at"]), reverse=True)
    return {"memories": newest_first[:MOST_MEMORIES]}


RESOURCES = (
    Readable(
        INBOX,
        "inbox",
        "Open messages",
        "The messages that are not handled yet, oldest first; reading takes none.",
        _inbox,
        Runtime.inbox_changed,
    ),
    Readable(
        MEMORY,
        "memory",
        "Memories",
        "The newest memories that this agent may read.",
        _memory,
        Runtime.memories_changed,
    ),
)


def find(uri: str) -> Readable | None:
    """The resource of this URI."""
    return next((one for one in RESOURCES if one.uri == uri.rstrip("/")), None)


async def contents(readable: Readable, bridge: RuntimeThread) -> mcp_types.ReadResourceResult:
    """The resource as it is now; a failure is told in it, as a tool would tell it.

    An error of the protocol would be shown to a person by some hosts and to nobody by others.
    """
    try:
        shown = await bridge.call(readable.read)
    except MoleculeError as error:
        shown = {"error": redact(str(advice(error)))}
    text = json.dumps(shown, ensure_ascii=False, separators=(",", ":"))
    one = mcp_types.TextResourceContents(uri=readable.uri, mime_type=MIME_TYPE, text=text)
    return mcp_types.ReadResourceResult(contents=[one])


class Subscriptions:
    """Who is told of which resource. One server has one session."""

    def __init__(self, bridge: RuntimeThread) -> None:
        self._bridge = bridge
        self._sessions: dict[str, ServerSession] = {}
        self._is_wanted = {one.uri: anyio.Event() for one in RESOURCES}

    def add(self, uri: str, session: ServerSession) -> None:
        self._sessions[uri] = session
        self._is_wanted[uri].set()

    def remove(self, uri: str) -> None:
        self._sessions.pop(uri, None)
        self._is_wanted[uri] = anyio.Event()

    async def run(self) -> None:
        """Tell of changes until cancelled."""
        async with anyio.create_task_group() as tasks:
            for readable in RESOURCES:
                tasks.start_soon(self._tell_of, readable)

    async def _tell_of(self, readable: Readable) -> None:
        seen: int | None = None
        while True:
            is_wanted = self._is_wanted[readable.uri]
            if not is_wanted.is_set():
                await is_wanted.wait()
                seen = None
            try:
                if seen is None:
                    seen = await self._wait_for(readable, None)
                seen = await self._wait_for(readable, seen)
                session = self._sessions.get(readable.uri)
                if session is not None:
                    await session.send_resource_updated(readable.uri)
                    log.debug("resources.told", detail=readable.uri)
                await anyio.sleep(PAUSE_S)
            except RuntimeEnded:
                return
            except Exception as bug:  # the edge of the loop: one failure must not end it
                log.exception("resources.telling_failed", error=type(bug).__name__)
                await anyio.sleep(PAUSE_AFTER_FAILURE_S)

    async def _wait_for(self, readable: Readable, seen: int | None) -> int:
        return await self._bridge.call(lambda runtime: readable.changed(runtime, seen))
