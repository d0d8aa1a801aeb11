"""Messages in both directions: what the agent tells the user, and what anybody sends to an agent (contract 4.1, 4.2).

`AgentMessageWriter` is the only place that emits AGENT_MESSAGE; a test looks for others. `Inbound` is the only one that
turns a post to /a2a into a row, or into a call where the target does not poll.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import Connection, RowMapping, select

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.bus import EventBus
from molecule_runtime.reference_platform.refusals import Refusal, workspace_not_found
from molecule_runtime.reference_platform.services.activity import ActivityLog, NewRow, append
from molecule_runtime.reference_platform.services.envelope import Envelope, normalise
from molecule_runtime.reference_platform.services.forwarding import Forwarded, Forwarder
from molecule_runtime.reference_platform.services.peers import Peers
from molecule_runtime.reference_platform.services.workspaces import living_name
from molecule_runtime.reference_platform.store.engine import Store, StoreError
from molecule_runtime.reference_platform.store.tables import workspaces
from molecule_runtime.text import cut_code_points
from molecule_runtime.wire.a2a import Method
from molecule_runtime.wire.activity import ActivityRow, ActivityType
from molecule_runtime.wire.chat import Attachment
from molecule_runtime.wire.events import EventName
from molecule_runtime.wire.registry import DeliveryMode, WorkspaceStatus

log = structlog.get_logger(__name__)


class AgentMessageWriter:
    """Says something to the user in the name of a workspace: look up, broadcast, persist, in that order."""

    def __init__(self, store: Store, bus: EventBus, clock: Clock) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock

    async def send(self, workspace_id: str, message: str, attachments: Sequence[Attachment] = ()) -> None:
        """Broadcast the message and append its row.

        A row that cannot be written is logged and the call still succeeds: the user has seen the message by then, and
        a sender that retries would show it twice.

        Raises:
            Refusal: 404, unknown or removed workspace; nothing was broadcast, nothing written.
            StoreError: the look-up failed; nothing was broadcast, nothing written.
        """
        name = await self._store.read(living_name, workspace_id)
        files = [attachment.model_dump(exclude_none=True) for attachment in attachments]
        payload: dict[str, Any] = {"message": message, "workspace_id": workspace_id, "name": name}
        if files:
            payload["attachments"] = files
        await self._bus.emit(EventName.AGENT_MESSAGE, workspace_id, payload)
        try:
            await self._store.write(append, _notify_row(workspace_id, message, files), self._clock.now())
        except (StoreError, Refusal):
            log.exception("message.persist_failed", workspace_id=workspace_id)


def _notify_row(workspace_id: str, message: str, files: list[dict[str, Any]]) -> NewRow:
    response: dict[str, Any] = {"result": message}
    if files:
        response["parts"] = [{"kind": "file", "file": _without_empty_size(file)} for file in files]
    return NewRow(
        workspace_id=workspace_id,
        activity_type=ActivityType.A2A_RECEIVE,
        method=Method.NOTIFY,
        summary="Agent message: " + cut_code_points(message),
        response_body=response,
    )


def _without_empty_size(file: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in file.items() if key != "size" or value > 0}


@dataclass(frozen=True)
class QueuedForPoll:
    """The row is written; the agent finds it at its next poll."""

    method: str


class Inbound:
    """Receives messages for workspaces."""

    def __init__(self, store: Store, peers: Peers, activity: ActivityLog, forwarder: Forwarder, clock: Clock) -> None:
        self._store = store
        self._peers = peers
        self._activity = activity
        self._forwarder = forwarder
        self._clock = clock

    async def receive(
        self, target_id: str, source_id: str | None, posted: object, *, timeout_s: float | None = None
    ) -> QueuedForPoll | Forwarded:
        """Take a message for `target_id` from a workspace, or from the user when `source_id` is None.

        A pushed agent has `timeout_s` seconds to answer, or as long as it takes.

        `posted` is the parsed body, or the `Refusal` of a body that could not be parsed: who may not talk to the
        target is told so before anything is said about the body.

        Raises:
            Refusal: in the contract's order of denial: removed, hierarchy, budget, body, unknown, no way to deliver.
            StoreError: the database failed.
        """
        target = await self._store.read(_select_target, target_id)
        if target is not None and target["status"] == WorkspaceStatus.REMOVED:
            raise workspace_not_found()
        if source_id is not None and not await self._peers.can_communicate(source_id, target_id):
            raise Refusal(403, "access denied: workspaces cannot communicate per hierarchy rules")
        if target is not None and _over_budget(target):
            raise Refusal(402, "workspace budget limit exceeded")
        if isinstance(posted, Refusal):
            raise posted
        envelope = normalise(posted)
        if target is None:
            raise workspace_not_found()
        if target["delivery_mode"] == DeliveryMode.POLL:
            row = await self._store.write(_store_message, target, source_id, envelope, self._clock.now())
            await self._activity.announce(row)
            return QueuedForPoll(method=envelope.method)
        if not target["url"]:
            raise Refusal(503, "workspace has no URL", extra={"status": target["status"]})
        return await self._forwarder.forward(target, source_id, envelope, timeout_s)


def _select_target(connection: Connection, workspace_id: str) -> RowMapping | None:
    return connection.execute(select(workspaces).where(workspaces.c.id == workspace_id)).mappings().one_or_none()


def _over_budget(target: RowMapping) -> bool:
    return target["budget_limit"] is not None and target["monthly_spend"] >= target["budget_limit"]


def _store_message(
    connection: Connection, target: RowMapping, source_id: str | None, envelope: Envelope, now: datetime
) -> ActivityRow:
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
