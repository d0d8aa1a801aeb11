"""A program of yours as a member of the team, without MCP: it comes online, answers what is written to it, and leaves.

With the settings of a workspace in the environment it serves that workspace until Ctrl-C:

    export PLATFORM_URL=... WORKSPACE_ID=... MOLECULE_WORKSPACE_TOKEN_FILE=...
    python examples/embed_in_your_agent/embed_in_your_agent.py

Without them it brings its own platform and its own user, checks what it sees, and ends with 0 when all was right.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx

from molecule_runtime import Agent, MoleculeError, Settings, logs


def think(text: str) -> str:
    """Your agent's brain: any function. It may be slow and block, the workspace stays online meanwhile."""
    time.sleep(0.2)
    return f"{len(text.split())} words, backwards: {' '.join(reversed(text.split()))}"


async def serve(env: Mapping[str, str], turns: int | None = None) -> None:
    """Answer `turns` messages, or all that come."""
    async with Agent(Settings.from_env(env)) as agent:
        async for message in agent.messages():
            print(f"agent  {message['kind']} writes: {message['text']}", flush=True)
            await agent.reply(message, think(message["text"]))
            turns = None if turns is None else turns - 1
            if turns == 0:
                break
        (workspace,) = (await agent.status())["workspaces"]
        print(f"agent  presence {workspace['presence']['state']}, inbox {workspace['inbox']}")


# From here on: a platform and a user to try it with.


async def user(settings: Mapping[str, str], lines: list[str]) -> None:
    """Write some lines on the canvas, once the agent is online, and wait until each is answered."""
    workspace = f"/workspaces/{settings['WORKSPACE_ID']}"
    async with httpx.AsyncClient(base_url=settings["PLATFORM_URL"], trust_env=False) as canvas, asyncio.timeout(30):
        while (await canvas.get(workspace)).json()["status"] != "online":  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)
        print("canvas the agent is online")
        for line in lines:
            print(f"user   {line}")
            message = {"role": "user", "messageId": str(uuid.uuid4()), "parts": [{"kind": "text", "text": line}]}
            body = {"method": "message/send", "params": {"message": message}}
            (await canvas.post(f"{workspace}/a2a", json=body)).raise_for_status()
            shown = {"role": "user"}
            while shown["role"] != "agent":
                await asyncio.sleep(0.1)
                shown = (await canvas.get(f"{workspace}/chat-history")).json()["messages"][-1]
            print(f"canvas {shown['content']}")
            assert shown["content"] == think(line), shown


@asynccontextmanager
async def platform(directory: str) -> AsyncIterator[dict[str, str]]:
    """A platform of our own with one workspace; that workspace's settings."""
    command = [sys.executable, "-m", "molecule_mcp", "platform", "--port", "0", "--json", "--workspace", "embedded"]
    process = await asyncio.create_subprocess_exec(
        *command, "--db", f"{directory}/platform.sqlite3", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield json.loads(await process.stdout.readline())["workspace"]
    finally:
        process.terminate()
        await process.wait()


async def try_it() -> None:
    lines = ["Can you hear me? 你好 👋", "one two three"]
    with tempfile.TemporaryDirectory() as directory:
        async with platform(directory) as settings, asyncio.TaskGroup() as both:
            both.create_task(serve({**settings, "CONFIGS_DIR": f"{directory}/state"}, turns=len(lines)))
            both.create_task(user(settings, lines))
    print("All of it was right.")


if __name__ == "__main__":
    logs.configure(stderr_level="WARNING", file=None)
    try:
        asyncio.run(serve(os.environ) if "PLATFORM_URL" in os.environ else try_it())
    except KeyboardInterrupt:
        print("Bye.")
    except MoleculeError as error:  # wrong settings, no place for the inbox
        sys.exit(str(error))
