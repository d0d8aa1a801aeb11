"""The smallest agent: wait for a message, answer it, wait for the next.

Any MCP client can be the agent; here it is the MCP Python SDK and thirty lines instead of a model. The program brings
its own platform and its own user, checks what it sees, and ends with 0 when all of it was right:

    python examples/hello_agent/hello_agent.py
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from mcp import Client, StdioServerParameters

MOLECULE_MCP = [sys.executable, "-m", "molecule_mcp"]  # or just ["molecule-mcp"]


async def agent(settings: dict[str, str], state: str, turns: int) -> list[str]:
    """Take `turns` messages and answer each; the texts that were heard."""
    server = StdioServerParameters(
        command=MOLECULE_MCP[0], args=MOLECULE_MCP[1:], env={**settings, "CONFIGS_DIR": state}
    )
    heard: list[str] = []
    async with Client(server) as mcp:
        while len(heard) < turns:
            result = await call(mcp, "wait_for_message", timeout_secs=20)
            if result.get("timeout"):
                continue
            message = result["message"]
            heard.append(message["text"])
            if message["text"].endswith("?"):
                await call(mcp, "reply", activity_id=message["activity_id"], message=f"You asked: {message['text']}")
            else:
                await call(mcp, "send_message_to_user", message="Noted.")
                await call(mcp, "inbox_pop", activity_id=message["activity_id"])
        left = await call(mcp, "inbox_peek")
        assert left["messages"] == [], f"nothing should be left: {left}"
    return heard


async def call(mcp: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """One tool call; its result, or the sentence that says why not."""
    result = await mcp.call_tool(tool, arguments)
    if result.is_error:
        raise RuntimeError(f"{tool}: {result.content[0].text}")  # type: ignore[union-attr]
    print(f"agent  {tool} -> {json.dumps(result.structured_content, ensure_ascii=False)[:100]}")
    return dict(result.structured_content)


async def user(settings: dict[str, str], lines: list[str]) -> None:
    """Type some lines into the canvas, once the agent is online."""
    workspace = f"/workspaces/{settings['WORKSPACE_ID']}"
    async with httpx.AsyncClient(base_url=settings["PLATFORM_URL"]) as canvas:
        async with asyncio.timeout(30):
            while (await canvas.get(workspace)).json()["status"] != "online":  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
        for line in lines:
            print(f"user   {line}")
            message = {"role": "user", "messageId": str(uuid.uuid4()), "parts": [{"kind": "text", "text": line}]}
            sent = await canvas.post(
                f"{workspace}/a2a", json={"method": "message/send", "params": {"message": message}}
            )
            sent.raise_for_status()


async def chat(settings: dict[str, str]) -> list[tuple[str, str]]:
    """What a reload of the canvas shows: (who, text), oldest first."""
    async with httpx.AsyncClient(base_url=settings["PLATFORM_URL"]) as canvas:
        answer = await canvas.get(f"/workspaces/{settings['WORKSPACE_ID']}/chat-history")
        return [(bubble["role"], bubble["content"]) for bubble in answer.json()["messages"]]


@asynccontextmanager
async def platform(directory: str) -> AsyncIterator[dict[str, str]]:
    """A platform of our own with one workspace; that workspace's settings."""
    command = [*MOLECULE_MCP, "platform", "--port", "0", "--json", "--workspace", "hello", "--db", f"{directory}/db"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield json.loads(await process.stdout.readline())["workspace"]
    finally:
        process.terminate()
        await process.wait()


async def main() -> None:
    lines = ["Can you hear me? 你好?", "Just so you know, it rains. 🌧"]
    with tempfile.TemporaryDirectory() as directory:
        async with platform(directory) as settings:
            _, heard = await asyncio.gather(
                user(settings, lines), agent(settings, os.path.join(directory, "state"), turns=len(lines))
            )
            assert heard == lines, heard
            shown = await chat(settings)
            print("canvas", shown)
            said = {("agent", f"You asked: {lines[0]}"), ("agent", "Noted."), ("user", lines[0]), ("user", lines[1])}
            assert set(shown) == said, shown
    print("All of it was right.")


if __name__ == "__main__":
    asyncio.run(main())
