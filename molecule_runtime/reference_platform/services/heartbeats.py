"""Heartbeats, the platform's commonest request: many in one transaction, each with its own answer (contract 2.3).

A group reads all rows, checks all tokens and writes all beats in three or four statements, so thousands of workspaces
cost little more than one. The door is checked in the transaction that acts: nothing about tokens is remembered between
two beats, and a token that was revoked, at whichever process, opens nothing any more.

On PostgreSQL a group passes over rows that somebody else has locked; those wait alone. So nobody holds one row while it
waits for another, no two processes lock each other out, and a row that stays locked holds up its own beat only. A group
that fails is tried one by one as well, so one bad beat harms no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import Connection, bindparam, select, update

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.bus import EventBus
from molecule_runtime.reference_platform.refusals import Refusal, platform_unavailable
from molecule_runtime.reference_platform.services import tokens
from molecule_runtime.reference_platform.services.groups import Groups
from molecule_runtime.reference_platform.services.presence import Transition, next_status
from molecule_runtime.reference_platform.services.tokens import Standing, Tokens
from molecule_runtime.reference_platform.store.engine import Store, StoreError
from molecule_runtime.reference_platform.store.lists import padded
from molecule_runtime.reference_platform.store.tables import workspaces
from molecule_runtime.wire.events import EventName
from molecule_runtime.wire.registry import HeartbeatRequest

MAX_SPEND_CENTS = 10**12

Judge = Callable[[Standing], object]
"""Raises a Refusal when the door stays closed."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Entry:
    workspace_id: str
    beat: HeartbeatRequest
    bearer: str = field(repr=False)
    judge: Judge


@dataclass(frozen=True)
class _Noted:
    """What a beat did; all None when no such workspace lives."""

    inbound_secret: str | None = None
    transition: Transition | None = None
    task_changed: bool = False
    token_id: str | None = None


@dataclass
class _Progress:
    """How far a transaction has come, which decides what its failure means."""

    judged: bool = False


class _Passed:
    """Not done: somebody else had the row locked, or it is not there, or the group failed. To be tried alone."""


class Heartbeats:
    """Notes beats and announces what they changed."""

    def __init__(self, store: Store, bus: EventBus, tokens: Tokens, clock: Clock) -> None:
        self._store = store
        self._bus = bus
        self._tokens = tokens
        self._clock = clock
        self._groups: Groups[_Entry, _Noted | _Passed] = Groups(self._note_group)

    async def note(self, workspace_id: str, beat: HeartbeatRequest, bearer: str, judge: Judge) -> str | None:
        """Note a beat; the workspace's inbound secret, or None when no such workspace lives (and nothing happened).

        Events follow the commit in the order of the contract: the change of status, then the task, then the beat.

        Raises:
            Refusal: what `judge` raised; 503, nobody can say where the bearer stands.
            StoreError: the beat could not be written.
        """
        entry = _Entry(workspace_id, beat, bearer, judge)
        noted = await self._groups.add(workspace_id, entry)
        if isinstance(noted, _Passed):
            noted = await self._note_alone(entry)
        if noted.token_id is not None:
            self._tokens.note_use(noted.token_id)
        if noted.inbound_secret is None:
            return None
        if noted.transition is not None:
            change = noted.transition
            log.info("presence.state_changed", workspace_id=workspace_id, state_to=str(change.status))
            await self._bus.emit(change.event, workspace_id, change.payload)
        if noted.task_changed:
            payload = {"current_task": beat.current_task, "active_tasks": beat.active_tasks}
            await self._bus.emit(EventName.TASK_UPDATED, workspace_id, payload)
        payload = {"active_tasks": beat.active_tasks, "uptime_seconds": beat.uptime_seconds}
        await self._bus.emit(EventName.WORKSPACE_HEARTBEAT, workspace_id, payload)
        return noted.inbound_secret

    async def _note_group(self, entries: Sequence[_Entry]) -> Sequence[_Noted | _Passed | Refusal]:
        try:
            return await self._store.write(_note, entries, self._clock.now(), _Progress(), waits=False)
        except StoreError as error:
            log.warning("heartbeats.group_failed", detail=error.reason, count=len(entries))
            return [_Passed()] * len(entries)

    async def _note_alone(self, entry: _Entry) -> _Noted:
        """In a transaction of its own, outside the groups: it may have to wait for whoever holds the row."""
        progress = _Progress()
        try:
            (noted,) = await self._store.write(_note, [entry], self._clock.now(), progress, waits=True)
        except StoreError:
            if progress.judged:
                raise
            log.exception("auth.lookup_failed")
            raise platform_unavailable() from None
        assert not isinstance(noted, _Passed)
        if isinstance(noted, Refusal):
            raise noted
        return noted


_columns = workspaces.c
_ROWS = select(
    _columns.id,
    _columns.status,
    _columns.current_task,
    _columns.monthly_spend,
    _columns.platform_inbound_secret,
)
_WRITTEN = (
    "status",
    "last_error_rate",
    "last_sample_error",
    "active_tasks",
    "uptime_seconds",
    "current_task",
    "runtime_metadata",
    "platform_inbound_secret",
    "monthly_spend",
    "last_heartbeat_at",
    "updated_at",
)
_UPDATE = (
    update(workspaces)
    .where(_columns.id == bindparam("workspace_id"))
    .values({name: bindparam(f"new_{name}") for name in _WRITTEN})
)


def _note(
    connection: Connection, entries: Sequence[_Entry], now: datetime, progress: _Progress, *, waits: bool
) -> list[_Noted | Refusal | _Passed]:
    """Judge and write the beats of different workspaces; a result for each."""
    ids = sorted(entry.workspace_id for entry in entries)
    # A beat changes no key, so it need not wait for messages that refer to the row.
    query = _ROWS.where(_columns.id.in_(padded(ids))).with_for_update(key_share=True, skip_locked=not waits)
    rows = {row.id: row for row in connection.execute(query)}
    standings = tokens.standings(
        connection,
        [(entry.workspace_id, entry.bearer) for entry in entries],
        {workspace_id: row.status for workspace_id, row in rows.items()},
    )
    progress.judged = True
    results: list[_Noted | Refusal | _Passed] = []
    written: list[dict[str, Any]] = []
    for entry, (standing, token_id) in zip(entries, standings, strict=True):
        row = rows.get(entry.workspace_id)
        if row is None and not waits:
            results.append(_Passed())
            continue
        try:
            entry.judge(standing)
        except Refusal as refusal:
            results.append(refusal)
            continue
        if row is None:
            results.append(_Noted())
            continue
        transition = next_status(row.status, entry.beat)
        secret = row.platform_inbound_secret or tokens.random_secret()
        written.append(_row_of(entry, row, transition, secret, now))
        changed = row.current_task != entry.beat.current_task
        results.append(_Noted(secret, transition, changed, token_id))
    if written:
        connection.execute(_UPDATE, written)
    return results


def _row_of(entry: _Entry, row: Any, transition: Transition | None, secret: str, now: datetime) -> dict[str, Any]:
    """The parameters of `_UPDATE`."""
    beat = entry.beat
    # The runtime sends 0 when it does not know.
    spend = min(max(beat.monthly_spend, 0), MAX_SPEND_CENTS) if beat.monthly_spend != 0 else row.monthly_spend
    return {
        "workspace_id": entry.workspace_id,
        "new_status": row.status if transition is None else transition.status,
        "new_last_error_rate": beat.error_rate,
        "new_last_sample_error": beat.sample_error,
        "new_active_tasks": beat.active_tasks,
        "new_uptime_seconds": beat.uptime_seconds,
        "new_current_task": beat.current_task,
        "new_runtime_metadata": beat.runtime_metadata,
        "new_platform_inbound_secret": secret,
        "new_monthly_spend": spend,
        "new_last_heartbeat_at": now,
        "new_updated_at": now,
    }
