"""Workspaces: creating, reading and removing them (contract 3.1, 3.3-3.5, 3.7).

Changing one is in `workspace_edits.py`, which shares the checks of fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.bus import EventBus
from molecule_runtime.reference_platform.identifiers import canonical_uuid, new_id
from molecule_runtime.reference_platform.refusals import Refusal, workspace_not_found
from molecule_runtime.reference_platform.services import tokens
from molecule_runtime.reference_platform.services.presence import EXTERNAL
from molecule_runtime.reference_platform.services.push_urls import check_push_url
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.reference_platform.store.tables import (
    activity_logs,
    agent_memories,
    delegations,
    memory_commits,
    workspace_tokens,
    workspaces,
)
from molecule_runtime.wire.events import EventName
from molecule_runtime.wire.registry import DeliveryMode, WorkspaceStatus
from molecule_runtime.wire.workspaces import CreateWorkspaceRequest

DEFAULT_TIER = 3
"""The tier of a workspace on a self-hosted platform (contract 3.1)."""
NAME_CHARS = 255
ROLE_CHARS = 1000
RUNTIME_CHARS = 100
YAML_SPECIAL = frozenset("{}[]|>*&!")
"""Characters that would mean something in the YAML files that other platforms write from these fields."""
NO_CONTAINERS = 'this platform runs no containers: create workspaces with "runtime": "external"'

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Created:
    """A new workspace; `auth_token` is None for one that brought its own URL."""

    id: str
    status: WorkspaceStatus
    auth_token: str | None


@dataclass(frozen=True)
class Removal:
    """What a DELETE did: the descendants that went with the root, and whether the root was there at all.

    `purged` are the workspaces whose rows went too.
    """

    descendants: tuple[str, ...]
    found: bool
    purged: tuple[str, ...] = ()


class HasChildren(Exception):
    """The removal would take children along and was not confirmed; `children` are (id, name)."""

    def __init__(self, children: list[tuple[str, str]]) -> None:
        super().__init__(len(children))
        self.children = children


class Workspaces:
    """The register of workspaces."""

    def __init__(self, store: Store, bus: EventBus, clock: Clock) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock

    async def create(self, request: CreateWorkspaceRequest) -> Created:
        """Create an external workspace with its first token.

        Raises:
            Refusal: 400, a field is not acceptable.
            StoreError: the database failed.
        """
        values = _checked(request)
        created = await self._store.write(_create, values, self._clock.now())
        log.info("workspace.created", workspace_id=created.id, state_to=str(created.status))
        # A canvas holds back what it hears of an unknown workspace until its PROVISIONING, so that comes first.
        provisioning = {"name": values["name"], "tier": values["tier"], "runtime": values["runtime"]}
        await self._bus.emit(EventName.WORKSPACE_PROVISIONING, created.id, provisioning)
        awaited = created.status is WorkspaceStatus.AWAITING_AGENT
        event = EventName.WORKSPACE_AWAITING_AGENT if awaited else EventName.WORKSPACE_ONLINE
        await self._bus.emit(event, created.id, {"name": values["name"], "external": True})
        return created

    async def list_all(self) -> list[RowMapping]:
        """Every workspace that is not removed, oldest first."""
        return await self._store.read(_select_all)

    async def find(self, workspace_id: str) -> RowMapping | None:
        """The row of a workspace, removed ones included; None when there is none."""
        return await self._store.read(_select_one, workspace_id)

    async def remove(self, workspace_id: str, *, confirmed: bool, purge: bool) -> Removal:
        """Remove a workspace and everything below it; with `purge` their rows go too.

        Raises:
            HasChildren: there are children and `confirmed` is not set; nothing changed.
            StoreError: the database failed.
        """
        done = await self._store.write(_remove, workspace_id, confirmed, purge, self._clock.now())
        if done.found:
            log.info("workspace.removed", workspace_id=workspace_id, count=len(done.descendants) + 1)
            for descendant in done.descendants:
                await self._bus.emit(EventName.WORKSPACE_REMOVED, descendant, {})
            payload = {"cascade_deleted": len(done.descendants)}
            await self._bus.emit(EventName.WORKSPACE_REMOVED, workspace_id, payload)
        return done


def living_name(connection: Connection, workspace_id: str) -> str:
    """The name of a workspace that is not removed.

    Raises:
        Refusal: 404 otherwise.
    """
    query = select(workspaces.c.name).where(
        workspaces.c.id == workspace_id, workspaces.c.status != WorkspaceStatus.REMOVED
    )
    name: str | None = connection.execute(query).scalar_one_or_none()
    if name is None:
        raise workspace_not_found()
    return name


def _checked(request: CreateWorkspaceRequest) -> dict[str, Any]:
    """The columns of the new row, after the checks of the contract."""
    if not request.name.strip():
        raise Refusal(400, "invalid workspace payload")
    for text, longest in ((request.name, NAME_CHARS), (request.role, ROLE_CHARS), (request.runtime, RUNTIME_CHARS)):
        if text and not acceptable(text, longest):
            raise Refusal(400, "invalid workspace fields")
    if request.delivery_mode and request.delivery_mode not in set(DeliveryMode):
        raise Refusal(400, "delivery_mode must be 'push' or 'poll'")
    if not request.external and request.runtime != EXTERNAL:
        raise Refusal(400, NO_CONTAINERS)
    parent_id = canonical_uuid(request.parent_id)
    if request.parent_id and parent_id is None:
        raise Refusal(400, "invalid workspace fields")
    url = request.url or ""
    if url:
        check_push_url(url)
    return {
        "name": request.name,
        "role": request.role or None,
        "runtime": EXTERNAL,
        "tier": request.tier or DEFAULT_TIER,
        "delivery_mode": request.delivery_mode or DeliveryMode.PUSH,
        "status": WorkspaceStatus.ONLINE if url else WorkspaceStatus.AWAITING_AGENT,
        "url": url,
        "parent_id": parent_id,
        "budget_limit": request.budget_limit,
        "max_concurrent_tasks": max(1, request.max_concurrent_tasks),
        "x": request.canvas.x,
        "y": request.canvas.y,
    }


def acceptable(text: str, longest: int) -> bool:
    """Whether a text may be a name, a role or a runtime: short enough, no control and no YAML characters."""
    return len(text) <= longest and not any(char in YAML_SPECIAL or ord(char) < 32 or char == "\x7f" for char in text)


def _create(connection: Connection, values: dict[str, Any], now: datetime) -> Created:
    if values["parent_id"] is not None:
        require_parent(connection, values["parent_id"])
    workspace_id = new_id()
    connection.execute(
        insert(workspaces).values(
            id=workspace_id,
            platform_inbound_secret=tokens.random_secret(),
            created_at=now,
            updated_at=now,
            **values,
        )
    )
    token = None if values["url"] else tokens.mint(connection, workspace_id, now)
    return Created(id=workspace_id, status=values["status"], auth_token=token)


def require_parent(connection: Connection, parent_id: str) -> None:
    """Refuse a parent that does not exist or was removed.

    Raises:
        Refusal: 400.
    """
    try:
        living_name(connection, parent_id)
    except Refusal:
        raise Refusal(400, "parent workspace not found") from None


def _select_all(connection: Connection) -> list[RowMapping]:
    query = (
        select(workspaces)
        .where(workspaces.c.status != WorkspaceStatus.REMOVED)
        .order_by(workspaces.c.created_at, workspaces.c.id)
    )
    return list(connection.execute(query).mappings())


def _select_one(connection: Connection, workspace_id: str) -> RowMapping | None:
    return connection.execute(select(workspaces).where(workspaces.c.id == workspace_id)).mappings().one_or_none()


def _remove(connection: Connection, workspace_id: str, confirmed: bool, purge: bool, now: datetime) -> Removal:
    root = connection.execute(
        select(workspaces.c.status).where(workspaces.c.id == workspace_id).with_for_update()
    ).scalar_one_or_none()
    if root is None:
        return Removal(descendants=(), found=False)
    below = _descendants(connection, workspace_id)
    living = [row for row in below if row.status != WorkspaceStatus.REMOVED]
    children = [(row.id, row.name) for row in living if row.parent_id == workspace_id]
    if children and not confirmed:
        raise HasChildren(children)
    going = [row.id for row in living] + ([workspace_id] if root != WorkspaceStatus.REMOVED else [])
    connection.execute(
        update(workspaces)
        .where(workspaces.c.id.in_(going))
        .values(status=WorkspaceStatus.REMOVED, removed_at=now, updated_at=now, active_tasks=0, current_task="")
    )
    tokens.revoke_all(connection, going, now)
    purged = [workspace_id, *(row.id for row in below)] if purge else []
    _purge(connection, purged)
    return Removal(
        descendants=tuple(row.id for row in living), found=root != WorkspaceStatus.REMOVED, purged=tuple(purged)
    )


def _descendants(connection: Connection, workspace_id: str) -> list[Any]:
    """All rows below a workspace, level by level, removed ones included."""
    found: list[Any] = []
    level = [workspace_id]
    while level:
        query = (
            select(workspaces.c.id, workspaces.c.name, workspaces.c.parent_id, workspaces.c.status)
            .where(workspaces.c.parent_id.in_(level))
            .order_by(workspaces.c.created_at, workspaces.c.id)
        )
        rows = list(connection.execute(query))
        found += rows
        level = [row.id for row in rows]
    return found


def _purge(connection: Connection, workspace_ids: list[str]) -> None:
    connection.execute(delete(activity_logs).where(activity_logs.c.workspace_id.in_(workspace_ids)))
    connection.execute(delete(delegations).where(delegations.c.caller_id.in_(workspace_ids)))
    connection.execute(delete(agent_memories).where(agent_memories.c.workspace_id.in_(workspace_ids)))
    connection.execute(delete(memory_commits).where(memory_commits.c.workspace_id.in_(workspace_ids)))
    connection.execute(delete(workspace_tokens).where(workspace_tokens.c.workspace_id.in_(workspace_ids)))
    for workspace_id in reversed(workspace_ids):  # children before their parents
        connection.execute(delete(workspaces).where(workspaces.c.id == workspace_id))
