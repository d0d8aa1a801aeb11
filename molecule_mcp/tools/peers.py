"""The tools about the team (agent-side 5)."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from molecule_mcp.tools._base import Arguments, Hints, Tool, ToolContext
from molecule_runtime.runtime import Runtime


class ListPeersArguments(Arguments):
    q: str = Field("", description="Part of a name or role.")


async def list_peers(context: ToolContext, args: ListPeersArguments) -> dict[str, Any]:
    async def look(runtime: Runtime) -> dict[str, Any]:
        peers = await runtime.route(context.workspace_id).directory.list(args.q.strip())
        return {"peers": [peer.to_json() for peer in peers]}

    return await context.bridge.call(look)


TOOLS = (
    Tool(
        name="list_peers",
        title="List peers",
        description="List the other agents of the team with status and skills.",
        arguments=ListPeersArguments,
        hints=Hints(read_only=True, destructive=False, idempotent=True, open_world=True),
        handler=list_peers,
    ),
)
