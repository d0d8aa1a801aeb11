"""Every answer of platform and network: the state it leads to, the line in the log, the next attempt, the words.

One table, one test (agent-side 3, 4, 5). The faults are played on real sockets; time is a clock that the test moves.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from structlog.testing import capture_logs

from molecule_mcp.tools import ALL_TOOLS
from molecule_mcp.tools._base import ToolContext, run_tool
from molecule_runtime import client as client_module
from molecule_runtime.cards import card_from_settings
from molecule_runtime.client import TOOL_CONNECTIONS, PlatformClient
from molecule_runtime.clock import ManualClock
from molecule_runtime.credentials import Credentials
from molecule_runtime.errors import (
    TOKENS_TAB,
    BadReply,
    CursorExpired,
    MoleculeError,
    NotFound,
    NotThePlatform,
    Rejected,
    TooLarge,
    Unauthorized,
    Unavailable,
    Unreachable,
    WorkspaceRemoved,
)
from molecule_runtime.inbox.classify import Message
from molecule_runtime.inbox.journal import Journal
from molecule_runtime.inbox.poller import Poller
from molecule_runtime.presence import Presence, PresenceState
from molecule_runtime.runtime import Runtime, RuntimeThread
from molecule_runtime.settings import Settings, WorkspaceSettings
from molecule_runtime.state import StateDir
from tests.support.faulty import Answer, Asked, Authority, Fault, FaultyPlatform, Play, Script, said

from .support import TOKEN, WORKSPACE, exchange, pass_time, row, running, settings, until, workspace_settings

ROW = exchange("get_workspace", "registered")["response"]
REMOVED_ROW = exchange("get_removed_workspace", "removed")["response"]

Waits = tuple[tuple[float, float], ...]
"""Bounds in seconds of the waits after the first, second ... failure in a row."""
SOON: Waits = ((0.8, 1), (1.6, 2), (3.2, 4))
"""1 s doubling, each up to a fifth shorter (agent-side 2, 4)."""
SLOW: Waits = ((4, 5), (8, 10), (16, 20))
"""A refused token: slow retries, the token re-read (agent-side 2)."""
TO_30: Waits = (*SOON, (6.4, 8), (12.8, 16), (24, 30), (24, 30))
"""The feed's back-off goes on to 30 s (agent-side 4)."""
IN_5_MIN: Waits = ((300, 300), (300, 300))
IN_47: Waits = ((47, 47), (47, 47))
IN_7: Waits = ((7, 7), (7, 7))

ONLINE, DEGRADED, UNREACHABLE = PresenceState.ONLINE, PresenceState.DEGRADED, PresenceState.UNREACHABLE
UNAUTHORIZED, REMOVED = PresenceState.UNAUTHORIZED, PresenceState.REMOVED
WRONG_ADDRESS = PresenceState.WRONG_ADDRESS

RUNS = "Check that it runs and that PLATFORM_URL is right, then call again."
NAME = "Check the host name in PLATFORM_URL and this machine's network, then call again."
TLS = "Check scheme and port of PLATFORM_URL; a certificate authority of your own is named by SSL_CERT_FILE."
CURE = f"Check that WORKSPACE_ID and token belong together, or {TOKENS_TAB}."
ADDRESS = "Check PLATFORM_URL: scheme, host and port; a proxy in between must keep the Origin header."
BETWEEN = "Check PLATFORM_URL and what stands between; then try again."
CHANGE, CHECK_ID = "Change what the message names and call again.", "Check the id you passed."
COME_BACK = f"To come back, {TOKENS_TAB}."
LATER, IN_47_S, IN_7_S = "Try again in a moment.", "Try again in 47 s.", "Try again in 7 s."
MAY_HAVE_ARRIVED = "It may have arrived all the same: look with chat_history before you send it again."

OPENINGS: dict[type[MoleculeError], str] = {
    Unreachable: "The platform at {url} cannot be reached ",
    Unauthorized: "The platform at {url} refuses this workspace's token ",
    Rejected: "The platform at {url} refused the call ",
    TooLarge: "The platform at {url} ",
    NotThePlatform: "{url} answers, but not as a Molecule platform ",
    BadReply: "The platform at {url} gave an answer that cannot be read ",
    WorkspaceRemoved: "This workspace was removed on the platform at {url}",
    NotFound: "The platform at {url} says: ",
    Unavailable: "The platform at {url} ",
}


@dataclass(frozen=True)
class Row:
    """Where a fault leads: the state of presence, the error in the log, when the next attempts come, what a tool says.

    `beats` are the waits between attempts of presence, `feed` those of the inbox. `says` (a `*` for what does not
    matter) and `then` are what the agent reads. `sent`: a message of the agent may have arrived, and then
    `send_message_to_user` says that instead of "call again".
    """

    state: PresenceState
    error: type[MoleculeError]
    beats: Waits
    feed: Waits
    says: str
    then: str
    sent: bool = False
    feed_error: type[MoleculeError] | None = None
    """Where inbox and tools meet another error than presence: Unauthorized where presence asked for the row, too."""


TABLE = {
    "refused": Row(UNREACHABLE, Unreachable, SOON, TO_30, "(connection refused)", RUNS),
    "DNS failure": Row(UNREACHABLE, Unreachable, SOON, TO_30, "(its host name is not known here)", NAME),
    "reset, unread": Row(UNREACHABLE, Unreachable, SOON, TO_30, "(connection reset)", RUNS, sent=True),
    "reset, read": Row(UNREACHABLE, Unreachable, SOON, TO_30, "(connection reset)", RUNS, sent=True),
    "hang": Row(UNREACHABLE, Unreachable, SOON, SOON, "(no answer within 0.3 s)", RUNS, sent=True),
    "cut body": Row(UNREACHABLE, Unreachable, SOON, TO_30, "(peer closed connection without*)", RUNS, sent=True),
    "torn JSON": Row(DEGRADED, BadReply, SOON, TO_30, "(it is not JSON)", BETWEEN),
    "400": Row(DEGRADED, Rejected, SOON, TO_30, "(HTTP 400): no", CHANGE),
    "401": Row(UNAUTHORIZED, Unauthorized, SLOW, TO_30, "(HTTP 401)", CURE),
    "401, removed": Row(REMOVED, WorkspaceRemoved, IN_5_MIN, TO_30, "(HTTP 401)", CURE, feed_error=Unauthorized),
    "403": Row(UNAUTHORIZED, Unauthorized, SLOW, TO_30, "(HTTP 403)", CURE),
    "404 JSON": Row(DEGRADED, NotFound, SOON, TO_30, "no", CHECK_ID),
    "404 empty": Row(WRONG_ADDRESS, NotThePlatform, SOON, TO_30, "(HTTP 404 on *)", ADDRESS),
    "404 HTML": Row(WRONG_ADDRESS, NotThePlatform, SOON, TO_30, "(HTTP 404 on *)", ADDRESS),
    "409": Row(DEGRADED, Rejected, SOON, TO_30, "(HTTP 409): no", CHANGE),
    "410": Row(REMOVED, WorkspaceRemoved, IN_5_MIN, TO_30, "", COME_BACK, feed_error=CursorExpired),
    "413": Row(DEGRADED, TooLarge, SOON, TO_30, "takes no call of this size (HTTP 413): no", "Send less at once."),
    "429": Row(DEGRADED, Unavailable, SOON, TO_30, "wants fewer calls (HTTP 429)", LATER),
    "429, Retry-After": Row(DEGRADED, Unavailable, IN_47, IN_47, "wants fewer calls (HTTP 429)", IN_47_S),
    "429, HTTP date": Row(DEGRADED, Unavailable, IN_47, IN_47, "wants fewer calls (HTTP 429)", IN_47_S),
    "500": Row(UNREACHABLE, Unavailable, SOON, TO_30, "is not available now (HTTP 500)", LATER),
    "502": Row(UNREACHABLE, Unavailable, SOON, TO_30, "is not available now (HTTP 502)", LATER),
    "503, Retry-After": Row(UNREACHABLE, Unavailable, IN_7, IN_7, "is not available now (HTTP 503)", IN_7_S),
    "TLS, self-signed": Row(UNREACHABLE, Unreachable, SOON, TO_30, "(its certificate is not trusted: *)", TLS),
    "no TLS there": Row(UNREACHABLE, Unreachable, SOON, TO_30, "(no TLS there: wrong version number)", TLS),
    "TLS not expected": Row(UNREACHABLE, Unreachable, SOON, TO_30, "(*)", RUNS, sent=True),
}


NO = {"error": "no"}


def html(status: int) -> Answer:
    return Answer(status, b"<html><h1>hello</h1></html>", (("Content-Type", "text/html"),))


def removed(asked: Asked) -> Play:
    """What a removed workspace's agent hears: its token is refused, its row is gone (contract 1.5, 3.4)."""
    own_row = asked.method == "GET" and asked.path == f"/workspaces/{WORKSPACE}"
    return said(410, REMOVED_ROW) if own_row else said(401, {"error": "invalid workspace auth token"})


@dataclass(frozen=True)
class Scene:
    """How a fault is played. `tls` is the server's certificate during it: trusted, self-signed or none."""

    script: Script = None
    scheme: str = "http"
    host: str = "127.0.0.1"
    tls: str | None = None


SCENES = {
    "refused": Scene(Fault.REFUSE),
    "DNS failure": Scene(host="canvas.invalid"),
    "reset, unread": Scene(Fault.RESET_UNREAD),
    "reset, read": Scene(Fault.RESET_READ),
    "hang": Scene(Fault.HANG),
    "cut body": Scene(Answer(200, b'[{"status": "ok", "and": "it goes on here"}]', sent_bytes=9)),
    "torn JSON": Scene(Answer(200, b'{"status": "ok", "platfo')),
    "401, removed": Scene(removed),
    "404 empty": Scene(Answer(404)),
    "404 HTML": Scene(html(404)),
    "429, Retry-After": Scene(said(429, NO, Retry_After="47")),
    # The platform's clock is years behind ours.
    "429, HTTP date": Scene(
        said(429, NO, Date="Wed, 21 Oct 2015 07:28:00 GMT", Retry_After="Wed, 21 Oct 2015 07:28:47 GMT")
    ),
    "502": Scene(html(502)),
    "503, Retry-After": Scene(said(503, NO, Retry_After="7")),
    "TLS, self-signed": Scene(scheme="https", tls="self-signed"),
    "no TLS there": Scene(scheme="https"),
    "TLS not expected": Scene(tls="trusted"),
    **{str(status): Scene(said(status, NO)) for status in (400, 401, 403, 409, 410, 413, 429, 500)},
    "404 JSON": Scene(said(404, NO)),
}


class Place:
    """The platform of one scene: well or at fault, whatever it takes to make it so."""

    def __init__(self, scene: Scene, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
        self._scene = scene
        self._patch = patch
        self._authority = Authority(tmp_path) if scene.scheme == "https" or scene.tls else None
        self.platform = FaultyPlatform(row=ROW)
        self.url = f"{scene.scheme}://{scene.host}:{self.platform.port}"
        self._name_is_known = True
        if self._authority is not None:
            patch.setenv("SSL_CERT_FILE", str(self._authority.file))
        if scene.host != "127.0.0.1":
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
                patch.delenv(name, raising=False)
            self._resolve = socket.getaddrinfo
            patch.setattr(socket, "getaddrinfo", self._look_up)

    def well(self) -> None:
        self._patch.setattr(client_module, "CALL_TIMEOUT_S", 10)
        self._name_is_known = True
        self.platform.tls = self._context("trusted" if self._scene.scheme == "https" else None)
        self.platform.heal()

    def at_fault(self) -> None:
        if self._scene.script is Fault.HANG:
            self._patch.setattr(client_module, "CALL_TIMEOUT_S", 0.3)
        self._name_is_known = False
        self.platform.tls = self._context(self._scene.tls)
        self.platform.play(self._scene.script)

    def _context(self, tls: str | None) -> Any:
        if tls is None or self._authority is None:
            return None
        return self._authority.context(is_trusted=tls == "trusted")

    def _look_up(self, host: Any, *given: Any, **named: Any) -> Any:
        """The name of the scene while it is known; the system's resolver answers for it otherwise."""
        known = self._name_is_known and host in (self._scene.host, self._scene.host.encode())
        return self._resolve("127.0.0.1" if known else host, *given, **named)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    place = Place(SCENES[request.getfixturevalue("fault")], tmp_path, monkeypatch)
    with place.platform:
        place.well()
        yield place


# The ssl module loses the socket it is making when the other end is gone by then; nobody else could close it.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", TABLE)
async def test_every_fault_leads_where_the_table_says(fault: str, place: Place, tmp_path: Path) -> None:
    """agent-side 3, 4, 5: state, log line, next attempt and back again; what the inbox does; what the agent reads."""
    known = settings(PLATFORM_URL=place.url)
    (told,) = known.workspaces
    await presence_meets(TABLE[fault], place, told)
    await inbox_meets(TABLE[fault], place, told, tmp_path / "inbox.sqlite3")
    await tools_meet(TABLE[fault], place, known, tmp_path / "state")


# presence


@asynccontextmanager
async def presence_at(told: WorkspaceSettings, clock: ManualClock) -> AsyncIterator[tuple[Presence, PlatformClient]]:
    credentials = Credentials(told, None)
    async with PlatformClient(told.platform_url, WORKSPACE, credentials) as client:
        card = card_from_settings("laptop")
        presence = Presence(client, clock=clock, credentials=credentials, agent_card=lambda: card, load=lambda: 0)
        async with running(presence.run):
            await pass_time(clock, 1)
            assert presence.snapshot().state is ONLINE
            yield presence, client


async def presence_meets(row: Row, place: Place, told: WorkspaceSettings) -> None:
    clock = ManualClock()
    with capture_logs() as logs:
        async with presence_at(told, clock) as (presence, _):
            place.at_fault()
            await pass_time(clock, 20)
            assert presence.snapshot().state is row.state
            assert presence.snapshot().consecutive_failures == 1
            await attempts_come(row.beats, clock, lambda: presence.snapshot().consecutive_failures)
            assert presence.snapshot().state is row.state

            place.well()
            beats = place.platform.count("/heartbeat")
            await pass_time(clock, longest(row.beats))
            assert presence.snapshot().state is ONLINE
            assert place.platform.count("/heartbeat") == beats + 1
            await the_grid_goes_on(row, clock, place.platform)
    assert [(entry["state_from"], entry["state_to"], entry["log_level"]) for entry in changes(logs)] == [
        ("starting", "online", "info"),
        ("online", row.state.value, "warning"),
        (row.state.value, "online", "info"),
        ("online", "stopped", "info"),
    ]
    line = changes(logs)[1]
    assert line["error"] == row.error.__name__
    assert line["detail"]
    assert line["endpoint"] in {"POST /registry/heartbeat", "GET /workspaces/:id"}
    assert (line["status"] is None) == (row.error is Unreachable)
    assert TOKEN not in json.dumps(logs, default=repr)


async def attempts_come(waits: Waits, clock: ManualClock, count: Callable[[], int]) -> None:
    """One more after each wait: not before its lower bound, and at its upper one."""
    for least, most in waits:
        before = count()
        await pass_time(clock, least - 0.01)
        assert count() == before
        await pass_time(clock, most - least + 0.02)
        assert count() == before + 1


def longest(waits: Waits) -> float:
    """What is enough for the attempt after those of `waits`."""
    doubled = waits[-1][1] * (2 if waits[0] != waits[-1] else 1)
    return doubled + 0.01


async def the_grid_goes_on(row: Row, clock: ManualClock, platform: FaultyPlatform) -> None:
    """Beats come every 20 s from the first one on, whatever happened between; a new register begins a new grid."""
    began = clock.monotonic() if row.state in (UNAUTHORIZED, REMOVED) else 1.0
    beats = platform.count("/heartbeat")
    for _ in range(2):
        due = 20 - (clock.monotonic() - began) % 20
        await pass_time(clock, due - 0.01)
        assert platform.count("/heartbeat") == beats
        await pass_time(clock, 0.02)
        beats += 1
        assert platform.count("/heartbeat") == beats


def changes(logs: list[Any]) -> list[Any]:
    return [entry for entry in logs if entry["event"] == "presence.state_changed"]


# the inbox


async def inbox_meets(at: Row, place: Place, told: WorkspaceSettings, file: Path) -> None:
    clock = ManualClock()
    pages: list[list[str]] = []

    async def arrived(messages: list[Message]) -> None:
        pages.append([one.text for one in messages])

    place.well()
    place.platform.feed.rows = [row(1)]
    journal = await anyio.to_thread.run_sync(Journal.open, file)
    async with PlatformClient(told.platform_url, WORKSPACE, Credentials(told, None)) as client:
        poller = Poller(client, journal, clock=clock, on_messages=arrived)
        with capture_logs() as logs:
            async with running(poller.run):
                await until(lambda: pages == [["message 1"]])
                cursor = journal.position().cursor
                place.at_fault()
                place.platform.feed.rows.append(row(2))
                await pass_time(clock, 1)
                await attempts_come(at.feed, clock, lambda: poller.health().consecutive_failures)
                expected = at.feed_error or at.error
                assert type(poller.health().last_error) is expected
                assert journal.position().cursor == (None if expected is CursorExpired else cursor)
                assert len(pages) == 1

                place.well()
                await pass_time(clock, longest(at.feed))
                assert poller.health().last_error is None
                assert [text for page in pages for text in page] == ["message 1", "message 2"]
                assert journal.position().cursor == row(2)["id"]
    journal.close()
    failed = [(entry["log_level"], entry["error"]) for entry in logs if entry["event"] == "poller.failed"]
    assert failed == [("warning", expected.__name__)]
    assert TOKEN not in json.dumps(logs, default=repr)


# the tools


async def tools_meet(row: Row, place: Place, known: Settings, state: Path) -> None:
    clock = ManualClock()
    bridge = RuntimeThread(lambda: Runtime(known, state_dir=StateDir.open(state, home=state), clock=clock))
    place.at_fault()
    bridge.start()
    try:
        await heard_of(row.state, bridge, clock)
        for tool in ("list_peers", "send_message_to_user"):
            then = MAY_HAVE_ARRIVED if row.sent and tool == "send_message_to_user" else row.then
            opening = OPENINGS[Unauthorized if row.feed_error is Unauthorized else row.error].format(url=place.url)
            expected = f"{opening}{row.says}. {then} Presence: {row.state}."
            text = await text_of(tool, known, bridge)
            assert re.fullmatch(re.escape(expected).replace(r"\*", ".*"), text), text
    finally:
        place.well()
        assert await anyio.to_thread.run_sync(bridge.stop, 5.0)


async def heard_of(state: PresenceState, bridge: RuntimeThread, clock: ManualClock) -> None:
    """Let the runtime's clock go until its presence is in this state."""

    async def tick(runtime: Runtime) -> str:
        clock.advance(0.25)
        return str((await runtime.snapshot())["workspaces"][0]["presence"]["state"])

    async def has_come() -> bool:
        return await bridge.call(tick) == state

    await until(has_come, within_s=10)


async def text_of(name: str, known: Settings, bridge: RuntimeThread) -> str:
    async def no_progress(done: float, total: float | None, text: str) -> None: ...

    tool = next(tool for tool in ALL_TOOLS if tool.name == name)
    given = {"message": "hello"} if name == "send_message_to_user" else {}
    with anyio.fail_after(10):
        result = await run_tool(tool, ToolContext(known, bridge, no_progress), given)
    assert result.error_text is not None
    assert TOKEN not in result.error_text
    return result.error_text


# side by side: what a tool meets is no concern of a beat, and the other way round


@asynccontextmanager
async def presence_on(platform: FaultyPlatform, clock: ManualClock) -> AsyncIterator[tuple[Presence, PlatformClient]]:
    async with presence_at(workspace_settings(PLATFORM_URL=platform.url), clock) as (presence, client):
        yield presence, client


async def test_no_number_of_slow_tool_calls_stands_before_a_beat() -> None:
    """agent-side 3: beats are never starved by tool traffic; nor is the inbox."""

    def slow_sends(asked: Asked) -> Play | None:
        return Fault.HANG if asked.path.endswith(("/a2a", "/notify", "/peers")) else None

    async def call(client: PlatformClient, number: int) -> None:
        with contextlib.suppress(Unreachable):
            await (client.notify, client.peers)[number % 2]("slow")

    clock = ManualClock()
    with FaultyPlatform(row=ROW) as platform:
        platform.play(slow_sends)
        async with presence_on(platform, clock) as (presence, client), anyio.create_task_group() as tools:
            for number in range(TOOL_CONNECTIONS + 8):
                tools.start_soon(call, client, number)
            await until(lambda: platform.count("/notify") + platform.count("/peers") == TOOL_CONNECTIONS)
            for _ in range(3):
                beats = platform.count("/heartbeat")
                with anyio.fail_after(5):
                    await pass_time(clock, 20)
                    assert await client.activity(since_secs=600) == []
                assert platform.count("/heartbeat") == beats + 1
            assert presence.snapshot().state is ONLINE
            assert platform.count("/notify") + platform.count("/peers") == TOOL_CONNECTIONS
            tools.cancel_scope.cancel()


async def test_a_tool_that_is_told_to_wait_does_not_stop_the_beats_nor_they_the_tools() -> None:
    """agent-side 3: 429 and Retry-After are about the call that met them."""
    wait = said(429, NO, Retry_After="600")
    limited: list[str] = ["/notify"]
    clock = ManualClock()
    with FaultyPlatform(row=ROW) as platform:
        platform.play(lambda asked: wait if asked.path.endswith(tuple(limited)) else None)
        async with presence_on(platform, clock) as (presence, client):
            for beats in (2, 3):
                with pytest.raises(Unavailable):
                    await client.notify("hello")
                await pass_time(clock, 20)
                assert platform.count("/heartbeat") == beats
            limited[:] = ["/heartbeat"]
            await pass_time(clock, 20)
            assert presence.snapshot().state is DEGRADED
            assert (await client.notify("hello")).status == "sent"
            await pass_time(clock, 599)
            assert platform.count("/heartbeat") == 4
            limited.clear()
            await pass_time(clock, 1)
            assert (platform.count("/heartbeat"), presence.snapshot().state) == (5, ONLINE)
