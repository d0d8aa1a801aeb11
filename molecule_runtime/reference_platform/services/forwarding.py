"""Messages for push-mode workspaces: the call, the row it leaves, and the answer for its sender (contract 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any, assert_never

import structlog
from sqlalchemy import Connection, RowMapping, update

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform import strict_json
from molecule_runtime.reference_platform.bus import EventBus
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.services.activity import ActivityLog, NewRow, append
from molecule_runtime.reference_platform.services.delivery import lock_lines
from molecule_runtime.reference_platform.services.envelope import Envelope
from molecule_runtime.reference_platform.services.push import (
    Answered,
    PushAgents,
    PushOutcome,
    Unanswered,
    Unreachable,
    Unreadable,
)
from molecule_runtime.reference_platform.store.engine import Store, StoreError
from molecule_runtime.reference_platform.store.tables import workspaces
from molecule_runtime.wire.activity import ActivityRow, ActivityType
from molecule_runtime.wire.events import EventName

BUSY_RETRY_S = 30
"""Seconds after which a sender may ask a silent agent again, if it must (contract 4.1)."""
BODILESS = {204: 200, 205: 200, 304: 502}
"""Statuses that cannot carry the JSON which every answer of the platform has, and what is sent in their place."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Forwarded:
    """What the sender is told.

    `restarting`: the agent said that it is starting anew and took nothing. It stays inside, since of an error only its
    text is passed on.
    """

    status: int
    body: dict[str, Any]
    retry_after_s: int | None = None
    restarting: bool = False


@dataclass(frozen=True)
class _Result:
    """The answer for the sender, and what the row says: the agent's own body, and what went wrong.

    `failed` when the agent gave no answer of its own.
    """

    reply: Forwarded
    response_body: dict[str, Any] | None = None
    error: str | None = None
    failed: bool = False


class Forwarder:
    """Calls the agent, then writes down what happened, then tells the canvas."""

    def __init__(self, store: Store, bus: EventBus, activity: ActivityLog, agents: PushAgents, clock: Clock) -> None:
        self._store = store
        self._bus = bus
        self._activity = activity
        self._agents = agents
        self._clock = clock

    async def forward(
        self, target: RowMapping, source_id: str | None, envelope: Envelope, timeout_s: float | None
    ) -> Forwarded:
        """Send a message to the workspace's own URL and give back what its agent says.

        A row that cannot be written is logged and the answer still given: the message was delivered by then, and a
        sender that tries again would deliver it twice.
        """
        started = self._clock.monotonic()
        outcome = await self._agents.call(target["url"], target["platform_inbound_secret"], envelope.body, timeout_s)
        duration_ms = round((self._clock.monotonic() - started) * 1000)
        result = _result(outcome)
        if result.error is not None:
            log.info("push.failed", workspace_id=target["id"], outcome=type(outcome).__name__)
        row = _row(target, source_id, envelope, result, duration_ms)
        talks_to_a_peer = source_id is not None and source_id != target["id"] and result.reply.status < 400
        try:
            stored = await self._store.write(_store, row, source_id if talks_to_a_peer else None, self._clock.now())
        except (StoreError, Refusal):
            log.exception("message.persist_failed", workspace_id=target["id"])
        else:
            await self._activity.announce(stored)
        if source_id is None and result.reply.status < 400:
            payload = {"response_body": result.reply.body, "method": envelope.method, "duration_ms": duration_ms}
            await self._bus.emit(EventName.A2A_RESPONSE, target["id"], payload)
        return result.reply


def _result(outcome: PushOutcome) -> _Result:
    match outcome:
        case Answered(status=status, body=body) if status >= 300:
            return _refused(status, body)
        case Answered(status=status, body=body):
            return _accepted(status, body)
        case Unreachable(reason=reason):
            reply = Forwarded(502, {"error": "failed to reach workspace agent"})
            return _Result(reply, error=reason, failed=True)
        case Unanswered(reason=reason):
            body_of_busy = {"error": "workspace agent did not answer", "busy": True, "retry_after": BUSY_RETRY_S}
            return _Result(Forwarded(503, body_of_busy, BUSY_RETRY_S), error=reason, failed=True)
        case Unreadable(reason=reason):
            return _unreadable(reason)
        case _:
            assert_never(outcome)


def _accepted(status: int, body: bytes) -> _Result:
    """The agent's own JSON, with its own status: an answer, an error object, or 202 "queued"."""
    if not body:
        empty = {"error": "agent returned empty response body"}
        return _Result(Forwarded(BODILESS.get(status, status), empty), error=empty["error"])
    answer = json_object(body)
    if answer is None:
        return _unreadable("the answer is not a JSON object")
    return _Result(Forwarded(status, answer), response_body=answer)


def _refused(status: int, body: bytes) -> _Result:
    """The agent's error as a string, else the name of its status; never its JSON."""
    answer = json_object(body)
    error = answer.get("error") if answer is not None else None
    if not isinstance(error, str) or not error:
        error = status_text(status)
    restarting = status == 503 and answer is not None and answer.get("restarting") is True
    reply = Forwarded(BODILESS.get(status, status), {"error": error}, restarting=restarting)
    return _Result(reply, response_body=answer, error=error)


def _unreadable(reason: str) -> _Result:
    body = {"error": "workspace agent answered, but its answer could not be read", "delivery_confirmed": True}
    return _Result(Forwarded(502, body), error=reason, failed=True)


def json_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object that an agent answered, or None when it is none."""
    try:
        parsed = strict_json.parse(body)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def status_text(status: int) -> str:
    """What a status is called."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"HTTP {status}"


def _row(target: RowMapping, source_id: str | None, envelope: Envelope, result: _Result, duration_ms: int) -> NewRow:
    name = target["name"]
    failure = f"A2A request to {name} failed: {result.error}"
    return NewRow(
        workspace_id=target["id"],
        activity_type=ActivityType.A2A_RECEIVE,
        method=envelope.method,
        summary=failure if result.failed else f"{envelope.method} → {name}",
        source_id=source_id,
        target_id=target["id"],
        request_body=envelope.body,
        response_body=result.response_body,
        duration_ms=duration_ms,
        status="error" if result.reply.status >= 400 else "ok",
        error_detail=result.error,
    )


def _store(connection: Connection, row: NewRow, stamped: str | None, now: datetime) -> ActivityRow:
    """Append the row and note that the sender reached somebody."""
    if stamped is not None:
        lock_lines(connection, row.workspace_id, stamped)
    stored = append(connection, row, now)
    if stamped is not None:
        connection.execute(update(workspaces).where(workspaces.c.id == stamped).values(last_outbound_at=now))
    return stored
