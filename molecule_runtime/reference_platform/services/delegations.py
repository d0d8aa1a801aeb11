"""Delegations as their delegator and their worker see them (contract 6, 0.9)."""

from __future__ import annotations

from datetime import datetime

import structlog
from sqlalchemy import Connection, RowMapping, select

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.bus import EventBus
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.services import delegation_ledger as ledger
from molecule_runtime.reference_platform.services.delegation_records import (
    DelegationRecords,
    emit_all,
    find_row,
    status_event,
    text_of,
)
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.reference_platform.store.tables import activity_logs
from molecule_runtime.wire.a2a import Method
from molecule_runtime.wire.activity import ActivityType
from molecule_runtime.wire.delegations import (
    DelegateReply,
    DelegateRequest,
    Delegation,
    DelegationStatus,
    HeartbeatReply,
    RowStatus,
)

SEEN_AS = {
    RowStatus.PENDING: DelegationStatus.QUEUED,
    RowStatus.DISPATCHED: DelegationStatus.DISPATCHED,
    RowStatus.QUEUED: DelegationStatus.DISPATCHED,
    RowStatus.COMPLETED: DelegationStatus.COMPLETED,
    RowStatus.FAILED: DelegationStatus.FAILED,
}
"""The state of a delegation by its row, where the ledger does not tell."""

log = structlog.get_logger(__name__)


class Delegations:
    """Makes, shows and ends delegations."""

    def __init__(self, store: Store, bus: EventBus, records: DelegationRecords, clock: Clock) -> None:
        self._store = store
        self._bus = bus
        self._records = records
        self._clock = clock

    async def delegate(self, delegator_id: str, request: DelegateRequest) -> DelegateReply:
        """Take a job. One whose target may not be written to is taken too, and has failed when this returns.

        Raises:
            Refusal: 400, a delegation to itself; 404, the delegator is unknown or removed.
            StoreError: the database failed, and nothing was made.
        """
        if request.target_id == delegator_id:
            raise Refusal(400, "self-delegation not permitted")
        opened = await self._store.write(self._records.open, delegator_id, request, self._clock.now())
        await emit_all(self._bus, opened.announcements)
        return DelegateReply(
            delegation_id=opened.delegation_id,
            status=opened.status,
            target_id=opened.target_id,
            idempotent_hit=opened.hit or None,
        )

    async def get(self, delegator_id: str, delegation_id: str) -> Delegation:
        """The delegation with its whole text, for its delegator.

        Raises:
            Refusal: 404, it has no such delegation.
            StoreError: the database failed.
        """
        return await self._store.read(_select_one, self._records, delegator_id, delegation_id)

    async def heartbeat(self, worker_id: str, delegation_id: str) -> HeartbeatReply:
        """Note that the worker is at it; without effect on a delegation that is closed.

        Raises:
            Refusal: 404, it was given no such delegation.
            StoreError: the database failed.
        """
        beat = await self._store.write(_heartbeat, self._records, worker_id, delegation_id, self._clock.now())
        if beat is not None and beat.started:
            started = status_event(beat.caller_id, worker_id, delegation_id, DelegationStatus.IN_PROGRESS)
            await emit_all(self._bus, [started])
        return HeartbeatReply()


def delegation_not_found() -> Refusal:
    return Refusal(404, "delegation not found")


def _select_one(
    connection: Connection, records: DelegationRecords, delegator_id: str, delegation_id: str
) -> Delegation:
    delegate = find_row(connection, delegator_id, delegation_id, Method.DELEGATE)
    if delegate is None:
        raise delegation_not_found()
    result = find_row(connection, delegator_id, delegation_id, Method.DELEGATE_RESULT)
    line = ledger.find(connection, delegator_id, delegation_id) if records.keeps_ledger else None
    status = SEEN_AS[delegate["status"]]
    # Of a delegation that was ended while no ledger was kept the line still tells an older state.
    if line is not None and (not status.is_final or DelegationStatus(line["status"]).is_final):
        status = DelegationStatus(line["status"])
    return Delegation(
        delegation_id=delegation_id,
        target_id=delegate["target_id"],
        status=status,
        text=None if result is None else text_of(result),
        error=delegate["error_detail"],
        created_at=delegate["created_at"],
        updated_at=_updated_at(delegate, result, line),
    )


def _updated_at(delegate: RowMapping, result: RowMapping | None, line: RowMapping | None) -> datetime:
    """By the ledger; without one, when its last row was made."""
    moments: list[datetime] = [delegate["created_at"]]
    if result is not None:
        moments.append(result["created_at"])
    if line is not None:
        moments.append(line["updated_at"])
    return max(moments)


def _heartbeat(
    connection: Connection, records: DelegationRecords, worker_id: str, delegation_id: str, now: datetime
) -> ledger.Beat | None:
    if records.keeps_ledger:
        beat = ledger.heartbeat(connection, worker_id, delegation_id, now)
        if beat is not None:
            return beat
    rows = activity_logs.c
    given = select(rows.id).where(
        rows.delegation_id == delegation_id,
        rows.target_id == worker_id,
        rows.activity_type == ActivityType.DELEGATION,
        rows.method == Method.DELEGATE,
    )
    if connection.execute(given.limit(1)).first() is None:
        raise delegation_not_found()
    return None
