"""A listener at a workspace's WebSocket that notes when the platform heard its beats."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from molecule_runtime.wire.events import Event
from tests.support.platform import PlatformProcess


class Beats:
    """The instants, by the platform's own clock, at which it heard a workspace's beats."""

    def __init__(self, socket: ClientConnection, workspace_id: str) -> None:
        self._socket = socket
        self._workspace_id = workspace_id

    def collect(self, for_s: float) -> list[datetime]:
        """All beats heard within `for_s`."""
        heard = []
        deadline = time.monotonic() + for_s
        while (beat := self._next(deadline)) is not None:
            heard.append(beat)
        return heard

    def first_after(self, moment: datetime, *, within_s: float) -> datetime:
        """The first beat after a moment of the platform's clock; AssertionError when none came in time."""
        deadline = time.monotonic() + within_s
        while (beat := self._next(deadline)) is not None:
            if beat > moment:
                return beat
        raise AssertionError(f"no beat within {within_s} s")

    def _next(self, deadline: float) -> datetime | None:
        while (left := deadline - time.monotonic()) > 0:
            try:
                event = Event.model_validate_json(self._socket.recv(timeout=left))
            except TimeoutError:
                return None
            if event.event == "WORKSPACE_HEARTBEAT" and event.workspace_id == self._workspace_id:
                return event.timestamp
        return None


@contextmanager
def beats_of(platform: PlatformProcess, settings: dict[str, str]) -> Iterator[Beats]:
    """Listen at the workspace's WebSocket."""
    workspace_id = settings["WORKSPACE_ID"]
    bearer = f"Bearer {settings['MOLECULE_WORKSPACE_TOKEN']}"
    with connect(
        platform.url.replace("http", "ws", 1) + "/ws",
        additional_headers={"X-Workspace-ID": workspace_id, "Authorization": bearer},
        origin=Origin(platform.url),
        proxy=None,
        max_queue=None,  # a listener that is busy elsewhere must not look dead
    ) as socket:
        yield Beats(socket, workspace_id)
