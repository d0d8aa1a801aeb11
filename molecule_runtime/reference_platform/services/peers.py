"""Who may talk to whom, and the list of those a workspace can see (contract 2.6, 2.9)."""

from __future__ import annotations

from typing import Any

import structlog
from sqlalchemy import Connection, RowMapping, select

from molecule_runtime.reference_platform.refusals import workspace_not_found
from molecule_runtime.reference_platform.store.engine import Store, StoreError
from molecule_runtime.reference_platform.store.tables import workspaces
from molecule_runtime.wire.registry import Peer, WorkspaceStatus

LINEAGE_CAP = 32
"""How far a walk to the root goes; a longer chain is cut rather than followed for ever (contract 2.9)."""

log = structlog.get_logger(__name__)


class Peers:
    """Answers from the hierarchy of workspaces."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def can_communicate(self, one: str, other: str) -> bool:
        """Whether two workspaces may talk: itself, siblings (roots are), or ancestor and descendant.

        An unknown workspace or a failing store means no.
        """
        try:
            return await self._store.read(related, one, other)
        except StoreError:
            log.exception("peers.lookup_failed", workspace_id=one, peer_id=other)
            return False

    async def list_peers(self, workspace_id: str, search: str = "") -> list[Peer]:
        """Siblings, then children, then the parent, none removed; `search` filters on name and role.

        Raises:
            Refusal: 404, the workspace is unknown or removed.
            StoreError: the database failed.
        """
        rows = await self._store.read(_select_peers, workspace_id)
        wanted = search.strip().casefold()
        return [_peer(row) for row in rows if wanted in row["name"].casefold() or wanted in _role(row)]


def _role(row: RowMapping) -> str:
    return (row["role"] or "").casefold()


def related(connection: Connection, one: str, other: str) -> bool:
    """The rule of contract 2.9 inside the caller's transaction; an unknown workspace is related to nobody."""
    first, second = lineage(connection, one), lineage(connection, other)
    if not first or not second:
        return False
    if one in second or other in first:
        return True
    return _parent(first) == _parent(second)


def _parent(lineage: list[str]) -> str | None:
    return lineage[1] if len(lineage) > 1 else None


def lineage(connection: Connection, workspace_id: str) -> list[str]:
    """The workspace and its ancestors, nearest first; empty when it is unknown."""
    chain: list[str] = []
    current: str | None = workspace_id
    while current is not None and current not in chain and len(chain) <= LINEAGE_CAP:
        row = connection.execute(select(workspaces.c.parent_id).where(workspaces.c.id == current)).one_or_none()
        if row is None:
            break
        chain.append(current)
        current = row.parent_id
    return chain


def _select_peers(connection: Connection, workspace_id: str) -> list[RowMapping]:
    columns = workspaces.c
    living = select(workspaces).where(columns.status != WorkspaceStatus.REMOVED)
    own = connection.execute(living.where(columns.id == workspace_id)).mappings().one_or_none()
    if own is None:
        raise workspace_not_found()
    in_order = living.order_by(columns.created_at, columns.id)
    siblings = in_order.where(columns.parent_id.is_not_distinct_from(own["parent_id"]), columns.id != workspace_id)
    children = in_order.where(columns.parent_id == workspace_id)
    parent = living.where(columns.id == own["parent_id"])
    return [row for query in (siblings, children, parent) for row in connection.execute(query).mappings()]


def _peer(row: RowMapping) -> Peer:
    facts: dict[str, Any] = dict(row)
    return Peer.model_validate(facts)
