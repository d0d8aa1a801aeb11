"""The ledger of delegations: their states, which move by the rules alone (contract 6.5).

Functions of a connection. Each write names the delegator beside the delegation, so nobody can touch what is another's,
and is one guarded statement, so of several transactions that want to move a delegation one wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

import structlog
from sqlalchemy import ColumnElement, Connection, RowMapping, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from molecule_runtime.reference_platform.store.locks import Lock, exclusively
from molecule_runtime.reference_platform.store.tables import delegations
from molecule_runtime.text import cut_bytes
from molecule_runtime.wire.delegations import TRANSITIONS, DelegationStatus

DEADLINE = timedelta(hours=6)
"""How long a delegation may take before the sweeper gives it up (contract 6.5)."""
PRUNED_AT_ONCE = 500
"""Rows deleted in one transaction."""
OPEN = tuple(status for status in DelegationStatus if not status.is_final)
SOURCES = {to: tuple(status for status in DelegationStatus if to in TRANSITIONS[status]) for to in DelegationStatus}
"""From which states each state is reached."""

log = structlog.get_logger(__name__)
_columns = delegations.c


class Step(Enum):
    """What became of a transition."""

    MOVED = auto()
    SAME = auto()
    """It was there already."""
    ILLEGAL = auto()
    UNKNOWN = auto()


@dataclass(frozen=True)
class Beat:
    """What became of a heartbeat; `started` when it was the first, by which the work is known to have begun."""

    caller_id: str
    started: bool


def insert_queued(
    connection: Connection,
    caller_id: str,
    callee_id: str,
    delegation_id: str,
    task: str,
    now: datetime,
    *,
    idempotency_key: str | None = None,
) -> None:
    """Begin the delegation's line; an id that is known is left as it is."""
    values = {
        "delegation_id": delegation_id,
        "caller_id": caller_id,
        "callee_id": callee_id,
        "task_preview": cut_bytes(task),
        "status": DelegationStatus.QUEUED,
        "deadline": now + DEADLINE,
        "idempotency_key": idempotency_key,
        "retry_count": 0,
        "created_at": now,
        "updated_at": now,
    }
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(delegations).values(values).on_conflict_do_nothing())


def transition(
    connection: Connection,
    caller_id: str,
    delegation_id: str,
    to: DelegationStatus,
    now: datetime,
    *,
    preview: str = "",
    error: str = "",
) -> Step:
    """Move the delegation to a state, with its preview and its error in the same statement.

    Being there already changes nothing, save that an error or a preview fills its column if that is empty: a repeat
    must not lose what the first call did not know.
    """
    values = {
        "status": to,
        "error_detail": error or None,
        "result_preview": cut_bytes(preview) or None,
        "updated_at": now,
    }
    own = _own(caller_id, delegation_id)
    if connection.execute(update(delegations).where(own, _columns.status.in_(SOURCES[to])).values(values)).rowcount:
        return Step.MOVED
    status = connection.execute(select(_columns.status).where(own)).scalar_one_or_none()
    if status is None:
        log.info("delegation.not_in_ledger", delegation_id=delegation_id, state_to=str(to))
        return Step.UNKNOWN
    if status != to:
        return Step.ILLEGAL
    fill(connection, caller_id, delegation_id, to, now, preview=preview, error=error)
    return Step.SAME


def fill(
    connection: Connection,
    caller_id: str,
    delegation_id: str,
    status: DelegationStatus,
    now: datetime,
    *,
    preview: str = "",
    error: str = "",
) -> None:
    """Give a delegation in this state the error and the preview that it lacks; what it has is never overwritten."""
    for column, text in ((_columns.error_detail, error), (_columns.result_preview, cut_bytes(preview))):
        if text:
            connection.execute(
                update(delegations)
                .where(_own(caller_id, delegation_id), _columns.status == status, column.is_(None))
                .values({column: text, _columns.updated_at: now})
            )


def finish(
    connection: Connection,
    caller_id: str,
    delegation_id: str,
    to: DelegationStatus,
    now: datetime,
    *,
    preview: str = "",
    error: str = "",
) -> Step:
    """Move the delegation to a final state; one that nobody called yet is completed by way of `dispatched`."""
    if to is DelegationStatus.COMPLETED:
        transition(connection, caller_id, delegation_id, DelegationStatus.DISPATCHED, now)
    return transition(connection, caller_id, delegation_id, to, now, preview=preview, error=error)


def heartbeat(connection: Connection, callee_id: str, delegation_id: str, now: datetime) -> Beat | None:
    """Note a sign of life of the worker; None when it has no such delegation. A closed one is left as it is."""
    own = (_columns.delegation_id == delegation_id) & (_columns.callee_id == callee_id)
    begun = {"status": DelegationStatus.IN_PROGRESS, "last_heartbeat": now, "updated_at": now}
    caller_id = connection.execute(
        update(delegations)
        .where(own, _columns.status.in_(SOURCES[DelegationStatus.IN_PROGRESS]))
        .values(begun)
        .returning(_columns.caller_id)
    ).scalar_one_or_none()
    if caller_id is not None:
        return Beat(caller_id, started=True)
    connection.execute(update(delegations).where(own, _columns.status.in_(OPEN)).values(last_heartbeat=now))
    caller_id = connection.execute(select(_columns.caller_id).where(own)).scalar_one_or_none()
    return None if caller_id is None else Beat(caller_id, started=False)


def find(connection: Connection, caller_id: str, delegation_id: str, *, locked: bool = False) -> RowMapping | None:
    """The delegation's line; `locked` keeps others from it until the transaction ends."""
    query = select(delegations).where(_own(caller_id, delegation_id))
    return connection.execute(query.with_for_update() if locked else query).mappings().one_or_none()


def due(
    connection: Connection, now: datetime, stuck_before: datetime, after: str, *, at_most: int
) -> Sequence[tuple[str, str]]:
    """Caller and id of open delegations past their deadline or silent since `stuck_before`, those behind `after`."""
    silent = _columns.last_heartbeat.is_not(None) & (_columns.last_heartbeat < stuck_before)
    query = (
        select(_columns.caller_id, _columns.delegation_id)
        .where(_columns.status.in_(OPEN), (_columns.deadline < now) | silent, _columns.delegation_id > after)
        .order_by(_columns.delegation_id)
        .limit(at_most)
    )
    return [(row.caller_id, row.delegation_id) for row in connection.execute(query)]


def release_key(connection: Connection, caller_id: str, idempotency_key: str) -> None:
    """Let a key of the delegator make another delegation."""
    connection.execute(
        update(delegations)
        .where(_columns.caller_id == caller_id, _columns.idempotency_key == idempotency_key)
        .values(idempotency_key=None)
    )


def prune(connection: Connection, older_than: datetime) -> int:
    """Delete some of the lines from before `older_than`; how many."""
    exclusively(connection, Lock.RETENTION)  # two processes would lock the same rows, perhaps in different orders
    old = select(_columns.delegation_id).where(_columns.created_at < older_than).limit(PRUNED_AT_ONCE)
    return connection.execute(delete(delegations).where(_columns.delegation_id.in_(old))).rowcount


def _own(caller_id: str, delegation_id: str) -> ColumnElement[bool]:
    return (_columns.delegation_id == delegation_id) & (_columns.caller_id == caller_id)
