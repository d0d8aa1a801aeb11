"""`/registry/*`: becoming known, staying alive, finding peers (contract 2.1, 2.3, 2.5-2.8)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from molecule_runtime.wire._base import Timestamp, WireModel


class DeliveryMode(StrEnum):
    """How messages reach a workspace: the platform calls its URL, or the workspace polls its activity."""

    PUSH = "push"
    POLL = "poll"


class WorkspaceStatus(StrEnum):
    """Every value of a workspace's `status` (contract 2.4)."""

    PROVISIONING = "provisioning"
    ONLINE = "online"
    OFFLINE = "offline"
    DEGRADED = "degraded"
    FAILED = "failed"
    REMOVED = "removed"
    PAUSED = "paused"
    HIBERNATED = "hibernated"
    AWAITING_AGENT = "awaiting_agent"


class RegisterRequest(WireModel):
    """POST /registry/register. `url` and `delivery_mode` absent mean "keep what is stored" on the platform."""

    id: str
    agent_card: dict[str, Any]
    url: str | None = None
    delivery_mode: str | None = None


class RegisterReply(WireModel):
    """`auth_token` comes only while the workspace has no live token (contract 2.1)."""

    status: Literal["registered"]
    delivery_mode: DeliveryMode
    auth_token: str | None = None
    platform_inbound_secret: str | None = None


class HeartbeatRequest(WireModel):
    """POST /registry/heartbeat; `workspace_id` alone is a valid beat (contract 2.3)."""

    workspace_id: str
    error_rate: float = 0.0
    sample_error: str = ""
    active_tasks: int = 0
    uptime_seconds: int = 0
    current_task: str = ""
    monthly_spend: int = 0
    runtime_state: str = ""
    runtime_metadata: dict[str, Any] | None = None


class HeartbeatReply(WireModel):
    status: Literal["ok"]
    platform_inbound_secret: str | None = None


class Peer(WireModel):
    """One element of GET /registry/:id/peers: siblings, then children, then the parent.

    `last_heartbeat_at` is ours alone: since when a peer that is away has been silent.
    """

    id: str
    name: str
    role: str | None = None
    tier: int | None = None
    status: str
    url: str | None = ""
    parent_id: str | None = None
    active_tasks: int = 0
    agent_card: dict[str, Any] | None = Field(default=None)
    last_heartbeat_at: Timestamp | None = None


class UpdateCardRequest(WireModel):
    """POST /registry/update-card; both fields are required (contract 2.5)."""

    workspace_id: str
    agent_card: dict[str, Any]


class UpdateCardReply(WireModel):
    status: Literal["updated"]


class CheckAccessRequest(WireModel):
    """POST /registry/check-access: may these two talk (contract 2.8)."""

    caller_id: str
    target_id: str


class CheckAccessReply(WireModel):
    allowed: bool


class Discovered(WireModel):
    """GET /registry/discover/:id for a peer that is called: where it is (contract 2.7)."""

    id: str
    url: str
    name: str


class DiscoveredPoller(Discovered):
    """The same for a peer that polls: it is nowhere, so it is written to through /a2a, and who it is comes along."""

    url: str = ""
    role: str | None = None
    status: str
    delivery_mode: Literal[DeliveryMode.POLL] = DeliveryMode.POLL
    agent_card: dict[str, Any] | None = None
