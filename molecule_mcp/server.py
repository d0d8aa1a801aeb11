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

from molecule_mcp import prompts, resources
from molecule_mcp.channel import CAPABILITY, Channel
from molecule_mcp.instructions import instructions
from molecule_mcp.pipe import End, Pipe
from molecule_mcp.resources import Readable, Subscriptions
from molecule_mcp.tools import ALL_TOOLS
from molecule_mcp.tools._base import Tool, ToolContext, ToolResult, failure, run_tool
from molecule_mcp.transport import stdio
from molecule_runtime import __version__
from molecule_runtime.errors import MoleculeError, advice
from molecule_runtime.runtime import RuntimeThread
from molecule_runtime.settings import DEFAULT_POLL_TIMEOUT_SECS, Push, Settings, ToolSet
from molecule_runtime.text import cut_code_points

SERVER_NAME = "molecule-mcp"
RESOURCE_NOT_FOUND = -32002
"""MCP's code of the handshake era for a resource that is not there."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)
Context = ServerRequestContext[Any, Any]


def listed_tools(settings: Settings | None, tools: Sequence[Tool] = ALL_TOOLS) -> list[Tool]:
    """The tools of the configured set; the core set while the settings are wrong."""
    wanted = settings.tools if settings is not None else ToolSet.CORE
    return [tool for tool in tools if tool.set is ToolSet.CORE or wanted is ToolSet.FULL]


class MoleculeServer(Server[Any]):
    """The SDK's server with a channel (None where nothing is pushed) and subscriptions (None without a runtime)."""

    channel: Channel | None = None
    subscriptions: Subscriptions | None = None

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

    async def list_resources(
        _context: Context, _params: mcp_types.PaginatedRequestParams | None
    ) -> mcp_types.ListResourcesResult:
        return mcp_types.ListResourcesResult(resources=[one.describe() for one in resources.RESOURCES])

    async def read_resource(
        _context: Context, params: mcp_types.ReadResourceRequestParams
    ) -> mcp_types.ReadResourceResult:
        readable = _resource(str(params.uri))
        if bridge is None:
            raise MCPError(code=mcp_types.INTERNAL_ERROR, message=str(advice(trouble or MoleculeError())))
        return await resources.contents(readable, bridge)

    async def subscribe(context: Context, params: mcp_types.SubscribeRequestParams) -> mcp_types.EmptyResult:
        readable = _resource(str(params.uri))
        if server.subscriptions is not None:
            server.subscriptions.add(readable.uri, context.session)
        return mcp_types.EmptyResult()

    async def unsubscribe(_context: Context, params: mcp_types.UnsubscribeRequestParams) -> mcp_types.EmptyResult:
        readable = _resource(str(params.uri))
        if server.subscriptions is not None:
            server.subscriptions.remove(readable.uri)
        return mcp_types.EmptyResult()

    async def list_prompts(
        _context: Context, _params: mcp_types.PaginatedRequestParams | None
    ) -> mcp_types.ListPromptsResult:
        return mcp_types.ListPromptsResult(prompts=[prompt.describe() for prompt in prompts.PROMPTS])

    async def get_prompt(_context: Context, params: mcp_types.GetPromptRequestParams) -> mcp_types.GetPromptResult:
        prompt = prompts.find(params.name)
        if prompt is None:
            known = ", ".join(one.name for one in prompts.PROMPTS)
            said = f"Unknown prompt: {cut_code_points(params.name)}. Prompts: {known}"
            raise MCPError(code=mcp_types.INVALID_PARAMS, message=said)
        return prompts.filled(prompt, by_name)

    server = MoleculeServer(
        SERVER_NAME,
        version=__version__,
        title="Molecule canvas",
        instructions=instructions(
            listed, poll_timeout_secs=settings.poll_timeout_secs if settings else DEFAULT_POLL_TIMEOUT_SECS
        ),
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_read_resource=read_resource,
        on_subscribe_resource=subscribe,
        on_unsubscribe_resource=unsubscribe,
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
    )
    if bridge is not None:
        server.subscriptions = Subscriptions(bridge)
    if settings is not None and bridge is not None and settings.push is Push.AUTO and not settings.disable_inbox:
        server.channel = channel = Channel(bridge)

        async def initialized(context: Context, _params: mcp_types.NotificationParams | None) -> None:
            channel.open(context.session)

        server.add_notification_handler("notifications/initialized", mcp_types.NotificationParams, initialized)
    return server


def _resource(uri: str) -> Readable:
    readable = resources.find(uri)
    if readable is None:
        known = ", ".join(one.uri for one in resources.RESOURCES)
        said = f"Unknown resource: {cut_code_points(uri)}. Resources: {known}"
        raise MCPError(code=RESOURCE_NOT_FOUND, message=said)
    return readable


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
        if server.subscriptions is not None:
            tasks.start_soon(server.subscriptions.run)
        await server.run(read_stream, write_stream, server.create_initialization_options())
        tasks.cancel_scope.cancel()
    return pipe.ended or End.EOF
