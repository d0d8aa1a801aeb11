"""Memories of v2: what a workspace keeps in the plugin, and the rules the plugin knows nothing of (contract 7.2).

The plugin believes whoever calls it, so every namespace is checked here before it is asked, and once more in what it
answers. A commit has three steps: the line in `memory_commits`, the call, the mark that it is stored. A repeat goes on
where the first attempt ended; the plugin replaces what has the same id.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NoReturn

import structlog
from sqlalchemy import Connection

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.identifiers import new_id
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.services import memory_commits
from molecule_runtime.reference_platform.services.memory_commits import Commit
from molecule_runtime.reference_platform.services.memory_namespaces import Namespace, Reach, reach_of
from molecule_runtime.reference_platform.services.memory_plugin import (
    MemoryPlugin,
    PluginFailure,
    PluginLeftAlone,
    PluginRefusal,
)
from molecule_runtime.reference_platform.services.memory_rules import audit, cleaned
from molecule_runtime.reference_platform.services.workspaces import living_name
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.wire.memories import (
    MemoryAudit,
    MemoryKind,
    MemorySource,
    MemoryWrite,
    NamespaceKind,
    PluginMemory,
)

NOT_CONFIGURED = "memory plugin is not configured (set MEMORY_PLUGIN_URL)"
FORBIDDEN = 403
BAD_REQUEST = 400
UNACCEPTABLE = (BAD_REQUEST, 413, 422)
"""Statuses by which a plugin refuses what the caller sent, such as a text that is too long."""
SOURCE = "source_workspace_id"
LABEL = "label"
"""What `propagation` says of a memory: who wrote it, and the namespace of v1 if it came by v1."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class NewMemory:
    """What is to be remembered. `namespace` "" is the workspace's own; `scope` and `label` are of a commit by v1."""

    content: str
    namespace: str = ""
    kind: MemoryKind = MemoryKind.FACT
    expires_at: datetime | None = None
    pin: bool = False
    id: str | None = None
    scope: str | None = None
    label: str | None = None


class PluginMemories:
    """Reads and writes the plugin's memories in the name of workspaces."""

    def __init__(self, store: Store, plugin: MemoryPlugin, clock: Clock) -> None:
        self._store = store
        self._plugin = plugin
        self._clock = clock

    @property
    def is_wired(self) -> bool:
        return self._plugin.is_wired

    def require_wired(self) -> None:
        """Raises:
        Refusal: 503, there is no plugin.
        """
        if not self._plugin.is_wired:
            raise Refusal(503, NOT_CONFIGURED)

    async def reach(self, workspace_id: str) -> Reach:
        """The namespaces of a workspace.

        Raises:
            Refusal: 404, unknown or removed workspace.
            StoreError: the database failed.
        """
        return await self._store.read(reach_of_living, workspace_id)

    async def commit(self, workspace_id: str, memory: NewMemory) -> Commit:
        """Store a memory; when this returns it is in the plugin.

        Raises:
            Refusal: 400, no content; 403, the namespace may not be written; 404, the workspace; 409, the id;
                503, no plugin.
            PluginFailure: the plugin did not store it, or did not say so.
            StoreError: the database failed.
        """
        self.require_wired()
        reach = await self.reach(workspace_id)
        namespace = _writable(reach, memory.namespace)
        for_everybody = namespace.kind is NamespaceKind.ORG
        content = cleaned(memory.content, for_everybody=for_everybody)
        if not content.strip():
            raise Refusal(400, "content is required")
        wanted = Commit(
            id=memory.id or new_id(),
            workspace_id=workspace_id,
            scope=memory.scope,
            label=memory.label,
            namespace=namespace.name,
        )
        commit = await self._store.write(memory_commits.claim, wanted, self._clock.now())
        if commit.is_stored:  # one that was forgotten since has no namespace any more
            return replace(commit, namespace=commit.namespace or namespace.name)
        propagation = {SOURCE: workspace_id} | ({LABEL: memory.label} if memory.label else {})
        sent = MemoryWrite(
            id=commit.id,
            content=content,
            kind=memory.kind,
            source=MemorySource.AGENT,
            expires_at=memory.expires_at,
            propagation=propagation,
            pin=memory.pin or None,
        )
        try:
            await self._plugin.write(namespace.name, namespace.kind, sent)
        except PluginRefusal as refusal:
            if refusal.status == FORBIDDEN:  # a memory of another namespace has this id
                raise memory_commits.id_taken() from None
            raise
        audited = content if for_everybody else None
        await self._store.write(_stored, commit, audited, self._clock.now())
        return commit

    async def search(
        self,
        workspace_id: str,
        *,
        namespaces: Sequence[str] = (),
        query: str = "",
        kinds: Sequence[str] = (),
        limit: int,
    ) -> list[PluginMemory]:
        """What the workspace may read of these namespaces, or of all; nothing of one that it may not read.

        Raises:
            Refusal: 404, the workspace; 503, no plugin.
            PluginFailure
            StoreError: the database failed.
        """
        self.require_wired()
        return await self.search_within(
            await self.reach(workspace_id), namespaces, query=query, kinds=kinds, limit=limit
        )

    async def search_within(
        self, reach: Reach, namespaces: Sequence[str], *, query: str = "", kinds: Sequence[str] = (), limit: int
    ) -> list[PluginMemory]:
        """`search` for a workspace whose reach was looked up just now.

        Raises:
            PluginFailure
        """
        readable = reach.readable_among(list(namespaces))
        if not readable:
            return []
        return await self._plugin.search(readable, query=query, kinds=kinds, limit=limit)

    async def forget(self, workspace_id: str, memory_id: str, namespace: str = "") -> bool:
        """Delete a memory of a namespace that the workspace may write; False when it has none of this id there.

        Raises:
            Refusal: 403, it may not; 404, the workspace; 503, no plugin.
            PluginFailure
            StoreError: the database failed.
        """
        self.require_wired()
        reach = await self.reach(workspace_id)
        wanted = namespace or reach.workspace.name
        if wanted not in [each.name for each in reach.writable]:
            raise Refusal(403, f"workspace {workspace_id} cannot forget memory in namespace {wanted}")
        if not await self._store.read(_may_forget, workspace_id, memory_id):
            return False
        return await self.forget_own(workspace_id, memory_id, wanted)

    async def forget_own(self, workspace_id: str, memory_id: str, namespace: str) -> bool:
        """Delete a memory that its line in `memory_commits` says the caller wrote; False when it is gone.

        Raises:
            PluginFailure
            StoreError: the database failed.
        """
        if not await self._plugin.forget(memory_id, namespace):
            return False
        # Its writer may not have heard that it was stored; now a repeat must not bring it back.
        await self._store.write(memory_commits.mark_forgotten, memory_id, self._clock.now())
        return True

    async def purge(self, workspace_ids: Sequence[str]) -> None:
        """Delete what workspaces kept for themselves, and what was told to those that they were the head or root of:
        all of them are purged too. What they told a team that remains stays the team's.

        A plugin that fails is logged: the workspaces are gone either way, and nobody can read what is left.
        """
        for workspace_id in workspace_ids if self._plugin.is_wired else ():
            for kind in (NamespaceKind.WORKSPACE, NamespaceKind.TEAM, NamespaceKind.ORG):
                try:
                    await self._plugin.delete_namespace(f"{kind}:{workspace_id}")
                except PluginFailure as failure:
                    log.warning("memory_plugin.purge_failed", workspace_id=workspace_id, detail=failure.reason)
                    break


def refuse_as_sent(failure: PluginFailure, text: str) -> NoReturn:
    """Answer a plugin that failed: what it did not like of the request is 400, all else 502 with `text`.

    Raises:
        Refusal
    """
    status = status_of(failure)
    raise Refusal(status, failure.reason if status == BAD_REQUEST else text)


def status_of(failure: PluginFailure) -> int:
    """Log a plugin that failed; 400 when the same request fails for ever, 502 when it may do later.

    A 401 or 404 says that something is set up wrongly, a 429 that it is too much: the memory is to be sent again.
    """
    # Callers that are sent away before the next attempt are one story, not a line each.
    level = logging.DEBUG if isinstance(failure, PluginLeftAlone) else logging.WARNING
    log.log(level, "memory_plugin.failed", error=type(failure).__name__, detail=failure.reason)
    return BAD_REQUEST if isinstance(failure, PluginRefusal) and failure.status in UNACCEPTABLE else 502


def reach_of_living(connection: Connection, workspace_id: str) -> Reach:
    living_name(connection, workspace_id)
    return reach_of(connection, workspace_id)


def _writable(reach: Reach, name: str) -> Namespace:
    for namespace in reach.writable:
        if name in ("", namespace.name):
            return namespace
    raise Refusal(403, f"workspace {reach.workspace.owner} cannot write to namespace {name}")


def _may_forget(connection: Connection, workspace_id: str, memory_id: str) -> bool:
    """Whether the memory is the workspace's own; one that came by another way is whose the namespace is."""
    commit = memory_commits.find(connection, memory_id)
    return commit is None or commit.workspace_id == workspace_id


def _stored(connection: Connection, commit: Commit, audited: str | None, now: datetime) -> None:
    """Mark the commit and, once, note what everybody can read."""
    if memory_commits.mark_stored(connection, commit.id, now) and audited is not None:
        assert commit.namespace is not None
        audit(
            connection,
            commit.workspace_id,
            MemoryAudit.WRITE_GLOBAL,
            commit.id,
            commit.namespace,
            audited,
            now,
        )
