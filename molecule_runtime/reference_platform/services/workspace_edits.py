"""Changing a workspace: its fields, its place on the canvas, and its place in the team (contract 3.6).

The hierarchy must stay a tree, because every rule about who may talk to whom walks it.
"""

from __future__ import annotations

import posixpath
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select, update

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.identifiers import canonical_uuid
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.services.presence import EXTERNAL
from molecule_runtime.reference_platform.services.workspaces import (
    NAME_CHARS,
    NO_CONTAINERS,
    ROLE_CHARS,
    RUNTIME_CHARS,
    acceptable,
    living_name,
    require_parent,
)
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.reference_platform.store.tables import workspaces
from molecule_runtime.wire.workspaces import UpdateWorkspaceRequest

DIRECTORY_CHARS = 4096
MAX_TIER = 2**31 - 1
"""The column is a 32-bit integer everywhere."""
INVALID_FIELDS = "invalid workspace fields"


class WorkspaceEdits:
    """Stores changes; nobody is told, as canvases know no event for it."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def update(self, workspace_id: str, wanted: UpdateWorkspaceRequest) -> None:
        """Change the fields that were sent, all or none.

        Raises:
            Refusal: 400, a field is not acceptable; 404, unknown or removed workspace.
            StoreError: the database failed.
        """
        await self._store.write(_update, workspace_id, _checked(wanted), self._clock.now())


def _checked(wanted: UpdateWorkspaceRequest) -> dict[str, Any]:
    """The columns to change, after the checks that need no look-up."""
    values = wanted.model_dump(exclude_unset=True)
    for field, longest in (("name", NAME_CHARS), ("role", ROLE_CHARS), ("runtime", RUNTIME_CHARS)):
        if not acceptable(values.get(field) or "", longest):
            raise Refusal(400, INVALID_FIELDS)
    if "name" in values and not values["name"].strip():
        raise Refusal(400, INVALID_FIELDS)
    if values.get("runtime", EXTERNAL) != EXTERNAL:
        raise Refusal(400, NO_CONTAINERS)
    if "role" in values:
        values["role"] = values["role"] or None
    if "tier" in values and not 0 < values["tier"] <= MAX_TIER:
        raise Refusal(400, INVALID_FIELDS)
    if ("x" in values) != ("y" in values):
        raise Refusal(400, "x and y must be given together")
    if values.get("workspace_dir") is not None and not _is_directory_name(values["workspace_dir"]):
        raise Refusal(400, "invalid workspace directory")
    if values.get("parent_id"):
        values["parent_id"] = canonical_uuid(values["parent_id"])
        if values["parent_id"] is None:
            raise Refusal(400, INVALID_FIELDS)
    elif "parent_id" in values:
        values["parent_id"] = None  # "" and null both mean the top of the team
    return values


def _is_directory_name(path: str) -> bool:
    """An absolute path without detours; whether it exists is a matter of the machine that has it."""
    printable = len(path) <= DIRECTORY_CHARS and not any(ord(char) < 32 or char == "\x7f" for char in path)
    return printable and path.startswith("/") and ".." not in path.split(posixpath.sep)


def _update(connection: Connection, workspace_id: str, values: dict[str, Any], now: datetime) -> None:
    living_name(connection, workspace_id)
    parent_id = values.get("parent_id")
    if parent_id is not None:
        require_parent(connection, parent_id)
        _refuse_cycle(connection, workspace_id, parent_id)
    connection.execute(update(workspaces).where(workspaces.c.id == workspace_id).values(updated_at=now, **values))


def _refuse_cycle(connection: Connection, workspace_id: str, parent_id: str) -> None:
    """Walk from the new parent to the root and refuse to meet the workspace there.

    The rows are locked on the way: two moves that together would make a cycle cannot pass each other.
    """
    seen: set[str] = set()
    current: str | None = parent_id
    while current is not None and current not in seen:
        if current == workspace_id:
            raise Refusal(400, "parent_id would make the workspace its own ancestor")
        seen.add(current)
        current = connection.execute(
            select(workspaces.c.parent_id).where(workspaces.c.id == current).with_for_update()
        ).scalar_one_or_none()
