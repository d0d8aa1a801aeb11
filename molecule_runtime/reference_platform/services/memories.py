"""Memories of v1, wherever they are: in the platform's table, or in the plugin once there is one (contract 7.1, 7.3).

What was written before the plugin was there stays in the table and is read along with the plugin's, so the cut-over
loses nothing and needs no import. New ones go to one place only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.identifiers import new_id
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.services import agent_memories, memory_commits
from molecule_runtime.reference_platform.services.agent_memories import TableMemory, TableQuery
from molecule_runtime.reference_platform.services.memory_commits import Commit
from molecule_runtime.reference_platform.services.memory_namespaces import Reach, reach_of
from molecule_runtime.reference_platform.services.memory_plugin import PluginFailure
from molecule_runtime.reference_platform.services.memory_rules import (
    DEFAULT_LABEL,
    audit,
    cleaned,
    cleaned_label,
    marked_global,
    memory_not_owned,
)
from molecule_runtime.reference_platform.services.plugin_memories import (
    LABEL,
    SOURCE,
    NewMemory,
    PluginMemories,
    reach_of_living,
    refuse_as_sent,
)
from molecule_runtime.reference_platform.services.workspaces import living_name
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.wire.memories import (
    CommitMemoryReply,
    MemoryAudit,
    MemoryRow,
    MemoryScope,
    NamespaceKind,
    PluginMemory,
    UpdateMemoryReply,
)

ONLY_ROOTS = "only root workspaces can write GLOBAL memories"
PLUGIN_PAGE = 100
"""As many as the plugin gives at once (contract 7.4)."""
SCOPES = {
    NamespaceKind.WORKSPACE: MemoryScope.LOCAL,
    NamespaceKind.TEAM: MemoryScope.TEAM,
    NamespaceKind.ORG: MemoryScope.GLOBAL,
}


@dataclass(frozen=True)
class _Found:
    """A memory of either place with what it is sorted by."""

    row: MemoryRow
    is_pinned: bool = False
    score: float | None = None


class Memories:
    """Commits, recalls, changes and forgets memories of v1."""

    def __init__(self, store: Store, in_plugin: PluginMemories, clock: Clock) -> None:
        self._store = store
        self._in_plugin = in_plugin
        self._clock = clock

    async def commit(
        self,
        workspace_id: str,
        scope: MemoryScope,
        content: str,
        label: str = DEFAULT_LABEL,
        memory_id: str | None = None,
    ) -> CommitMemoryReply:
        """Store a memory; with an id that this workspace has used, the facts of what was stored then.

        Raises:
            Refusal: 400, no content; 403, a GLOBAL one by a workspace that is no root; 404, the workspace;
                409, the id is in use; 502, the plugin failed.
            StoreError: the database failed.
        """
        if not content.replace("\x00", "").strip():
            raise Refusal(400, "invalid request body")
        label = cleaned_label(label) or DEFAULT_LABEL
        wanted = Commit(id=memory_id or new_id(), workspace_id=workspace_id, scope=scope, label=label)
        if self._in_plugin.is_wired:
            commit = await self._commit_to_plugin(wanted, scope, content)
        else:
            commit = await self._store.write(_commit_to_table, wanted, scope, content, self._clock.now())
        return CommitMemoryReply(id=commit.id, scope=commit.scope or scope, namespace=commit.label or label)

    async def _commit_to_plugin(self, wanted: Commit, scope: MemoryScope, content: str) -> Commit:
        reach = await self._in_plugin.reach(wanted.workspace_id)
        if scope is MemoryScope.GLOBAL and not reach.is_root:
            raise Refusal(403, ONLY_ROOTS)
        namespaces = {SCOPES[namespace.kind]: namespace.name for namespace in reach.writable}
        memory = NewMemory(
            content=content, namespace=namespaces[scope], id=wanted.id, scope=wanted.scope, label=wanted.label
        )
        try:
            return await self._in_plugin.commit(wanted.workspace_id, memory)
        except PluginFailure as failure:
            refuse_as_sent(failure, "memory plugin commit failed")

    async def recall(self, workspace_id: str, query: TableQuery) -> list[MemoryRow]:
        """What the workspace may read: best first for a query, else newest first.

        Raises:
            Refusal: 404, the workspace; 502, the plugin failed.
            StoreError: the database failed.
        """
        query = replace(query, namespace=cleaned_label(query.namespace))
        found = [_from_table(memory) for memory in await self._store.read(agent_memories.read, workspace_id, query)]
        if self._in_plugin.is_wired:
            found += await self._recall_from_plugin(workspace_id, query)
        return [each.row for each in _in_order(found, query)]

    async def recall_readable(self, workspace_id: str, query: TableQuery) -> list[MemoryRow]:
        """Everything that the workspace may read, of all scopes, in the order of `recall`; `query` names no scope.

        Raises:
            Refusal, StoreError: as `recall`.
        """
        query = replace(query, namespace=cleaned_label(query.namespace))
        in_table, reach = await self._store.read(_read_all, workspace_id, query)
        found = [_from_table(memory) for memory in in_table]
        if self._in_plugin.is_wired:
            found += await self._recall_from_plugin(workspace_id, query, reach)
        return [each.row for each in _in_order(found, query)]

    async def _recall_from_plugin(
        self, workspace_id: str, query: TableQuery, known: Reach | None = None
    ) -> list[_Found]:
        reach = known or await self._in_plugin.reach(workspace_id)
        names = {
            None: [namespace.name for namespace in reach.readable],
            MemoryScope.LOCAL: [reach.workspace.name],
            MemoryScope.TEAM: [reach.workspace.name, reach.team.name],
            MemoryScope.GLOBAL: [reach.org.name],
        }[query.scope]
        # Which label a memory has only we know, so there must be enough to choose from.
        limit = PLUGIN_PAGE if query.namespace else query.limit
        try:
            memories = await self._in_plugin.search_within(reach, names, query=query.text, limit=limit)
        except PluginFailure as failure:
            refuse_as_sent(failure, "memory plugin search failed")
        found = [_from_plugin(memory) for memory in memories]
        return [each for each in found if query.namespace in ("", each.row.namespace)]

    async def change(
        self, workspace_id: str, memory_id: str, *, content: str | None, label: str | None
    ) -> UpdateMemoryReply:
        """Give a memory in the table another text or namespace.

        Raises:
            Refusal: 404, none of this workspace; 409, it is in the plugin, where memories are not edited.
            StoreError: the database failed.
        """
        return await self._store.write(_change, workspace_id, memory_id, content, label, self._clock.now())

    async def forget(self, workspace_id: str, memory_id: str) -> None:
        """Delete a memory that this workspace wrote, for good.

        Raises:
            Refusal: 404, none of this workspace; 502, the plugin failed.
            StoreError: the database failed.
        """
        namespace = await self._store.write(_forget_in_table, workspace_id, memory_id, self._in_plugin.is_wired)
        if namespace is None:
            return
        try:
            # The workspace wrote it there, though it may have been moved to another team since: no check of its reach.
            forgotten = await self._in_plugin.forget_own(workspace_id, memory_id, namespace)
        except PluginFailure as failure:
            refuse_as_sent(failure, "memory plugin delete failed")
        if not forgotten:
            raise memory_not_owned()


def _read_all(connection: Connection, workspace_id: str, query: TableQuery) -> tuple[list[TableMemory], Reach]:
    """Both in one go: a trip to the database costs more than what is asked there."""
    return agent_memories.read_all(connection, workspace_id, query), reach_of_living(connection, workspace_id)


def _in_order(found: list[_Found], query: TableQuery) -> list[_Found]:
    """As many as are wanted: best first for a query, else pinned first and then newest; of equals the earlier found."""
    if len(query.text) > 1:
        found.sort(key=lambda each: -(each.score or 0.0))
    else:
        found.sort(key=lambda each: (each.is_pinned, each.row.created_at), reverse=True)
    return found[: query.limit]


def _commit_to_table(connection: Connection, wanted: Commit, scope: MemoryScope, content: str, now: datetime) -> Commit:
    living_name(connection, wanted.workspace_id)
    for_everybody = scope is MemoryScope.GLOBAL
    if for_everybody and not reach_of(connection, wanted.workspace_id).is_root:
        raise Refusal(403, ONLY_ROOTS)
    commit = memory_commits.claim(connection, wanted, now)
    if commit.is_stored:
        return commit
    label, text = wanted.label or DEFAULT_LABEL, cleaned(content, for_everybody=for_everybody)
    agent_memories.add(connection, commit.id, commit.workspace_id, scope, label, text, now)
    memory_commits.mark_stored(connection, commit.id, now)
    if for_everybody:
        audit(connection, commit.workspace_id, MemoryAudit.WRITE_GLOBAL, commit.id, label, text, now)
    return commit


def _change(
    connection: Connection, workspace_id: str, memory_id: str, content: str | None, label: str | None, now: datetime
) -> UpdateMemoryReply:
    row = agent_memories.find_own(connection, workspace_id, memory_id)
    if row is None:
        commit = memory_commits.find(connection, memory_id)
        if commit is not None and commit.workspace_id == workspace_id and commit.namespace is not None:
            raise Refusal(409, "memories in the memory plugin cannot be edited: forget it and commit it again")
        raise memory_not_owned()
    for_everybody = row["scope"] == MemoryScope.GLOBAL
    text = row["content"] if content is None else cleaned(content, for_everybody=for_everybody)
    namespace = row["namespace"] if label is None else cleaned_label(label) or DEFAULT_LABEL
    changed = (text, namespace) != (row["content"], row["namespace"])
    if changed:
        agent_memories.change(connection, row, namespace=namespace, content=text, now=now)
        if for_everybody:
            audit(connection, workspace_id, MemoryAudit.EDIT_GLOBAL, memory_id, namespace, text, now)
    return UpdateMemoryReply(id=memory_id, scope=row["scope"], namespace=namespace, changed=changed)


def _forget_in_table(connection: Connection, workspace_id: str, memory_id: str, is_wired: bool) -> str | None:
    """Delete the workspace's row; if there is none, the plugin's namespace to delete it from."""
    if agent_memories.remove_own(connection, workspace_id, memory_id):
        return None
    if not is_wired:
        raise memory_not_owned()
    commit = memory_commits.find(connection, memory_id)
    if commit is None:
        return f"{NamespaceKind.WORKSPACE}:{workspace_id}"  # it may have come there by another way
    if commit.workspace_id != workspace_id or commit.namespace is None:
        raise memory_not_owned()
    return commit.namespace


def _from_table(memory: TableMemory) -> _Found:
    content = memory.content
    if memory.scope is MemoryScope.GLOBAL:
        content = marked_global(memory.id, memory.workspace_id, content)
    row = MemoryRow(
        id=memory.id,
        workspace_id=memory.workspace_id,
        content=content,
        scope=memory.scope,
        namespace=memory.namespace,
        created_at=memory.created_at,
    )
    return _Found(row, score=memory.score)


def _from_plugin(memory: PluginMemory) -> _Found:
    kind, _, owner = memory.namespace.partition(":")
    scope = SCOPES[NamespaceKind(kind)]
    told = memory.propagation or {}
    writer = str(told.get(SOURCE) or (owner if scope is MemoryScope.LOCAL else "")) or None
    content = memory.content
    if scope is MemoryScope.GLOBAL:
        content = marked_global(memory.id, writer, content)
    row = MemoryRow(
        id=memory.id,
        workspace_id=writer,
        content=content,
        scope=scope,
        namespace=str(told.get(LABEL) or DEFAULT_LABEL),
        created_at=memory.created_at,
    )
    return _Found(row, is_pinned=memory.pin, score=memory.score)
