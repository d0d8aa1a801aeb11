"""Delegations as their delegator and their worker see them (contract 6, 0.9)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import Connection, RowMapping, select

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.bus import EventBus
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.services import delegation_ledger as ledger
from molecule_runtime.reference_platform.services.delegation_dispatch import DelegationDispatcher
from molecule_runtime.reference_platform.services.delegation_records import (
    DelegationRecords,
    Ending,
    Verdict,
    emit_all,
    find_row,
    status_event,
    text_of,
)
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.reference_platform.store.tables import activity_logs
from molecule_runtime.text import shortened_to_bytes
from molecule_runtime.wire.a2a import Method
from molecule_runtime.wire.activity import ActivityType
from molecule_runtime.wire.delegations import (
    DelegateReply,
    DelegateRequest,
    Delegation,
    DelegationRow,
    DelegationStatus,
    HeartbeatReply,
    RecordReply,
    RecordRequest,
    RowStatus,
)

LISTED = 50
"""Rows of the list (contract 6.2)."""
LISTED_PREVIEW_BYTES = 300
SWEPT_AT_ONCE = 100
"""Delegations that a sweep asks for at one time."""
SELF_DELEGATION = "self-delegation not permitted"
SEEN_AS = {
    RowStatus.PENDING: DelegationStatus.QUEUED,
    RowStatus.DISPATCHED: DelegationStatus.DISPATCHED,
    RowStatus.QUEUED: DelegationStatus.DISPATCHED,
    RowStatus.COMPLETED: DelegationStatus.COMPLETED,
    RowStatus.FAILED: DelegationStatus.FAILED,
}
"""The state of a delegation by its row, where the ledger does not tell."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SweptDelegations:
    """How many delegations a sweep closed, by the reason, and how many it could not judge or close."""

    deadline_failures: int = 0
    stuck: int = 0
    errors: int = 0

    def __add__(self, other: SweptDelegations) -> SweptDelegations:
        return SweptDelegations(
            self.deadline_failures + other.deadline_failures, self.stuck + other.stuck, self.errors + other.errors
        )


class Delegations:
    """Makes, shows and ends delegations."""

    def __init__(
        self,
        store: Store,
        bus: EventBus,
        records: DelegationRecords,
        dispatcher: DelegationDispatcher,
        clock: Clock,
    ) -> None:
        self._store = store
        self._bus = bus
        self._records = records
        self._dispatcher = dispatcher
        self._clock = clock

    async def delegate(self, delegator_id: str, request: DelegateRequest) -> DelegateReply:
        """Take a job. One whose target may not be written to is taken too, and has failed when this returns.

        Raises:
            Refusal: 400, a delegation to itself; 404, the delegator is unknown or removed.
            StoreError: the database failed, and nothing was made.
        """
        if request.target_id == delegator_id:
            raise Refusal(400, SELF_DELEGATION)
        opened = await self._store.write(self._records.open, delegator_id, request, self._clock.now())
        await emit_all(self._bus, opened.announcements)
        if opened.to_call:
            self._dispatcher.soon(delegator_id, opened.delegation_id)
        return DelegateReply(
            delegation_id=opened.delegation_id,
            status=opened.status,
            target_id=opened.target_id,
            idempotent_hit=opened.hit or None,
        )

    async def record(self, delegator_id: str, request: RecordRequest) -> RecordReply:
        """Note a job that the delegator sends by itself; an id that it has noted before changes nothing.

        Raises:
            Refusal: 400, a delegation to itself; 404, the delegator is unknown or removed.
            StoreError: the database failed, and nothing was noted.
        """
        if request.target_id == delegator_id:
            raise Refusal(400, SELF_DELEGATION)
        announcements = await self._store.write(self._records.record, delegator_id, request, self._clock.now())
        await emit_all(self._bus, announcements)
        return RecordReply(delegation_id=request.delegation_id)

    async def update(self, delegator_id: str, delegation_id: str, ending: Ending) -> None:
        """End a delegation by its delegator's word; one that is closed, or unknown, stays what it is.

        Raises:
            StoreError: the database failed.
        """
        now = self._clock.now()
        await emit_all(
            self._bus, await self._store.write(self._records.update, delegator_id, delegation_id, ending, now)
        )

    async def list_rows(self, delegator_id: str) -> list[DelegationRow]:
        """The newest 50 rows of its delegations, newest first (contract 6.2).

        Raises:
            StoreError: the database failed.
        """
        return await self._store.read(_select_rows, delegator_id)

    async def sweep(self, stuck_after: timedelta) -> SweptDelegations:
        """Close what is past its deadline or silent for longer than `stuck_after`, each in a transaction of its own.

        One that cannot be closed is counted as an error and left for the next sweep.

        Raises:
            StoreError: the database cannot tell what is due.
        """
        done = SweptDelegations()
        if not self._records.keeps_ledger:
            return done
        now = self._clock.now()
        after = ""
        while found := await self._store.read(ledger.due, now, now - stuck_after, after, at_most=SWEPT_AT_ONCE):
            for delegator_id, delegation_id in found:
                done += await self._sweep_one(delegator_id, delegation_id, stuck_after)
            after = found[-1][1]
        return done

    async def _sweep_one(self, delegator_id: str, delegation_id: str, stuck_after: timedelta) -> SweptDelegations:
        now = self._clock.now()
        try:
            verdict, announcements = await self._store.write(
                self._records.sweep, delegator_id, delegation_id, now, stuck_after
            )
        except Exception:  # the edge of one delegation: it must not keep the others from being swept
            log.exception("delegation.sweep_failed", delegation_id=delegation_id)
            return SweptDelegations(errors=1)
        await emit_all(self._bus, announcements)
        return SweptDelegations(
            deadline_failures=int(verdict is Verdict.LATE),
            stuck=int(verdict is Verdict.STUCK),
            errors=int(verdict is Verdict.ERROR),
        )

    async def prune(self, older_than: datetime) -> int:
        """Delete what the ledger knows from before `older_than`; how many.

        Raises:
            StoreError: the database failed; what was deleted until then stays so.
        """
        deleted = 0
        while portion := await self._store.write(ledger.prune, older_than):
            deleted += portion
        return deleted

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


def _select_rows(connection: Connection, delegator_id: str) -> list[DelegationRow]:
    rows = activity_logs.c
    query = (
        select(activity_logs)
        .where(
            rows.workspace_id == delegator_id,
            rows.activity_type == ActivityType.DELEGATION,
            rows.method.in_((Method.DELEGATE, Method.DELEGATE_RESULT)),
        )
        .order_by(rows.seq.desc())
        .limit(LISTED)
    )
    return [_listed(row) for row in connection.execute(query).mappings()]


def _listed(row: RowMapping) -> DelegationRow:
    return DelegationRow(
        id=row["id"],
        type="delegation",
        delegation_id=row["delegation_id"],
        source_id=row["source_id"] or "",
        target_id=row["target_id"] or "",
        summary=row["summary"] or "",
        status=row["status"],
        error=row["error_detail"],
        response_preview=_preview(row),
        created_at=row["created_at"],
    )


def _preview(row: RowMapping) -> str | None:
    """The beginning of a result's text, or of its JSON when it has none; a delegation's own row has no result."""
    if row["method"] != Method.DELEGATE_RESULT or row["response_body"] is None:
        return None
    text = text_of(row)
    whole = json.dumps(row["response_body"], ensure_ascii=False) if text is None else text
    return shortened_to_bytes(whole, LISTED_PREVIEW_BYTES)


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
