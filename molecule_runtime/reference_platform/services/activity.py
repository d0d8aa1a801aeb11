"""The activity log: the one function that appends a row, the query that inboxes poll, and what agents report of
themselves (contract 0.7, 4.3, 4.4).

Each row takes the next number of its workspace by updating the workspace's own line inside the transaction that inserts
the row. The line stays locked until the commit, so numbers become visible in their order and a reader that follows
`since_id` misses none. Times of rows of one workspace strictly increase for the same reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import ColumnElement, Connection, case, delete, insert, select, update

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.bus import EventBus
from molecule_runtime.reference_platform.identifiers import canonical_uuid, new_id
from molecule_runtime.reference_platform.refusals import Refusal, workspace_not_found
from molecule_runtime.reference_platform.store.engine import Store, StoreError
from molecule_runtime.reference_platform.store.locks import Lock, exclusively
from molecule_runtime.reference_platform.store.tables import activity_logs, workspaces
from molecule_runtime.text import cut_code_points
from molecule_runtime.wire.activity import ActivityReport, ActivityRow, ActivityType
from molecule_runtime.wire.events import EventName
from molecule_runtime.wire.registry import WorkspaceStatus

MAX_SINCE_S = 2_592_000
"""Seconds, 30 days: the widest window a reader may ask for (contract 4.3)."""
PRUNED_AT_ONCE = 500
"""Rows deleted in one transaction."""
CURSOR_GONE = (
    "since_id cursor not found (row may have been pruned or belongs to a different workspace); omit since_id to reset"
)
SUMMARY_CODE_POINTS = 256
ERROR_DETAIL_CODE_POINTS = 4096
"""Longest summary and error of a reported row (contract 4.4)."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class NewRow:
    """A row to append; id, sequence number and time are given by `append`.

    The last two stay inside: by them the rows of a delegation are found.
    """

    workspace_id: str
    activity_type: ActivityType
    method: str | None = None
    summary: str | None = None
    source_id: str | None = None
    target_id: str | None = None
    request_body: Any = None
    response_body: Any = None
    duration_ms: int | None = None
    status: str = "ok"
    error_detail: str | None = None
    delegation_id: str | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True)
class ActivityQuery:
    """Filters, all of which must hold; `peer_id` is a canonical UUID.

    `since_id` and `source` come as they were sent, since the contract has them judged in this order, and only a look-up
    can judge a cursor: anything that is not a row of the workspace is answered with 410.
    """

    activity_type: str | None = None
    source: str | None = None
    peer_id: str | None = None
    before: datetime | None = None
    since_s: int | None = None
    since_id: str | None = None
    limit: int = 100


class ActivityLog:
    """Reads the log and announces its rows."""

    def __init__(self, store: Store, bus: EventBus, clock: Clock) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock

    async def query(self, workspace_id: str, query: ActivityQuery) -> list[ActivityRow]:
        """The rows: oldest first after `since_id`, newest first without it.

        Raises:
            Refusal: 410, the cursor names no row of this workspace; 400, `source` is neither canvas nor agent.
            StoreError: the database failed.
        """
        return await self._store.read(_select_rows, workspace_id, query, self._clock.now())

    async def report(self, workspace_id: str, report: ActivityReport) -> None:
        """Append and announce what a workspace says of itself; the fields are checked, its long texts are cut.

        A row that cannot be written is logged and the call still succeeds: an agent must not fail over its own diary.

        Raises:
            Refusal: 404, unknown or removed workspace.
        """
        try:
            row = await self._store.write(append, _reported(workspace_id, report), self._clock.now())
        except StoreError:
            log.exception("activity.persist_failed", workspace_id=workspace_id)
            return
        await self.announce(row)

    async def announce(self, row: ActivityRow) -> None:
        """Emit ACTIVITY_LOGGED for a row that is committed (contract 4.4)."""
        await self._bus.emit(EventName.ACTIVITY_LOGGED, row.workspace_id, logged_payload(row))

    async def prune(self, older_than: datetime, *, at_most: int | None = None) -> int:
        """Delete rows from before `older_than`, about `at_most` of them; the number of rows deleted.

        Cursors on deleted rows become 410.

        Raises:
            StoreError: the database failed; what was deleted until then stays so.
        """
        deleted = 0
        while at_most is None or deleted < at_most:
            portion = await self._store.write(_prune, older_than)
            if not portion:
                break
            deleted += portion
        return deleted


def append(connection: Connection, row: NewRow, now: datetime) -> ActivityRow:
    """Insert the row with the workspace's next number, in the caller's transaction; the one writer of activity.

    Raises:
        Refusal: 404, the workspace is unknown or removed.
    """
    now_us = _microseconds(now)
    last = workspaces.c.last_row_us
    taken = connection.execute(
        update(workspaces)
        .where(workspaces.c.id == row.workspace_id, workspaces.c.status != WorkspaceStatus.REMOVED)
        .values(
            last_seq=workspaces.c.last_seq + 1,
            last_row_us=case((last >= now_us, last + 1), else_=now_us),
        )
        .returning(workspaces.c.last_seq, last)
    ).one_or_none()
    if taken is None:
        raise workspace_not_found()
    values = {
        "id": new_id(),
        "workspace_id": row.workspace_id,
        "seq": taken.last_seq,
        "activity_type": str(row.activity_type),
        "source_id": row.source_id,
        "target_id": row.target_id,
        "method": row.method,
        "summary": row.summary,
        "request_body": row.request_body,
        "response_body": row.response_body,
        "duration_ms": row.duration_ms,
        "status": row.status,
        "error_detail": row.error_detail,
        "created_at": _EPOCH + timedelta(microseconds=taken.last_row_us),
        "delegation_id": row.delegation_id,
        "idempotency_key": row.idempotency_key,
    }
    connection.execute(insert(activity_logs).values(values))
    return ActivityRow.model_validate(values)


def _reported(workspace_id: str, report: ActivityReport) -> NewRow:
    return NewRow(
        workspace_id=workspace_id,
        activity_type=ActivityType(report.activity_type),
        method=report.method,
        summary=_capped(report.summary, SUMMARY_CODE_POINTS),
        source_id=workspace_id,
        target_id=report.target_id,
        request_body=report.metadata if report.request_body is None else report.request_body,
        response_body=report.response_body,
        duration_ms=report.duration_ms,
        status=report.status,
        error_detail=_capped(report.error_detail, ERROR_DETAIL_CODE_POINTS),
    )


def _capped(text: str | None, limit: int) -> str | None:
    """At most `limit` code points, the mark of a cut included."""
    return text if text is None or len(text) <= limit else cut_code_points(text, limit - 1)


def logged_payload(row: ActivityRow) -> dict[str, Any]:
    """What ACTIVITY_LOGGED says of a row: its facts, and each body that it has (contract 4.4)."""
    payload: dict[str, Any] = {
        "activity_type": row.activity_type,
        "method": row.method,
        "summary": row.summary,
        "status": row.status,
        "source_id": row.source_id,
        "target_id": row.target_id,
        "duration_ms": row.duration_ms,
    }
    bodies = {
        "tool_trace": row.tool_trace,
        "request_body": row.request_body,
        "response_body": row.response_body,
    }
    return payload | {name: body for name, body in bodies.items() if body is not None}


def _select_rows(connection: Connection, workspace_id: str, query: ActivityQuery, now: datetime) -> list[ActivityRow]:
    rows = activity_logs.c
    statement = select(activity_logs).where(rows.workspace_id == workspace_id)
    if query.since_id is None:
        statement = statement.order_by(rows.seq.desc())
    else:
        cursor = _cursor_seq(connection, workspace_id, query.since_id)
        statement = statement.where(rows.seq > cursor).order_by(rows.seq.asc())
    if query.source is not None:
        statement = statement.where(_from_source(query.source))
    if query.activity_type is not None:
        statement = statement.where(rows.activity_type == query.activity_type)
    if query.peer_id is not None:
        statement = statement.where((rows.source_id == query.peer_id) | (rows.target_id == query.peer_id))
    if query.before is not None:
        statement = statement.where(rows.created_at < query.before)
    if query.since_s is not None:
        window = timedelta(seconds=min(query.since_s, MAX_SINCE_S))
        statement = statement.where(rows.created_at >= now - window)
    found = connection.execute(statement.limit(query.limit)).mappings()
    return [ActivityRow.model_validate(dict(row)) for row in found]


def _from_source(source: str) -> ColumnElement[bool]:
    match source:
        case "canvas":
            return activity_logs.c.source_id.is_(None)
        case "agent":
            return activity_logs.c.source_id.is_not(None)
        case _:
            raise Refusal(400, "source must be 'canvas' or 'agent'")


def _cursor_seq(connection: Connection, workspace_id: str, cursor: str) -> int:
    row_id = canonical_uuid(cursor)
    seq: int | None = connection.execute(
        select(activity_logs.c.seq).where(activity_logs.c.id == row_id, activity_logs.c.workspace_id == workspace_id)
    ).scalar_one_or_none()
    if row_id is None or seq is None:
        raise Refusal(410, CURSOR_GONE)
    return seq


def _prune(connection: Connection, older_than: datetime) -> int:
    """Delete some of the old rows: in portions, so that a week of messages does not hold up the beats."""
    exclusively(connection, Lock.RETENTION)  # two processes would lock the same rows, perhaps in different orders
    old = select(activity_logs.c.id).where(activity_logs.c.created_at < older_than).limit(PRUNED_AT_ONCE)
    return connection.execute(delete(activity_logs).where(activity_logs.c.id.in_(old))).rowcount


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
