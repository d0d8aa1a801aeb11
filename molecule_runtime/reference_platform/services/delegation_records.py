"""A delegation in the database: its activity rows and its line in the ledger, written together (contract 6, 0.8).

The rows carry what happens and every text whole; the ledger carries states, heartbeat and deadline, and previews. Each
function here works in its caller's transaction, so neither is ever without the other, and gives back what is to be
announced after the commit.

Every transaction takes the lines of the workspaces first, in the order of their ids, then the rows, then the ledger: so
no two of them wait for each other, and whatever happens to one delegator's delegations happens one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, select, update

from molecule_runtime.reference_platform.bus import EventBus
from molecule_runtime.reference_platform.identifiers import canonical_uuid, new_id
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.services import delegation_ledger as ledger
from molecule_runtime.reference_platform.services.activity import NewRow, append, logged_payload
from molecule_runtime.reference_platform.services.delivery import admitted, lock_lines, store_message, without_url
from molecule_runtime.reference_platform.services.envelope import Envelope, normalise
from molecule_runtime.reference_platform.store.tables import activity_logs
from molecule_runtime.text import shortened_to_bytes
from molecule_runtime.wire.a2a import Method, joined_text
from molecule_runtime.wire.activity import ActivityRow, ActivityType
from molecule_runtime.wire.delegations import (
    DelegateRequest,
    DelegationStatus,
    RecordRequest,
    RowStatus,
    delegation_message,
)
from molecule_runtime.wire.events import EventName
from molecule_runtime.wire.registry import DeliveryMode, WorkspaceStatus

SUMMARY_BYTES = 80
TASK_PREVIEW_BYTES = 100
RESPONSE_PREVIEW_BYTES = 200
"""Bytes of a summary's text and of the previews in events (contract 6.1)."""
OPEN_ROWS = (RowStatus.PENDING, RowStatus.DISPATCHED, RowStatus.QUEUED)
NO_REASON = "delegation failed"
"""The error of a failure without one."""
_rows = activity_logs.c


@dataclass(frozen=True)
class Announcement:
    """An event to emit once the transaction is committed."""

    event: EventName
    workspace_id: str
    payload: dict[str, Any]


@dataclass(frozen=True)
class Opened:
    """A delegation that was made, or the one that its key had made before (`hit`)."""

    delegation_id: str
    target_id: str
    status: str
    hit: bool = False
    to_call: bool = False
    announcements: tuple[Announcement, ...] = ()


@dataclass(frozen=True)
class Begun:
    """How far the delivery has come; `target` and `task` when the target is to be called now."""

    announcements: tuple[Announcement, ...] = ()
    target: RowMapping | None = None
    task: str = ""


@dataclass(frozen=True)
class Ending:
    """How a delegation ends: completed with a text, or failed or stuck with an error."""

    status: DelegationStatus
    text: str = ""
    error: str | None = None

    @property
    def row_status(self) -> RowStatus:
        return RowStatus.COMPLETED if self.status is DelegationStatus.COMPLETED else RowStatus.FAILED


@dataclass(frozen=True)
class Closed:
    """A delegation that was ended just now; `inbox_row` is what its delegator finds in its inbox, if anything."""

    announcements: tuple[Announcement, ...]
    inbox_row: ActivityRow | None


class Answer(Enum):
    """What else a worker's answer can be."""

    REPLAY = auto()
    """The very answer that closed the delegation, once more."""
    ORDINARY = auto()
    """A message like any other."""


class Verdict(Enum):
    """What the sweeper found a delegation to be."""

    HEALTHY = auto()
    LATE = auto()
    STUCK = auto()
    ERROR = auto()


@dataclass(frozen=True)
class DelegationRecords:
    """`keeps_ledger` off: nothing is written there, and nothing read. `fills_inbox` off: no results go to an inbox."""

    keeps_ledger: bool = True
    fills_inbox: bool = True

    def open(self, connection: Connection, delegator_id: str, request: DelegateRequest, now: datetime) -> Opened:
        """Make a delegation and, when its target polls or may not be written to, do what follows at once.

        Raises:
            Refusal: 404, the delegator is unknown or removed.
        """
        # From here on nobody else looks for this key, so of several posts the first makes the delegation.
        lock_lines(connection, delegator_id, request.target_id)
        if request.idempotency_key:
            known = self._made_by(connection, delegator_id, request.idempotency_key)
            if known is not None:
                return known
        delegation_id = new_id()
        self._insert(connection, delegator_id, request, delegation_id, RowStatus.PENDING, now)
        sent = _sent(delegator_id, request, delegation_id)
        begun = self._begin(connection, delegator_id, request.target_id, delegation_id, request.task, now)
        has_failed = any(one.event is EventName.DELEGATION_FAILED for one in begun.announcements)
        return Opened(
            delegation_id,
            request.target_id,
            RowStatus.FAILED if has_failed else "delegated",
            to_call=begun.target is not None,
            announcements=_in_order(sent, begun.announcements),
        )

    def record(
        self, connection: Connection, delegator_id: str, request: RecordRequest, now: datetime
    ) -> tuple[Announcement, ...]:
        """Note a delegation whose task the delegator sends by itself; once for an id (contract 6.3).

        Raises:
            Refusal: 404, the delegator is unknown or removed.
        """
        lock_lines(connection, delegator_id)
        if find_row(connection, delegator_id, request.delegation_id, Method.DELEGATE) is not None:
            return ()
        self._insert(connection, delegator_id, request, request.delegation_id, RowStatus.DISPATCHED, now)
        if self.keeps_ledger:
            ledger.transition(connection, delegator_id, request.delegation_id, DelegationStatus.DISPATCHED, now)
        return (_sent(delegator_id, request, request.delegation_id),)

    def claim(self, connection: Connection, delegator_id: str, delegation_id: str, now: datetime) -> Begun:
        """Take a delegation that waits for its call, unless somebody else has.

        What became of the target since the delegation was made is looked at once more: it may poll by now, or be gone.
        """
        waiting = find_row(connection, delegator_id, delegation_id, Method.DELEGATE)
        if waiting is None:
            return Begun()
        target_id = waiting["target_id"]
        delegator = lock_lines(connection, delegator_id, target_id).get(delegator_id)
        taken = connection.execute(
            update(activity_logs)
            .where(_of(delegator_id, delegation_id, Method.DELEGATE), _rows.status == RowStatus.PENDING)
            .values(status=RowStatus.DISPATCHED)
        )
        if not taken.rowcount:
            return Begun()
        if _is_gone(delegator):
            nobody = Ending(DelegationStatus.FAILED, error="its delegator was removed")
            closed = self.close(connection, delegator_id, delegation_id, nobody, now)
            return Begun(() if closed is None else closed.announcements)
        task = waiting["request_body"]["task"]
        begun = self._begin(connection, delegator_id, target_id, delegation_id, task, now)
        if begun.target is None:
            return begun
        if self.keeps_ledger:
            ledger.transition(connection, delegator_id, delegation_id, DelegationStatus.DISPATCHED, now)
        dispatched = status_event(delegator_id, target_id, delegation_id, RowStatus.DISPATCHED)
        return Begun((dispatched,), begun.target, task)

    def _begin(
        self, connection: Connection, delegator_id: str, target_id: str, delegation_id: str, task: str, now: datetime
    ) -> Begun:
        """Give a polling target its message, or end what cannot be delivered; else the target is to be called."""
        try:
            target = admitted(connection, delegator_id, target_id)
            assert target is not None  # a workspace is related to nobody unknown
            if target["delivery_mode"] != DeliveryMode.POLL and not target["url"]:
                raise without_url(target)
        except Refusal as refusal:
            failed = Ending(DelegationStatus.FAILED, error=refusal.text)
            closed = self.close(connection, delegator_id, delegation_id, failed, now)
            return Begun(() if closed is None else closed.announcements)
        if target["delivery_mode"] != DeliveryMode.POLL:
            return Begun(target=target)
        message = store_message(connection, target, delegator_id, task_envelope(delegation_id, task), now)
        logged = Announcement(EventName.ACTIVITY_LOGGED, target_id, logged_payload(message))
        return Begun((logged, *self.queue(connection, delegator_id, target_id, delegation_id, now)))

    def queue(
        self, connection: Connection, delegator_id: str, target_id: str, delegation_id: str, now: datetime
    ) -> tuple[Announcement, ...]:
        """Note that the target has the task and answers later; the ledger says `dispatched` (contract 6.1, 6.5).

        Nothing happens to a delegation that was closed meanwhile.
        """
        lock_lines(connection, delegator_id)
        noted = connection.execute(
            update(activity_logs)
            .where(_of(delegator_id, delegation_id, Method.DELEGATE), _rows.status.in_(OPEN_ROWS))
            .values(status=RowStatus.QUEUED)
        )
        if not noted.rowcount:
            return ()
        result = NewRow(
            workspace_id=delegator_id,
            activity_type=ActivityType.DELEGATION,
            method=Method.DELEGATE_RESULT,
            summary="Delegation queued — target at capacity",
            source_id=delegator_id,
            target_id=target_id,
            response_body={"delegation_id": delegation_id, "queued": True},
            status=RowStatus.QUEUED,
            delegation_id=delegation_id,
        )
        append(connection, result, now)
        if self.keeps_ledger:
            ledger.transition(connection, delegator_id, delegation_id, DelegationStatus.DISPATCHED, now)
        return (status_event(delegator_id, target_id, delegation_id, RowStatus.QUEUED),)

    def close(
        self, connection: Connection, delegator_id: str, delegation_id: str, ending: Ending, now: datetime
    ) -> Closed | None:
        """End a delegation that is open: rows, ledger and inbox in one step. None when it is not open, or not known.

        Everything that ends a delegation comes through here, so of several ends that are reported one counts.
        """
        delegator = lock_lines(connection, delegator_id).get(delegator_id)
        error = None if ending.status is DelegationStatus.COMPLETED else ending.error or NO_REASON
        texts = {"preview": ending.text, "error": error or ""}
        target_id = connection.execute(
            update(activity_logs)
            .where(_of(delegator_id, delegation_id, Method.DELEGATE), _rows.status.in_(OPEN_ROWS))
            .values(status=ending.row_status, error_detail=error)
            .returning(_rows.target_id)
        ).scalar_one_or_none()
        if target_id is None:
            if self.keeps_ledger:
                ledger.fill(connection, delegator_id, delegation_id, ending.status, now, **texts)
            return None
        if self.keeps_ledger:
            ledger.finish(connection, delegator_id, delegation_id, ending.status, now, **texts)
        facts = {"delegation_id": delegation_id, "target_id": target_id}
        if error is None:
            preview = shortened_to_bytes(ending.text, RESPONSE_PREVIEW_BYTES)
            event = Announcement(EventName.DELEGATION_COMPLETE, delegator_id, facts | {"response_preview": preview})
        else:
            event = Announcement(EventName.DELEGATION_FAILED, delegator_id, facts | {"error": error})
        if delegator is None or _is_gone(delegator):
            return Closed((event,), None)  # nobody reads its log any more, and nothing can be appended to it
        self._write_result(connection, delegator_id, target_id, delegation_id, ending, error, now)
        inbox_row = None
        if self.fills_inbox and delegator["delivery_mode"] == DeliveryMode.POLL:
            inbox_row = append(connection, _inbox_row(delegator_id, delegation_id, ending.text, error), now)
        return Closed((event,), inbox_row)

    def update(
        self, connection: Connection, delegator_id: str, delegation_id: str, ending: Ending, now: datetime
    ) -> tuple[Announcement, ...]:
        """End a delegation by its delegator's word; one that is closed only gets the text that it lacks (6.4)."""
        closed = self.close(connection, delegator_id, delegation_id, ending, now)
        if closed is not None:
            return closed.announcements
        result = find_row(connection, delegator_id, delegation_id, Method.DELEGATE_RESULT)
        same = result is not None and result["status"] == ending.row_status == RowStatus.COMPLETED
        if ending.text and result is not None and same and not text_of(result):
            self._write_result(connection, delegator_id, result["target_id"], delegation_id, ending, None, now)
        return ()

    def sweep(
        self, connection: Connection, delegator_id: str, delegation_id: str, now: datetime, stuck_after: timedelta
    ) -> tuple[Verdict, tuple[Announcement, ...]]:
        """Judge a delegation that seemed due: its worker may have been heard meanwhile (contract 6.7)."""
        lock_lines(connection, delegator_id)
        line = ledger.find(connection, delegator_id, delegation_id, locked=True)
        if line is None or DelegationStatus(line["status"]).is_final:
            return Verdict.HEALTHY, ()
        heard = line["last_heartbeat"]
        if line["deadline"] < now:
            verdict, ending = Verdict.LATE, Ending(DelegationStatus.FAILED, error="deadline exceeded by sweeper")
        elif heard is None or now - heard <= stuck_after:
            return Verdict.HEALTHY, ()
        elif line["status"] != DelegationStatus.IN_PROGRESS:
            return Verdict.ERROR, ()  # the ledger's rules do not let it be stuck
        else:
            silence = f"no heartbeat for {_go_duration(now - heard)}"
            verdict, ending = Verdict.STUCK, Ending(DelegationStatus.STUCK, error=silence)
        closed = self.close(connection, delegator_id, delegation_id, ending, now)
        if closed is not None:
            return verdict, closed.announcements
        # It was ended while no ledger was kept, or its rows are gone: only the line is left to be closed.
        row = find_row(connection, delegator_id, delegation_id, Method.DELEGATE)
        status = ending.status if row is None else DelegationStatus(row["status"])
        ledger.finish(connection, delegator_id, delegation_id, status, now, error=ending.error or "")
        return Verdict.HEALTHY, ()

    def answer(
        self, connection: Connection, delegator_id: str, worker_id: str, envelope: Envelope, now: datetime
    ) -> Closed | Answer:
        """Take a message of a workspace to a delegator, which may be the answer to a delegation (contract 0.8).

        It is one when it names an open delegation of this delegator to this very worker. A late or corrected answer is
        an ordinary message, so that nothing is lost.
        """
        delegation_id = named_delegation(envelope)
        if delegation_id is None:
            return Answer.ORDINARY
        lock_lines(connection, delegator_id)
        delegate = find_row(connection, delegator_id, delegation_id, Method.DELEGATE)
        if delegate is None or delegate["target_id"] != worker_id:
            return Answer.ORDINARY
        text = joined_text(_message_of(envelope).get("parts"))
        closed = self.close(connection, delegator_id, delegation_id, Ending(DelegationStatus.COMPLETED, text), now)
        if closed is not None:
            if closed.inbox_row is None:
                return closed
            logged = Announcement(EventName.ACTIVITY_LOGGED, delegator_id, logged_payload(closed.inbox_row))
            return Closed((logged, *closed.announcements), closed.inbox_row)
        result = find_row(connection, delegator_id, delegation_id, Method.DELEGATE_RESULT)
        said = result is not None and result["status"] == RowStatus.COMPLETED and text_of(result) == text
        return Answer.REPLAY if said else Answer.ORDINARY

    def _made_by(self, connection: Connection, delegator_id: str, key: str) -> Opened | None:
        """The delegation that this key has made, unless it failed: then the key is free again."""
        own = (_rows.workspace_id == delegator_id) & (_rows.idempotency_key == key)
        row = connection.execute(select(activity_logs).where(own)).mappings().one_or_none()
        if row is None:
            return None
        if row["status"] != RowStatus.FAILED:
            return Opened(row["delegation_id"], row["target_id"], row["status"], hit=True)
        connection.execute(update(activity_logs).where(own).values(idempotency_key=None))
        return None

    def _insert(
        self,
        connection: Connection,
        delegator_id: str,
        request: DelegateRequest | RecordRequest,
        delegation_id: str,
        status: RowStatus,
        now: datetime,
    ) -> None:
        key = request.idempotency_key or None if isinstance(request, DelegateRequest) else None
        row = NewRow(
            workspace_id=delegator_id,
            activity_type=ActivityType.DELEGATION,
            method=Method.DELEGATE,
            summary=f"Delegating to {request.target_id}",
            source_id=delegator_id,
            target_id=request.target_id,
            request_body={"task": request.task, "delegation_id": delegation_id},
            response_body={"delegation_id": delegation_id},
            status=status,
            delegation_id=delegation_id,
            idempotency_key=key,
        )
        append(connection, row, now)
        if self.keeps_ledger:
            if key is not None:  # the rows say who has a key: the ledger may have been off when one became free
                ledger.release_key(connection, delegator_id, key)
            ledger.insert_queued(
                connection, delegator_id, request.target_id, delegation_id, request.task, now, idempotency_key=key
            )

    def _write_result(
        self,
        connection: Connection,
        delegator_id: str,
        target_id: str,
        delegation_id: str,
        ending: Ending,
        error: str | None,
        now: datetime,
    ) -> None:
        """The result row: the one that said `queued`, or a new one."""
        summary = "Delegation failed"
        body = None
        if error is None:
            summary = f"Delegation completed ({shortened_to_bytes(ending.text, SUMMARY_BYTES)})"
        if error is None or ending.text:
            body = {"text": ending.text, "delegation_id": delegation_id}
        values: dict[str, Any] = {
            "summary": summary,
            "response_body": body,
            "status": ending.row_status,
            "error_detail": error,
        }
        there = update(activity_logs).where(_of(delegator_id, delegation_id, Method.DELEGATE_RESULT)).values(values)
        if connection.execute(there).rowcount:
            return
        row = NewRow(
            workspace_id=delegator_id,
            activity_type=ActivityType.DELEGATION,
            method=Method.DELEGATE_RESULT,
            source_id=delegator_id,
            target_id=target_id,
            delegation_id=delegation_id,
            **values,
        )
        append(connection, row, now)


async def emit_all(bus: EventBus, announcements: Iterable[Announcement]) -> None:
    """Emit what a committed transaction has to tell."""
    for one in announcements:
        await bus.emit(one.event, one.workspace_id, one.payload)


def task_envelope(delegation_id: str, task: str) -> Envelope:
    """The message that brings a worker its task."""
    message = delegation_message(delegation_id, task)
    return normalise({"method": Method.MESSAGE_SEND, "params": {"message": message, "metadata": {}}})


def named_delegation(envelope: Envelope) -> str | None:
    """The delegation that a message says it answers."""
    metadata = _message_of(envelope).get("metadata")
    if envelope.method != Method.MESSAGE_SEND or not isinstance(metadata, dict):
        return None
    return canonical_uuid(metadata.get("delegation_id"))


def find_row(connection: Connection, delegator_id: str, delegation_id: str, method: Method) -> RowMapping | None:
    """The delegation's own row (`delegate`), or the one with its result."""
    query = select(activity_logs).where(_of(delegator_id, delegation_id, method))
    return connection.execute(query).mappings().one_or_none()


def text_of(result: RowMapping) -> str | None:
    """The whole text that a result row holds."""
    body = result["response_body"]
    text = body.get("text") if isinstance(body, dict) else None
    return text if isinstance(text, str) else None


def status_event(delegator_id: str, target_id: str, delegation_id: str, status: str) -> Announcement:
    payload = {"delegation_id": delegation_id, "target_id": target_id, "status": str(status)}
    return Announcement(EventName.DELEGATION_STATUS, delegator_id, payload)


def _sent(delegator_id: str, request: DelegateRequest | RecordRequest, delegation_id: str) -> Announcement:
    payload = {
        "delegation_id": delegation_id,
        "target_id": request.target_id,
        "task_preview": shortened_to_bytes(request.task, TASK_PREVIEW_BYTES),
    }
    return Announcement(EventName.DELEGATION_SENT, delegator_id, payload)


def _is_gone(workspace: RowMapping | None) -> bool:
    return workspace is None or workspace["status"] == WorkspaceStatus.REMOVED


def _of(delegator_id: str, delegation_id: str, method: Method) -> ColumnElement[bool]:
    return (
        (_rows.delegation_id == delegation_id)
        & (_rows.workspace_id == delegator_id)
        & (_rows.activity_type == ActivityType.DELEGATION)
        & (_rows.method == method)
    )


def _inbox_row(delegator_id: str, delegation_id: str, text: str, error: str | None) -> NewRow:
    return NewRow(
        workspace_id=delegator_id,
        activity_type=ActivityType.A2A_RECEIVE,
        method=Method.DELEGATE_RESULT,
        summary="Delegation result delivered" if error is None else "Delegation failed",
        source_id=delegator_id,
        request_body={"delegation_id": delegation_id},
        response_body={"text": text, "delegation_id": delegation_id},
        status="ok" if error is None else "error",
        error_detail=error,
    )


def _in_order(sent: Announcement, begun: Iterable[Announcement]) -> tuple[Announcement, ...]:
    """The worker's doorbell first: it is the one that somebody waits for."""
    logged = [one for one in begun if one.event is EventName.ACTIVITY_LOGGED]
    return (*logged, sent, *(one for one in begun if one.event is not EventName.ACTIVITY_LOGGED))


def _go_duration(time: timedelta) -> str:
    """Whole seconds as Go writes a duration, which is how operators know these errors: 10m1s."""
    minutes, seconds = divmod(int(time.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def _message_of(envelope: Envelope) -> dict[str, Any]:
    params = envelope.body.get("params")
    message = params.get("message") if isinstance(params, dict) else None
    return message if isinstance(message, dict) else {}
