"""The client of the Python SDK's first generation, mcp 1. It runs in an environment of its own.

What every program here does is told in `session.py`, which drives it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from mcp import ClientSession, McpError, StdioServerParameters, types
from mcp.client.stdio import stdio_client


def show(step: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"step": step, **facts}) + "\n")
    sys.stdout.flush()


def plain(model: Any) -> Any:
    """A result as it stood on the wire."""
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


async def on_progress(done: float, total: float | None, text: str | None) -> None:
    show("progress", done=done, total=total, text=text)


async def cancel(client: ClientSession, request_id: int) -> None:
    """Tell the server; this SDK leaves that to its user, as it does the id of a request."""
    params = types.CancelledNotificationParams(requestId=request_id, reason="the test changed its mind")
    await client.send_notification(types.ClientNotification(types.CancelledNotification(params=params)))


async def session(client: ClientSession) -> None:
    async def call(tool: str, **arguments: Any) -> Any:
        return plain(await client.call_tool(tool, arguments))

    show("initialized", **plain(await client.initialize()))
    show("listed", tools=plain(await client.list_tools())["tools"])

    waiting = asyncio.create_task(
        client.call_tool("wait_for_message", {"timeout_secs": 30}, progress_callback=on_progress)
    )
    show("pinged", result=plain(await client.send_ping()))
    show("sent", result=await call("send_message_to_user", message="Hello, user. 你好"))
    show("bad_argument", result=await call("inbox_pop", activity_id="not an id"))
    try:
        await client.call_tool("no_such_tool", {})
    except McpError as error:
        show("unknown_tool", code=error.error.code, message=error.error.message)
    show("waited_meanwhile", done=waiting.done())
    first = plain(await waiting)
    show("first", result=first)
    show("peeked", result=await call("inbox_peek"))
    activity_id = first["structuredContent"]["message"]["activity_id"]
    show("replied", result=await call("reply", activity_id=activity_id, message="Heard."))

    request_id = client._request_id
    waiting = asyncio.create_task(client.call_tool("wait_for_message", {"timeout_secs": 50}))
    await asyncio.sleep(0)  # so that it has its id before the ping takes the next one
    await client.send_ping()
    await cancel(client, request_id)
    waiting.cancel()
    await asyncio.wait([waiting])
    show("cancelled", result=await call("inbox_peek"))
    second = await call("wait_for_message", timeout_secs=20)
    show("second", result=second)
    await call("inbox_pop", activity_id=second["structuredContent"]["message"]["activity_id"])
    show("status", result=await call("runtime_status"))


async def main() -> None:
    server = StdioServerParameters(**json.loads(sys.stdin.readline()))
    async with stdio_client(server) as (read, write), ClientSession(read, write) as client:
        await session(client)
    show("closed")


asyncio.run(main())
