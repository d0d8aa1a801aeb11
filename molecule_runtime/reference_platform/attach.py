"""A workspace by its name, and a token for it: what `molecule-mcp platform --workspace NAME` prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, func, select, update

from molecule_runtime.clock import Clock, SystemClock
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.parts import build_parts
from molecule_runtime.reference_platform.services.presence import EXTERNAL
from molecule_runtime.reference_platform.services.tokens import mint
from molecule_runtime.reference_platform.store.tables import workspace_tokens
from molecule_runtime.wire.registry import DeliveryMode
from molecule_runtime.wire.workspaces import CreateWorkspaceRequest

MAX_LIVE_TOKENS = 50
"""Contract 1.2. At the limit the token that has been idle longest makes room."""


@dataclass(frozen=True)
class Attached:
    """A workspace and a fresh token for it; older tokens stay valid."""

    workspace_id: str
    name: str
    created: bool
    auth_token: str = field(repr=False)


async def attach(config: PlatformConfig, name: str, *, clock: Clock | None = None) -> Attached:
    """Create the workspace `name` at the top of the team, or reuse the one that is there.

    Raises:
        Refusal: the name is not acceptable.
        StoreError: the database cannot be opened.
    """
    parts = build_parts(config, clock or SystemClock())
    await parts.store.migrate()
    try:
        for row in await parts.workspaces.list_all():
            if row["name"] == name and row["parent_id"] is None:
                token = await parts.store.write(_mint_within_limit, row["id"], parts.clock.now())
                return Attached(workspace_id=row["id"], name=name, created=False, auth_token=token)
        request = CreateWorkspaceRequest(name=name, runtime=EXTERNAL, delivery_mode=DeliveryMode.POLL)
        created = await parts.workspaces.create(request)
        assert created.auth_token is not None  # a workspace without a URL always gets one
        return Attached(workspace_id=created.id, name=name, created=True, auth_token=created.auth_token)
    finally:
        await parts.store.close()


def _mint_within_limit(connection: Connection, workspace_id: str, now: datetime) -> str:
    live = (workspace_tokens.c.workspace_id == workspace_id) & workspace_tokens.c.revoked_at.is_(None)
    count = connection.execute(select(func.count()).select_from(workspace_tokens).where(live)).scalar_one()
    if count >= MAX_LIVE_TOKENS:
        idle = func.coalesce(workspace_tokens.c.last_used_at, workspace_tokens.c.created_at)
        oldest = connection.execute(select(workspace_tokens.c.id).where(live).order_by(idle).limit(1)).scalar_one()
        connection.execute(update(workspace_tokens).where(workspace_tokens.c.id == oldest).values(revoked_at=now))
    return mint(connection, workspace_id, now)
