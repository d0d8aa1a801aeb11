"""`/workspaces`: creating, reading, changing and removing workspaces, and their tokens (contract 3.1, 3.3-3.8, 1.8)."""

from __future__ import annotations

from typing import Any, Literal

from molecule_runtime.wire._base import Timestamp, WireModel


class CanvasPosition(WireModel):
    x: float = 0
    y: float = 0


class CreateWorkspaceRequest(WireModel):
    """POST /workspaces. `external: true` and `runtime: "external"` say the same."""

    name: str
    role: str | None = None
    runtime: str | None = None
    external: bool = False
    url: str | None = None
    delivery_mode: str | None = None
    tier: int | None = None
    parent_id: str | None = None
    budget_limit: int | None = None
    max_concurrent_tasks: int = 1
    canvas: CanvasPosition = CanvasPosition()


class Connection(WireModel):
    """What an operator needs to attach an agent; `auth_token` is shown this once (contract 3.1).

    The two snippets are always strings, because canvases break without the keys; other snippet keys may be absent.
    """

    workspace_id: str
    platform_url: str
    auth_token: str
    registry_endpoint: str
    heartbeat_endpoint: str
    curl_register_template: str = ""
    python_snippet: str = ""


class CreateWorkspaceReply(WireModel):
    """201. `connection` is absent for an external workspace that brought its own URL."""

    id: str
    external: bool
    status: str
    connection: Connection | None = None


class Workspace(WireModel):
    """GET /workspaces/:id: the public row (contract 3.4)."""

    id: str
    name: str
    role: str | None = None
    tier: int | None = None
    status: str
    agent_card: dict[str, Any] | None = None
    url: str | None = ""
    parent_id: str | None = None
    active_tasks: int = 0
    max_concurrent_tasks: int = 1
    last_error_rate: float = 0.0
    uptime_seconds: int = 0
    runtime: str = ""
    x: float = 0
    y: float = 0
    collapsed: bool = False
    delivery_mode: str | None = None
    last_outbound_at: Timestamp | None = None


class WorkspaceListRow(Workspace):
    """One element of GET /workspaces: the public row and what only an administrator sees (contract 3.3)."""

    last_sample_error: str = ""
    current_task: str = ""
    workspace_dir: str | None = None
    monthly_spend: int = 0
    budget_limit: int | None = None


class UpdateWorkspaceRequest(WireModel):
    """PATCH /workspaces/:id: what is absent stays. `parent_id` and `workspace_dir` may be null, which takes them away.

    Whether a field was sent is in `model_fields_set`.
    """

    name: str | None = None
    role: str | None = None
    tier: int | None = None
    parent_id: str | None = None
    runtime: str | None = None
    collapsed: bool | None = None
    workspace_dir: str | None = None
    x: float | None = None
    y: float | None = None


class UpdateWorkspaceReply(WireModel):
    """`needs_restart` only where a container has to start anew, so never for an external workspace."""

    status: Literal["updated"]
    needs_restart: bool | None = None


class WorkspaceGone(WireModel):
    """The 410 body of GET /workspaces/:id after a removal."""

    error: str
    id: str
    hint: str = ""
    removed_at: Timestamp | None = None


class WorkspaceState(WireModel):
    """GET /workspaces/:id/state, and the 404 of a purged or removed workspace (contract 3.5)."""

    workspace_id: str
    status: str | None = None
    paused: bool = False
    deleted: bool = False


class TokenRow(WireModel):
    """What can be told of a live token: its first 8 characters, never the rest."""

    id: str
    prefix: str
    created_at: Timestamp
    last_used_at: Timestamp | None = None


class TokenList(WireModel):
    """GET /workspaces/:id/tokens; `count` is the length of this page (contract 3.8)."""

    tokens: list[TokenRow]
    count: int


class IssuedToken(WireModel):
    """POST /workspaces/:id/tokens, and without `message` GET /admin/workspaces/:id/test-token."""

    auth_token: str
    workspace_id: str
    message: str | None = None


class TokenRevoked(WireModel):
    status: Literal["revoked"]
