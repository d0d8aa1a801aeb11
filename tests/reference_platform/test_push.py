"""Messages to workspaces that are called: answers, faults, and where a call may not lead."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import anyio
import pytest
from starlette.responses import JSONResponse, Response

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.services.push import MAX_ANSWER_BYTES, PushAgents, Unreachable

from .push_agents import PushAgent, closed_port, push_agent, reply_with, socket_that_says
from .support import Database, Member, Platform, bearer, canvas_message
from .test_golden import GOLDEN, differences

UNREACHED = (502, {"error": "failed to reach workspace agent"})
UNREADABLE = (
    502,
    {"error": "workspace agent answered, but its answer could not be read", "delivery_confirmed": True},
)
BUSY = (503, {"error": "workspace agent did not answer", "busy": True, "retry_after": 30})


@pytest.fixture
async def agent() -> AsyncIterator[PushAgent]:
    async with push_agent() as agent:
        yield agent


async def pushed(platform: Platform, url: str, name: str = "pushed") -> Member:
    """A workspace whose agent registered to be called at `url`."""
    member = await platform.create(name)
    await platform.register(member, delivery_mode="push", url=url)
    return member


async def send(platform: Platform, target: Member, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    reply = await platform.http.post(f"/workspaces/{target.id}/a2a", json=canvas_message("hello"), headers=headers)
    return reply.status_code, reply.json()


async def test_the_user_gets_the_agents_answer(platform: Platform, agent: PushAgent, database: Database) -> None:
    """The agent's JSON comes back, a row keeps question and answer, the canvas hears both (contract 4.1)."""
    member = await pushed(platform, agent.url())
    with platform.parts.bus.subscribe() as events:
        status, answer = await send(platform, member)
        heard = await platform.heard(events)
    ((path, headers, body),) = agent.called
    ((secret,),) = database.sql(f"SELECT platform_inbound_secret FROM workspaces WHERE id = '{member.id}'")
    assert (status, answer) == (200, json.loads(bytes(reply_with(body, "done").body)))
    assert (path, headers["authorization"], headers["host"]) == (
        "/a2a",
        f"Bearer {secret}",
        f"localhost:{agent.port}",
    )
    assert (body["jsonrpc"], body["params"]["message"]["parts"]) == ("2.0", [{"kind": "text", "text": "hello"}])
    (row,) = await platform.rows(member)
    assert row == {
        "id": row["id"],
        "workspace_id": member.id,
        "activity_type": "a2a_receive",
        "source_id": None,
        "target_id": member.id,
        "method": "message/send",
        "summary": "message/send → pushed",
        "request_body": body,
        "response_body": answer,
        "duration_ms": 0,
        "status": "ok",
        "error_detail": None,
        "created_at": row["created_at"],
        "seq": 1,
    }
    assert [name for name, _ in heard] == ["ACTIVITY_LOGGED", "A2A_RESPONSE"]
    assert heard[1][1] == {"response_body": answer, "method": "message/send", "duration_ms": 0}
    reply = await platform.http.get(f"/workspaces/{member.id}/chat-history", headers=member.headers)
    assert [(message["role"], message["content"]) for message in reply.json()["messages"]] == [
        ("user", "hello"),
        ("agent", "done"),
    ]


async def test_a_peers_success_is_noted_and_no_answer_broadcast(
    platform: Platform, agent: PushAgent, clock: ManualClock
) -> None:
    """The caller's last_outbound_at moves; A2A_RESPONSE is for the user's calls only (contract 4.1)."""
    member, peer = await pushed(platform, agent.url()), await platform.join("peer")
    clock.advance(10)

    def slowly(body: Any) -> Response:
        clock.advance(1.25)
        return reply_with(body, "done")

    agent.answer = slowly
    with platform.parts.bus.subscribe() as events:
        assert (await send(platform, member, peer.headers))[0] == 200
        assert [name for name, _ in await platform.heard(events)] == ["ACTIVITY_LOGGED"]
    (row,) = await platform.rows(member)
    assert (row["source_id"], row["duration_ms"]) == (peer.id, 1250)
    stamp = (await platform.http.get(f"/workspaces/{peer.id}")).json()["last_outbound_at"]
    assert stamp == "2026-01-01T00:00:11.250000Z"
    assert (await platform.http.get(f"/workspaces/{member.id}")).json()["last_outbound_at"] is None


async def test_what_does_not_stamp_the_caller(platform: Platform, agent: PushAgent) -> None:
    """A failed call, a call of itself and a message to a polling peer leave last_outbound_at alone (contract 4.1)."""
    member, peer = await pushed(platform, agent.url()), await platform.join("peer")
    assert (await send(platform, member, member.headers))[0] == 200
    assert (await send(platform, peer, member.headers))[0] == 200
    agent.answer = lambda _body: JSONResponse({"error": "no"}, status_code=500)
    assert (await send(platform, member, peer.headers))[0] == 500
    for workspace in (member, peer):
        assert (await platform.http.get(f"/workspaces/{workspace.id}")).json()["last_outbound_at"] is None


ANSWERS: list[tuple[int, bytes, tuple[int, Any]]] = [
    (200, b'{"result": {"message": {"parts": []}}}', (200, {"result": {"message": {"parts": []}}})),
    (201, b'{"error": {"code": -32000, "message": "no"}}', (201, {"error": {"code": -32000, "message": "no"}})),
    (202, b'{"queued": true, "queue_id": "q1"}', (202, {"queued": True, "queue_id": "q1"})),
    (200, b"", (200, {"error": "agent returned empty response body"})),
    (204, b"", (200, {"error": "agent returned empty response body"})),
    (200, b"<html>", UNREADABLE),
    (200, b"[1]", UNREADABLE),
    (200, b'{"a": NaN}', UNREADABLE),
    (200, rb'{"result": "\ud800"}', (200, {"result": "\ufffd"})),
    (302, b"", (302, {"error": "Found"})),
    (304, b"", (502, {"error": "Not Modified"})),
    (400, b'{"error": "too vague", "more": 1}', (400, {"error": "too vague"})),
    (404, b"<html>", (404, {"error": "Not Found"})),
    (409, b'{"error": {"code": 1, "message": "no"}}', (409, {"error": "Conflict"})),
    (500, b'{"error": ""}', (500, {"error": "Internal Server Error"})),
    (599, b"", (599, {"error": "HTTP 599"})),
]


async def test_each_answer_has_its_form(platform: Platform, agent: PushAgent) -> None:
    """Below 300 the agent's JSON object with its status, from 300 on one string (contract 4.1)."""
    member = await pushed(platform, agent.url())
    for status, content, expected in ANSWERS:
        agent.answer = partial(answer, content, status)
        with platform.parts.bus.subscribe() as events:
            assert await send(platform, member) == expected
            names = [name for name, _ in await platform.heard(events)]
        (row,) = await platform.rows(member, limit=1)
        good = expected[0] < 400
        assert row["status"] == ("ok" if good else "error")
        assert names == ["ACTIVITY_LOGGED"] + ["A2A_RESPONSE"] * good
        assert (row["error_detail"] is None) == (row.get("response_body") == expected[1] and status < 300)


def answer(content: bytes, status: int, _body: Any) -> Response:
    return Response(content, status_code=status, media_type="application/json")


async def test_the_golden_exchanges(platform: Platform, agent: PushAgent) -> None:
    """Each recorded answer for a target that is called comes about here (contract 4.1, golden a2a_push)."""
    document = json.loads((GOLDEN / "a2a_push.json").read_text())
    peer = await platform.join("peer")
    async with socket_that_says() as mute, socket_that_says(HEAD, b"{") as torn:
        scenes = {
            "the agent answers": (agent.url(), lambda body: reply_with(body, "done")),
            "the agent queues": (agent.url(), partial(answer, QUEUED, 202)),
            "the agent refuses": (agent.url(), partial(answer, b'{"error": "too vague"}', 422)),
            "the agent answers nothing": (agent.url(), partial(answer, b"", 200)),
            "nobody is there": (f"http://localhost:{closed_port()}/", None),
            "no answer comes": (mute.url(), None),
            "the answer is torn": (torn.url(), None),
            "no url": (None, None),
        }
        assert [exchange["name"] for exchange in document["exchanges"]] == list(scenes)
        for exchange in document["exchanges"]:
            url, agent.answer = scenes[exchange["name"]]
            member = await platform.create() if url is None else await pushed(platform, url)
            post = f"/workspaces/{member.id}/a2a"
            reply = await platform.http.post(post, json=exchange["request"], headers=peer.headers)
            assert (exchange["name"], reply.status_code) == (exchange["name"], exchange["status"])
            assert differences(exchange["response"], reply.json()) == []


async def test_nobody_there(platform: Platform) -> None:
    """A refused connection is 502, with a row that says so (contract 4.1)."""
    member = await pushed(platform, f"http://localhost:{closed_port()}/a2a")
    with platform.parts.bus.subscribe() as events:
        assert await send(platform, member) == UNREACHED
        assert [name for name, _ in await platform.heard(events)] == ["ACTIVITY_LOGGED"]
    (row,) = await platform.rows(member)
    assert (row["status"], row["summary"], row["error_detail"]) == (
        "error",
        "A2A request to pushed failed: ConnectError",
        "ConnectError",
    )
    assert "response_body" not in row
    assert row["request_body"]["method"] == "message/send"


async def test_without_a_url_there_is_nothing_to_call(platform: Platform) -> None:
    """503 with the status, and no row (contract 4.1)."""
    silent = await platform.create("silent")
    answer = (503, {"error": "workspace has no URL", "status": "awaiting_agent"})
    assert await send(platform, silent) == answer
    assert await platform.rows(silent) == []


QUEUED = b'{"queued": true, "queue_id": "q1", "queue_depth": 3, "message": "queued"}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
MEBIBYTE = b"100000\r\n" + b" " * 1_048_576 + b"\r\n"


@pytest.mark.parametrize(
    ("pieces", "hang", "answer"),
    [
        ([], False, BUSY),
        ([], True, BUSY),
        ([b"HTTP/1.1 2"], True, BUSY),
        ([b"rubbish\r\n\r\n"], False, BUSY),
        ([HEAD, b'{"result"'], False, UNREADABLE),
        ([HEAD, b'{"result"'], True, UNREADABLE),
        ([ENDLESS, *[MEBIBYTE] * 11], False, UNREADABLE),
        ([HEAD.replace(b"200 OK", b"500 Broken"), b'{"error"'], False, (500, {"error": "Internal Server Error"})),
        ([b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"], False, BUSY),
    ],
    ids=[
        "closes at once",
        "never answers",
        "stops in the head",
        "no HTTP",
        "torn body",
        "body that never ends",
        "body over 10 MiB",
        "torn error",
        "switches protocols",
    ],
)
async def test_faults_tell_whether_the_message_may_have_arrived(
    platform: Platform, pieces: list[bytes], hang: bool, answer: tuple[int, Any]
) -> None:
    """Sent and not answered is busy, answered and not readable is confirmed; neither is "try again" (contract 4.1)."""
    async with socket_that_says(*pieces, hang=hang) as silent:
        member = await pushed(platform, silent.url())
        post = f"/workspaces/{member.id}/a2a"
        headers = {"X-Timeout": "1"} if hang else {}
        reply = await platform.http.post(post, json=canvas_message(), headers=headers)
    assert (reply.status_code, reply.json()) == answer
    assert reply.headers.get("retry-after") == ("30" if answer == BUSY else None)
    (row,) = await platform.rows(member)
    assert (row["status"], "response_body" in row) == ("error", False)
    assert row["summary"].startswith("A2A request to pushed failed: ") == (answer[0] != 500)


async def test_ten_mebibytes_pass(platform: Platform, agent: PushAgent) -> None:
    """The cap is on what is longer (contract 4.1)."""
    member = await pushed(platform, agent.url())
    text = "x" * (MAX_ANSWER_BYTES - len('{"result":""}'))
    agent.answer = lambda _body: JSONResponse({"result": text})
    status, body = await send(platform, member)
    assert (status, len(body["result"])) == (200, len(text))


async def test_a_redirect_is_not_followed(platform: Platform, agent: PushAgent) -> None:
    """It would be a second place, chosen by the first (contract 2.1; ours)."""
    member = await pushed(platform, agent.url("/moved"))
    assert await send(platform, member) == (307, {"error": "Temporary Redirect"})
    assert [path for path, _, _ in agent.called] == ["/moved"]


async def test_the_answer_survives_a_row_that_cannot_be_written(
    platform: Platform, agent: PushAgent, database: Database
) -> None:
    """The message was delivered: a sender that tries again would deliver it twice (ours, R22)."""
    member = await pushed(platform, agent.url())
    database.refuse("INSERT", "activity_logs")
    with platform.parts.bus.subscribe() as events:
        assert (await send(platform, member))[0] == 200
        assert [name for name, _ in await platform.heard(events)] == ["A2A_RESPONSE"]


async def test_each_form_of_x_timeout_is_taken(platform: Platform, agent: PushAgent) -> None:
    """0 means no deadline, nonsense the default; none of them disturbs an answer (contract 1.1)."""
    member = await pushed(platform, agent.url())
    for value in ("0", "2", "x", "-1", ""):
        assert (await send(platform, member, {"X-Timeout": value}))[0] == 200


async def test_the_denials_come_before_the_call(platform: Platform, agent: PushAgent) -> None:
    """An unrelated workspace, a bad body and a removed target never reach the agent (contract 4.1)."""
    root = await platform.join("root")
    stranger = await platform.join("stranger", parent_id=root.id)
    member = await pushed(platform, agent.url())
    assert (await send(platform, member, stranger.headers))[0] == 403
    bad = await platform.http.post(f"/workspaces/{member.id}/a2a", content=b"{")
    assert (bad.status_code, bad.json()) == (400, {"error": "invalid JSON"})
    forged = bearer("wrong", **{"X-Workspace-ID": root.id})
    assert (await send(platform, member, forged))[0] == 401
    await platform.http.delete(f"/workspaces/{member.id}")
    assert (await send(platform, member))[0] == 404
    assert agent.called == []


class Names:
    """A name server: each question takes the next answer, the last one stays; `asked` counts."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


async def test_the_connection_goes_to_the_address_that_was_checked(agent: PushAgent) -> None:
    """The name is asked once; a second answer, of another address, is never used (ours, against DNS rebinding)."""
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    agents = PushAgents(development=True, resolve=names)
    outcome = await agents.call(agent.url(host="agent.example"), "s", {"id": "1"}, 5)
    assert type(outcome).__name__ == "Answered"
    assert names.asked == 1
    ((_, headers, _),) = agent.called
    assert headers["host"] == f"agent.example:{agent.port}"


async def test_the_next_address_is_tried_when_one_refuses(agent: PushAgent) -> None:
    """A name may have an address that is down (ours)."""
    agents = PushAgents(development=True, resolve=Names(["127.0.0.99", "127.0.0.1"]))
    assert type(await agents.call(agent.url(host="agent.example"), None, {"id": "1"}, 5)).__name__ == "Answered"


@pytest.mark.parametrize(
    ("addresses", "label"),
    [
        (["127.0.0.1"], "loopback"),
        (["::1"], "loopback"),
        (["10.1.2.3"], "private"),
        (["172.16.0.1"], "private"),
        (["192.168.1.1"], "private"),
        (["fd00::1"], "private"),
        (["169.254.169.254"], "link-local"),
        (["fe80::1%2"], "link-local"),
        (["100.64.0.1"], "carrier-grade NAT"),
        (["224.0.0.1"], "multicast"),
        (["ff02::1"], "multicast"),
        (["0.0.0.0"], "unspecified"),
        (["192.0.2.1"], "private"),
        (["198.51.100.1"], "private"),
        (["203.0.113.1"], "private"),
        (["198.18.0.1"], "private"),
        (["2001:db8::1"], "private"),
        (["255.255.255.255"], "private"),
        (["::ffff:127.0.0.1"], "loopback"),
        (["::ffff:10.0.0.1"], "private"),
        (["64:ff9b::7f00:1"], "loopback"),
        (["64:ff9b::a9fe:a9fe"], "link-local"),
        (["2002:7f00:1::1"], "loopback"),
        (["93.184.216.34", "10.0.0.1"], "private"),
        (["2606:4700::1111", "93.184.216.34", "::1"], "loopback"),
    ],
)
async def test_a_name_that_leads_inside_is_not_called(addresses: list[str], label: str) -> None:
    """One blocked address among all that the name has is enough (contract 2.1)."""
    agents = PushAgents(development=False, resolve=Names(addresses))
    outcome = await agents.call("https://agent.example/a2a", "s", {}, 5)
    assert outcome == Unreachable(f"url targets a blocked address: {label}")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://agent.example/", "its url is not http or https"),
        ("http:///a2a", "its url is not http or https"),
        ("//agent.example/a2a", "its url is not http or https"),
        ("http://[", "its host name has no address"),
        ("http://agent.example:0/", "its url is not valid"),
        ("http://agent.example:x/", "its url is not valid"),
        ("http://agent.example:99999/", "its url is not valid"),
        ("http://agent.example/", "its host name has no address"),
    ],
)
async def test_what_cannot_be_called(url: str, reason: str) -> None:
    """The reason is a value, whatever was stored as the url (ours)."""
    assert await PushAgents(development=False, resolve=Names([])).call(url, None, {}, 5) == Unreachable(reason)


async def test_this_machine_is_called_in_development_only(agent: PushAgent) -> None:
    """Every spelling of it, as the machine's own resolver reads them (contract 2.1, ours)."""
    outside = PushAgents(development=False)
    for host in ("localhost", "LOCALHOST", "127.0.0.1", "127.1", "2130706433", "0x7f.1", "[::1]"):
        outcome = await outside.call(agent.url(host=host), None, {"id": "1"}, 5)
        assert (host, outcome) == (host, Unreachable("url targets a blocked address: loopback"))
    assert agent.called == []
    development = PushAgents(development=True)
    for host in ("localhost", "127.0.0.1"):
        assert type(await development.call(agent.url(host=host), None, {"id": "1"}, 5)).__name__ == "Answered"


async def test_a_message_that_went_out_is_not_sent_to_the_next_address() -> None:
    """A name with two addresses gets it once, whatever became of it (contract 4.1, ours)."""
    async with socket_that_says() as mute:
        agents = PushAgents(development=True, resolve=Names(["127.0.0.1", "127.0.0.1"]))
        outcome = await agents.call(mute.url(host="agent.example"), None, {"id": "1"}, 5)
        assert type(outcome).__name__ == "Unanswered"
        assert len(mute.heard) == 1


async def test_over_tls_the_host_is_named_and_nothing_said_before_it_proved_itself() -> None:
    """The pinned address does not replace the name in the handshake; a failed one delivered nothing (ours)."""
    async with socket_that_says() as mute:
        agents = PushAgents(development=True, resolve=Names(["127.0.0.1"]))
        outcome = await agents.call(mute.url("https", "agent.example"), "the-secret", {"id": "1"}, 5)
        assert outcome == Unreachable("ConnectError")
        (hello,) = mute.heard
        assert b"agent.example" in hello
        assert b"the-secret" not in hello


async def test_the_private_network_is_blocked_in_development_too(platform: Platform, database: Database) -> None:
    """Development mode opens this machine, not its network; the sender learns no address (contract 2.1)."""
    member = await pushed(platform, "http://localhost:9/a2a")
    database.sql(f"UPDATE workspaces SET url = 'http://169.254.169.254/latest' WHERE id = '{member.id}'")
    assert await send(platform, member) == UNREACHED
    (row,) = await platform.rows(member)
    assert row["error_detail"] == "url targets a blocked address: link-local"


async def test_credentials_in_a_url_are_not_sent(agent: PushAgent) -> None:
    """The secret is the one bearer, whatever a url holds before its host (ours)."""
    url = agent.url(host="user:password@localhost")
    assert type(await PushAgents(development=True).call(url, "secret", {"id": "1"}, 5)).__name__ == "Answered"
    await PushAgents(development=True).call(url, None, {"id": "1"}, 5)
    assert [headers.get("authorization") for _, headers, _ in agent.called] == ["Bearer secret", None]


async def test_proxies_of_the_environment_are_not_used(agent: PushAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would connect where it likes (ours)."""
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    assert type(await PushAgents(development=True).call(agent.url(), None, {"id": "1"}, 5)).__name__ == "Answered"


async def test_a_silent_name_server_is_within_the_deadline() -> None:
    """Nothing was sent when the time ran out, so calling again is safe (ours)."""

    async def silent(_host: str, _port: int) -> list[str]:
        await anyio.sleep_forever()
        raise AssertionError

    outcome = await PushAgents(development=True, resolve=silent).call("http://agent.example/", None, {}, 0.05)
    assert outcome == Unreachable("no answer within 0.05 s")
