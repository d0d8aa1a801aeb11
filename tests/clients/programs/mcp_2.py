"""The client of the Python SDK, mcp 2, in its default mode: `server/discover` first, then `initialize`.

What every program here does is told in `session.py`, which drives it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import warnings
from typing import Any

import mcp


def show(step: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"step": step, **facts}) + "\n")
    sys.stdout.flush()


def plain(model: Any) -> Any:
    """A result as it stood on the wire."""
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


async def on_progress(done: float, total: float | None, text: str | None) -> None:
    show("progress", done=done, total=total, text=text)


async def session(client: mcp.Client) -> None:
    async def call(tool: str, **arguments: Any) -> Any:
        return plain(await client.call_tool(tool, arguments))

    show(
        "initialized",
        protocolVersion=client.protocol_version,
        serverInfo=plain(client.server_info),
        instructions=client.instructions,
        capabilities=plain(client.server_capabilities),
        fell_back=client.session.discover_result is None and client.session.initialize_result is not None,
    )
    show("listed", tools=plain(await client.list_tools())["tools"])

    waiting = asyncio.create_task(
        client.call_tool("wait_for_message", {"timeout_secs": 30}, progress_callback=on_progress)
    )
    show("pinged", result=plain(await client.send_ping()))
    show("sent", result=await call("send_message_to_user", message="Hello, user. 你好"))
    show("bad_argument", result=await call("inbox_pop", activity_id="not an id"))
    try:
        await client.call_tool("no_such_tool", {})
    except mcp.MCPError as error:
        show("unknown_tool", code=error.error.code, message=error.error.message)
    show("waited_meanwhile", done=waiting.done())
    first = plain(await waiting)
    show("first", result=first)
    show("peeked", result=await call("inbox_peek"))
    activity_id = first["structuredContent"]["message"]["activity_id"]
    show("replied", result=await call("reply", activity_id=activity_id, message="Heard."))

    waiting = asyncio.create_task(client.call_tool("wait_for_message", {"timeout_secs": 50}))
    await client.send_ping()
    waiting.cancel()
    await asyncio.wait([waiting])
    show("cancelled", result=await call("inbox_peek"))
    second = await call("wait_for_message", timeout_secs=20)
    show("second", result=second)
    await call("inbox_pop", activity_id=second["structuredContent"]["message"]["activity_id"])
    show("status", result=await call("runtime_status"))


async def main() -> None:
    warnings.simplefilter("ignore", mcp.MCPDeprecationWarning)  # ping is gone in the modern era, not in this one
    server = mcp.StdioServerParameters(**json.loads(sys.stdin.readline()))
    async with mcp.Client(server) as client:
        await session(client)
    show("closed")


asyncio.run(main())
