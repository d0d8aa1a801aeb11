"""What was said before: with the user as the canvas shows it, with a peer as both sides' rows tell it.

The chat with the user is `GET /workspaces/:id/chat-history` (contract 4.5). For a peer there is no such page: what it
said are rows of this workspace's own log, and what was said to it are the reports that `messages` leaves there
(contract 4.3 with `peer_id`, 4.4). A job that was handed to it is a row there too, and its result another, which stands
beside the job and has the job's time where the peer polls (6.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from molecule_runtime.client import PlatformClient
from molecule_runtime.inbox.classify import FilePart, Message, classify
from molecule_runtime.wire._base import rfc3339
from molecule_runtime.wire.a2a import Method, is_queued_text
from molecule_runtime.wire.activity import ActivityRow, ActivityType
from molecule_runtime.wire.delegations import RowStatus

MAX_LINES = 500
"""As many rows as the activity route gives at once (contract 4.3)."""


class Speaker(StrEnum):
    USER = "user"
    AGENT = "agent"  # this workspace itself
    SYSTEM = "system"
    PEER = "peer"


@dataclass(frozen=True)
class Line:
    """One thing that was said. `created_at` is RFC3339; `delegation_id` is the job that it is, or the result of."""

    speaker: Speaker
    text: str
    created_at: str
    files: tuple[FilePart, ...] = ()
    delegation_id: str | None = None


@dataclass(frozen=True)
class Page:
    """Lines, oldest first; `reached_end` when nothing older is left, else what is older is older than `oldest`."""

    lines: tuple[Line, ...]
    reached_end: bool
    oldest: str | None = None


async def with_user(client: PlatformClient, limit: int, before: datetime | None = None) -> Page:
    """The newest lines of the chat with the user, before a moment if one is given.

    Raises:
        PlatformError
    """
    history = await client.chat_history(limit=limit, before=before)
    lines = tuple(
        Line(
            Speaker(message.role.value),
            message.content,
            rfc3339(message.timestamp),
            tuple(FilePart(file.name, file.uri, file.mimeType, file.size) for file in message.attachments or ()),
        )
        for message in history.messages
    )
    return Page(lines, history.reached_end, oldest=lines[0].created_at if lines else None)


async def with_peer(client: PlatformClient, peer_id: str, limit: int, before: datetime | None = None) -> Page:
    """The newest lines of the talk with a peer, before a moment if one is given.

    Raises:
        PlatformError
    """
    rows = await client.conversation(peer_id, limit=limit, before=before)
    lines = [line for row in reversed(rows) for line in _lines(row, client.workspace_id, peer_id)]
    # The last row read, whether or not it is part of the talk: the next page begins before it.
    oldest = rfc3339(rows[-1].created_at) if rows else None
    return Page(tuple(_once(lines)), reached_end=len(rows) < limit, oldest=oldest)


def _lines(row: ActivityRow, own_id: str, peer_id: str) -> list[Line]:
    """What a row adds to a talk: what the peer said, what was said to it and the answer at once; a job or a result."""
    if row.activity_type == ActivityType.A2A_RECEIVE and row.source_id == peer_id:
        said = classify(row, own_id=own_id)
        return [_line(Speaker.PEER, said)] if isinstance(said, Message) else []
    if row.activity_type == ActivityType.A2A_SEND and row.target_id == peer_id:
        sent = classify(row.model_copy(update={"source_id": peer_id}), own_id=own_id)
        answer = row.response_body.get("text") if isinstance(row.response_body, dict) else None
        lines = [_line(Speaker.AGENT, sent)] if isinstance(sent, Message) else []
        return lines + ([Line(Speaker.PEER, answer, rfc3339(row.created_at))] if isinstance(answer, str) else [])
    if row.activity_type == ActivityType.DELEGATION and row.target_id == peer_id:
        return _delegation_lines(row)
    return []


def _delegation_lines(row: ActivityRow) -> list[Line]:
    """A job in our words, its result in the peer's, or why there is none in the platform's."""
    request = row.request_body if isinstance(row.request_body, dict) else {}
    response = row.response_body if isinstance(row.response_body, dict) else {}
    match row.method, row.status:
        case Method.DELEGATE, _:
            speaker, text = Speaker.AGENT, request.get("task")
        case Method.DELEGATE_RESULT, RowStatus.COMPLETED if not is_queued_text(response.get("text")):
            speaker, text = Speaker.PEER, response.get("text")
        case Method.DELEGATE_RESULT, RowStatus.FAILED:
            speaker, text = Speaker.SYSTEM, row.error_detail
        case _:  # it is being worked on
            return []
    named = request.get("delegation_id") or response.get("delegation_id")
    line = Line(speaker, str(text or ""), rfc3339(row.created_at), delegation_id=named)
    return [line]


def _once(lines: list[Line]) -> list[Line]:
    """Without the results that the peer's own message says again, as where they are not pushed (contract 6.6)."""
    said: set[tuple[str, str]] = set()
    kept = []
    for line in reversed(lines):  # the message came when the peer answered, its row before that
        if line.speaker is Speaker.PEER and line.delegation_id is not None:
            if (line.delegation_id, line.text) in said:
                continue
            said.add((line.delegation_id, line.text))
        kept.append(line)
    return kept[::-1]


def _line(speaker: Speaker, message: Message) -> Line:
    return Line(speaker, message.text, message.created_at, message.files, message.delegation_id)
