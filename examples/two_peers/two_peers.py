"""Two agents talk: the user asks one of them, that one asks its peer, gets the answer, and tells the user.

The program brings its own platform and its own user, checks what it sees, and ends with 0 when all of it was right:

    python examples/two_peers/two_peers.py

Both agents are in one program here; they may as well be two programs on two machines.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx

from molecule_runtime import Agent, Settings, logs

QUESTION = "What is the tide in Bergen? 🌊"
TIDE = "High water at 14:05, 1.3 m."


async def harbour(env: Mapping[str, str]) -> None:
    """Knows the tides, and answers whoever asks."""
    async with Agent(Settings.from_env(env)) as agent:
        async for message in agent.messages():
            print(f"harbour  {message['kind']} {message['peer_name']!r} asks: {message['text']}")
            await agent.reply(message, TIDE)


async def concierge(env: Mapping[str, str]) -> None:
    """Knows nothing, but knows whom to ask; answers one question of the user."""
    async with Agent(Settings.from_env(env)) as agent, asyncio.timeout(30):
        inbox = agent.messages()
        question = await anext(inbox)
        print(f"front    {question['kind']} asks: {question['text']}")
        (peer,) = await agent.peers("tides")
        await agent.send_to_peer(peer.id, question["text"])
        answer = await anext(inbox)
        print(f"front    {answer['kind']} {answer['peer_name']!r} answers: {answer['text']}")
        assert (answer["kind"], answer["peer_id"]) == ("peer_agent", peer.id), answer
        await agent.done(answer)  # a reply to an answer would go on for ever
        await agent.reply(question, f"{peer.name} says: {answer['text']}")


# From here on: a platform and a user.


async def write(canvas: httpx.AsyncClient, workspace_id: str, text: str) -> None:
    """Post a message as the user's canvas does."""
    message = {"role": "user", "messageId": str(uuid.uuid4()), "parts": [{"kind": "text", "text": text}]}
    body = {"method": "message/send", "params": {"message": message}}
    (await canvas.post(f"/workspaces/{workspace_id}/a2a", json=body)).raise_for_status()


async def chat(canvas: httpx.AsyncClient, workspace_id: str) -> list[tuple[str, str]]:
    """What a reload of the canvas shows: (who, text), oldest first."""
    shown = (await canvas.get(f"/workspaces/{workspace_id}/chat-history")).json()["messages"]
    return [(bubble["role"], bubble["content"]) for bubble in shown]


async def create(canvas: httpx.AsyncClient, name: str, role: str, state: str) -> dict[str, str]:
    """A workspace for an agent; the agent's settings. Workspaces side by side are peers."""
    body = {"name": name, "role": role, "external": True, "delivery_mode": "poll"}
    created = await canvas.post("/workspaces", json=body)
    created.raise_for_status()
    connection = created.json()["connection"]
    return {
        "PLATFORM_URL": str(canvas.base_url),
        "WORKSPACE_ID": connection["workspace_id"],
        "MOLECULE_WORKSPACE_TOKEN": connection["auth_token"],
        "CONFIGS_DIR": state,
    }


@asynccontextmanager
async def platform(directory: str) -> AsyncIterator[httpx.AsyncClient]:
    """A platform of our own, and the canvas's connection to it."""
    command = [sys.executable, "-m", "molecule_mcp", "platform", "--port", "0", "--json"]
    process = await asyncio.create_subprocess_exec(
        *command, "--db", f"{directory}/platform.sqlite3", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        url = json.loads(await process.stdout.readline())["url"]
        async with httpx.AsyncClient(base_url=url, trust_env=False) as canvas:
            yield canvas
    finally:
        process.terminate()
        await process.wait()


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with platform(directory) as canvas:
            front = await create(canvas, "Front desk", "helps guests", f"{directory}/state")
            quay = await create(canvas, "Harbour", "knows the tides", f"{directory}/state")
            async with asyncio.TaskGroup() as tasks:
                answering = tasks.create_task(harbour(quay))
                await write(canvas, front["WORKSPACE_ID"], QUESTION)
                await concierge(front)
                answering.cancel()
            shown = await chat(canvas, front["WORKSPACE_ID"])
            print("canvas  ", shown)
            assert shown == [("user", QUESTION), ("agent", f"Harbour says: {TIDE}")], shown
    print("All of it was right.")


if __name__ == "__main__":
    logs.configure(stderr_level="WARNING", file=None)
    asyncio.run(main())
