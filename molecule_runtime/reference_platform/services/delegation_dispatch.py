"""Delegations to workspaces that are called: the call, and what is made of its answer (contract 6.1).

The call runs beside the requests, since it may take half an hour. It goes the way of every message, through the
forwarder, so the target's log has a row for each attempt with what the agent said. Before it the delegation is claimed,
by one of the platform's processes, and never called again by another: one that was claimed by a process that died, or
was ended, in the middle of the call is left to its deadline, because nobody can tell whether the agent got the task.
"""

from __future__ import annotations

import json
from typing import Any

import anyio
import structlog
from anyio.abc import TaskGroup
from sqlalchemy import Connection, RowMapping, select

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.bus import EventBus
from molecule_runtime.reference_platform.services.delegation_records import (
    Announcement,
    DelegationRecords,
    Ending,
    emit_all,
    task_envelope,
)
from molecule_runtime.reference_platform.services.forwarding import Forwarded, Forwarder
from molecule_runtime.reference_platform.store.engine import Store, StoreError
from molecule_runtime.reference_platform.store.tables import activity_logs
from molecule_runtime.wire.a2a import Answered, Malformed, Method, Queued, Refused, read_outcome
from molecule_runtime.wire.activity import ActivityType
from molecule_runtime.wire.delegations import DelegationStatus, RowStatus

CEILING_S = 30 * 60
"""Seconds that an agent has to do the task within the call (contract 6.1)."""
RETRY_S = 8.0
"""Pause before the one retry of a call that did not reach the agent (contract 6.1)."""
WRITE_PAUSES_S = (1.0, 5.0, 30.0, 120.0, 600.0)
"""Between attempts to write an answer down: the agent has done the work, and will not do it again."""

log = structlog.get_logger(__name__)


class DelegationDispatcher:
    """Calls the targets of delegations; `run` it for as long as the platform serves."""

    def __init__(
        self, store: Store, bus: EventBus, records: DelegationRecords, forwarder: Forwarder, clock: Clock
    ) -> None:
        self._store = store
        self._bus = bus
        self._records = records
        self._forwarder = forwarder
        self._clock = clock
        self._calls: TaskGroup | None = None
        self._early: list[tuple[str, str]] = []

    async def run(self) -> None:
        """Make calls until cancelled, beginning with those that a process left behind before it claimed them."""
        async with anyio.create_task_group() as calls:
            self._calls = calls
            for one in self._early:
                self.soon(*one)
            try:
                await self.pick_up()
            except StoreError:
                log.exception("delegation.pick_up_failed")  # the sweeper tries again
            await anyio.sleep_forever()

    def soon(self, delegator_id: str, delegation_id: str) -> None:
        """Call the target of a delegation that is committed; does not wait for it."""
        if self._calls is None:
            self._early.append((delegator_id, delegation_id))
        else:
            self._calls.start_soon(self._dispatch, delegator_id, delegation_id)

    async def pick_up(self) -> int:
        """Begin what waits for its call, whoever left it so; how many.

        Raises:
            StoreError: the database failed.
        """
        waiting = await self._store.read(_select_waiting)
        for delegator_id, delegation_id in waiting:
            self.soon(delegator_id, delegation_id)
        return len(waiting)

    async def _dispatch(self, delegator_id: str, delegation_id: str) -> None:
        try:
            begun = await self._store.write(self._records.claim, delegator_id, delegation_id, self._clock.now())
            await emit_all(self._bus, begun.announcements)
            if begun.target is not None:
                await self._call(begun.target, begun.task, delegator_id, delegation_id)
        except Exception:  # the edge of one delegation: it must not end the others
            log.exception("delegation.dispatch_failed", workspace_id=delegator_id, delegation_id=delegation_id)

    async def _call(self, target: RowMapping, task: str, delegator_id: str, delegation_id: str) -> None:
        envelope = task_envelope(delegation_id, task)
        reply = await self._forwarder.forward(target, delegator_id, envelope, CEILING_S)
        if _took_nothing(reply):
            await self._clock.sleep(RETRY_S)
            reply = await self._forwarder.forward(target, delegator_id, envelope, CEILING_S)
        announcements = await self._write_down(delegator_id, target["id"], delegation_id, ending_of(reply))
        await emit_all(self._bus, announcements)

    async def _write_down(
        self, delegator_id: str, target_id: str, delegation_id: str, ending: Ending | None
    ) -> tuple[Announcement, ...]:
        pauses = iter(WRITE_PAUSES_S)
        while True:
            try:
                return await self._store.write(self._conclude, delegator_id, target_id, delegation_id, ending)
            except StoreError:
                pause_s = next(pauses, None)
                if pause_s is None:
                    raise
                log.exception("delegation.persist_failed", workspace_id=delegator_id, delegation_id=delegation_id)
                await self._clock.sleep(pause_s)

    def _conclude(
        self, connection: Connection, delegator_id: str, target_id: str, delegation_id: str, ending: Ending | None
    ) -> tuple[Announcement, ...]:
        now = self._clock.now()
        if ending is None:
            return self._records.queue(connection, delegator_id, target_id, delegation_id, now)
        closed = self._records.close(connection, delegator_id, delegation_id, ending, now)
        return () if closed is None else closed.announcements


def ending_of(reply: Forwarded) -> Ending | None:
    """What an answer makes of a delegation; None when the agent has queued the task and answers later."""
    if reply.status >= 300:
        return _failed(str(reply.body.get("error")))
    match read_outcome(reply.body):
        case Queued():
            return None
        case Answered(text=text, result=result):
            return Ending(DelegationStatus.COMPLETED, text or _shown(result))
        case Refused(message=message):
            return _failed(message or "the agent answered with an error and no message")
        case Malformed(excerpt=excerpt):
            return _failed(f"the agent's answer has no known form: {excerpt}")


def _failed(error: str) -> Ending:
    return Ending(DelegationStatus.FAILED, error=error)


def _shown(result: Any) -> str:
    """A result without text, whole, so that nothing of it is lost; "" where there is nothing."""
    parts = result.get("parts") if isinstance(result, dict) else None
    return "" if not result or parts == [] else json.dumps(result, ensure_ascii=False)


def _took_nothing(reply: Forwarded) -> bool:
    """Whether calling again is what the contract asks for, and cannot make the agent do the task twice."""
    return reply.restarting or (reply.status == 502 and "delivery_confirmed" not in reply.body)


def _select_waiting(connection: Connection) -> list[tuple[str, str]]:
    rows = activity_logs.c
    query = select(rows.workspace_id, rows.delegation_id).where(
        rows.delegation_id.is_not(None),
        rows.activity_type == ActivityType.DELEGATION,
        rows.method == Method.DELEGATE,
        rows.status == RowStatus.PENDING,
    )
    return [(row.workspace_id, row.delegation_id) for row in connection.execute(query)]
