"""The peer for a tool that calls the platform: the SDK's lowlevel server, one tool, one pooled HTTP client."""

import os
from typing import Any

import anyio
import httpx
import mcp_types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

WORKSPACE_ID = os.environ["WORKSPACE_ID"]
PLATFORM_URL = os.environ["PLATFORM_URL"]
HEADERS = {
    "Authorization": f"Bearer {os.environ['MOLECULE_WORKSPACE_TOKEN']}",
    "X-Workspace-ID": WORKSPACE_ID,
    "Origin": PLATFORM_URL,
}


async def main() -> None:
    async with httpx.AsyncClient(base_url=PLATFORM_URL, headers=HEADERS, timeout=10) as http:

        async def list_tools(_context: Any, _params: Any) -> mcp_types.ListToolsResult:
            return mcp_types.ListToolsResult(tools=[mcp_types.Tool(name="list_peers", input_schema={"type": "object"})])

        async def call_tool(_context: Any, _params: Any) -> mcp_types.CallToolResult:
            answer = await http.get(f"/registry/{WORKSPACE_ID}/peers")
            answer.raise_for_status()
            payload = {"peers": answer.json()}
            text = mcp_types.TextContent(type="text", text=answer.text)
            return mcp_types.CallToolResult(content=[text], structured_content=payload)

        server = Server("bare", on_list_tools=list_tools, on_call_tool=call_tool)
        async with stdio_server() as (read_stream, write_stream):
            await server.run(read_stream, write_stream, server.create_initialization_options())


anyio.run(main)
