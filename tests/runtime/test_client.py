"""The client: what it sends is what the golden files say, what it reads they hold, and every refusal has its type."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
import respx

from molecule_runtime.answers import RETRY_AFTER_CAP_S
from molecule_runtime.client import PlatformClient
from molecule_runtime.credentials import Credentials
from molecule_runtime.errors import (
    BadReply,
    CredentialError,
    CursorExpired,
    NotFound,
    NotThePlatform,
    PlatformError,
    Rejected,
    TooLarge,
    Unauthorized,
    Unavailable,
    Unreachable,
    WorkspaceRemoved,
)
from molecule_runtime.wire.a2a import Answered, Malformed, Queued, Refused
from molecule_runtime.wire.activity import ActivityRow
from molecule_runtime.wire.chat import NotifyReply
from molecule_runtime.wire.registry import DeliveryMode, HeartbeatReply, Peer, RegisterReply
from molecule_runtime.wire.workspaces import Workspace
from tests.reference_platform.support import BASE_URL

from .support import PEER, TOKEN, WORKSPACE, exchange, golden, lone_client, python, settings, state_in

Call = Callable[[PlatformClient], Awaitable[Any]]
SECRET = "s" * 43
CARD = {"name": "laptop", "skills": [{"name": "deploy"}], "description": "keeps the lights on"}
CREATED = datetime(2026, 5, 5, 10, 0, 0, 123456, tzinfo=UTC)


async def register(client: PlatformClient) -> Any:
    return await client.register(CARD)


async def heartbeat(client: PlatformClient) -> Any:
    return await client.heartbeat(active_tasks=2, uptime_seconds=61)


async def get_workspace(client: PlatformClient) -> Any:
    return await client.get_workspace()


async def activity(client: PlatformClient) -> Any:
    return await client.activity(since_id=PEER)


async def notify(client: PlatformClient) -> Any:
    return await client.notify("got it 世界 🌍")


async def send_message(client: PlatformClient) -> Any:
    return await client.send_message(PEER, "hello")


async def peers(client: PlatformClient) -> Any:
    return await client.peers()


CALLS: dict[str, tuple[str, str, Call]] = {
    "register": ("POST", "/registry/register", register),
    "heartbeat": ("POST", "/registry/heartbeat", heartbeat),
    "get_workspace": ("GET", f"/workspaces/{WORKSPACE}", get_workspace),
    "activity": ("GET", f"/workspaces/{WORKSPACE}/activity", activity),
    "notify": ("POST", f"/workspaces/{WORKSPACE}/notify", notify),
    "a2a": ("POST", f"/workspaces/{PEER}/a2a", send_message),
    "peers": ("GET", f"/registry/{WORKSPACE}/peers", peers),
}


def answered(which: str, response: httpx.Response) -> respx.Route:
    method, path, _ = CALLS[which]
    return respx.route(method=method, url__startswith=BASE_URL + path).mock(return_value=response)


async def made(which: str, response: httpx.Response, **given: Any) -> tuple[Any, httpx.Request]:
    """One call and its answer: (what the client made of it, what was sent)."""
    route = answered(which, response)
    async with lone_client(**given) as client:
        result = await CALLS[which][2](client)
    return result, route.calls.last.request


# requests


@respx.mock
@pytest.mark.parametrize(
    ("which", "file", "recorded"),
    [
        ("register", "register", "poll agent with a live token"),
        ("heartbeat", "heartbeat", "what our agent sends"),
        ("notify", "notify", "text"),
        ("a2a", "a2a_peer", "what our agent sends to a poll peer"),
    ],
)
async def test_a_request_is_the_golden_one(which: str, file: str, recorded: str) -> None:
    """tests/golden: nothing more, nothing less; ids of the call itself are fresh UUIDs."""
    one = exchange(file, recorded)
    _, request = await made(which, httpx.Response(one["status"], json=one["response"]))
    sent = json.loads(request.content)
    if which == "a2a":
        fresh = (sent["id"], sent["params"]["message"]["messageId"])
        assert len({str(each) for each in fresh}) == 2
        sent["id"] = sent["params"]["message"]["messageId"] = one["request"]["id"]
    assert sent == one["request"]


@respx.mock
async def test_a_delegation_is_named_in_the_message_that_answers_it() -> None:
    """Contract 0.8: params.message.metadata.delegation_id."""
    route = answered("a2a", httpx.Response(200, json=exchange("a2a_answers", "poll target")["response"]))
    async with lone_client() as client:
        await client.send_message(PEER, "done", metadata={"delegation_id": "d"})
    sent = json.loads(route.calls.last.request.content)
    assert sent["params"]["message"]["metadata"] == {"delegation_id": "d"}


@respx.mock
@pytest.mark.parametrize(
    ("asked", "query"),
    [
        ({}, {"type": "a2a_receive", "limit": "100"}),
        ({"since_id": "x", "limit": 7}, {"type": "a2a_receive", "limit": "7", "since_id": "x"}),
        ({"since_secs": 600}, {"type": "a2a_receive", "limit": "100", "since_secs": "600"}),
        (
            {"before": CREATED, "limit": 500},
            {"type": "a2a_receive", "limit": "500", "before_ts": "2026-05-05T10:00:00.123456Z"},
        ),
    ],
)
async def test_the_feed_is_asked_for_as_the_contract_says(asked: dict[str, Any], query: dict[str, str]) -> None:
    """Contract 4.3: no parameter that is not needed."""
    route = answered("activity", httpx.Response(200, json=[]))
    async with lone_client() as client:
        assert await client.activity(**asked) == []
    assert dict(route.calls.last.request.url.params) == query


@respx.mock
@pytest.mark.parametrize(("text", "query"), [("", {}), ("ops & co", {"q": "ops & co"})])
async def test_peers_are_filtered_by_the_platform(text: str, query: dict[str, str]) -> None:
    """Contract 2.6: q."""
    route = answered("peers", httpx.Response(200, json=[]))
    async with lone_client() as client:
        await client.peers(text)
    assert dict(route.calls.last.request.url.params) == query


ANSWERS = {
    "register": exchange("register", "poll agent with a live token")["response"],
    "heartbeat": {"status": "ok"},
    "get_workspace": exchange("get_workspace", "registered")["response"],
    "activity": [],
    "notify": {"status": "sent"},
    "a2a": {"status": "queued", "delivery_mode": "poll"},
    "peers": [],
}


@respx.mock
@pytest.mark.parametrize("which", list(CALLS))
async def test_every_call_carries_its_headers(which: str) -> None:
    """Contract 1.1: Origin and bearer always; X-Workspace-ID where a caller is named; no org when there is none."""
    _, request = await made(which, httpx.Response(200, json=ANSWERS[which]))
    ours = {"origin", "authorization", "x-workspace-id", "x-molecule-org-id"}
    sent = {name: value for name, value in request.headers.items() if name in ours}
    expected = {"origin": BASE_URL, "authorization": f"Bearer {TOKEN}"}
    assert sent == expected | ({"x-workspace-id": WORKSPACE} if which in ("a2a", "peers") else {})


@respx.mock
async def test_an_organisation_is_named_and_a_missing_token_is_not() -> None:
    """Contract 1.1, 1.6: X-Molecule-Org-Id; a workspace may be registered without a token."""
    _, request = await made("heartbeat", httpx.Response(200, json={"status": "ok"}), token=None, MOLECULE_ORG_ID="o1")
    assert request.headers["X-Molecule-Org-Id"] == "o1"
    assert "Authorization" not in request.headers


async def test_the_doorbell_gets_the_headers_of_a_caller() -> None:
    """Contract 8.2: /ws wants X-Workspace-ID and the bearer."""
    async with lone_client() as client:
        assert client.headers(as_caller=True) == {
            "Origin": BASE_URL,
            "Authorization": f"Bearer {TOKEN}",
            "X-Workspace-ID": WORKSPACE,
        }


@respx.mock
async def test_the_id_of_a_peer_cannot_lead_elsewhere() -> None:
    """agent-side 8: path traversal through ids."""
    route = respx.route().respond(json={"status": "queued", "delivery_mode": "poll"})
    async with lone_client() as client:
        await client.send_message("../../registry/register?x=", "hello")
    assert route.calls.last.request.url.raw_path == b"/workspaces/..%2F..%2Fregistry%2Fregister%3Fx%3D/a2a"


# answers


@respx.mock
@pytest.mark.parametrize(
    ("which", "body", "read"),
    [
        pytest.param(
            "register",
            exchange("register", "poll agent with a live token")["response"],
            RegisterReply(status="registered", delivery_mode=DeliveryMode.POLL, platform_inbound_secret=SECRET),
            id="register",
        ),
        pytest.param(
            "register",
            exchange("register", "first register of a workspace without a token")["response"],
            RegisterReply(
                status="registered",
                delivery_mode=DeliveryMode.POLL,
                auth_token="A" * 43,
                platform_inbound_secret=SECRET,
            ),
            id="register that issues a token",
        ),
        pytest.param(
            "heartbeat",
            exchange("heartbeat", "what our agent sends")["response"],
            HeartbeatReply(status="ok", platform_inbound_secret=SECRET),
            id="heartbeat",
        ),
        pytest.param("heartbeat", {"status": "ok"}, HeartbeatReply(status="ok"), id="older heartbeat"),
        pytest.param("notify", exchange("notify", "text")["response"], NotifyReply(status="sent"), id="notify"),
        pytest.param(
            "peers",
            exchange("peers", "one sibling")["response"],
            [Peer(id=PEER, name="ops-agent", role="sre", tier=3, status="awaiting_agent", url="")],
            id="peers",
        ),
        pytest.param("peers", exchange("peers", "nobody matches")["response"], [], id="no peers"),
        pytest.param(
            "get_workspace",
            exchange("get_workspace", "registered")["response"] | {"a_key_of_tomorrow": 1},
            Workspace(
                id=WORKSPACE,
                name="laptop",
                tier=3,
                status="online",
                agent_card=CARD,
                uptime_seconds=12,
                runtime="external",
                delivery_mode="poll",
            ),
            id="workspace",
        ),
    ],
)
async def test_an_answer_is_read_as_recorded(which: str, body: Any, read: Any) -> None:
    """tests/golden: keys that we do not know are passed over."""
    result, _ = await made(which, httpx.Response(200, json=body))
    assert result == read


@respx.mock
async def test_rows_of_the_feed_are_read_whole() -> None:
    """Contract 4.3: absent bodies are None, seq may be missing."""
    recorded = exchange("activity", "a canvas message")["response"]
    result, _ = await made("activity", httpx.Response(200, json=recorded))
    assert result == [
        ActivityRow(
            id="33333333-3333-4333-8333-333333333333",
            workspace_id=WORKSPACE,
            activity_type="a2a_receive",
            target_id=WORKSPACE,
            method="message/send",
            summary="message/send → laptop (queued for poll)",
            request_body=recorded[0]["request_body"],
            created_at=CREATED,
            seq=1,
        )
    ]
    every_kind = golden("activity_rows")["exchanges"][0]["response"]
    result, _ = await made("activity", httpx.Response(200, json=every_kind))
    assert [one.to_wire() for one in result] == [
        {key: value for key, value in one.items() if value is not None or key != "request_body"} for one in every_kind
    ]


OUTCOMES = {
    "poll target": Queued(delivery_mode="poll"),
    "busy push target": Queued(queue_id="q1"),
    "push answer, parts": Answered("done", {"parts": [{"kind": "text", "text": "done"}]}),
    "push answer, message with v0 parts": Answered("done", {"message": {"parts": [{"type": "text", "text": "done"}]}}),
    "push answer, artifacts": Answered(
        "done", {"artifacts": [{"parts": [{"kind": "text", "text": "do"}, {"kind": "text", "text": "ne"}]}]}
    ),
    "error object": Refused("no", -32000),
    "error string": Refused("agent returned empty response body"),
    "unknown shape": Malformed("{'surprise': 1}"),
}


@respx.mock
@pytest.mark.parametrize("recorded", golden("a2a_answers")["exchanges"], ids=lambda one: str(one["name"]))
async def test_every_shape_of_an_a2a_answer_is_an_outcome(recorded: dict[str, Any]) -> None:
    """Contract 4.1: two different "queued" envelopes, both a success."""
    result, _ = await made("a2a", httpx.Response(recorded["status"], json=recorded["response"]))
    assert result == OUTCOMES[recorded["name"]]


# refusals


def said(status: int, error: str = "no", **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"error": error}, headers=headers)


def page(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, html="<h1>hello</h1>", headers=headers)


HIERARCHY = "access denied: workspaces cannot communicate per hierarchy rules"


@respx.mock
@pytest.mark.parametrize(
    ("which", "answer", "kind"),
    [
        pytest.param("heartbeat", said(400), Rejected, id="400"),
        pytest.param("heartbeat", said(401), Unauthorized, id="401"),
        pytest.param("heartbeat", httpx.Response(401), Unauthorized, id="empty 401"),
        pytest.param("a2a", said(402), Rejected, id="402"),
        pytest.param("heartbeat", said(403), Unauthorized, id="403 about the token"),
        pytest.param("a2a", said(403, HIERARCHY), Rejected, id="403 about the hierarchy"),
        pytest.param("a2a", said(403, "invalid caller ID"), Rejected, id="403 about the caller"),
        pytest.param("notify", said(403, "talk_to_user_disabled"), Rejected, id="403 about the user's wish"),
        pytest.param("heartbeat", said(403, "origin not allowed"), NotThePlatform, id="403 about the address"),
        pytest.param("get_workspace", said(404, "workspace not found"), NotFound, id="404 JSON"),
        pytest.param("get_workspace", httpx.Response(404), NotThePlatform, id="404 empty"),
        pytest.param("get_workspace", page(404), NotThePlatform, id="404 HTML"),
        pytest.param("get_workspace", httpx.Response(404, json=["no"]), NotThePlatform, id="404 other JSON"),
        pytest.param("heartbeat", page(405), NotThePlatform, id="405 HTML"),
        pytest.param("heartbeat", said(405), Rejected, id="405 JSON"),
        pytest.param("heartbeat", page(302, Location="/login"), NotThePlatform, id="302"),
        pytest.param("activity", said(410, "since_id cursor not found"), CursorExpired, id="410 activity"),
        pytest.param("get_workspace", said(410, "workspace removed"), WorkspaceRemoved, id="410 workspace"),
        pytest.param("get_workspace", httpx.Response(410), NotThePlatform, id="410 workspace without a body"),
        pytest.param("notify", said(413), TooLarge, id="413"),
        pytest.param("notify", page(413), TooLarge, id="413 HTML"),
        pytest.param("heartbeat", said(429), Unavailable, id="429"),
        pytest.param("heartbeat", said(500), Unavailable, id="500"),
        pytest.param("heartbeat", page(502), Unavailable, id="502 HTML"),
        pytest.param("heartbeat", said(503), Unavailable, id="503"),
        pytest.param("heartbeat", page(200), BadReply, id="200 not JSON"),
        pytest.param("heartbeat", httpx.Response(204), BadReply, id="204"),
        pytest.param("heartbeat", httpx.Response(200, content=b"[" * 200_000), BadReply, id="200 bottomless JSON"),
        pytest.param("heartbeat", httpx.Response(200, json={"status": "well"}), BadReply, id="200 wrong shape"),
        pytest.param("activity", httpx.Response(200, json={"rows": []}), BadReply, id="200 no list"),
        pytest.param("activity", httpx.Response(200, json=[None]), BadReply, id="200 no row"),
        pytest.param("peers", httpx.Response(200, json=[{"id": PEER}]), BadReply, id="200 half a peer"),
    ],
)
async def test_every_refusal_has_its_type(which: str, answer: httpx.Response, kind: type[PlatformError]) -> None:
    """Contract, each section's table; the facts stand in the error, endpoint as the contract names it."""
    answered(which, answer)
    async with lone_client() as client:
        with pytest.raises(kind) as raised:
            await CALLS[which][2](client)
    method, path, _ = CALLS[which]
    error = raised.value
    assert type(error) is kind
    assert error.endpoint == f"{method} {path.replace(WORKSPACE, ':id').replace(PEER, ':id')}"
    assert (error.base_url, error.workspace_id, error.status) == (BASE_URL, WORKSPACE, answer.status_code)
    assert TOKEN not in f"{error} {error!r} {error.detail}"


@respx.mock
async def test_a_removal_says_when_and_what_helps() -> None:
    """Contract 3.4: removed_at and hint of the 410."""
    answered("get_workspace", httpx.Response(410, json=exchange("get_removed_workspace", "removed")["response"]))
    async with lone_client() as client:
        with pytest.raises(WorkspaceRemoved) as raised:
            await client.get_workspace()
    assert raised.value.removed_at == CREATED
    assert raised.value.hint == "Regenerate workspace + token from the canvas → Tokens tab"


@respx.mock
@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        pytest.param("7", 7.0, id="seconds"),
        pytest.param("0.5", 0.5, id="half a second"),
        pytest.param("-3", 0.0, id="negative"),
        pytest.param(format_datetime(datetime.now(UTC) - timedelta(hours=1)), 0.0, id="a date gone by"),
        pytest.param("Wed, 21 Oct 2015 07:28:00 -0000", 0.0, id="a date without a zone"),
        pytest.param("Wed, 99 Oct 2015 07:28:00 GMT", None, id="no such date"),
        pytest.param(format_datetime(datetime.now(UTC) + timedelta(days=9)), RETRY_AFTER_CAP_S, id="a far date"),
        pytest.param("1e9", RETRY_AFTER_CAP_S, id="thirty years"),
        pytest.param("inf", None, id="for ever"),
        pytest.param("nan", None, id="no number"),
        pytest.param("soon", None, id="garbage"),
        pytest.param("", None, id="empty"),
        pytest.param(None, None, id="absent"),
    ],
)
async def test_retry_after_is_read_whatever_it_says(header: str | None, seconds: float | None) -> None:
    """Contract 1.7; a mistake there must not keep an agent offline for ever."""
    answered("heartbeat", said(429, **({} if header is None else {"Retry-After": header})))
    async with lone_client() as client:
        with pytest.raises(Unavailable) as raised:
            await heartbeat(client)
    assert raised.value.retry_after_s == seconds


@respx.mock
async def test_a_token_that_the_platform_quotes_is_not_repeated() -> None:
    """agent-side 1: never printed, never logged."""
    answered("heartbeat", said(401, f"invalid token {TOKEN}"))
    async with lone_client() as client:
        with pytest.raises(Unauthorized) as raised:
            await heartbeat(client)
    assert raised.value.detail == "invalid token [redacted]"


# the token


@respx.mock
async def test_after_a_401_the_token_is_read_again_and_the_call_is_made_once_more(tmp_path: Path) -> None:
    """agent-side 1: rotation needs no restart; a refused call did nothing, so it may be repeated."""
    file = tmp_path / "token"
    file.write_text("old-token")
    route = respx.post(f"{BASE_URL}/workspaces/{WORKSPACE}/notify").mock(
        side_effect=lambda request: (
            httpx.Response(200, json={"status": "sent"})
            if request.headers["Authorization"] == "Bearer new-token"
            else said(401)
        )
    )
    async with lone_client(token=None, MOLECULE_WORKSPACE_TOKEN_FILE=str(file)) as client:
        with pytest.raises(Unauthorized):
            await client.notify("hello")
        assert route.call_count == 1
        file.write_text("new-token\n")
        assert await client.notify("hello") == NotifyReply(status="sent")
        assert route.call_count == 3
        file.unlink()
        assert await client.notify("hello") == NotifyReply(status="sent")
        route.mock(return_value=said(401))
        with pytest.raises(CredentialError):
            await client.notify("hello")


@respx.mock
async def test_a_token_saved_by_another_process_is_found(tmp_path: Path) -> None:
    """agent-side 1: one process registers and saves; the others find the token at their first 401."""
    state = state_in(tmp_path)
    respx.get(f"{BASE_URL}/workspaces/{WORKSPACE}").mock(
        side_effect=lambda request: (
            httpx.Response(200, json=ANSWERS["get_workspace"]) if "Authorization" in request.headers else said(401)
        )
    )
    told = settings(token=None)
    async with PlatformClient(BASE_URL, WORKSPACE, Credentials(told.workspaces[0], state)) as client:
        with pytest.raises(Unauthorized):
            await client.get_workspace()
        state.write_private(state.token_file, TOKEN)
        assert (await client.get_workspace()).name == "laptop"


# the network: a socket that misbehaves, since respx would only pretend


@asynccontextmanager
async def socket_that(serve: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """A TCP server that reads a request and does as told; its URL."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await serve(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def fails_at(url: str, *, timeout: float = 10) -> PlatformError:
    """The error of a call there."""
    told = settings(PLATFORM_URL=url)
    async with PlatformClient(
        told.workspaces[0].platform_url, WORKSPACE, Credentials(told.workspaces[0], None)
    ) as client:
        with anyio.fail_after(5), pytest.raises(PlatformError) as raised:
            await client._call("GET", f"/workspaces/{WORKSPACE}", timeout=timeout)
    assert TOKEN not in f"{raised.value} {raised.value!r}"
    return raised.value


async def test_a_port_where_nobody_listens_is_unreachable() -> None:
    """errors: refused."""
    async with socket_that(lambda writer: anyio.lowlevel.checkpoint()) as url:
        pass
    assert type(await fails_at(url)) is Unreachable


async def test_a_connection_that_is_reset_is_unreachable() -> None:
    """errors: reset."""

    async def reset(writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with socket_that(reset) as url:
        assert type(await fails_at(url)) is Unreachable


async def test_a_server_that_does_not_answer_is_unreachable() -> None:
    """agent-side 3: 10 s, here less."""

    async def wait(writer: asyncio.StreamWriter) -> None:
        await anyio.sleep(3)

    async with socket_that(wait) as url:
        error = await fails_at(url, timeout=0.05)
    assert (type(error), error.detail) == (Unreachable, "no answer within 0.05 s")


async def test_an_answer_that_drips_is_given_up_in_time() -> None:
    """agent-side 3: a beat that takes longer counts as failed, also when every byte comes in time."""

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            writer.write(b" ")
            await writer.drain()
            await anyio.sleep(0.02)

    async with socket_that(drip) as url:
        error = await fails_at(url, timeout=0.2)
    assert (type(error), error.detail) == (Unreachable, "no answer within 0.2 s")


@pytest.mark.parametrize(
    "greeting", [b"220 mail.example ESMTP\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x46"], ids=["mail", "TLS"]
)
async def test_something_that_is_no_http_is_unreachable(greeting: bytes) -> None:
    """errors: another protocol; a TLS server's alert, its bytes kept out of the words."""

    async def greet(writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await writer.drain()

    async with socket_that(greet) as url:
        error = await fails_at(url)
    assert (type(error), error.detail) == (Unreachable, "what answers there does not speak HTTP")


@pytest.mark.parametrize("proxy", ["socks5://localhost:1", "gopher://localhost:1"])
def test_a_proxy_of_an_unknown_kind_is_a_problem_of_the_settings(proxy: str) -> None:
    """agent-side 1: proxies are honoured; one that cannot be is said, not a crash."""
    said = python(
        """
from molecule_runtime.client import PlatformClient
from molecule_runtime.credentials import Credentials
from molecule_runtime.errors import SettingsError
from molecule_runtime.settings import Settings
told = Settings.from_env({"PLATFORM_URL": "https://h", "WORKSPACE_ID": "11111111-1111-4111-8111-111111111111"})
try:
    PlatformClient("https://canvas.example.com", told.workspaces[0].id, Credentials(told.workspaces[0], None))
except SettingsError as error:
    print([problem.id for problem in error.problems])
""",
        ALL_PROXY=proxy,
    )
    assert said.stdout == "['settings.proxy']\n"
