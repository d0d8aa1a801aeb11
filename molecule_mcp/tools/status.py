"""The tool that answers "why does it not work?" (agent-side 5)."""

from __future__ import annotations

from typing import Any

from molecule_mcp.tools._base import Hints, NoArguments, Tool, ToolContext


async def runtime_status(context: ToolContext, _args: NoArguments) -> dict[str, Any]:
    return await context.bridge.call(lambda runtime: runtime.snapshot())


TOOLS = (
    Tool(
        name="runtime_status",
        title="Connection status",
        description="Show whether this agent is online on the canvas, its inbox counts, and problems with their fixes.",
        arguments=NoArguments,
        hints=Hints(read_only=True, destructive=False, idempotent=True, open_world=False),
        handler=runtime_status,
        acts_for=None,
    ),
)
