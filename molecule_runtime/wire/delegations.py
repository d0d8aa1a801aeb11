"""Delegations: jobs that one workspace hands to another (contract 6, 0.8, 0.9)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from molecule_runtime.wire._base import Timestamp, WireModel


class DelegationStatus(StrEnum):
    """The states of the ledger (contract 6.5)."""

    QUEUED = "queued"
    DISPATCHED = "dispatched"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    STUCK = "stuck"

    @property
    def is_final(self) -> bool:
        return not TRANSITIONS[self]


TRANSITIONS: dict[DelegationStatus, frozenset[DelegationStatus]] = {
    DelegationStatus.QUEUED: frozenset(
        {DelegationStatus.DISPATCHED, DelegationStatus.IN_PROGRESS, DelegationStatus.FAILED}
    ),
    DelegationStatus.DISPATCHED: frozenset(
        {DelegationStatus.IN_PROGRESS, DelegationStatus.COMPLETED, DelegationStatus.FAILED}
    ),
    DelegationStatus.IN_PROGRESS: frozenset(
        {DelegationStatus.COMPLETED, DelegationStatus.FAILED, DelegationStatus.STUCK}
    ),
    DelegationStatus.COMPLETED: frozenset(),
    DelegationStatus.FAILED: frozenset(),
    DelegationStatus.STUCK: frozenset(),
}
"""Where each state may go; from the last three, nowhere."""


class RowStatus(StrEnum):
    """`status` of the activity rows of a delegation, which say less than the ledger (contract 6.1)."""

    PENDING = "pending"
    DISPATCHED = "dispatched"
    QUEUED = "queued"
    COMPLETED = "completed"
    FAILED = "failed"


class DelegateRequest(WireModel):
    """POST /workspaces/:id/delegate, where `:id` is the delegator. The key makes a repeat harmless."""

    target_id: str
    task: str
    idempotency_key: str | None = None


class DelegateReply(WireModel):
    """202, or 200 with `idempotent_hit` and the status as it is now. `status` stays a plain string for a reader."""

    delegation_id: str
    status: str
    target_id: str
    warning: str | None = None
    idempotent_hit: bool | None = None


class RecordRequest(WireModel):
    """POST /workspaces/:id/delegations/record: the delegator sends the task by itself."""

    target_id: str
    task: str
    delegation_id: str


class RecordReply(WireModel):
    delegation_id: str
    status: Literal["recorded"] = "recorded"


class UpdateRequest(WireModel):
    """POST …/delegations/:delegation_id/update by the delegator; completed or failed."""

    status: str
    error: str | None = None
    response_preview: str | None = None


class UpdateReply(WireModel):
    status: str
    delegation_id: str


class HeartbeatReply(WireModel):
    """POST …/delegations/:delegation_id/heartbeat by the worker (contract 6.5)."""

    status: Literal["ok"] = "ok"


class Delegation(WireModel):
    """GET …/delegations/:delegation_id: the text is whole (contract 0.9)."""

    delegation_id: str
    target_id: str | None = None
    status: str
    text: str | None = None
    error: str | None = None
    created_at: Timestamp | None = None
    updated_at: Timestamp | None = None


class DelegationRow(WireModel):
    """One element of GET …/delegations: an activity row, or with `_ledger` a row of the ledger (contract 6.2).

    A row of the first kind may lack `delegation_id`, one of the second has neither `id` nor `type`.
    """

    id: str | None = None
    type: str | None = None
    delegation_id: str | None = None
    source_id: str | None = None
    target_id: str | None = None
    summary: str | None = None
    status: str
    error: str | None = None
    response_preview: str | None = None
    created_at: Timestamp | None = None
    updated_at: Timestamp | None = None


def delegation_message(delegation_id: str, task: str) -> dict[str, Any]:
    """`params.message` under which a worker gets the task; its id is the delegation's (contract 6.1)."""
    return {
        "role": "user",
        "messageId": delegation_id,
        "parts": [{"type": "text", "text": task}],
        "metadata": {"delegation_id": delegation_id},
    }
