"""Channel push: a message that arrives is also shown in the session of a host that can show it (agent-side 6).

A push is a knock, not a delivery: the message stays in the inbox until it is popped. It goes out only from the process
that reads the feed, and only to a client that finished an initialize. Nothing tells whether the host showed it, so
hosts that do not know the notification lose nothing. Claude Code's schema wants every value of `meta` to be a string
and every key a plain word (clients.md 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import anyio
import mcp_types
import structlog
from mcp.server.session import ServerSession

from molecule_runtime.runtime import RuntimeEnded, RuntimeThread

CAPABILITY = "claude/channel"
PAUSE_AFTER_FAILURE_S = 5.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class ChannelParams(mcp_types.NotificationParams):
    """`content` is the message's text, `meta` what the host shows as attributes beside it."""

    content: str
    meta: dict[str, str]


class ChannelNotification(mcp_types.Notification[ChannelParams, Literal["notifications/claude/channel"]]):
    """The notification that Claude Code shows to the model as a `<channel>` block."""

    method: Literal["notifications/claude/channel"] = "notifications/claude/channel"
    params: ChannelParams


class Channel:
    """Pushes to one session, the newest that finished an initialize."""

    def __init__(self, bridge: RuntimeThread) -> None:
        self._bridge = bridge
        self._session: ServerSession | None = None
        self._is_open = anyio.Event()

    def open(self, session: ServerSession) -> None:
        """`notifications/initialized` has come."""
        self._session = session
        self._is_open.set()

    async def run(self) -> None:
        """Push what arrives until cancelled, or until the runtime is gone."""
        await self._is_open.wait()
        while True:
            try:
                await self._push_next()
            except RuntimeEnded:
                return
            except Exception as bug:
                log.exception("channel.push_failed", error=type(bug).__name__)
                await anyio.sleep(PAUSE_AFTER_FAILURE_S)

    async def _push_next(self) -> None:
        for message in await self._bridge.call(lambda runtime: runtime.next_to_push()):
            assert self._session is not None
            # A full pipe drops notifications first; whatever is dropped stays in the inbox all the same.
            await self._session.send_notification(notification(message))  # type: ignore[arg-type]  # the SDK's union has no custom ones
            log.info("channel.pushed", activity_id=message["activity_id"])


def notification(message: Mapping[str, Any]) -> ChannelNotification:
    """A message, as the tools show it, as the notification of agent-side 6."""
    meta = {
        "source": "molecule",
        "kind": message["kind"],
        "workspace_id": message["workspace_id"],
        "peer_id": message["peer_id"] or "",
        "peer_name": message["peer_name"] or "",
        "peer_role": message["peer_role"] or "",
        "activity_id": message["activity_id"],
        "ts": message["created_at"],
        "attachments": str(len(message["attachments"])),
    }
    if message.get("text_path"):
        meta["text_path"] = message["text_path"]
    return ChannelNotification(params=ChannelParams(content=message["text"] or _of_files(message), meta=meta))


def _of_files(message: Mapping[str, Any]) -> str:
    """What stands for a text that is not there: a host would show nothing at all."""
    count = len(message["attachments"])
    return f"(no text, {count} file{'' if count == 1 else 's'})"
