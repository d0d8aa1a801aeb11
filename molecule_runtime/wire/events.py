"""The events of `/ws`: 29 names, no others (contract 8.2, 8.3). The canvas takes its names from this list."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from molecule_runtime.wire._base import Timestamp, WireModel


class EventName(StrEnum):
    # chat
    AGENT_MESSAGE = "AGENT_MESSAGE"
    A2A_RESPONSE = "A2A_RESPONSE"
    ACTIVITY_LOGGED = "ACTIVITY_LOGGED"
    CHANNEL_MESSAGE = "CHANNEL_MESSAGE"
    # lifecycle
    WORKSPACE_PROVISIONING = "WORKSPACE_PROVISIONING"
    WORKSPACE_PROVISION_FAILED = "WORKSPACE_PROVISION_FAILED"
    WORKSPACE_ONLINE = "WORKSPACE_ONLINE"
    WORKSPACE_OFFLINE = "WORKSPACE_OFFLINE"
    WORKSPACE_DEGRADED = "WORKSPACE_DEGRADED"
    WORKSPACE_HIBERNATED = "WORKSPACE_HIBERNATED"
    WORKSPACE_PAUSED = "WORKSPACE_PAUSED"
    WORKSPACE_REMOVED = "WORKSPACE_REMOVED"
    WORKSPACE_AWAITING_AGENT = "WORKSPACE_AWAITING_AGENT"
    WORKSPACE_HEARTBEAT = "WORKSPACE_HEARTBEAT"
    # agent assignment
    AGENT_ASSIGNED = "AGENT_ASSIGNED"
    AGENT_REPLACED = "AGENT_REPLACED"
    AGENT_REMOVED = "AGENT_REMOVED"
    AGENT_MOVED = "AGENT_MOVED"
    AGENT_CARD_UPDATED = "AGENT_CARD_UPDATED"
    # delegation
    DELEGATION_SENT = "DELEGATION_SENT"
    DELEGATION_STATUS = "DELEGATION_STATUS"
    DELEGATION_COMPLETE = "DELEGATION_COMPLETE"
    DELEGATION_FAILED = "DELEGATION_FAILED"
    # task and scheduler
    TASK_UPDATED = "TASK_UPDATED"
    CRON_EXECUTED = "CRON_EXECUTED"
    CRON_SKIPPED = "CRON_SKIPPED"
    # approval
    APPROVAL_REQUESTED = "APPROVAL_REQUESTED"
    APPROVAL_ESCALATED = "APPROVAL_ESCALATED"
    # auth
    EXTERNAL_CREDENTIALS_ROTATED = "EXTERNAL_CREDENTIALS_ROTATED"


STATUS_EVENTS = frozenset(
    name for name in EventName if name.startswith("WORKSPACE_") and name is not EventName.WORKSPACE_HEARTBEAT
)
"""What a workspace client hears of *other* workspaces it may talk to (contract 0.5). A beat is no change of status:
a team of a hundred would otherwise wake each of its agents five times a second."""


class Event(WireModel):
    """One text frame of /ws. `event` stays a plain string: a reader must survive names it does not know."""

    event: str
    workspace_id: str
    timestamp: Timestamp
    payload: dict[str, Any] = {}
