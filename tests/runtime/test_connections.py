"""Connections: no call is lost to a server that closes idle ones, and no message is ever sent twice."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Awaitable, Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from molecule_runtime.client import PlatformClient
from molecule_runtime.connections import EXPIRY_CAP_S, UNKNOWN_PEER_EXPIRY_S, announced_expiry_s
from molecule_runtime.credentials import Credentials
from molecule_runtime.errors import Unreachable
from molecule_runtime.reference_platform.config import PlatformConfig
from tests.reference_platform.support import BASE_URL, served
from tests.support.faulty import Answer, Asked, Fault, FaultyPlatform, Play
from tests.support.virtual_network import Answering, VirtualNetwork

from .support import PEER, TOKEN, WORKSPACE, exchange, until, workspace_settings

ROW = exchange("get_workspace", "registered")["response"]
ANSWERS = {
    "heartbeat": {"status": "ok"},
    "notify": {"status": "sent"},
    "activity": [],
    "a2a": {"status": "queued", "delivery_mode": "poll"},
}


def answering(*headers: str) -> Answering:
    """A platform's good answers, each with these headers."""

    def answer(request: bytes) -> bytes:
        path = request.split(b" ", 2)[1].split(b"?")[0].decode()
        body = json.dumps(ANSWERS[path.rpartition("/")[2]]).encode()
        head = "\r\n".join(["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers])
        return f"{head}\r\n\r\n".encode() + body

    return answer


def client_at(url: str, token: str | None = TOKEN) -> PlatformClient:
    told = workspace_settings(token=token, PLATFORM_URL=url)
    return PlatformClient(told.platform_url, WORKSPACE, Credentials(told, None))


async def beat(client: PlatformClient) -> Any:
    return await client.heartbeat(active_tasks=0, uptime_seconds=1)


async def poll(client: PlatformClient) -> Any:
    return await client.activity(since_secs=600)


async def notify(client: PlatformClient) -> Any:
    return await client.notify("hello")


async def send(client: PlatformClient) -> Any:
    return await client.send_message(PEER, "hello")


REPEATABLE = (beat, poll)
MESSAGES = (notify, send)
ROUND_TRIPS = (0.05, 0.2)

Calls = tuple[Callable[[PlatformClient], Awaitable[Any]], ...]


async def calls_made(network: VirtualNetwork, calls: Calls, count: int, *, apart_s: float) -> int:
    """Make `count` calls in turn, each so long after the end of the one before; the number that failed."""
    failed = 0
    async with client_at(BASE_URL) as client:
        for number in range(count):
            network.now += apart_s
            try:
                await calls[number % len(calls)](client)
            except Unreachable:
                failed += 1
    return failed


# the race, on a clock that the test moves


async def test_a_client_that_believes_five_seconds_loses_calls_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared figures: 5 s against 5 s. This is what the network of these tests does to a client without care."""
    network = VirtualNetwork(answering(), idle_limit_s=5, rtt_s=ROUND_TRIPS)
    network.carry(monkeypatch)
    failed = 0
    async with httpx.AsyncClient(base_url=BASE_URL, limits=httpx.Limits(keepalive_expiry=5)) as careless:
        for _ in range(160):
            network.now += 4.95
            try:
                await careless.post("/registry/heartbeat")
            except httpx.TransportError:
                failed += 1
    assert failed > 15


@pytest.mark.parametrize(
    ("header", "count"),
    [
        pytest.param((), 1000, id="says nothing"),
        pytest.param(("Keep-Alive: timeout=5",), 100, id="says 5 s"),
        pytest.param(("Connection: keep-alive", "Keep-Alive: max=9"), 100, id="says something else"),
    ],
)
async def test_a_thousand_calls_a_moment_before_the_server_hangs_up_and_none_fails(
    monkeypatch: pytest.MonkeyPatch, header: tuple[str, ...], count: int
) -> None:
    """The shared figures: 4.95 s apart, idle connections closed after 5 s; messages, too, which nobody may repeat."""
    network = VirtualNetwork(answering(*header), idle_limit_s=5, rtt_s=ROUND_TRIPS)
    network.carry(monkeypatch)
    assert await calls_made(network, (notify, send, beat, poll), count, apart_s=4.95) == 0
    assert network.lost == 0


async def test_beats_at_a_platform_that_announces_its_patience_share_one_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shared figures: 5 s would mean a new connection, and a TLS handshake, for every beat. Ours announces 75 s."""
    network = VirtualNetwork(answering("Keep-Alive: timeout=75"), idle_limit_s=75, rtt_s=ROUND_TRIPS)
    network.carry(monkeypatch)
    assert await calls_made(network, (beat,), 100, apart_s=20) == 0
    assert network.connections == 2  # the first answer is what announces it


async def test_patience_that_is_announced_is_not_used_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: every interval up to the announced time and beyond, and no message meets a connection that closes."""
    network = VirtualNetwork(answering("Keep-Alive: timeout=75"), idle_limit_s=75, rtt_s=ROUND_TRIPS)
    network.carry(monkeypatch)
    for apart_s in (60, 70, 74.9, 75, 75.1):
        assert await calls_made(network, MESSAGES, 6, apart_s=apart_s) == 0
    assert network.lost == 0


async def test_what_a_proxy_hides_costs_a_connection_but_no_call_that_may_be_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ours: the platform announces 75 s, a proxy in between hangs up after 5: asked once more, and believed less."""
    network = VirtualNetwork(answering("Keep-Alive: timeout=75"), idle_limit_s=5, rtt_s=ROUND_TRIPS)
    network.carry(monkeypatch)
    assert await calls_made(network, REPEATABLE, 100, apart_s=4.95) == 0
    assert 0 < network.lost <= 5  # 67.5, 33.8, 16.9, 8.4, 4.2 s: no more than that is it taken in


async def test_what_our_platform_announces_is_believed(tmp_path: Path) -> None:
    """Contract between the two: a platform on a real socket says 75 s, and three beats fit into what is left of it."""
    config = PlatformConfig(database=str(tmp_path / "platform.sqlite3"), port=0)
    async with served(config) as url, client_at(url, token=None) as client:
        await client.register({"name": "laptop", "skills": []})
        assert client._loops.expiry_s == 67.5 > 3 * 20
        assert client._tools.expiry_s == UNKNOWN_PEER_EXPIRY_S


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("timeout=75", 67.5),
        ("timeout=75, max=1000", 67.5),
        ("max=1000,timeout=20", 18),
        ('Timeout = "10"', 8),
        ("timeout=5", 3),
        ("timeout=1", 0),
        ("timeout=0", 0),
        ("timeout=86400", EXPIRY_CAP_S),
        ("timeout=-5", None),
        ("timeout=soon", None),
        ("max=1000", None),
        ("notimeout=5", None),
        ("", None),
        (None, None),
    ],
)
def test_what_a_keep_alive_header_is_worth(header: str | None, seconds: float | None) -> None:
    """Ours: less than announced by a round trip and the slack of a timer."""
    assert announced_expiry_s(header) == seconds
    assert UNKNOWN_PEER_EXPIRY_S == 3


# the race, on a real socket: the server hangs up with the request on its way, every time


@pytest.mark.parametrize("fault", [Fault.RESET_UNREAD, Fault.RESET_READ])
@pytest.mark.parametrize("call", REPEATABLE)
async def test_a_call_that_met_a_dying_connection_is_made_once_more(
    fault: Fault, call: Callable[[PlatformClient], Awaitable[Any]]
) -> None:
    """The shared figures: retry once on a connection that died idle, for idempotent calls."""
    with FaultyPlatform(row=ROW) as platform:
        async with client_at(platform.url) as client:
            await call(client)
            for deaths in (1, 2, 3):
                platform.play_next(fault)
                await call(client)
                assert platform.connections == 1 + deaths


@pytest.mark.parametrize("fault", [Fault.RESET_UNREAD, Fault.RESET_READ])
@pytest.mark.parametrize("call", MESSAGES)
async def test_a_message_that_may_have_been_read_is_never_sent_twice(
    fault: Fault, call: Callable[[PlatformClient], Awaitable[Any]]
) -> None:
    """Ours: a reset does not say whether the request was read; the error says that it may have arrived."""
    with FaultyPlatform(row=ROW) as platform:
        async with client_at(platform.url) as client:
            await call(client)
            platform.play_next(fault)
            with pytest.raises(Unreachable) as raised:
                await call(client)
            assert raised.value.may_have_arrived
            assert (len(platform.asked), platform.connections) == (1 + (fault is Fault.RESET_READ), 1)
            await call(client)
            assert platform.connections == 2


async def test_a_call_is_made_twice_at_most_and_only_for_a_connection_that_had_served() -> None:
    """Ours: a new connection that dies is the platform's answer, not a race; nor is a second one."""
    with FaultyPlatform(row=ROW) as platform:
        async with client_at(platform.url) as client:
            platform.play_next(Fault.RESET_READ)
            with pytest.raises(Unreachable) as raised:
                await beat(client)
            assert (platform.connections, raised.value.may_have_arrived) == (1, False)
            await beat(client)
            platform.play_next(Fault.RESET_READ, Fault.RESET_READ)
            with pytest.raises(Unreachable):
                await beat(client)
            assert platform.connections == 3


async def test_an_answer_that_has_begun_is_not_asked_for_again() -> None:
    """Ours: what the platform has answered it has done."""
    with FaultyPlatform(row=ROW) as platform:
        async with client_at(platform.url) as client:
            await beat(client)
            platform.play_next(Answer(200, b'{"status": "ok"}', sent_bytes=5))
            with pytest.raises(Unreachable):
                await beat(client)
        assert (len(platform.asked), platform.connections) == (2, 1)


async def test_a_call_under_way_is_left_alone_when_the_patience_is_learned() -> None:
    """Ours: a pool whose expiry is no longer right is put aside, and closed when its last call has ended."""
    goes_on = threading.Event()

    def slow_feed(asked: Asked) -> Play | None:
        return None if not asked.path.endswith("/activity") or goes_on.wait(10) else Fault.RESET_READ

    with FaultyPlatform(row=ROW, keep_alive="timeout=75") as platform:
        platform.play(slow_feed)
        async with client_at(platform.url) as client, anyio.create_task_group() as tasks:
            read: list[Any] = []

            async def read_feed() -> None:
                read.append(await client.activity(since_secs=600))

            tasks.start_soon(read_feed)
            await until(lambda: platform.count("/activity") == 1)
            await beat(client)
            await beat(client)
            goes_on.set()
            await until(lambda: read == [[]])
            await beat(client)
    assert [asked.connection for asked in platform.asked] == [1, 2, 3, 3]


class Searches:
    """Notes every module that is looked for; finds none."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        self.names.append(name)
        return None


async def test_a_call_looks_for_no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import that fails is tried anew each time: three in a request were more than a third of its CPU."""
    with FaultyPlatform() as platform:
        async with client_at(platform.url) as client:
            await beat(client)
            searches = Searches()
            monkeypatch.setattr(sys, "meta_path", [searches, *sys.meta_path])
            await beat(client)
            monkeypatch.undo()
    assert searches.names == []
