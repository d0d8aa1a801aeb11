"""`GET /workspaces/:id/activity`: the rows that an inbox reads (contract 4.3)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

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
