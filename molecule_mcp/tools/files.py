"""The tool for a file that did not come (agent-side 4, 5)."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from molecule_mcp.tools._base import Arguments, Hints, Tool, ToolContext
from molecule_mcp.tools.inbox import ActivityId
from molecule_runtime.settings import ToolSet

FETCH_LIMIT_S = 45.0
"""Below every host's limit for a tool (clients.md 1.4); a file that takes longer goes on coming."""


class FetchArguments(Arguments):
    activity_id: ActivityId
    name: str = Field("", description="One file of it; without a name, all that are not staged.")


async def fetch_attachment(context: ToolContext, args: FetchArguments) -> dict[str, Any]:
    attachments = await context.bridge.call(
        lambda runtime: runtime.fetch_attachments(
            args.activity_id, args.name, context.workspace_id, within_s=FETCH_LIMIT_S
        )
    )
    return {"attachments": attachments}


TOOLS = (
    Tool(
        name="fetch_attachment",
        title="Fetch a file again",
        description="Try again, now, to fetch a message's files that are pending or failed. "
        "The result lists all files of the message as they are then.",
        arguments=FetchArguments,
        hints=Hints(read_only=False, destructive=False, idempotent=True, open_world=True),
        handler=fetch_attachment,
        set=ToolSet.FULL,
    ),
)
