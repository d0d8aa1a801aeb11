"""Reading requests: what is JSON here, what is not, and what a bug looks like from outside."""

from __future__ import annotations

import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from .support import CARD, NOBODY, Database, Platform

INVALID = (400, {"error": "invalid request body"})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"workspace_id": 7}',
        '{"workspace_id": "nope"}',
        f'{{"workspace_id": "{NOBODY}", "active_tasks": "3"}}',
        f'{{"workspace_id": "{NOBODY}", "active_tasks": 1.5}}',
        f'{{"workspace_id": "{NOBODY}", "active_tasks": 99999999999999999999}}',
        f'{{"workspace_id": "{NOBODY}", "error_rate": 1e999}}',
        f'{{"workspace_id": "{NOBODY}", "error_rate": NaN}}',
        f'{{"workspace_id": "{NOBODY}", "runtime_metadata": []}}',
    ],
)
async def test_bad_heartbeat_bodies(platform: Platform, content: str) -> None:
    """Malformed JSON, missing fields and other types are one 400 (contract, conventions)."""
    reply = await platform.http.post("/registry/heartbeat", content=content)
    assert (reply.status_code, reply.json()) == INVALID


async def test_null_means_absent_and_unknown_fields_are_ignored(platform: Platform) -> None:
    """A field may be null where it may be missing (contract, conventions)."""
    member = await platform.join()
    await platform.beat(member, active_tasks=None, current_task=None, runtime_metadata=None, from_the_future={"x": 1})
    await platform.register(member, url=None, kind="x", mcp_server_present=True)


async def test_body_over_one_mebibyte_is_invalid(platform: Platform) -> None:
    """The body is cut at 1 MiB and so is no JSON any more (contract, conventions)."""
    member = await platform.join()
    body = json.dumps({"workspace_id": member.id, "padding": "x" * 1_048_576})
    reply = await platform.http.post("/registry/heartbeat", content=body, headers=member.headers)
    assert (reply.status_code, reply.json()) == INVALID


async def test_lone_surrogates_become_replacement_characters_everywhere(platform: Platform) -> None:
    """JSON can spell what UTF-8 cannot; it is stored and sent as U+FFFD (ours, R4)."""
    member = await platform.join()
    card = r'{"name": "a\ud83d", "skills": ["\udc00"], "\ud800": "😀 \ud83d\ude00"}'
    body = f'{{"id": "{member.id}", "delivery_mode": "poll", "agent_card": {card}}}'
    reply = await platform.http.post("/registry/register", content=body, headers=member.headers)
    assert reply.status_code == 200
    stored = (await platform.http.get(f"/workspaces/{member.id}")).json()["agent_card"]
    assert stored == {"name": "a\ufffd", "skills": ["\ufffd"], "\ufffd": "😀 😀"}


async def test_a_bug_is_a_logged_traceback_and_a_plain_500(platform: Platform, database: Database) -> None:
    """Nothing of the inside shows outside, and the answer still has the contract's form (ours, style 3.7)."""
    member = await platform.join()
    database.sql("UPDATE workspaces SET agent_card = '[1]'")
    with capture_logs() as logs:
        reply = await platform.http.get(f"/workspaces/{member.id}")
    assert (reply.status_code, reply.json()) == (500, {"error": "internal error"})
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert [(entry["event"], entry["endpoint"]) for entry in logs] == [("request.failed", "GET /workspaces/:id")]
    metrics = (await platform.http.get("/metrics")).text
    assert 'molecule_http_requests_total{method="GET",path="/workspaces/:id",status="500"} 1.0' in metrics


@pytest.mark.parametrize("begun", [b"", b'{"workspace_id": "'])
async def test_a_client_that_goes_away_inside_its_body_is_nobodys_error(platform: Platform, begun: bytes) -> None:
    """It was killed: no bug of the platform's, so no traceback and no 500 among the counts (ours)."""
    messages = [{"type": "http.request", "body": begun, "more_body": True}, {"type": "http.disconnect"}]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/registry/heartbeat",
        "raw_path": b"",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    with capture_logs() as logs:
        await platform.app(scope, receive, send)
    assert (sent[0]["status"], logs) == (400, [])


async def test_logs_hold_neither_tokens_nor_messages(platform: Platform) -> None:
    """What the platform logs of an ordinary day names ids only (ours, style 4)."""
    with capture_logs() as logs:
        member = await platform.join(role="secret role")
        await platform.say(member, "secret words")
        await platform.http.post(
            f"/workspaces/{member.id}/notify", json={"message": "secret words"}, headers=member.headers
        )
        await platform.http.get(f"/workspaces/{member.id}/activity", headers={"Authorization": "Bearer secret"})
    told = json.dumps(logs, default=str)
    assert [entry["event"] for entry in logs] == ["workspace.created", "presence.registered"]
    assert member.token not in told
    assert "secret" not in told
    assert json.dumps(CARD) not in told
