"""Work that outlives whoever handed it out: the user asks the front desk, which hands the question to the harbour and
is killed; the harbour answers meanwhile, and the front desk tells the user when it is back.

The program brings its own platform and its own user, checks what it sees, and ends with 0 when all of it was right:

    python examples/two_peers/two_peers.py

The front desk's first life is a process of its own, so that it can be killed. The harbour may be on another machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from molecule_runtime import Agent, DelegationRecord, Settings, logs

QUESTION = "What is the tide in Bergen? 🌊"
TIDE = "High water at 14:05, 1.3 m."
ASKED = "I have asked the harbour."


async def front_desk(env: Mapping[str, str]) -> None:
    """Hand every question on, and bring every answer back. It may be killed anywhere, and goes on from there."""
    async with Agent(Settings.from_env(env)) as agent:
        async for message in agent.messages():
            print(f"front    {message['kind']}: {message['text']}", flush=True)
            if message["kind"] == "canvas_user":
                job = await handed_on(agent, message)
                # A result that was told to the call that waited for it does not come as a message.
                await agent.reply(message, told(job) if job.told_at is not None else ASKED)
                print(f"front    has handed it on, it is {job.status.value}", flush=True)
            elif message["kind"] == "delegation_result":
                job = await agent.task(message["delegation_id"])
                await agent.send_to_user(told(job))
                await agent.done(message)  # nobody waits for an answer to an answer


async def handed_on(agent: Agent, question: Mapping[str, Any]) -> DelegationRecord:
    """The job that a question has become."""
    if question["attempt"] > 1:  # an earlier life was killed while it had the question; had it handed it on?
        for job in await agent.tasks():
            if job.task == question["text"]:
                return job
    return await agent.delegate("Harbour", question["text"], timeout_s=1)


def told(job: DelegationRecord) -> str:
    return f"{job.task} The harbour says: {job.text}" if job.text is not None else f"The harbour failed: {job.error}"


async def harbour(env: Mapping[str, str], knows: asyncio.Event) -> None:
    """Answer whoever asks, once it knows. A job comes as a message, and the reply to it is its result."""
    async with Agent(Settings.from_env(env)) as agent:
        async for message in agent.messages():
            print(f"harbour  {message['peer_name']} asks: {message['text']}", flush=True)
            await knows.wait()
            await agent.reply(message, TIDE)


# From here on: a platform, a user, and whoever kills the front desk.


async def write(canvas: httpx.AsyncClient, workspace_id: str, text: str) -> None:
    """Post a message as the user's canvas does."""
    message = {"role": "user", "messageId": str(uuid.uuid4()), "parts": [{"kind": "text", "text": text}]}
    body = {"method": "message/send", "params": {"message": message}}
    (await canvas.post(f"/workspaces/{workspace_id}/a2a", json=body)).raise_for_status()


async def until_shown(canvas: httpx.AsyncClient, workspace_id: str, count: int) -> list[tuple[str, str]]:
    """What a reload of the canvas shows once it is so many lines: (who, text), oldest first."""
    while True:
        shown = (await canvas.get(f"/workspaces/{workspace_id}/chat-history")).json()["messages"]
        if len(shown) >= count:
            return [(bubble["role"], bubble["content"]) for bubble in shown]
        await asyncio.sleep(0.1)


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


async def until_done(canvas: httpx.AsyncClient, workspace_id: str) -> list[str]:
    """The states of a workspace's jobs once they have all ended."""
    while True:
        rows = (await canvas.get(f"/workspaces/{workspace_id}/delegations")).json()
        jobs = {row["delegation_id"]: row["status"] for row in rows}
        if jobs and {*jobs.values()} <= {"completed", "failed"}:
            return list(jobs.values())
        await asyncio.sleep(0.1)


async def one_life(env: Mapping[str, str]) -> None:
    """The front desk as a process, killed when it has handed the question on."""
    program = (sys.executable, __file__, "front desk")
    process = await asyncio.create_subprocess_exec(*program, env={**os.environ, **env}, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            print(line.decode(), end="")
            if b"has handed it on" in line:
                break
    finally:
        process.kill()  # SIGKILL, as a power cut would end it
        await process.wait()
    print("         the front desk is killed")


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with platform(directory) as canvas, asyncio.timeout(40):
            front = await create(canvas, "Front desk", "helps guests", f"{directory}/front")
            quay = await create(canvas, "Harbour", "knows the tides", f"{directory}/harbour")
            knows = asyncio.Event()
            agents = [asyncio.create_task(harbour(quay, knows))]
            await write(canvas, front["WORKSPACE_ID"], QUESTION)

            await one_life(front)
            shown = await until_shown(canvas, front["WORKSPACE_ID"], 2)
            assert shown == [("user", QUESTION), ("agent", ASKED)], shown

            knows.set()
            assert await until_done(canvas, front["WORKSPACE_ID"]) == ["completed"]  # one job, and it is done
            print("         the harbour has answered; the front desk comes back")

            agents.append(asyncio.create_task(front_desk(front)))
            shown = await until_shown(canvas, front["WORKSPACE_ID"], 3)
            print("canvas  ", shown[-1])
            assert shown[2:] == [("agent", f"{QUESTION} The harbour says: {TIDE}")], shown
            for agent in agents:
                agent.cancel()
            await asyncio.wait(agents)
    print("All of it was right.")


if __name__ == "__main__":
    logs.configure(stderr_level="WARNING", file=None)
    asyncio.run(front_desk(os.environ) if "front desk" in sys.argv else main())
