"""Memories of v1 in the platform's own table: functions of a connection (contract 7.1).

Every statement names the rows that the reader may see, so there is no way to a row past the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, delete, insert, or_, select, update

from molecule_runtime.reference_platform.store.tables import agent_memories, memory_texts, workspaces
from molecule_runtime.reference_platform.text_search import Query
from molecule_runtime.wire.memories import MemoryScope
from molecule_runtime.wire.registry import WorkspaceStatus

_columns = agent_memories.c
_SOME = select(_columns.no).limit(1)
SHELVES = {MemoryScope.LOCAL: "1", MemoryScope.TEAM: "2", MemoryScope.GLOBAL: "3"}
"""What is searched at one time: the local rows of a workspace, its team rows, all global rows."""


@dataclass(frozen=True)
class TableQuery:
    """`scope` None means the reader's own rows of any scope; `namespace` "" any; `text` "" everything."""

    scope: MemoryScope | None = None
    text: str = ""
    namespace: str = ""
    limit: int = 50


@dataclass(frozen=True)
class TableMemory:
    """A row, and how well it answers the query if that was ranked."""

    id: str
    workspace_id: str
    scope: MemoryScope
    namespace: str
    content: str
    created_at: datetime
    score: float | None = None


def add(
    connection: Connection,
    memory_id: str,
    workspace_id: str,
    scope: MemoryScope,
    namespace: str,
    content: str,
    now: datetime,
) -> None:
    """Insert a memory and make it findable."""
    statement = insert(agent_memories).values(
        id=memory_id,
        workspace_id=workspace_id,
        scope=scope,
        namespace=namespace,
        content=content,
        created_at=now,
        updated_at=now,
    )
    no: int = connection.execute(statement.returning(_columns.no)).scalar_one()
    memory_texts.put(connection, no, _shelf(scope, workspace_id), content)


def find_own(connection: Connection, workspace_id: str, memory_id: str) -> RowMapping | None:
    """A memory that this workspace wrote."""
    query = select(agent_memories).where(_columns.id == memory_id, _columns.workspace_id == workspace_id)
    return connection.execute(query.with_for_update()).mappings().one_or_none()


def change(connection: Connection, row: RowMapping, *, namespace: str, content: str, now: datetime) -> None:
    """Give a memory another text or namespace."""
    statement = update(agent_memories).where(_columns.no == row["no"])
    connection.execute(statement.values(namespace=namespace, content=content, updated_at=now))
    memory_texts.put(connection, row["no"], _shelf(MemoryScope(row["scope"]), row["workspace_id"]), content)


def remove_own(connection: Connection, workspace_id: str, memory_id: str) -> bool:
    """Delete a memory that this workspace wrote; False when there is none."""
    mine = delete(agent_memories).where(_columns.id == memory_id, _columns.workspace_id == workspace_id)
    return connection.execute(mine).rowcount > 0


def read(connection: Connection, workspace_id: str, query: TableQuery) -> list[TableMemory]:
    """What the workspace may read of a scope: best first for a query of two characters and more, else newest first."""
    writers = _team_of(connection, workspace_id) if query.scope is MemoryScope.TEAM else [workspace_id]
    visible = _visible(query.scope, writers)
    wanted = _wanted(query)
    if wanted is None:
        return _newest(connection, query, visible)
    scopes = [query.scope] if query.scope is not None else list(MemoryScope)
    shelves = [_shelf(scope, writer) for scope in scopes for writer in writers]
    # Among the global rows of all, one's own are those that one wrote.
    return _best(connection, query, wanted, shelves, visible, writer=workspace_id if query.scope is None else "")


def read_all(connection: Connection, workspace_id: str, query: TableQuery) -> list[TableMemory]:
    """What the workspace may read of every scope, best first for a query as in `read`, else the newest of each."""
    if connection.execute(_SOME).first() is None:  # all are in the plugin
        return []
    team = _team_of(connection, workspace_id)
    of_scopes = {scope: team if scope is MemoryScope.TEAM else [workspace_id] for scope in MemoryScope}
    visible = [_visible(scope, writers) for scope, writers in of_scopes.items()]
    wanted = _wanted(query)
    if wanted is None:
        return [memory for of_scope in visible for memory in _newest(connection, query, of_scope)]
    shelves = [_shelf(scope, writer) for scope, writers in of_scopes.items() for writer in writers]
    return _best(connection, query, wanted, shelves, or_(*visible))


def _wanted(query: TableQuery) -> Query | None:
    return Query.parse(query.text) if len(query.text) > 1 else None


def _newest(connection: Connection, query: TableQuery, visible: ColumnElement[bool]) -> list[TableMemory]:
    conditions = [visible, *_labelled(query)] + ([_holds(query.text)] if query.text else [])
    newest = select(agent_memories).where(*conditions).order_by(_columns.no.desc()).limit(query.limit)
    return [_memory(row) for row in connection.execute(newest).mappings()]


def _best(
    connection: Connection,
    query: TableQuery,
    wanted: Query,
    shelves: list[str],
    visible: ColumnElement[bool],
    writer: str = "",
) -> list[TableMemory]:
    bound = {"writer": writer, "within": query.namespace}
    hits = memory_texts.search(connection, wanted, list(dict.fromkeys(shelves)), limit=query.limit, bound=bound)
    # The rules once more: what a shelf holds follows from them, but they are what counts.
    found = select(agent_memories).where(_columns.no.in_([hit.no for hit in hits]), visible, *_labelled(query))
    rows = {row["no"]: row for row in connection.execute(found).mappings()}
    return [_memory(rows[hit.no], hit.score) for hit in hits if hit.no in rows]


def _labelled(query: TableQuery) -> list[ColumnElement[bool]]:
    return [_columns.namespace == query.namespace] if query.namespace else []


def _visible(scope: MemoryScope | None, writers: Sequence[str]) -> ColumnElement[bool]:
    match scope:
        case None:
            return _columns.workspace_id.in_(writers)
        case MemoryScope.GLOBAL:
            return _columns.scope == scope
        case MemoryScope.LOCAL | MemoryScope.TEAM:
            return and_(_columns.scope == scope, _columns.workspace_id.in_(writers))


def _team_of(connection: Connection, workspace_id: str) -> list[str]:
    """Itself, its parent and its siblings, or its children when it is a root; none that was removed.

    All of them may talk to it by the rule of contract 2.9. Roots are siblings by that rule, but no team.
    """
    of = workspaces.c
    parent_id = connection.execute(select(of.parent_id).where(of.id == workspace_id)).scalar_one_or_none()
    head = parent_id or workspace_id
    team = select(of.id).where(or_(of.id == head, of.parent_id == head), of.status != WorkspaceStatus.REMOVED)
    return [workspace_id, *(each for each in connection.execute(team).scalars() if each != workspace_id)]


def _shelf(scope: MemoryScope, workspace_id: str) -> str:
    owner = "" if scope is MemoryScope.GLOBAL else workspace_id.replace("-", "")
    return SHELVES[scope] + owner


def _holds(text: str) -> ColumnElement[bool]:
    """The text is in the content, in either case: SQLite ignores the case of ASCII letters, PostgreSQL none."""
    return or_(*(_columns.content.contains(each, autoescape=True) for each in dict.fromkeys((text, text.swapcase()))))


def _memory(row: RowMapping, score: float | None = None) -> TableMemory:
    return TableMemory(
        id=row["id"],
        workspace_id=row["workspace_id"],
        scope=MemoryScope(row["scope"]),
        namespace=row["namespace"],
        content=row["content"],
        created_at=row["created_at"],
        score=score,
    )
