"""The tool that speaks to the user unasked (agent-side 5)."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from molecule_mcp.tools._base import Arguments, Hints, Tool, ToolContext
from molecule_mcp.tools.inbox import NonBlank
from molecule_runtime import messages
from molecule_runtime.runtime import Runtime


class SendToUserArguments(Arguments):
    message: NonBlank = Field(description="The text, Markdown allowed.")


async def send_message_to_user(context: ToolContext, args: SendToUserArguments) -> dict[str, Any]:
    async def send(runtime: Runtime) -> None:
        await messages.send_to_user(runtime.route(context.workspace_id).client, args.message)

    await context.bridge.call(send, to_the_end=True)
    return {"status": "sent", "attachments": []}


TOOLS = (
    Tool(
        name="send_message_to_user",
        title="Message the user",
        description="Show a message to the user in the canvas chat. "
        "For reports and questions of your own; to answer a message use reply.",
        arguments=SendToUserArguments,
        hints=Hints(read_only=False, destructive=False, idempotent=False, open_world=True),
        handler=send_message_to_user,
    ),
)
