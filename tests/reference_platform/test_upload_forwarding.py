"""Files for a workspace that is called: the body goes on to its agent, and the agent's word comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import pytest
from starlette.responses import JSONResponse, Response
from structlog.testing import capture_logs

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.config import PlatformConfig

from .push_agents import PushAgent, closed_port, push_agent, socket_that_says
from .support import Database, Member, Platform, only, running
from .test_golden import GOLDEN, differences
from .test_push import answer, pushed
from .uploads import FORM, form, named, pieces, post, stock, upload

TAKEN = {"files": [{"uri": "workspace:/x/a.txt", "name": "a.txt", "mimeType": "text/plain", "size": 1}]}
UNREACHABLE = (502, {"error": "workspace unreachable"})


@pytest.fixture
async def agent() -> AsyncIterator[PushAgent]:
    async with push_agent() as agent:
        agent.answer = lambda _body: JSONResponse(TAKEN)
        yield agent


@only("sqlite")  # the agent is the matter, not the database
async def test_the_body_reaches_the_agent_as_it_was_sent(
    platform: Platform, agent: PushAgent, database: Database
) -> None:
    """To a path of its own on the agent's host and port, with the secret; nothing is kept here (contract 5.1)."""
    member = await pushed(platform, agent.url("/a2a?key=1"))
    body = form(named("世 界.txt", b"x" * 300_000), named("b"))
    with platform.parts.bus.subscribe() as events:
        assert await post(platform, member, body) == (200, TAKEN)
        assert await post(platform, member, pieces(body, 10_000)) == (200, TAKEN)
        assert await platform.heard(events) == []
    ((secret,),) = database.sql(f"SELECT platform_inbound_secret FROM workspaces WHERE id = '{member.id}'")
    for path, headers, received in agent.called:
        assert (path, headers["content-type"], received) == ("/internal/chat/uploads/ingest", FORM, body)
        assert headers["authorization"] == f"Bearer {secret}"
    assert [headers.get("content-length") for _, headers, _ in agent.called] == [str(len(body)), None]
    assert stock(database) == (0, 0, 0)
    assert (await upload(platform, member, ("a", b"", ""), headers=member.headers)).json() == TAKEN


@only("sqlite")  # the agent is the matter, not the database
async def test_the_first_bytes_arrive_before_the_last_are_sent(platform: Platform) -> None:
    """A body is passed on as it comes, not collected (ours)."""
    arrived = asyncio.Event()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"first")
        arrived.set()
        await reader.readuntil(b"last")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        with anyio.fail_after(10):
            await arrived.wait()
        yield b"last"

    async with await asyncio.start_server(converse, "127.0.0.1", 0) as server:
        member = await pushed(platform, f"http://localhost:{server.sockets[0].getsockname()[1]}/")
        assert await post(platform, member, body()) == (200, {})


@only("sqlite")  # the agent is the matter, not the database
async def test_the_golden_exchanges(platform: Platform, agent: PushAgent, database: Database) -> None:
    """Each recorded answer of the branch comes about here (contract 5.1, golden upload_push)."""
    document = json.loads((GOLDEN / "upload_push.json").read_text())
    full = {"error": "file exceeds per-file cap", "filename": "a.txt", "size": 9, "max": 8}
    scenes: dict[str, tuple[str | None, Response | None, str]] = {
        "the agent takes the files": (agent.url(), JSONResponse(TAKEN), ""),
        "the agent refuses": (agent.url(), JSONResponse(full, status_code=413), ""),
        "the agent fails": (agent.url(), Response("<html>", status_code=500), ""),
        "the agent answers no JSON": (agent.url(), Response("<html>"), ""),
        "nobody is there": (f"http://localhost:{closed_port()}/", None, ""),
        "pushed, no url": (None, None, ""),
        "neither pushed nor polling, no url": (None, None, "delivery_mode = ''"),
        "no inbound secret": (agent.url(), None, "platform_inbound_secret = NULL"),
    }
    assert [exchange["name"] for exchange in document["exchanges"]] == list(scenes)
    for exchange in document["exchanges"]:
        url, answer, change = scenes[exchange["name"]]
        agent.answer = lambda _body, answer=answer: answer  # type: ignore[misc]
        member = await platform.create() if url is None else await pushed(platform, url)
        if change:
            database.sql(f"UPDATE workspaces SET {change} WHERE id = '{member.id}'")
        status, body = await post(platform, member, form(named("a.txt")))
        assert (exchange["name"], status) == (exchange["name"], exchange["status"])
        assert differences(exchange["response"], body) == []


async def test_a_new_secret_is_kept_and_the_next_upload_goes_out_with_it(
    platform: Platform, agent: PushAgent, database: Database
) -> None:
    """The agent hears it with its next beat, hence the 30 s (contract 5.1, 2.3)."""
    member = await pushed(platform, agent.url())
    database.sql(f"UPDATE workspaces SET platform_inbound_secret = NULL WHERE id = '{member.id}'")
    status, answer = await post(platform, member, form(named("a")))
    assert (status, answer["retry_after_seconds"], agent.called) == (503, 30, [])
    ((secret,),) = database.sql(f"SELECT platform_inbound_secret FROM workspaces WHERE id = '{member.id}'")
    beat = await platform.http.post("/registry/heartbeat", json={"workspace_id": member.id}, headers=member.headers)
    assert await post(platform, member, form(named("a"))) == (200, TAKEN)
    ((_, headers, _),) = agent.called
    assert headers["authorization"] == f"Bearer {beat.json()['platform_inbound_secret']}" == f"Bearer {secret}"


ANSWERS: list[tuple[int, bytes, tuple[int, Any]]] = [
    (201, b'{"files": []}', (201, {"files": []})),
    (204, b"", UNREACHABLE),
    (200, b"[1]", UNREACHABLE),
    (302, b"", (302, {"error": "Found"})),
    (304, b"", (502, {"error": "Not Modified"})),
    (401, b'{"error": {"code": 1}}', (401, {"error": "Unauthorized"})),
    (422, b'{"error": "no", "detail": "full"}', (422, {"error": "no", "detail": "full"})),
]


@only("sqlite")  # the agent is the matter, not the database
async def test_the_agents_word_is_passed_on_in_the_contracts_form(platform: Platform, agent: PushAgent) -> None:
    """JSON objects as they are; from 300 on `error` is a string; redirects are not followed (5.1, conventions)."""
    member = await pushed(platform, agent.url())
    for status, content, told in ANSWERS:
        agent.answer = partial(answer, content, status)
        assert (status, await post(platform, member, form(named("a")))) == (status, told)
    assert len(agent.called) == len(ANSWERS)


@only("sqlite")  # the agent is the matter, not the database
async def test_an_agent_that_answers_early_is_heard(platform: Platform) -> None:
    """It need not have read 10 MB to say that it does not want them (ours)."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 413 Too Large\r\nContent-Length: 15\r\n\r\n{"error": "no"}')
        while await reader.read(65_536):
            pass
        writer.close()

    async with await asyncio.start_server(converse, "127.0.0.1", 0) as server:
        member = await pushed(platform, f"http://localhost:{server.sockets[0].getsockname()[1]}/")
        assert await post(platform, member, form(named("a", b"x" * 10_000_000))) == (413, {"error": "no"})


@only("sqlite")  # the agent is the matter, not the database
async def test_a_body_over_its_cap_breaks_off(config: PlatformConfig, clock: ManualClock) -> None:
    """The agent never gets a whole body out of it; one that says its length is not begun (contract 5.1)."""
    body = form(named("a", b"x" * 9000))
    too_long = (400, {"error": "malformed multipart body", "max": 5000})
    async with running(replace(config, upload_max_request_bytes=5000), clock) as platform:
        async with socket_that_says(hang=True) as agent:
            member = await pushed(platform, agent.url())
            assert await post(platform, member, body) == too_long
            assert agent.heard == []
            assert await post(platform, member, pieces(body, 2000)) == too_long
        assert not any(heard.endswith(b"0\r\n\r\n") for heard in agent.heard)


@only("sqlite")  # the wire is the matter, not the database
async def test_what_is_no_form_is_not_sent_on(platform: Platform, agent: PushAgent) -> None:
    """A type that no header of ours could carry among them (contract 5.1)."""
    member = await pushed(platform, agent.url())
    for content_type in (b"", b"application/json", b"multipart/form-data; boundary=\xe9"):
        reply = await platform.http.post(
            f"/workspaces/{member.id}/chat/uploads", content=b"x", headers=[(b"Content-Type", content_type)]
        )
        assert (reply.status_code, reply.json()) == (400, {"error": "malformed multipart body"})
    assert agent.called == []


@only("sqlite")  # the agent is the matter, not the database
async def test_a_blocked_address_is_not_called(fresh: Platform, platform: Platform, database: Database) -> None:
    """The rule of /a2a holds here too: no address of this machine outside development (contract 2.1)."""
    async with push_agent() as agent:
        member = await pushed(fresh, "https://agent.example/a2a")
        url = agent.url(host="127.0.0.1")
        database.sql(f"UPDATE workspaces SET url = '{url}' WHERE id = '{member.id}'")
        body = form(named("a"))
        reply = await fresh.http.post(
            f"/workspaces/{member.id}/chat/uploads", content=body, headers={"Content-Type": FORM} | member.headers
        )
        assert (reply.status_code, reply.json()) == UNREACHABLE
        assert agent.called == []


@only("sqlite")  # the agent is the matter, not the database
@pytest.mark.parametrize("mode", ["poll", "push"])
async def test_a_sender_that_goes_away_is_nobodys_error(
    platform: Platform, agent: PushAgent, database: Database, mode: str
) -> None:
    """Its connection ends inside the body: nothing staged, nothing logged, no whole body at the agent (ours)."""
    member = await pushed(platform, agent.url()) if mode == "push" else await platform.join()
    messages = [
        {"type": "http.request", "body": form(named("a"))[:60], "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    with capture_logs() as logs:
        await platform.app(upload_scope(member), receive, send)
    assert sent[0]["status"] == 400
    assert [entry for entry in logs if entry["log_level"] != "info"] == []
    assert stock(database) == (0, 0, 0)
    assert agent.called == []


def upload_scope(member: Member) -> dict[str, Any]:
    """A request as a server hands it to the platform."""
    headers = {"host": "localhost", "content-type": FORM, "authorization": f"Bearer {member.token}"}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": f"/workspaces/{member.id}/chat/uploads",
        "raw_path": b"",
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
