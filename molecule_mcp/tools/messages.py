"""The tools about what is said: to the user unasked, and before (agent-side 5)."""

from __future__ import annotations

import json
import re
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, Field, TypeAdapter

from molecule_mcp.tools._attachments import Attachments, send_with_progress
from molecule_mcp.tools._base import Arguments, Hints, Tool, ToolContext
from molecule_mcp.tools.inbox import NonBlank
from molecule_runtime import history, messages
from molecule_runtime.history import MAX_LINES, Line, Page
from molecule_runtime.runtime import Runtime
from molecule_runtime.upload_body import UploadProgress
from molecule_runtime.wire.uploads import UploadedFile

MAX_RESULT_BYTES = 9_000
"""A host cuts results at about 10 kB (clients.md 4): what does not fit is the next page."""
LINE_CODE_POINTS = 2_000
_DATE = re.compile(r"\d{4}-\d\d-\d\d[Tt ]")


def _peer_id(text: str) -> str:
    if text.strip():
        try:
            return str(uuid.UUID(text.strip()))
        except ValueError:
            raise ValueError("must be a peer's id, a UUID; list_peers has it") from None
    return ""


def _time_text(text: str) -> str:
    if text.strip():
        try:
            if not _DATE.match(text.strip()):
                raise ValueError
            _moment(text)
        except (ValueError, OverflowError):
            raise ValueError("must be an RFC3339 time such as 2026-01-31T09:30:00Z") from None
    return text.strip()


def _moment(text: str) -> datetime | None:
    """The moment in UTC; OverflowError for one that no calendar has."""
    return TypeAdapter(AwareDatetime).validate_strings(text.strip()).astimezone(UTC) if text.strip() else None


class ChatHistoryArguments(Arguments):
    peer_id: Annotated[str, AfterValidator(_peer_id)] = Field("", description="A peer's id; without it, the user.")
    limit: int = Field(20, description=f"How many, 1 to {MAX_LINES}.", ge=1, le=MAX_LINES)
    before_ts: Annotated[str, AfterValidator(_time_text)] = Field("", description="Only what is older, RFC3339.")


class SendToUserArguments(Arguments):
    message: NonBlank = Field(description="The text, Markdown allowed.")
    attachments: Attachments = None


async def send_message_to_user(context: ToolContext, args: SendToUserArguments) -> dict[str, Any]:
    progress = UploadProgress()

    async def send(runtime: Runtime) -> list[UploadedFile]:
        workspace = runtime.route(context.workspace_id)
        files = await workspace.enclosed(args.attachments or (), progress)
        return await messages.send_to_user(workspace.client, args.message, files)

    return {"status": "sent", "attachments": messages.listing(await send_with_progress(context, send, progress))}


async def chat_history(context: ToolContext, args: ChatHistoryArguments) -> dict[str, Any]:
    async def look(runtime: Runtime) -> Page:
        client, before = runtime.route(context.workspace_id).client, _moment(args.before_ts)
        if args.peer_id:
            return await history.with_peer(client, args.peer_id, args.limit, before)
        return await history.with_user(client, args.limit, before)

    return fit(await context.bridge.call(look))


def fit(page: Page) -> dict[str, Any]:
    """The newest lines of a page that a host shows whole; `before_ts` asks for what is older.

    Lines of one moment stay together, because the next page begins before a moment.
    """
    shown = [_line(line) for line in page.lines]
    size, first = 0, len(shown)
    while first > 0:
        moment = shown[first - 1]["created_at"]
        start = first
        while start > 0 and shown[start - 1]["created_at"] == moment:
            start -= 1
        size += len(json.dumps(shown[start:first], ensure_ascii=False).encode())
        if size > MAX_RESULT_BYTES and first < len(shown):
            break
        first = start
    result: dict[str, Any] = {"messages": shown[first:], "reached_end": page.reached_end and first == 0}
    if first > 0:
        result["before_ts"] = shown[first]["created_at"]
    elif not page.reached_end and page.oldest is not None:
        result["before_ts"] = page.oldest
    return result


def _line(line: Line) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "from": line.speaker.value,
        "text": line.text[:LINE_CODE_POINTS],
        "attachments": [{"name": file.name, "mime_type": file.mime_type, "size": file.size} for file in line.files],
        "created_at": line.created_at,
    }
    if len(line.text) > LINE_CODE_POINTS:
        shown["text_truncated"] = True
    if line.delegation_id is not None:
        shown["delegation_id"] = line.delegation_id
    return shown


TOOLS = (
    Tool(
        name="send_message_to_user",
        title="Message the user",
        description="Show a message to the user in the canvas chat, with files if you attach any. "
        "For reports and questions of your own; to answer a message use reply.",
        arguments=SendToUserArguments,
        hints=Hints(read_only=False, destructive=False, idempotent=False, open_world=True),
        handler=send_message_to_user,
    ),
    Tool(
        name="chat_history",
        title="Earlier messages",
        description="Show the chat with the user, or with a peer, as it was before; oldest first. "
        "When older ones are left, before_ts of the result asks for them.",
        arguments=ChatHistoryArguments,
        hints=Hints(read_only=True, destructive=False, idempotent=True, open_world=True),
        handler=chat_history,
    ),
)
