"""Messages to an agent: what is stored, who may send, and in which order a sender is denied."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .support import NOBODY, Database, Member, Platform, bearer, canvas_message


async def send(platform: Platform, target_id: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    reply = await platform.http.post(f"/workspaces/{target_id}/a2a", json=body, headers=headers)
    return reply.status_code, reply.json()


QUEUED = (200, {"status": "queued", "delivery_mode": "poll", "method": "message/send"})
DENIED = (403, {"error": "access denied: workspaces cannot communicate per hierarchy rules"})
NOT_FOUND = (404, {"error": "workspace not found"})


async def test_canvas_message_becomes_a_wrapped_row_and_an_event(platform: Platform) -> None:
    """The row holds the whole normalised envelope, history included; source is null (contract 4.1)."""
    member = await platform.join()
    posted = canvas_message("hello 世界")
    posted["params"]["metadata"]["history"] = [{"role": "user", "parts": []}]
    posted["stray"] = "lost"
    with platform.parts.bus.subscribe() as events:
        assert await send(platform, member.id, posted) == QUEUED
        heard = await platform.heard(events)
    (row,) = await platform.rows(member)
    body = row["request_body"]
    assert body == {
        "jsonrpc": "2.0",
        "id": body["id"],
        "method": "message/send",
        "params": {
            "message": posted["params"]["message"] | {"messageId": body["params"]["message"]["messageId"]},
            "metadata": posted["params"]["metadata"],
        },
    }
    assert row == {
        "id": row["id"],
        "workspace_id": member.id,
        "activity_type": "a2a_receive",
        "source_id": None,
        "target_id": member.id,
        "method": "message/send",
        "summary": "message/send → laptop (queued for poll)",
        "request_body": body,
        "duration_ms": None,
        "status": "ok",
        "error_detail": None,
        "created_at": row["created_at"],
        "seq": 1,
    }
    assert heard == [
        (
            "ACTIVITY_LOGGED",
            {
                "activity_type": "a2a_receive",
                "method": "message/send",
                "summary": row["summary"],
                "status": "ok",
                "source_id": None,
                "target_id": member.id,
                "duration_ms": None,
                "request_body": body,
            },
        )
    ]


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ({"content": "hi"}, [{"kind": "text", "text": "hi"}]),
        ({"content": [{"type": "text", "text": "hi"}]}, [{"type": "text", "text": "hi"}]),
        ({"parts": [], "content": "kept"}, []),
    ],
)
async def test_old_content_becomes_parts(platform: Platform, message: dict[str, Any], parts: list[Any]) -> None:
    """v0.2 `content` is turned into parts and removed; existing parts win (contract 4.1)."""
    member = await platform.join()
    body = {"jsonrpc": "2.0", "id": "1", "method": "message/send", "params": {"message": message}}
    assert await send(platform, member.id, body) == QUEUED
    (row,) = await platform.rows(member)
    stored = row["request_body"]["params"]["message"]
    assert stored["parts"] == parts
    assert ("content" in stored) == ("parts" in message)
    assert stored["messageId"]


async def test_shorthand_passes_and_loses_its_parts(platform: Platform) -> None:
    """A body of bare parts is wrapped like any other, with params null (contract 4.1)."""
    member = await platform.join()
    assert await send(platform, member.id, {"parts": [{"kind": "text", "text": "x"}]}) == QUEUED
    (row,) = await platform.rows(member)
    assert row["request_body"] | {"id": ""} == {"jsonrpc": "2.0", "id": "", "method": None, "params": None}


@pytest.mark.parametrize("method", ["notify", "chat_upload_receive", "delegate_result"])
@pytest.mark.parametrize("jsonrpc", [{}, {"jsonrpc": "2.0"}])
async def test_reserved_methods_cannot_be_sent(platform: Platform, method: str, jsonrpc: dict[str, str]) -> None:
    """Rows that the platform itself writes cannot be forged from outside (contract 0.3)."""
    member = await platform.join()
    body = canvas_message() | {"method": method} | jsonrpc
    assert await send(platform, member.id, body) == (400, {"error": "reserved method"})
    assert await send(platform, member.id, body, member.headers) == (400, {"error": "reserved method"})
    assert await platform.rows(member) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'"x"', b"7", b"null", b"\xff", b'{"a": NaN}', b'{"a": 1e999}', b"[" * 100_000],
)
async def test_what_is_no_json_object_is_refused(platform: Platform, content: bytes) -> None:
    """Everything but a JSON object is `invalid JSON` (contract 4.1)."""
    member = await platform.join()
    reply = await platform.http.post(f"/workspaces/{member.id}/a2a", content=content)
    assert (reply.status_code, reply.json()) == (400, {"error": "invalid JSON"})


async def test_body_over_one_mebibyte_is_cut_and_so_refused(platform: Platform) -> None:
    """1 MiB is read; exactly that passes, one byte more is broken JSON (contract 4.1)."""
    member = await platform.join()
    empty = len(json.dumps(canvas_message("")))
    exact = json.dumps(canvas_message("x" * (1_048_576 - empty)))
    for content, status in ((exact, 200), (exact.replace('"x', '"xx', 1), 400)):
        reply = await platform.http.post(f"/workspaces/{member.id}/a2a", content=content)
        assert reply.status_code == status


async def test_peer_is_named_by_header_and_bearer_or_by_bearer_alone(platform: Platform) -> None:
    """The source of a row is the workspace that proved itself (contract 4.1 a, b)."""
    ours, peer = await platform.join("ours"), await platform.join("peer")
    assert await send(platform, ours.id, canvas_message(), bearer(peer.token, **{"X-Workspace-ID": peer.id})) == QUEUED
    assert await send(platform, ours.id, canvas_message(), peer.headers) == QUEUED
    assert await send(platform, ours.id, canvas_message(), ours.headers) == QUEUED
    assert [row["source_id"] for row in await platform.rows(ours)] == [ours.id, peer.id, peer.id]


async def test_hierarchy_decides_who_may_send(platform: Platform) -> None:
    """Siblings, ancestors and descendants may; cousins and uncles may not; the user always may (contract 2.9, 4.1)."""
    root = await platform.join("root")
    child = await platform.join("child", parent_id=root.id)
    grandchild = await platform.join("grandchild", parent_id=child.id)
    other_child = await platform.join("other child", parent_id=root.id)
    other_root = await platform.join("other root")

    async def may(source: Member, target: Member) -> bool:
        answer = await send(platform, target.id, canvas_message(), source.headers)
        assert answer in (QUEUED, DENIED)
        return answer == QUEUED

    assert await may(root, root)
    assert await may(root, other_root)
    assert await may(root, grandchild)
    assert await may(grandchild, root)
    assert await may(child, other_child)
    assert not await may(other_child, grandchild)
    assert not await may(grandchild, other_child)
    assert not await may(other_root, child)
    assert not await may(child, other_root)
    assert await send(platform, grandchild.id, canvas_message()) == QUEUED


async def test_unknown_target_is_404_for_the_user_and_403_for_a_workspace(platform: Platform) -> None:
    """A workspace cannot find out by trial which ids exist (contract 4.1)."""
    member = await platform.join()
    assert await send(platform, NOBODY, canvas_message()) == NOT_FOUND
    assert await send(platform, NOBODY, canvas_message(), member.headers) == DENIED
    assert await send(platform, "nope", canvas_message()) == (400, {"error": "invalid workspace ID"})


async def test_removed_target_is_404_for_everybody_and_gets_no_row(platform: Platform, database: Database) -> None:
    """Nothing is written for a workspace that is gone (contract 4.1 PROPOSED)."""
    ours, peer = await platform.join("ours"), await platform.join("peer")
    await platform.http.delete(f"/workspaces/{ours.id}")
    assert await send(platform, ours.id, canvas_message()) == NOT_FOUND
    assert await send(platform, ours.id, canvas_message(), peer.headers) == NOT_FOUND
    assert database.sql("SELECT count(*) FROM activity_logs") == [(0,)]


async def test_denials_come_in_the_contracts_order(platform: Platform, database: Database) -> None:
    """Caller, token, removed, hierarchy, budget, body: each is told only to who passed those before (contract 4.1)."""
    root = await platform.join("root")
    member = await platform.join("member", parent_id=root.id)
    stranger = await platform.join("stranger")
    database.sql(f"UPDATE workspaces SET budget_limit = 5, monthly_spend = 5 WHERE id = '{member.id}'")
    url = f"/workspaces/{member.id}/a2a"
    over_budget = await platform.http.post(url, content=b"{", headers=root.headers)
    assert (over_budget.status_code, over_budget.json()) == (402, {"error": "workspace budget limit exceeded"})
    denied = await platform.http.post(url, content=b"{", headers=stranger.headers)
    assert (denied.status_code, denied.json()) == DENIED
    forged = bearer("wrong", **{"X-Workspace-ID": stranger.id})
    assert (await platform.http.post(url, content=b"{", headers=forged)).status_code == 401
    await platform.http.delete(f"/workspaces/{member.id}")
    gone = await platform.http.post(url, content=b"{", headers=stranger.headers)
    assert (gone.status_code, gone.json()) == NOT_FOUND


async def test_store_failure_is_500(platform: Platform, database: Database) -> None:
    """A row that cannot be written is an error for the sender, not a queued message (R22)."""
    member = await platform.join()
    database.refuse("INSERT", "activity_logs")
    with platform.parts.bus.subscribe() as events:
        assert (await send(platform, member.id, canvas_message()))[0] == 500
        assert await platform.heard(events) == []
