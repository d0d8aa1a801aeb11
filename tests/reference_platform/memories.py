"""What the tests of memories share: a memory plugin on a socket, one that fails, and calls of the bridge."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio

from molecule_runtime.memory_plugin.app import serve
from molecule_runtime.memory_plugin.config import PluginConfig
from molecule_runtime.reference_platform.config import PlatformConfig

from .support import Database, Member, Platform, PostgresDatabase, SqliteFile


@contextmanager
def beside(database: Database) -> Iterator[Database]:
    """An empty database of the same kind, for a plugin."""
    if isinstance(database, PostgresDatabase):
        name = database.cluster.create()
        yield PostgresDatabase(database.cluster, name)
        database.cluster.drop(name)
    else:
        yield SqliteFile(Path(f"{database.url}.memory"))


@asynccontextmanager
async def a_plugin(database: Database) -> AsyncIterator[str]:
    """Our memory plugin behind a real socket; its URL. Its own sweep never comes."""
    database_url = PlatformConfig(database=database.url).database_url
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    config = PluginConfig(database_url=database_url, port=0, sweep_interval_s=10.0**9)
    serving = asyncio.create_task(serve(config, on_ready=ready.set_result))
    try:
        with anyio.fail_after(10):
            await asyncio.wait((ready, serving), return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                await serving
        yield ready.result()
    finally:
        serving.cancel()
        await asyncio.wait((serving,))


class SickPlugin:
    """A plugin that answers as it is told, on a real socket; `asked` are the requests that came, as "METHOD path".

    `answers` is what is sent for requests in turn, the last one for all others: a status with a body, "hang" for
    nothing, "crash" for half an answer and the end of the connection.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any] | str] = [(200, {})]
        self.asked: list[str] = []
        self.url = ""
        self._connections: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[SickPlugin]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for connection in self._connections:
                connection.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lengths = [line for line in head.lower().splitlines() if line.startswith("content-length:")]
                await reader.readexactly(int(lengths[0].split(":")[1]) if lengths else 0)
                self.asked.append(head.split(" HTTP/")[0])
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if answer == "hang":
                    await asyncio.get_running_loop().create_future()
                if answer == "crash":
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
                    writer.close()
                    return
                status, body = answer
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                writer.write(f"HTTP/1.1 {status} Said\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)


async def rpc(platform: Platform, member: Member, method: str, params: Any = None) -> dict[str, Any]:
    """The answer of the bridge to one request."""
    sent = {"jsonrpc": "2.0", "id": 7, "method": method} | ({} if params is None else {"params": params})
    reply = await platform.http.post(f"/workspaces/{member.id}/mcp", json=sent, headers=member.headers)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    assert (answer["jsonrpc"], answer["id"]) == ("2.0", 7)
    return answer


async def use(platform: Platform, member: Member, tool: str, **arguments: Any) -> str:
    """The text that a tool of the bridge gives."""
    answer = await rpc(platform, member, "tools/call", {"name": tool, "arguments": arguments})
    assert "result" in answer, answer
    (block,) = answer["result"]["content"]
    text: str = block["text"]
    return text


async def refused(platform: Platform, member: Member, tool: str, **arguments: Any) -> dict[str, Any]:
    """The error of a tool of the bridge."""
    answer = await rpc(platform, member, "tools/call", {"name": tool, "arguments": arguments})
    error: dict[str, Any] = answer["error"]
    return error


async def remember(platform: Platform, member: Member, content: str, scope: str = "LOCAL", **fields: Any) -> str:
    """Commit by v1; the id."""
    body = {"content": content, "scope": scope} | fields
    reply = await platform.http.post(f"/workspaces/{member.id}/memories", json=body, headers=member.headers)
    assert reply.status_code == 201, reply.text
    memory_id: str = reply.json()["id"]
    return memory_id


async def recalled(platform: Platform, member: Member, **params: Any) -> list[str]:
    """The contents that v1 gives."""
    reply = await platform.http.get(f"/workspaces/{member.id}/memories", params=params, headers=member.headers)
    assert reply.status_code == 200, reply.text
    return [row["content"] for row in reply.json()]


async def seen(platform: Platform, member: Member, **params: Any) -> list[str]:
    """The contents that v2 gives."""
    reply = await platform.http.get(f"/workspaces/{member.id}/v2/memories", params=params, headers=member.headers)
    assert reply.status_code == 200, reply.text
    return [memory["content"] for memory in reply.json()["memories"]]


async def forget(platform: Platform, member: Member, memory_id: str, *, v2: bool = False) -> int:
    """The status of a deletion."""
    path = f"/workspaces/{member.id}/{'v2/' if v2 else ''}memories/{memory_id}"
    return (await platform.http.delete(path, headers=member.headers)).status_code
