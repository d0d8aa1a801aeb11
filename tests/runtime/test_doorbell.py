"""The doorbell: it rings when a poll is worth while, and its silence is no failure."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs
from websockets.asyncio.server import ServerConnection, serve

from molecule_runtime.client import PlatformClient
from molecule_runtime.clock import ManualClock, SystemClock
from molecule_runtime.credentials import Credentials
from molecule_runtime.doorbell import Doorbell, rings, websocket_url
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.wire.events import EventName
from tests.reference_platform.support import canvas_message, served
from tests.support.faulty import FaultyPlatform, said

from .support import PEER, TOKEN, WORKSPACE, golden, idle, running, settings, until


def frame(event: Any, workspace_id: Any = WORKSPACE, **more: Any) -> str:
    return json.dumps(
        {"event": event, "workspace_id": workspace_id, "timestamp": "2026-01-01T00:00:00Z", "payload": {}} | more
    )


RINGING = {
    "ACTIVITY_LOGGED",
    "DELEGATION_SENT",
    "DELEGATION_STATUS",
    "DELEGATION_COMPLETE",
    "DELEGATION_FAILED",
}


@pytest.mark.parametrize("name", [*(str(name) for name in EventName), "DELEGATION_OF_TOMORROW", "USER_MESSAGE"])
def test_news_rings_and_our_own_beats_do_not(name: str) -> None:
    """agent-side 4: ACTIVITY_LOGGED, DELEGATION_* and names we do not know, for this workspace."""
    known = name in set(EventName)
    assert rings(frame(name), WORKSPACE) is (name in RINGING or not known)
    assert rings(frame(name), PEER) is False


@pytest.mark.parametrize("recorded", golden("events")["frames"], ids=lambda one: str(one["event"]))
def test_recorded_frames_ring_as_the_table_says(recorded: dict[str, Any]) -> None:
    """Contract 8.2, tests/golden."""
    assert rings(json.dumps(recorded), WORKSPACE) is (recorded["event"] == "ACTIVITY_LOGGED")


@pytest.mark.parametrize(
    ("odd", "rung"),
    [
        (frame("ACTIVITY_LOGGED", payload=None), True),
        (frame("ACTIVITY_LOGGED", timestamp=7), True),
        (json.dumps({"event": "ACTIVITY_LOGGED", "workspace_id": WORKSPACE}), True),
        (frame("ACTIVITY_LOGGED").encode(), True),
        (frame(None), False),
        (frame(["ACTIVITY_LOGGED"]), False),
        (frame("ACTIVITY_LOGGED", None), False),
        ("", False),
        ("{", False),
        (b"\xff\xfe", False),
        ("null", False),
        ("[]", False),
        ('"ACTIVITY_LOGGED"', False),
        ("[" * 100_000, False),
    ],
)
def test_a_frame_of_any_form_is_heard_or_passed_over(odd: str | bytes, rung: bool) -> None:
    """agent-side 4: the doorbell is never the source of data, so it needs two words of a frame only."""
    assert rings(odd, WORKSPACE) is rung


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://127.0.0.1:8080", "ws://127.0.0.1:8080/ws"),
        ("https://canvas.example.com", "wss://canvas.example.com/ws"),
        ("https://host/base", "wss://host/base/ws"),
        ("http://[::1]:80", "ws://[::1]:80/ws"),
    ],
)
def test_the_socket_lies_beside_the_platform(base: str, url: str) -> None:
    """Contract 8.2: GET /ws."""
    assert websocket_url(base) == url


def client_at(url: str, workspace_id: str = WORKSPACE, token: str = TOKEN) -> PlatformClient:
    told = settings(workspace_id, token, PLATFORM_URL=url)
    return PlatformClient(told.workspaces[0].platform_url, workspace_id, Credentials(told.workspaces[0], None))


async def test_a_message_rings_within_a_second(tmp_path: Path) -> None:
    """agent-side 4, on a platform behind a real socket; connecting rings too, the agent's own words do not."""
    config = PlatformConfig(database=str(tmp_path / "platform.sqlite3"), port=0)
    async with served(config) as url, httpx.AsyncClient(base_url=url, trust_env=False) as canvas:
        body = {"name": "laptop", "external": True, "delivery_mode": "poll"}
        connection = (await canvas.post("/workspaces", json=body)).json()["connection"]
        workspace_id, token = connection["workspace_id"], connection["auth_token"]
        rung: list[bool] = []
        async with client_at(url, workspace_id, token) as client:
            doorbell = Doorbell(client, lambda: rung.append(True), clock=SystemClock())
            async with running(doorbell.run):
                await until(lambda: doorbell.is_up and rung == [True])
                await canvas.post(f"/workspaces/{workspace_id}/a2a", json=canvas_message())
                await until(lambda: len(rung) == 2, within_s=1)
                await client.notify("mine")
                await client.heartbeat(active_tasks=0, uptime_seconds=1)
                await canvas.post(f"/workspaces/{workspace_id}/a2a", json=canvas_message())
                await until(lambda: len(rung) == 3)
            assert doorbell.is_up is False


# What the reference platform cannot be made to do.


class Bell:
    """A /ws that does as it is told, and a doorbell on it."""

    def __init__(self) -> None:
        self.rung = 0
        self.headers: list[dict[str, str]] = []

    def ring(self) -> None:
        self.rung += 1

    @asynccontextmanager
    async def on(self, handle: Callable[[ServerConnection], Any], clock: ManualClock) -> AsyncIterator[Doorbell]:
        async def note(socket: ServerConnection) -> None:
            assert socket.request is not None
            self.headers.append({name.lower(): value for name, value in socket.request.headers.raw_items()})
            await handle(socket)

        quiet = logging.getLogger("websockets.test")
        async with serve(note, "127.0.0.1", 0, logger=quiet) as server:
            port = server.sockets[0].getsockname()[1]
            async with client_at(f"http://127.0.0.1:{port}") as client:
                doorbell = Doorbell(client, self.ring, clock=clock)
                async with running(doorbell.run):
                    yield doorbell


@pytest.fixture
def bell() -> Bell:
    return Bell()


async def test_it_says_who_listens(bell: Bell, clock: ManualClock) -> None:
    """Contract 8.2: X-Workspace-ID and bearer; 1.1: Origin."""

    async def stay(socket: ServerConnection) -> None:
        await socket.wait_closed()

    async with bell.on(stay, clock):
        await until(lambda: bell.rung == 1)
    (headers,) = bell.headers
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert headers["x-workspace-id"] == WORKSPACE
    assert headers["origin"].startswith("http://127.0.0.1:")


async def test_every_connect_rings_and_so_does_the_end_of_a_line(bell: Bell, clock: ManualClock) -> None:
    """agent-side 4: poll at every (re)connect; when the line ends the poller must not stay slow."""

    async def hang_up(socket: ServerConnection) -> None:
        await socket.close()

    async with bell.on(hang_up, clock) as doorbell:
        await idle(clock)
        assert (bell.rung, doorbell.is_up) == (2, False)
        clock.advance(1)
        await until(lambda: bell.rung == 4)


async def test_a_line_that_is_dropped_at_once_is_opened_ever_more_rarely(bell: Bell, clock: ManualClock) -> None:
    """agent-side 8: retry storms; a proxy that accepts and hangs up counts as a failure."""

    async def hang_up(socket: ServerConnection) -> None:
        await socket.close()

    async with bell.on(hang_up, clock):
        for connects, full in enumerate((1, 2, 4, 8), start=1):
            await idle(clock)
            assert len(bell.headers) == connects
            clock.advance(0.8 * full - 0.01)
            assert clock.sleepers == 1
            clock.advance(0.2 * full + 0.01)
            await until(lambda connects=connects: len(bell.headers) == connects + 1)  # type: ignore[misc]


async def test_a_line_that_held_for_a_minute_is_opened_again_after_a_second(bell: Bell, clock: ManualClock) -> None:
    """agent-side 4: the back-off begins anew after a good line."""
    holds = False

    async def maybe(socket: ServerConnection) -> None:
        if holds:
            clock.advance(60)
        await socket.close()

    async with bell.on(maybe, clock):
        for _ in range(3):
            await idle(clock)
            clock.advance(60)
            await until(lambda: clock.sleepers == 0)
        await idle(clock)
        holds = True
        clock.advance(60)
        before = len(bell.headers)
        await until(lambda: len(bell.headers) > before)
        await idle(clock)
        count = len(bell.headers)
        clock.advance(1)
        await until(lambda: len(bell.headers) == count + 1)


async def test_no_socket_there_means_silence(clock: ManualClock) -> None:
    """agent-side 4: no WebSocket (refused, proxy) = polling, silently."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    rung: list[bool] = []
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with capture_logs() as logs:
        async with (
            client_at(url) as client,
            running(Doorbell(client, lambda: rung.append(True), clock=clock).run) as task,
        ):
            await idle(clock)
            server.close()
            clock.advance(1)
            await until(lambda: clock.sleepers == 0)
            await idle(clock)
            assert not task.done()
    assert rung == []
    assert {entry["log_level"] for entry in logs} == {"debug"}


@pytest.mark.parametrize("status", [429, 503])
async def test_a_platform_that_names_a_time_is_not_knocked_at_before(status: int, clock: ManualClock) -> None:
    """agent-side 3: 429 and 503 obey Retry-After."""
    busy = said(status, {"error": "later"}, Retry_After="47")
    with FaultyPlatform() as platform:
        platform.play(busy)
        async with client_at(platform.url) as client, running(Doorbell(client, lambda: None, clock=clock).run):
            await idle(clock)
            clock.advance(46.9)
            assert clock.sleepers == 1
            assert platform.count("/ws") == 1
            clock.advance(0.1)
            await until(lambda: platform.count("/ws") == 2)
            await idle(clock)


async def test_a_bug_on_the_line_is_logged_and_outlived(bell: Bell, clock: ManualClock) -> None:
    """Ours: whatever goes wrong with the doorbell, the inbox goes on without it."""

    class Broken(Bell):
        def ring(self) -> None:
            super().ring()
            if self.rung == 1:
                raise ZeroDivisionError

    async def stay(socket: ServerConnection) -> None:
        await socket.wait_closed()

    broken = Broken()
    with capture_logs() as logs:
        async with broken.on(stay, clock) as doorbell:
            await idle(clock)
            clock.advance(1)
            await until(lambda: doorbell.is_up)
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["doorbell.iteration_failed"]
