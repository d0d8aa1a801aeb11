"""`/ws`: events as they happen, one text frame each (contract 8.2, 0.5).

A canvas hears everything. A workspace hears its own events, and of those it may talk to only that their status changed:
names and times, no payloads.
"""

from __future__ import annotations

import anyio
from starlette.responses import JSONResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.bus import Subscription
from molecule_runtime.reference_platform.middleware import deny_socket
from molecule_runtime.reference_platform.parts import parts_of
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.services.peers import Peers
from molecule_runtime.wire.events import STATUS_EVENTS, Event, EventName

RELATION_KEPT_S = 10.0
"""Seconds a socket remembers whether it may hear of another workspace: beats come far more often than moves."""
POLICY_VIOLATION = 1008


def routes() -> list[WebSocketRoute]:
    return [WebSocketRoute("/ws", _events)]


async def _events(socket: WebSocket) -> None:
    parts = parts_of(socket)
    try:
        workspace_id = await parts.auth.listener(socket)
    except Refusal as refusal:
        await deny_socket(socket, JSONResponse(refusal.body(), status_code=refusal.status))
        return
    view = Canvas() if workspace_id is None else OneWorkspace(workspace_id, parts.peers, parts.clock)
    # Listening starts before the handshake ends: whoever is connected misses nothing from then on.
    with parts.bus.subscribe() as subscription:
        await socket.accept()
        parts.metrics.socket_opened()
        try:
            await _serve(socket, subscription, view)
        finally:
            parts.metrics.socket_closed()


class Canvas:
    """What the user's page sees: everything."""

    async def of(self, event: Event) -> Event | None:
        return event

    def ends_with(self, _event: Event) -> bool:
        return False


class OneWorkspace:
    """What a workspace sees: see the top of the module. Its view ends with its removal."""

    def __init__(self, workspace_id: str, peers: Peers, clock: Clock) -> None:
        self._workspace_id = workspace_id
        self._peers = peers
        self._clock = clock
        self._related: dict[str, tuple[float, bool]] = {}

    async def of(self, event: Event) -> Event | None:
        """The event as this workspace may see it, or None."""
        if event.workspace_id == self._workspace_id:
            return event
        if event.event in STATUS_EVENTS and await self._is_related(event.workspace_id):
            return event.model_copy(update={"payload": {}})
        return None

    def ends_with(self, event: Event) -> bool:
        return event.event == EventName.WORKSPACE_REMOVED and event.workspace_id == self._workspace_id

    async def _is_related(self, other: str) -> bool:
        now = self._clock.monotonic()
        known = self._related.get(other)
        if known is None or now - known[0] > RELATION_KEPT_S:
            known = (now, await self._peers.can_communicate(self._workspace_id, other))
            self._related[other] = known
        return known[1]


async def _serve(socket: WebSocket, subscription: Subscription, view: Canvas | OneWorkspace) -> None:
    """Send until the client leaves or its view ends; what the client says is read and ignored."""
    async with anyio.create_task_group() as tasks:

        async def listen_for_the_end() -> None:
            while (await socket.receive())["type"] != "websocket.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(listen_for_the_end)
        try:
            async for event in subscription:
                visible = await view.of(event)
                if visible is not None:
                    await socket.send_text(visible.model_dump_json())
                if view.ends_with(event):
                    await socket.close(POLICY_VIOLATION)
                    break
        except WebSocketDisconnect:
            pass
        tasks.cancel_scope.cancel()
