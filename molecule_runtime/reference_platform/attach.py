"""A workspace by its name, and a token for it: what `molecule-mcp platform --workspace NAME` prints."""

from __future__ import annotations

from dataclasses import dataclass, field

from molecule_runtime.clock import Clock, SystemClock
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.parts import build_parts
from molecule_runtime.reference_platform.services.presence import EXTERNAL
from molecule_runtime.reference_platform.services.tokens import mint_within_limit
from molecule_runtime.wire.registry import DeliveryMode
from molecule_runtime.wire.workspaces import CreateWorkspaceRequest


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
                # Nobody could start the platform again at the limit: the token that has been idle longest makes room.
                token = await parts.store.write(mint_within_limit, row["id"], parts.clock.now(), make_room=True)
                return Attached(workspace_id=row["id"], name=name, created=False, auth_token=token)
        request = CreateWorkspaceRequest(name=name, runtime=EXTERNAL, delivery_mode=DeliveryMode.POLL)
        created = await parts.workspaces.create(request)
        assert created.auth_token is not None  # a workspace without a URL always gets one
        return Attached(workspace_id=created.id, name=name, created=True, auth_token=created.auth_token)
    finally:
        await parts.store.close()
