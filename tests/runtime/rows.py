"""Messages and rows for tests; light enough for a child process that must start at once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from molecule_runtime.inbox.classify import Kind, Message

WORKSPACE = "11111111-1111-4111-8111-111111111111"
START = datetime(2026, 1, 1, tzinfo=UTC)


def message(number: int = 1, text: str = "hello", **fields: Any) -> Message:
    """A message as the journal keeps it."""
    facts: dict[str, Any] = {
        "activity_id": f"00000000-0000-4000-8000-{number:012d}",
        "kind": Kind.CANVAS_USER,
        "peer_id": "",
        "text": text,
        "created_at": "2026-01-01T00:00:00.000000Z",
        "method": "message/send",
    }
    return Message(**facts | fields)


def row(number: int, *, at: datetime = START, seq: bool = True, **fields: Any) -> dict[str, Any]:
    """A row of the feed, the user's message number so-and-so."""
    wire = {
        "id": f"00000000-0000-4000-8000-{number:012d}",
        "workspace_id": WORKSPACE,
        "activity_type": "a2a_receive",
        "source_id": None,
        "target_id": WORKSPACE,
        "method": "message/send",
        "summary": "…",
        "duration_ms": None,
        "status": "ok",
        "error_detail": None,
        "created_at": at.isoformat().replace("+00:00", "Z"),
        "request_body": {"params": {"message": {"parts": [{"kind": "text", "text": f"message {number}"}]}}},
    }
    return wire | ({"seq": number} if seq else {}) | fields
