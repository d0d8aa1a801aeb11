"""A canvas for commands that play the user: the few calls a web page makes, on a development platform."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import httpx
from websockets.asyncio.client import ClientConnection, connect

from molecule_runtime.doorbell import websocket_url
from molecule_runtime.wire.events import Event, EventName

STATUS_CHECK_S = 0.1


class Canvas:
    """The user's side of a platform in development mode on this machine: no proxy is asked."""

    def __init__(self, url: str, http: httpx.AsyncClient, socket: ClientConnection) -> None:
        self._url = url
        self._http = http
        self._socket = socket

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[Self]:
        """Open the canvas's connections; raises httpx and websockets errors as they are."""
        async with (
            httpx.AsyncClient(base_url=url, headers={"Origin": url}, trust_env=False) as http,
            connect(websocket_url(url), close_timeout=0.1, proxy=None) as socket,
        ):
            yield cls(url, http, socket)

    async def create_workspace(self, name: str) -> tuple[str, str]:
        """A new external workspace: (id, token)."""
        body = await self._json("POST", "/workspaces", {"name": name, "runtime": "external"})
        return body["id"], body["connection"]["auth_token"]

    async def status(self, workspace_id: str) -> str:
        return str((await self._json("GET", f"/workspaces/{workspace_id}"))["status"])

    async def expect_status(self, workspace_id: str, wanted: str) -> None:
        """Wait until the platform shows the status; the caller sets the time limit."""
        while await self.status(workspace_id) != wanted:  # noqa: ASYNC110
            await asyncio.sleep(STATUS_CHECK_S)  # asked of another process: there is no event to wait for

    async def say(self, workspace_id: str, text: str) -> None:
        """Post a message as a canvas does: no `jsonrpc`, no `id`, the history along (contract 4.1)."""
        message = {"role": "user", "messageId": str(uuid.uuid4()), "parts": [{"kind": "text", "text": text}]}
        body = {"method": "message/send", "params": {"message": message, "metadata": {"history": []}}}
        await self._json("POST", f"/workspaces/{workspace_id}/a2a", body)

    async def next_agent_message(self, workspace_id: str) -> str:
        """The next AGENT_MESSAGE of this workspace on /ws; the caller sets the time limit."""
        async for frame in self._socket:
            event = Event.model_validate_json(frame)
            if event.event == EventName.AGENT_MESSAGE and event.workspace_id == workspace_id:
                return str(event.payload["message"])
        raise ConnectionError("the platform closed /ws")

    async def chat(self, workspace_id: str) -> list[tuple[str, str]]:
        """The bubbles a reload shows: (role, text), oldest first."""
        history = await self._json("GET", f"/workspaces/{workspace_id}/chat-history")
        return [(message["role"], message["content"]) for message in history["messages"]]

    async def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        response = await self._http.request(method, path, json=body)
        response.raise_for_status()
        return response.json()


async def read_json_line(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """The JSON object a child prints as its first line.

    Raises:
        ChildProcessError: it ended, or printed something else.
    """
    assert process.stdout is not None
    line = await process.stdout.readline()
    try:
        return dict(json.loads(line))
    except ValueError:
        raise ChildProcessError("the platform did not start; run `molecule-mcp platform` to see why") from None
