"""What an agent learns outlives its session: the keeper of a lighthouse notes things down, and the next session finds
them by a word or by a piece of Chinese; the mate finds what was told to the team, and a stranger nothing.

The program brings its own platform, with a memory plugin beside it, checks what it sees, and ends with 0 when all of it
was right:

    python examples/remember_and_recall/remember_and_recall.py

Each session is an MCP client that spawns `molecule-mcp`, as a host does; a program calls the tools instead of a model.
In the middle the platform is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
from mcp import Client, StdioServerParameters

MOLECULE_MCP = [sys.executable, "-m", "molecule_mcp"]  # or just ["molecule-mcp"]

KEY = "The spare key lies under the third stone."
TIDES = "潮汐表在灯塔的抽屉里"  # the tide table is in the lighthouse's drawer
LAMP = "The lamp is serviced on Fridays. 灯每周五检修"
FOG = "Fog tonight: the horn sounds every two minutes."


class Session:
    """One session of an agent: a spawned server, and its tools."""

    def __init__(self, name: str, mcp: Client) -> None:
        self._name = name
        self._mcp = mcp

    async def remember(self, content: str, scope: str = "LOCAL") -> dict[str, Any]:
        done = await self._call("commit_memory", content=content, scope=scope)
        self._show("remembers", f"{scope} {content!r}", done["status"])
        return done

    async def recall(self, query: str = "") -> list[str]:
        """The contents of what is found; without a query, of all that this agent may read, newest first."""
        found = await self._call("recall_memory", query=query, limit=50)
        contents = [memory["content"] for memory in found["memories"]]
        self._show("recalls", repr(query), str(contents))
        return contents

    async def forget(self, memory_id: str) -> bool:
        """Whether it is gone now; False when this agent has no such memory."""
        result = await self._mcp.call_tool("forget_memory", {"memory_id": memory_id})
        said = result.content[0].text  # type: ignore[union-attr]
        self._show("forgets", memory_id, said.replace("\n", " "))
        if result.is_error and f"There is no memory {memory_id}" not in said:
            raise RuntimeError(said)
        return not result.is_error

    async def memories_wait(self) -> bool:
        """Whether something is still to be stored."""
        status = await self._call("runtime_status")
        (waiting,) = [problem for problem in status["problems"] if problem["id"] == "memory.waiting"] or [None]
        self._show("looks at", "runtime_status", waiting["summary"] if waiting else "no memory waits")
        return waiting is not None

    async def _call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The result of a tool, or the sentences that say why not."""
        result = await self._mcp.call_tool(tool, arguments)
        if result.is_error:
            raise RuntimeError(f"{tool}: {result.content[0].text}")  # type: ignore[union-attr]
        return dict(result.structured_content or {})

    def _show(self, does: str, what: str, seen: str) -> None:
        print(f"{self._name:9}{does} {what} -> {seen}", flush=True)


@asynccontextmanager
async def session(name: str, settings: dict[str, str]) -> AsyncIterator[Session]:
    """A session from its first call to the end of its server's process."""
    server = StdioServerParameters(command=MOLECULE_MCP[0], args=MOLECULE_MCP[1:], env=settings)
    async with Client(server) as mcp:
        yield Session(name, mcp)


async def first_session(keeper: dict[str, str]) -> None:
    async with session("keeper", keeper) as agent:
        for content, scope in ((KEY, "LOCAL"), (TIDES, "LOCAL"), (LAMP, "TEAM")):
            stored = await agent.remember(content, scope)
            assert stored["status"] == "stored", stored


async def next_sessions(place: Platform, keeper: dict[str, str], mate: dict[str, str], other: dict[str, str]) -> None:
    async with AsyncExitStack() as stack:
        agent = await stack.enter_async_context(session("keeper", keeper))
        peer = await stack.enter_async_context(session("mate", mate))
        stranger = await stack.enter_async_context(session("stranger", other))

        print("--- a new session finds what the one before it noted")
        assert await agent.recall("key") == [KEY]
        assert await agent.recall("抽屉") == [TIDES]  # a substring: nothing separates the words
        assert sorted(await agent.recall()) == sorted([KEY, TIDES, LAMP])

        print("--- the team's, and nobody else's")
        assert await peer.recall() == [LAMP]
        assert await peer.recall("检修") == [LAMP]
        assert await peer.recall("key") == []
        assert await stranger.recall() == []
        assert await stranger.recall("lamp") == []

        print("--- noted while the platform is away")
        await place.kill()
        queued = await agent.remember(FOG, "TEAM")
        assert queued["status"] == "queued", queued
        again = await agent.remember(FOG, "TEAM")  # an agent that is not sure says it twice: it is the same memory
        assert (again["id"], again["status"]) == (queued["id"], "queued"), again
        assert await agent.memories_wait()
        await place.start()
        while await agent.memories_wait():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.5)
        assert await peer.recall("fog") == [FOG]  # once
        assert await agent.recall("fog") == [FOG]

        print("--- forgotten for good, by whoever wrote it")
        assert not await peer.forget(queued["id"])
        assert await agent.forget(queued["id"])
        assert not await agent.forget(queued["id"])
        assert await agent.recall("fog") == await peer.recall("fog") == []
        assert sorted(await agent.recall()) == sorted([KEY, TIDES, LAMP])


# From here on: a platform, its workspaces, and whoever kills it.


class Platform:
    """A platform of our own with a memory plugin, on one database and one port whatever happens to it."""

    def __init__(self, directory: str) -> None:
        self._database = f"{directory}/platform.sqlite3"
        self._port = 0
        self._process: asyncio.subprocess.Process | None = None
        self.url = ""

    async def start(self) -> None:
        command = [*MOLECULE_MCP, "platform", "--memory", "--json", "--port", str(self._port), "--db", self._database]
        self._process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert self._process.stdout is not None
        self.url = json.loads(await self._process.stdout.readline())["url"]
        self._port = httpx.URL(self.url).port or 0
        print("         the platform is there", flush=True)

    async def kill(self) -> None:
        """SIGKILL, as a power cut would end it. Its memory plugin ends by itself."""
        await self._end(signal.SIGKILL)
        print("         the platform is killed", flush=True)

    async def stop(self) -> None:
        await self._end(signal.SIGTERM)

    async def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            await process.wait()


async def create(canvas: httpx.AsyncClient, name: str, state: str, parent_id: str = "") -> dict[str, str]:
    """A workspace for an agent; the agent's settings. A team is a workspace and those directly below it."""
    above = {"parent_id": parent_id} if parent_id else {}
    created = await canvas.post("/workspaces", json={"name": name, "external": True, "delivery_mode": "poll", **above})
    created.raise_for_status()
    connection = created.json()["connection"]
    return {
        "PLATFORM_URL": str(canvas.base_url),
        "WORKSPACE_ID": connection["workspace_id"],
        "MOLECULE_WORKSPACE_TOKEN": connection["auth_token"],
        "CONFIGS_DIR": os.path.join(state, name),
    }


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        place = Platform(directory)
        try:
            async with asyncio.timeout(50):
                await place.start()
                async with httpx.AsyncClient(base_url=place.url, trust_env=False) as canvas:
                    keeper = await create(canvas, "keeper", directory)
                    mate = await create(canvas, "mate", directory, parent_id=keeper["WORKSPACE_ID"])
                    stranger = await create(canvas, "stranger", directory)
                await first_session(keeper)
                await next_sessions(place, keeper, mate, stranger)
        finally:
            await place.stop()
    print("All of it was right.")


if __name__ == "__main__":
    asyncio.run(main())
