"""The MCP server: our table of tools behind the SDK's lowlevel `Server`, served over our own transport.

Lowlevel, because the SDK's high-level server would answer bad arguments and unknown tools in its own way, add output
schemas, and configure logging (mcp-sdk.md). An unknown tool is a protocol error (-32602); everything a model can mend
is a tool error it can read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import mcp_types
import structlog
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from molecule_mcp.channel import CAPABILITY, Channel
from molecule_mcp.instructions import instructions
from molecule_mcp.pipe import End, Pipe
from molecule_mcp.tools import ALL_TOOLS
from molecule_mcp.tools._base import Tool, ToolContext, ToolResult, failure, run_tool
from molecule_mcp.transport import stdio
from molecule_runtime import __version__
from molecule_runtime.errors import MoleculeError
from molecule_runtime.runtime import RuntimeThread
from molecule_runtime.settings import DEFAULT_POLL_TIMEOUT_SECS, Push, Settings, ToolSet
from molecule_runtime.text import cut_code_points

SERVER_NAME = "molecule-mcp"

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)
Context = ServerRequestContext[Any, Any]


def listed_tools(settings: Settings | None, tools: Sequence[Tool] = ALL_TOOLS) -> list[Tool]:
    """The tools of the configured set; the core set while the settings are wrong."""
    wanted = settings.tools if settings is not None else ToolSet.CORE
    return [tool for tool in tools if tool.set is ToolSet.CORE or wanted is ToolSet.FULL]


class MoleculeServer(Server[Any]):
    """The SDK's server with a channel; `channel` is None where nothing is pushed."""

    channel: Channel | None = None

    def get_capabilities(self, *args: Any, **kwargs: Any) -> mcp_types.ServerCapabilities:
        capabilities = super().get_capabilities(*args, **kwargs)
        if self.channel is None:
            return capabilities
        return capabilities.model_copy(update={"experimental": {CAPABILITY: {}}})


def build_server(
    settings: Settings | None,
    bridge: RuntimeThread | None,
    *,
    trouble: MoleculeError | None = None,
    tools: Sequence[Tool] = ALL_TOOLS,
) -> MoleculeServer:
    """The server over a running runtime, or, with `trouble`, one whose every tool says what is wrong."""
    listed = listed_tools(settings, tools)
    by_name = {tool.name: tool for tool in listed}
    several = settings is not None and len(settings.workspaces) > 1

    async def list_tools(
        _context: Context, _params: mcp_types.PaginatedRequestParams | None
    ) -> mcp_types.ListToolsResult:
        return mcp_types.ListToolsResult(tools=[describe(tool, several_workspaces=several) for tool in listed])

    async def call_tool(context: Context, params: mcp_types.CallToolRequestParams) -> mcp_types.CallToolResult:
        tool = by_name.get(params.name)
        if tool is None:
            known = ", ".join(by_name)
            raise MCPError(
                code=mcp_types.INVALID_PARAMS, message=f"Unknown tool: {cut_code_points(params.name)}. Tools: {known}"
            )
        if settings is None or bridge is None:
            return _result(failure(trouble or MoleculeError()))

        async def progress(done: float, total: float | None, text: str) -> None:
            await context.session.report_progress(done, total, text)

        return _result(await run_tool(tool, ToolContext(settings, bridge, progress), params.arguments))

    server = MoleculeServer(
        SERVER_NAME,
        version=__version__,
        title="Molecule canvas",
        instructions=instructions(
            listed, poll_timeout_secs=settings.poll_timeout_secs if settings else DEFAULT_POLL_TIMEOUT_SECS
        ),
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )
    if settings is not None and bridge is not None and settings.push is Push.AUTO and not settings.disable_inbox:
        server.channel = channel = Channel(bridge)

        async def initialized(context: Context, _params: mcp_types.NotificationParams | None) -> None:
            channel.open(context.session)

        server.add_notification_handler("notifications/initialized", mcp_types.NotificationParams, initialized)
    return server


def describe(tool: Tool, *, several_workspaces: bool = False) -> mcp_types.Tool:
    """A tool as `tools/list` shows it; no output schema, because hosts would then hide the text (clients.md 4)."""
    return mcp_types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.input_schema(several_workspaces=several_workspaces),
        annotations=mcp_types.ToolAnnotations(
            read_only_hint=tool.hints.read_only,
            destructive_hint=tool.hints.destructive,
            idempotent_hint=tool.hints.idempotent,
            open_world_hint=tool.hints.open_world,
        ),
    )


def _result(result: ToolResult) -> mcp_types.CallToolResult:
    return mcp_types.CallToolResult(
        content=[mcp_types.TextContent(type="text", text=result.text)],
        structured_content=None if result.error_text is not None else result.payload,
        is_error=result.error_text is not None,
    )


async def serve_pipe(server: MoleculeServer, pipe: Pipe) -> End:
    """Serve until the pipe ends (a signal ends it, too); requests in flight are answered on the way out."""
    async with stdio(pipe) as (read_stream, write_stream), anyio.create_task_group() as tasks:
        if server.channel is not None:
            tasks.start_soon(server.channel.run)
        await server.run(read_stream, write_stream, server.create_initialization_options())
        tasks.cancel_scope.cancel()
    return pipe.ended or End.EOF
