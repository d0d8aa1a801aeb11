"""Presence: registering, falling silent, and the rules that turn heartbeats into a status (contract 2.1, 2.3-2.5).

With `heartbeats`, which applies these rules, the only writer of `status` and `agent_card` of living workspaces. Events
follow the commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import Connection, RowMapping, func, insert, select, update

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.bus import EventBus
from molecule_runtime.reference_platform.refusals import Refusal, workspace_not_found
from molecule_runtime.reference_platform.services import tokens
from molecule_runtime.reference_platform.services.push_urls import check_push_url
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.reference_platform.store.locks import Lock, exclusively
from molecule_runtime.reference_platform.store.tables import workspaces
from molecule_runtime.wire.events import EventName
from molecule_runtime.wire.registry import DeliveryMode, HeartbeatRequest, RegisterRequest, WorkspaceStatus

DEGRADED_FROM = 0.5
"""Error rate at which an online workspace counts as degraded (contract 2.3)."""
RECOVERED_BELOW = 0.1
"""Error rate below which a degraded workspace counts as online again; the gap keeps it from flapping."""
WEDGED = "wedged"
EXTERNAL = "external"
"""The only runtime this platform serves: an agent that somebody else starts."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Transition:
    """A change of status and what it announces."""

    status: WorkspaceStatus
    event: EventName
    payload: dict[str, Any]


@dataclass(frozen=True)
class Registered:
    """`auth_token` only when the workspace had no live token."""

    delivery_mode: DeliveryMode
    url: str
    auth_token: str | None
    inbound_secret: str


class Presence:
    """Brings workspaces online and notices when they fall silent."""

    def __init__(self, store: Store, bus: EventBus, clock: Clock, *, stale_after_s: float) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._stale_after_s = stale_after_s

    async def register(self, workspace_id: str, request: RegisterRequest) -> Registered:
        """Create or update the workspace and set it online; safe to repeat.

        Raises:
            Refusal: 400, no usable url for a push workspace.
            StoreError: the database failed.
        """
        done = await self._store.write(_register, workspace_id, request, self._clock.now())
        log.info("presence.registered", workspace_id=workspace_id, delivery_mode=str(done.delivery_mode))
        payload = {"url": done.url, "agent_card": request.agent_card, "delivery_mode": str(done.delivery_mode)}
        await self._bus.emit(EventName.WORKSPACE_ONLINE, workspace_id, payload)
        return done

    async def update_card(self, workspace_id: str, card: dict[str, Any]) -> None:
        """Replace the agent card and announce it.

        Raises:
            Refusal: 404, no such workspace; 401, it was removed.
            StoreError: the database failed.
        """
        await self._store.write(_store_card, workspace_id, card, self._clock.now())
        await self._bus.emit(EventName.AGENT_CARD_UPDATED, workspace_id, {"agent_card": card})

    async def sweep_stale(self) -> list[str]:
        """Set silent external workspaces to awaiting_agent; their ids.

        The event is WORKSPACE_OFFLINE although the status is another: canvases know no other (contract 2.4).

        Raises:
            StoreError: the database failed.
        """
        now = self._clock.now()
        stale = await self._store.write(_mark_stale, now - timedelta(seconds=self._stale_after_s), now)
        for workspace_id in stale:
            log.info("presence.state_changed", workspace_id=workspace_id, state_to=str(WorkspaceStatus.AWAITING_AGENT))
            await self._bus.emit(EventName.WORKSPACE_OFFLINE, workspace_id, {})
        return stale


def next_status(status: str, beat: HeartbeatRequest) -> Transition | None:
    """The status rules of a heartbeat; None when it changes nothing (contract 2.3)."""
    match status:
        case WorkspaceStatus.ONLINE:
            return _degradation(beat)
        case WorkspaceStatus.DEGRADED:
            healthy = beat.error_rate < RECOVERED_BELOW and not beat.runtime_state
            return _back_online({}) if healthy and not _manages_status(beat) else None
        case WorkspaceStatus.OFFLINE:
            return _back_online({})
        case WorkspaceStatus.PROVISIONING | WorkspaceStatus.AWAITING_AGENT:
            return _back_online({"recovered_from": str(status)})
        case _:
            return None


def _degradation(beat: HeartbeatRequest) -> Transition | None:
    if beat.runtime_state == WEDGED:
        payload: dict[str, Any] = {"runtime_state": WEDGED, "sample_error": beat.sample_error}
    elif beat.error_rate >= DEGRADED_FROM and not _manages_status(beat):
        payload = {"error_rate": beat.error_rate, "sample_error": beat.sample_error}
    else:
        return None
    return Transition(WorkspaceStatus.DEGRADED, EventName.WORKSPACE_DEGRADED, payload)


def _back_online(payload: dict[str, Any]) -> Transition:
    return Transition(WorkspaceStatus.ONLINE, EventName.WORKSPACE_ONLINE, payload)


def _manages_status(beat: HeartbeatRequest) -> bool:
    capabilities = (beat.runtime_metadata or {}).get("capabilities")
    return isinstance(capabilities, dict) and capabilities.get("status_mgmt") is True


def _register(connection: Connection, workspace_id: str, request: RegisterRequest, now: datetime) -> Registered:
    row = _locked(connection, workspace_id)
    mode = DeliveryMode(request.delivery_mode or (row["delivery_mode"] if row else DeliveryMode.PUSH))
    url = request.url or ""
    if mode is DeliveryMode.PUSH:
        check_push_url(url)
    values = {
        "agent_card": request.agent_card,
        "delivery_mode": mode,
        "url": url,
        "status": WorkspaceStatus.ONLINE,
        "last_heartbeat_at": now,
        "updated_at": now,
    }
    if row is None:
        secret = tokens.random_secret()
        connection.execute(
            insert(workspaces).values(
                id=workspace_id,
                name=workspace_id,
                runtime=EXTERNAL,
                platform_inbound_secret=secret,
                created_at=now,
                **values,
            )
        )
    else:
        secret = row["platform_inbound_secret"] or tokens.random_secret()
        connection.execute(
            update(workspaces)
            .where(workspaces.c.id == workspace_id, workspaces.c.status != WorkspaceStatus.REMOVED)
            .values(platform_inbound_secret=secret, **values)
        )
    token = None if tokens.has_live(connection, workspace_id) else tokens.mint(connection, workspace_id, now)
    return Registered(delivery_mode=mode, url=url, auth_token=token, inbound_secret=secret)


def _store_card(connection: Connection, workspace_id: str, card: dict[str, Any], now: datetime) -> None:
    if _locked(connection, workspace_id) is None:
        raise workspace_not_found()
    connection.execute(
        update(workspaces).where(workspaces.c.id == workspace_id).values(agent_card=card, updated_at=now)
    )


def _locked(connection: Connection, workspace_id: str) -> RowMapping | None:
    """The workspace's row, locked until the transaction ends; None when unknown. A removed one is refused.

    Authentication refused it before; this closes the gap between that look-up and this transaction.
    """
    query = select(workspaces).where(workspaces.c.id == workspace_id).with_for_update()
    row = connection.execute(query).mappings().one_or_none()
    if row is not None and row["status"] == WorkspaceStatus.REMOVED:
        raise Refusal(401, "invalid workspace auth token")
    return row


def _mark_stale(connection: Connection, cutoff: datetime, now: datetime) -> list[str]:
    # Two sweeps at once would lock the same rows in different orders; each change goes to one of them either way.
    exclusively(connection, Lock.STALE_SWEEP)
    columns = workspaces.c
    silent = (
        (columns.runtime == EXTERNAL)
        & columns.status.in_((WorkspaceStatus.ONLINE, WorkspaceStatus.DEGRADED))
        & (func.coalesce(columns.last_heartbeat_at, columns.updated_at) < cutoff)
    )
    changed = connection.execute(
        update(workspaces)
        .where(silent)
        .values(status=WorkspaceStatus.AWAITING_AGENT, updated_at=now)
        .returning(columns.id)
    )
    return list(changed.scalars())
