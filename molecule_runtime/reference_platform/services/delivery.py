"""Who may be written to, and the row by which a polling workspace gets a message (contract 4.1).

Both are functions of a connection: messages and delegations judge and write in one transaction of their own.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, RowMapping, select

from molecule_runtime.reference_platform.refusals import Refusal, workspace_not_found
from molecule_runtime.reference_platform.services.activity import NewRow, append
from molecule_runtime.reference_platform.services.envelope import Envelope
from molecule_runtime.reference_platform.services.peers import related
from molecule_runtime.reference_platform.store.tables import workspaces
from molecule_runtime.wire.activity import ActivityRow, ActivityType
from molecule_runtime.wire.registry import WorkspaceStatus


def admitted(connection: Connection, source_id: str | None, target_id: str) -> RowMapping | None:
    """The target's row, if the source (None is the user) may write to it; None when it is unknown to the user.

    Raises:
        Refusal: in the contract's order of denial: 404 removed, 403 hierarchy, 402 budget.
    """
    target = connection.execute(select(workspaces).where(workspaces.c.id == target_id)).mappings().one_or_none()
    if target is not None and target["status"] == WorkspaceStatus.REMOVED:
        raise workspace_not_found()
    if source_id is not None and not related(connection, source_id, target_id):
        raise Refusal(403, "access denied: workspaces cannot communicate per hierarchy rules")
    if target is not None and _over_budget(target):
        raise Refusal(402, "workspace budget limit exceeded")
    return target


def without_url(target: RowMapping) -> Refusal:
    """What is said of a workspace that neither polls nor can be called."""
    return Refusal(503, "workspace has no URL", extra={"status": target["status"]})


def _over_budget(target: RowMapping) -> bool:
    return target["budget_limit"] is not None and target["monthly_spend"] >= target["budget_limit"]


def lock_lines(connection: Connection, *workspace_ids: str) -> dict[str, RowMapping]:
    """The lines of the workspaces that there are, kept from other writers until the transaction ends.

    A transaction that appends to several logs takes them here, first and in the order of their ids: two that took them
    in different orders would wait for each other.
    """
    query = (
        select(workspaces)
        .where(workspaces.c.id.in_(workspace_ids))
        .order_by(workspaces.c.id)
        .with_for_update(key_share=True)  # no key is changed: rows that refer to the workspace need not wait
    )
    return {row["id"]: row for row in connection.execute(query).mappings()}


def store_message(
    connection: Connection, target: RowMapping, source_id: str | None, envelope: Envelope, now: datetime
) -> ActivityRow:
    """Append a message to the log that a polling workspace reads.

    Raises:
        Refusal: 404, the workspace was removed meanwhile.
    """
    row = NewRow(
        workspace_id=target["id"],
        activity_type=ActivityType.A2A_RECEIVE,
        method=envelope.method,
        summary=f"{envelope.method} → {target['name']} (queued for poll)",
        source_id=source_id,
        target_id=target["id"],
        request_body=envelope.body,
    )
    return append(connection, row, now)
