"""The tools about this workspace itself: what the canvas says of it, and the card it shows (agent-side 5)."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from molecule_mcp.tools._base import Arguments, Hints, NoArguments, Tool, ToolContext
from molecule_runtime.runtime import Runtime
from molecule_runtime.settings import ToolSet


def _object(value: Any) -> Any:
    """Some models write an object argument as the text of one."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("must be a JSON object") from None


class UpdateCardArguments(Arguments):
    card: Annotated[dict[str, Any], BeforeValidator(_object)] = Field(
        description="The whole card: name, description, skills (names, or objects with name and description)."
    )


async def get_workspace_info(context: ToolContext, _args: NoArguments) -> dict[str, Any]:
    async def look(runtime: Runtime) -> dict[str, Any]:
        row = await runtime.route(context.workspace_id).client.get_workspace()
        return {
            "id": row.id,
            "name": row.name,
            "role": row.role,
            "tier": row.tier,
            "status": row.status,
            "parent_id": row.parent_id,
        }

    return await context.bridge.call(look)


async def update_agent_card(context: ToolContext, args: UpdateCardArguments) -> dict[str, Any]:
    async def update(runtime: Runtime) -> None:
        workspace = runtime.route(context.workspace_id)
        await workspace.card.update(workspace.client, args.card)

    await context.bridge.call(update, to_the_end=True)
    return {"status": "updated"}


TOOLS = (
    Tool(
        name="get_workspace_info",
        title="This workspace",
        description="Show this agent's own workspace on the canvas: name, role, tier, status, parent.",
        arguments=NoArguments,
        hints=Hints(read_only=True, destructive=False, idempotent=True, open_world=True),
        handler=get_workspace_info,
    ),
    Tool(
        name="update_agent_card",
        title="Change the agent card",
        description="Replace the card by which the user and peers know this agent: name, description, skills. "
        "It is kept for later starts.",
        arguments=UpdateCardArguments,
        hints=Hints(read_only=False, destructive=False, idempotent=True, open_world=True),
        handler=update_agent_card,
        set=ToolSet.FULL,
    ),
)
