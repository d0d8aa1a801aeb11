"""Where a peer is, told to those who may talk to it (contract 2.7)."""

from __future__ import annotations

from sqlalchemy import Connection, RowMapping, select

from molecule_runtime.reference_platform.refusals import Refusal, workspace_not_found
from molecule_runtime.reference_platform.services.peers import related
from molecule_runtime.reference_platform.services.push_urls import leads_inside
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.reference_platform.store.tables import workspaces
from molecule_runtime.wire.registry import DeliveryMode, Discovered, DiscoveredPoller, WorkspaceStatus

REACHABLE = frozenset({WorkspaceStatus.ONLINE, WorkspaceStatus.DEGRADED})


class Discovery:
    """Answers from the rows of the two workspaces."""

    def __init__(self, store: Store, *, development: bool) -> None:
        self._store = store
        self._development = development

    async def discover(self, caller_id: str, target_id: str) -> Discovered:
        """Where `target_id` is, as `caller_id` may know it.

        Raises:
            Refusal: 403, not related, an unknown target or a removed caller; 404, removed; 503, not to be called now.
            StoreError: the database failed.
        """
        row = await self._store.read(_select_for, caller_id, target_id)
        if row["status"] == WorkspaceStatus.REMOVED:
            raise workspace_not_found()
        if row["delivery_mode"] == DeliveryMode.POLL:
            facts = {name: row[name] for name in ("id", "name", "role", "status", "agent_card")}
            return DiscoveredPoller.model_validate(facts)
        if row["status"] not in REACHABLE or not row["url"]:
            raise Refusal(503, "workspace not available", extra={"status": row["status"]})
        # Other platforms store what this one would have refused, and what development mode took is no longer good here.
        if leads_inside(row["url"], development=self._development):
            raise Refusal(503, "workspace URL failed safety check")
        return Discovered(id=row["id"], url=row["url"], name=row["name"])


def _select_for(connection: Connection, caller_id: str, target_id: str) -> RowMapping:
    """The target's row, in one snapshot with the relation that opens it."""
    # A removed workspace has no live token, so the door stands open for its name: it must not learn anything here.
    caller = connection.execute(select(workspaces.c.status).where(workspaces.c.id == caller_id)).scalar_one_or_none()
    if caller in (None, WorkspaceStatus.REMOVED) or not related(connection, caller_id, target_id):
        raise Refusal(403, "not authorized to discover this workspace")
    return connection.execute(select(workspaces).where(workspaces.c.id == target_id)).mappings().one()
