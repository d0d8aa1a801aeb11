"""One agent and five workers: a poem of five lines, a line for each, all at the same time, and one answer for the user.

The program brings its own platform and its own user, checks what it sees, and ends with 0 when all of it was right:

    python examples/fan_out/fan_out.py

Three workers are quick enough to be waited for, two are slow: what they find comes as messages.
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

POEM = [
    "The old pond, silent",
    "a frog jumps into it",
    "and the sound of water",
    "古池や蛙飛びこむ水の音",
    "ends the poem 🐸",
]
LONGEST = "The longest line is 3: and the sound of water (22 characters)."
WAIT_S = 1.0
WORK_S = {"quick": 0.0, "slow": 2.0}


async def leader(env: Mapping[str, str]) -> None:
    """Answer one message of the user: hand out its lines side by side, gather what comes, say it all at once."""
    async with Agent(Settings.from_env(env)) as agent, asyncio.timeout(30):
        question = await anext(agent.messages())
        lines = question["text"].splitlines()
        workers = await agent.peers("counts characters")
        jobs = await asyncio.gather(
            *(agent.delegate(worker.id, line, timeout_s=WAIT_S) for worker, line in zip(workers, lines, strict=True))
        )
        counts = {job.delegation_id: job.text for job in jobs if job.status.is_final}
        print(f"leader  {len(counts)} were quick")
        while len(counts) < len(jobs):  # the other results come as messages
            message = await anext(agent.messages())
            if message["kind"] == "delegation_result":
                print(f"leader  {message['peer_name']} is done: {message['outcome']}")
                counts[message["delegation_id"]] = message["text"] if message["outcome"] == "completed" else None
                await agent.done(message)
        found = [int(counts[job.delegation_id] or 0) for job in jobs]  # in the order of the lines; 0: it failed
        best = found.index(max(found))
        await agent.reply(question, f"The longest line is {best + 1}: {lines[best]} ({found[best]} characters).")


async def worker(env: Mapping[str, str], seconds: float) -> None:
    """Do one job after the other. A job is a message like any other, and the reply to it is its result."""
    async with Agent(Settings.from_env(env)) as agent:
        async for job in agent.messages():
            await asyncio.sleep(seconds)  # hard work; the platform hears meanwhile that it goes on
            await agent.reply(job, str(len(job["text"])))


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


async def jobs_of(canvas: httpx.AsyncClient, workspace_id: str) -> dict[str, str]:
    """The state of each job that a workspace handed out, as the platform has it."""
    rows = (await canvas.get(f"/workspaces/{workspace_id}/delegations")).json()
    return {row["delegation_id"]: row["status"] for row in rows}


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
            lead = await create(canvas, "Leader", "reads poems", f"{directory}/leader")
            workers = []
            for number, pace in enumerate(["quick", "slow", "quick", "slow", "quick"], 1):
                name = f"Worker {number}"
                env = await create(canvas, name, f"counts characters, {pace}", f"{directory}/{name}")
                workers.append(asyncio.create_task(worker(env, WORK_S[pace])))
            await write(canvas, lead["WORKSPACE_ID"], "\n".join(POEM))
            await leader(lead)
            for each in workers:
                each.cancel()
            await asyncio.wait(workers)
            shown = await chat(canvas, lead["WORKSPACE_ID"])
            print("canvas ", shown[-1])
            assert shown == [("user", "\n".join(POEM)), ("agent", LONGEST)], shown
            jobs = await jobs_of(canvas, lead["WORKSPACE_ID"])
            assert [*jobs.values()] == ["completed"] * len(POEM), jobs
    print("All of it was right.")


if __name__ == "__main__":
    logs.configure(stderr_level="WARNING", file=None)
    asyncio.run(main())
