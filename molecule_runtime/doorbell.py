"""The doorbell: one WebSocket to `/ws` that says "something arrived"; never the source of data.

A frame is a reason to poll, and every (re)connect is one too, because what happened while the line was down made no
sound. No WebSocket (an older platform, a proxy) means polling at the ordinary pace, silently (agent-side 4).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

import structlog
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus, WebSocketException

from molecule_runtime.client import PlatformClient, is_loopback, retry_after_s
from molecule_runtime.clock import Clock
from molecule_runtime.errors import CredentialError
from molecule_runtime.retry import DOORBELL
from molecule_runtime.wire.events import EventName

OPEN_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 0.1
"""A farewell nobody needs: the process must be gone within half a second (agent-side 2)."""
STEADY_S = 60.0
"""A line that held this long was a good one; one that is dropped sooner counts as a failure and slows us down."""
_KNOWN = frozenset(name.value for name in EventName)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Doorbell:
    """Rings `on_ring` whenever a poll is worth while. `is_up` tells the poller that it may poll rarely."""

    def __init__(self, client: PlatformClient, on_ring: Callable[[], None], *, clock: Clock) -> None:
        self._client = client
        self._on_ring = on_ring
        self._clock = clock
        self.is_up = False

    async def run(self) -> None:
        """Keep the line open until cancelled; never raises for a network failure."""
        failures = 0
        while True:
            asked_s: float | None = None
            began = self._clock.monotonic()
            try:
                await self._listen()
            except (OSError, WebSocketException, CredentialError) as error:
                log.debug("doorbell.down", error=type(error).__name__, attempt=failures)
                if isinstance(error, InvalidStatus):
                    asked_s = retry_after_s(error.response.headers)
            except Exception as bug:
                log.exception("doorbell.iteration_failed", error=type(bug).__name__)
            finally:
                was_up, self.is_up = self.is_up, False
            was_steady = was_up and self._clock.monotonic() - began >= STEADY_S
            failures = 1 if was_steady else failures + 1
            if was_up:
                self._on_ring()  # the poller slows down while the line is up: tell it that this has ended
            await self._clock.sleep(DOORBELL.delay(failures, retry_after_s=asked_s))

    async def _listen(self) -> None:
        headers = self._client.headers(as_caller=True)
        origin = headers.pop("Origin")
        async with connect(
            websocket_url(self._client.base_url),
            additional_headers=headers,
            origin=origin,  # type: ignore[arg-type]  # a NewType over str
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            max_size=16 * 1024 * 1024,
            proxy=None if is_loopback(self._client.base_url) else True,
        ) as socket:
            self.is_up = True
            log.debug("doorbell.up")
            self._on_ring()
            async for frame in socket:
                if rings(frame, self._client.workspace_id):
                    self._on_ring()


def rings(frame: str | bytes, workspace_id: str) -> bool:
    """Whether a frame means "poll now": new activity, delegation news, or an event name we do not know.

    Our own beats and other workspaces' news do not.
    """
    try:
        event = json.loads(frame)
    except (ValueError, RecursionError):
        return False
    if not isinstance(event, dict) or event.get("workspace_id") != workspace_id:
        return False
    name = event.get("event")
    if not isinstance(name, str):
        return False
    return name == EventName.ACTIVITY_LOGGED or name.startswith("DELEGATION_") or name not in _KNOWN


def websocket_url(base_url: str) -> str:
    """`https://host/base` -> `wss://host/base/ws`."""
    parts = urlsplit(base_url)
    scheme = "wss" if parts.scheme == "https" else "ws"
    return urlunsplit((scheme, parts.netloc, parts.path + "/ws", "", ""))
