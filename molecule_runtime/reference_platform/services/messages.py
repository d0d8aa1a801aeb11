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
from sqlalchemy import Connection, RowMapping

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.bus import EventBus
from molecule_runtime.reference_platform.refusals import Refusal, workspace_not_found
from molecule_runtime.reference_platform.services.activity import NewRow, append, logged_payload
from molecule_runtime.reference_platform.services.delegation_records import (
    Announcement,
    Answer,
    Closed,
    DelegationRecords,
    emit_all,
    named_delegation,
)
from molecule_runtime.reference_platform.services.delivery import admitted, store_message, without_url
from molecule_runtime.reference_platform.services.envelope import Envelope, normalise
from molecule_runtime.reference_platform.services.forwarding import Forwarded, Forwarder
from molecule_runtime.reference_platform.services.workspaces import living_name
from molecule_runtime.reference_platform.store.engine import Store, StoreError
from molecule_runtime.text import cut_code_points
from molecule_runtime.wire.a2a import Method
from molecule_runtime.wire.activity import ActivityType
from molecule_runtime.wire.chat import Attachment
from molecule_runtime.wire.events import EventName
from molecule_runtime.wire.registry import DeliveryMode

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

    def __init__(
        self, store: Store, bus: EventBus, records: DelegationRecords, forwarder: Forwarder, clock: Clock
    ) -> None:
        self._store = store
        self._bus = bus
        self._records = records
        self._forwarder = forwarder
        self._clock = clock

    async def receive(
        self, target_id: str, source_id: str | None, posted: object, *, timeout_s: float | None = None
    ) -> QueuedForPoll | Forwarded:
        """Take a message for `target_id` from a workspace, or from the user when `source_id` is None.

        A pushed agent has `timeout_s` seconds to answer, or as long as it takes.

        `posted` is the parsed body, or the `Refusal` of a body that could not be parsed: who may not talk to the
        target is told so before anything is said about the body.

        A worker's answer to a delegation closes it, and stands in the inbox as its result instead of a message.

        Raises:
            Refusal: in the contract's order of denial: removed, hierarchy, budget, body, unknown, no way to deliver.
            StoreError: the database failed.
        """
        target = await self._store.read(admitted, source_id, target_id)
        if isinstance(posted, Refusal):
            raise posted
        envelope = normalise(posted)
        if target is None:
            raise workspace_not_found()
        if target["delivery_mode"] == DeliveryMode.POLL:
            announcements = await self._store.write(self._take, target, source_id, envelope, self._clock.now())
            await emit_all(self._bus, announcements)
            return QueuedForPoll(method=envelope.method)
        if not target["url"]:
            raise without_url(target)
        if source_id is not None and named_delegation(envelope) is not None:
            answer = await self._store.write(self._records.answer, target_id, source_id, envelope, self._clock.now())
            await emit_all(self._bus, answer.announcements if isinstance(answer, Closed) else ())
        return await self._forwarder.forward(target, source_id, envelope, timeout_s)

    def _take(
        self, connection: Connection, target: RowMapping, source_id: str | None, envelope: Envelope, now: datetime
    ) -> Sequence[Announcement]:
        """Write a message into the log of a workspace that polls, or what it is the answer to; what to announce."""
        announcements: tuple[Announcement, ...] = ()
        if source_id is not None:
            answer = self._records.answer(connection, target["id"], source_id, envelope, now)
            if answer is Answer.REPLAY:
                return ()
            if isinstance(answer, Closed):
                announcements = answer.announcements
                if answer.inbox_row is not None:
                    return announcements
        row = store_message(connection, target, source_id, envelope, now)
        logged = Announcement(EventName.ACTIVITY_LOGGED, row.workspace_id, logged_payload(row))
        return (logged, *announcements)
