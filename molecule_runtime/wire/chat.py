"""What the agent says to the user and what the canvas reads back (contract 4.2, 4.5)."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from molecule_runtime.wire._base import Timestamp, WireModel


class Attachment(WireModel):
    """A file of a chat message; the canvas reads exactly these lower-case keys."""

    uri: str
    name: str
    mimeType: str | None = None
    size: int | None = None


class NotifyRequest(WireModel):
    """POST /workspaces/:id/notify; `attachments` is left out when there are none."""

    message: str
    attachments: list[Attachment] | None = None


class NotifyReply(WireModel):
    status: Literal["sent"]


class ChatRole(StrEnum):
    USER = "user"
    AGENT = "agent"
    SYSTEM = "system"


class ChatMessage(WireModel):
    """One bubble. `id` is a fresh UUID for each call; `timestamp` is the row's created_at."""

    id: str
    role: ChatRole
    content: str
    attachments: list[Attachment] | None = None
    timestamp: Timestamp


class ChatHistory(WireModel):
    """GET /workspaces/:id/chat-history: oldest first; `reached_end` when nothing older is left."""

    messages: list[ChatMessage]
    reached_end: bool
