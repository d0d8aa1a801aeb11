"""Agents that are called: a well-behaved one, and a bare socket that answers with any bytes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route


@dataclass
class PushAgent:
    """An agent behind a real HTTP server; `called` holds (path, headers, body) of each call, JSON bodies parsed."""

    port: int
    called: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    answer: Callable[[Any], Response] = lambda body: reply_with(body, "done")

    def url(self, path: str = "/a2a", host: str = "localhost") -> str:
        return f"http://{host}:{self.port}{path}"


def reply_with(body: Any, text: str) -> Response:
    """The JSON-RPC answer of an agent."""
    return JSONResponse({"jsonrpc": "2.0", "id": body["id"], "result": {"parts": [{"kind": "text", "text": text}]}})


@asynccontextmanager
async def push_agent() -> AsyncIterator[PushAgent]:
    """An agent on a free port of 127.0.0.1."""
    listener = socket.create_server(("127.0.0.1", 0))
    agent = PushAgent(port=listener.getsockname()[1])

    async def take(request: Request) -> Response:
        is_json = request.headers["content-type"] == "application/json"
        body = await request.json() if is_json else await request.body()
        agent.called.append((request.url.path, dict(request.headers), body))
        if request.url.path == "/moved":
            return RedirectResponse(agent.url("/elsewhere"), status_code=307)
        return agent.answer(body)

    app = Starlette(routes=[Route("/{path:path}", take, methods=["POST", "GET"])])
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, log_level="error", ws="none"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        with anyio.fail_after(10):
            while not server.started:
                await anyio.lowlevel.checkpoint()
        yield agent
    finally:
        server.should_exit = True
        await serving
        listener.close()


@dataclass
class Socket:
    """A bare server; `heard` holds the first bytes of each connection."""

    port: int
    heard: list[bytes] = field(default_factory=list)

    def url(self, scheme: str = "http", host: str = "localhost") -> str:
        return f"{scheme}://{host}:{self.port}/a2a"


@asynccontextmanager
async def socket_that_says(*pieces: bytes, hang: bool = False) -> AsyncIterator[Socket]:
    """A server that reads the start of a request, says these bytes and closes, or keeps still with `hang`."""
    finished = asyncio.Event()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.heard.append(await reader.read(65_536))
        for piece in pieces:
            writer.write(piece)
            try:
                await writer.drain()
            except ConnectionError:  # the platform has read enough
                break
        if hang:
            await finished.wait()
        writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    served = Socket(port=server.sockets[0].getsockname()[1])
    try:
        yield served
    finally:
        finished.set()
        server.close()


def closed_port() -> int:
    """A port of 127.0.0.1 where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
