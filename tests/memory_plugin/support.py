"""What the plugin's tests share: a plugin in process, and its process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
from starlette.applications import Starlette

from molecule_runtime.clock import Clock
from molecule_runtime.memory_plugin.app import create_app
from molecule_runtime.memory_plugin.config import PluginConfig
from molecule_runtime.memory_plugin.parts import Parts
from tests.support.platform import clean_env

HERE = "workspace:11111111-1111-4111-8111-111111111111"
TEAM = "team:22222222-2222-4222-8222-222222222222"
NOBODY = "workspace:99999999-9999-4999-8999-999999999999"


@dataclass(frozen=True)
class Plugin:
    """A plugin in process: talk to it through `http`, look behind it through `parts`."""

    app: Starlette
    http: httpx.AsyncClient

    @property
    def parts(self) -> Parts:
        parts: Parts = self.app.state.parts
        return parts

    async def post(self, content: str, namespace: str = HERE, **fields: Any) -> httpx.Response:
        body = {"content": content, "kind": "fact", "source": "agent"} | fields
        return await self.http.post(f"/v1/namespaces/{namespace}/memories", json=body)

    async def write(self, content: str, namespace: str = HERE, **fields: Any) -> str:
        """Store a memory; its id."""
        reply = await self.post(content, namespace, **fields)
        assert reply.status_code == 201, reply.text
        assert reply.json().keys() == {"id", "namespace"}
        return str(reply.json()["id"])

    async def search(self, query: str | None = None, *namespaces: str, **fields: Any) -> list[dict[str, Any]]:
        body = {"namespaces": namespaces or [HERE], "query": query} | fields
        reply = await self.http.post("/v1/search", json=body)
        assert reply.status_code == 200, reply.text
        memories: list[dict[str, Any]] = reply.json()["memories"]
        return memories

    async def found(self, query: str | None = None, *namespaces: str, **fields: Any) -> list[str]:
        """The contents that a search finds, in its order."""
        return [memory["content"] for memory in await self.search(query, *namespaces, **fields)]

    async def forget(self, memory_id: str, namespace: str = HERE) -> int:
        """Ask for it; the status."""
        body = {"requested_by_namespace": namespace}
        return (await self.http.request("DELETE", f"/v1/memories/{memory_id}", json=body)).status_code


@asynccontextmanager
async def running(config: PluginConfig, clock: Clock | None = None) -> AsyncIterator[Plugin]:
    """A plugin in process, its lifespan entered."""
    app = create_app(config, clock=clock)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9100") as http:
            yield Plugin(app, http)


def command(*options: str) -> list[str]:
    """How the plugin is started."""
    return [sys.executable, "-m", "molecule_mcp", "memory-plugin", *options]


class PluginProcess:
    """`molecule-mcp memory-plugin` on a free port, its stdin a pipe of ours; `env` are settings of it."""

    def __init__(self, *options: str, **env: str) -> None:
        self.process = subprocess.Popen(
            command("--json", "--port", "0", *options),
            env=clean_env(**env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.url: str = json.loads(self.process.stdout.readline())["url"]

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()
