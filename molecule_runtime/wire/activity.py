"""`/workspaces/:id/activity`: the rows that an inbox reads, and what an agent reports of itself (contract 4.3, 4.4)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from molecule_runtime.wire._base import Timestamp, WireModel


class ActivityType(StrEnum):
    """Every `activity_type` a row may carry (contract 4.4)."""

    A2A_SEND = "a2a_send"
    A2A_RECEIVE = "a2a_receive"
    TASK_UPDATE = "task_update"
    AGENT_LOG = "agent_log"
    SKILL_PROMOTION = "skill_promotion"
    MEMORY_WRITE = "memory_write"
    ERROR = "error"
    DELEGATION = "delegation"


REPORTABLE = tuple(kind for kind in ActivityType if kind is not ActivityType.DELEGATION)
"""What an agent may report of itself, in the order in which a refusal names them (contract 4.4)."""


class ActivityReport(WireModel):
    """POST /workspaces/:id/activity. `metadata` is taken as `request_body` where that is absent."""

    activity_type: str
    method: str | None = None
    summary: str | None = None
    target_id: str | None = None
    source_id: str | None = None
    status: str = "ok"
    error_detail: str | None = None
    duration_ms: int | None = None
    request_body: Any = None
    response_body: Any = None
    metadata: Any = None


class ActivityLogged(WireModel):
    status: Literal["logged"]


class ActivityRow(WireModel):
    """One row. The three bodies are absent on the wire when null; `seq` is missing on upstream platforms."""

    id: str
    workspace_id: str
    activity_type: str
    source_id: str | None = None
    target_id: str | None = None
    method: str | None = None
    summary: str | None = None
    request_body: Any = None
    response_body: Any = None
    tool_trace: Any = None
    duration_ms: int | None = None
    status: str = "ok"
    error_detail: str | None = None
    created_at: Timestamp
    seq: int | None = None

    def to_wire(self) -> dict[str, Any]:
        """The JSON object of the row, without the bodies and the seq that it does not have."""
        absent = {
            name for name in ("request_body", "response_body", "tool_trace", "seq") if getattr(self, name) is None
        }
        return self.model_dump(mode="json", exclude=absent)
