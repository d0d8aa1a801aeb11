"""The user's side of a platform, for commands that play the user: the few calls a web page makes.

No token is shown: only a platform in development mode on this machine lets such a caller in.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import httpx
from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from molecule_runtime.client import SEND_TIMEOUT_S, PlatformClient, is_loopback
from molecule_runtime.credentials import Credentials
from molecule_runtime.doorbell import OPEN_TIMEOUT_S, websocket_url
from molecule_runtime.errors import CanvasRefused, Unauthorized, Unreachable
from molecule_runtime.settings import WorkspaceSettings
from molecule_runtime.wire.events import Event, EventName
from molecule_runtime.wire.uploads import UploadedFile

STATUS_CHECK_S = 0.1


class Canvas(PlatformClient):
    """The user, looking at one workspace. Raises `CanvasRefused` where a user has to say who they are."""

    def __init__(self, base_url: str, workspace_id: str = "") -> None:
        """Without an id, `create_workspace` comes first."""
        nobody = WorkspaceSettings.model_construct(id=workspace_id, platform_url=base_url)
        super().__init__(base_url, workspace_id, Credentials(nobody, None))

    async def create_workspace(self, name: str) -> tuple[str, str]:
        """A new external workspace, looked at from now on: (id, token)."""
        body = self._answers.json(await self._call("POST", "/workspaces", json={"name": name, "runtime": "external"}))
        self.workspace_id = str(body["id"])
        return self.workspace_id, str(body["connection"]["auth_token"])

    async def status(self) -> str:
        return (await self.get_workspace()).status

    async def expect_status(self, wanted: str) -> None:
        """Wait until the platform shows the status; the caller sets the time limit."""
        while await self.status() != wanted:  # noqa: ASYNC110
            await asyncio.sleep(STATUS_CHECK_S)  # asked of another process: there is no event to wait for

    async def say(self, text: str, files: Sequence[UploadedFile] = ()) -> None:
        """Post a message as a canvas does: no `jsonrpc`, no `id`, the history along (contract 4.1).

        `files` were uploaded before; each is a part of the message.
        """
        parts: list[dict[str, Any]] = [{"kind": "text", "text": text}]
        parts += [{"kind": "file", "file": file.model_dump(exclude_none=True)} for file in files]
        message = {"role": "user", "messageId": str(uuid.uuid4()), "parts": parts}
        body = {"method": "message/send", "params": {"message": message, "metadata": {"history": []}}}
        path = f"/workspaces/{self.workspace_id}/a2a"
        await self._call("POST", path, pattern="/workspaces/:id/a2a", json=body, timeout=SEND_TIMEOUT_S)

    async def chat(self) -> list[tuple[str, str]]:
        """The bubbles a reload shows: (role, text), oldest first."""
        history = await self.chat_history()
        return [(message.role.value, message.content) for message in history.messages]

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[AsyncIterator[Event]]:
        """Open /ws; the events of this workspace from then on. Their end is the end of the line.

        Raises:
            CanvasRefused, Unreachable: also while events are read.
        """
        endpoint = "GET /ws"
        try:
            async with connect(
                websocket_url(self.base_url),
                origin=self.base_url,  # type: ignore[arg-type]  # a NewType over str
                open_timeout=OPEN_TIMEOUT_S,
                close_timeout=0.1,
                max_size=16 * 1024 * 1024,
                proxy=None if is_loopback(self.base_url) else True,
            ) as socket:
                yield self._events(socket)
        except InvalidStatus as refused:
            status = refused.response.status_code
            if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
                raise self._answers.error(CanvasRefused, endpoint, status) from None
            raise self._answers.error(Unreachable, endpoint, status, f"HTTP {status} on /ws") from None
        except (OSError, WebSocketException) as error:
            raise self._answers.error(Unreachable, endpoint, detail=type(error).__name__) from None

    async def _events(self, socket: ClientConnection) -> AsyncIterator[Event]:
        async for frame in socket:
            try:
                event = Event.model_validate_json(frame)
            except ValidationError:
                continue
            if event.workspace_id == self.workspace_id:
                yield event

    async def _call(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            return await super()._call(method, path, **more)
        except Unauthorized as refused:
            raise self._answers.error(CanvasRefused, refused.endpoint, refused.status, refused.detail) from None


async def next_agent_message(events: AsyncIterator[Event]) -> str:
    """The next thing the agent says; the caller sets the time limit."""
    async for event in events:
        if event.event == EventName.AGENT_MESSAGE:
            return str(event.payload["message"])
    raise ConnectionError("the platform closed /ws")


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
