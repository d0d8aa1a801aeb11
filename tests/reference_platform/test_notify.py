"""What an agent tells the user: one writer, its order, and what happens when the store fails."""

from __future__ import annotations

import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from .support import NOBODY, Database, Platform

FAMILY = "👩‍👩‍👧"


async def notify(platform: Platform, workspace_id: str, body: dict[str, Any], **headers: Any) -> tuple[int, Any]:
    reply = await platform.http.post(f"/workspaces/{workspace_id}/notify", json=body, **headers)
    return reply.status_code, reply.json()


async def test_message_is_broadcast_and_stored_without_activity_event(platform: Platform) -> None:
    """One AGENT_MESSAGE, one row of the given form, no ACTIVITY_LOGGED, no attachments key (contract 4.2)."""
    member = await platform.join()
    with platform.parts.bus.subscribe() as events:
        assert await notify(platform, member.id, {"message": "got it"}, headers=member.headers) == (
            200,
            {"status": "sent"},
        )
        assert await platform.heard(events) == [
            ("AGENT_MESSAGE", {"message": "got it", "workspace_id": member.id, "name": "laptop"})
        ]
    (row,) = await platform.rows(member)
    assert row == {
        "id": row["id"],
        "workspace_id": member.id,
        "activity_type": "a2a_receive",
        "source_id": None,
        "target_id": None,
        "method": "notify",
        "summary": "Agent message: got it",
        "response_body": {"result": "got it"},
        "duration_ms": None,
        "status": "ok",
        "error_detail": None,
        "created_at": row["created_at"],
        "seq": 1,
    }


async def test_attachments_have_lower_case_keys_in_event_and_row(platform: Platform) -> None:
    """The keys are uri, name, mimeType, size; absent ones stay absent, a row has no size 0 (contract 4.2)."""
    member = await platform.join()
    files = [
        {"uri": "platform-pending:a/b", "name": "a.pdf", "mimeType": "application/pdf", "size": 123},
        {"uri": "workspace:/x", "name": "x", "size": 0, "URI": "ignored"},
    ]
    with platform.parts.bus.subscribe() as events:
        await notify(platform, member.id, {"message": "see", "attachments": files}, headers=member.headers)
        ((_, payload),) = await platform.heard(events)
    assert payload["attachments"] == [files[0], {"uri": "workspace:/x", "name": "x", "size": 0}]
    (row,) = await platform.rows(member)
    assert row["response_body"] == {
        "result": "see",
        "parts": [
            {"kind": "file", "file": files[0]},
            {"kind": "file", "file": {"uri": "workspace:/x", "name": "x"}},
        ],
    }


async def test_empty_attachment_list_is_no_attachment(platform: Platform) -> None:
    """[] and null leave the key out everywhere (contract 4.2)."""
    member = await platform.join()
    with platform.parts.bus.subscribe() as events:
        for nothing in ([], None):
            await notify(platform, member.id, {"message": "x", "attachments": nothing}, headers=member.headers)
        assert all("attachments" not in payload for _, payload in await platform.heard(events))
    assert all("parts" not in row["response_body"] for row in await platform.rows(member))


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("a" * 80, "a" * 80),
        ("a" * 81, "a" * 80 + "…"),
        ("世" * 80, "世" * 80),
        ("世" * 81, "世" * 80 + "…"),
        ("🌍" * 80, "🌍" * 80),
        ("a" * 79 + "🌍b", "a" * 79 + "🌍…"),
        (FAMILY * 30, (FAMILY * 30)[:80] + "…"),
        ("a\ud800b", "a\ufffdb"),
        ("nul\x00nul", "nulnul"),
    ],
)
async def test_summary_is_80_code_points_of_valid_utf8(platform: Platform, message: str, shown: str) -> None:
    """Previews are cut between code points, and marked only when something is left out (contract 4.2, R4)."""
    member = await platform.join()
    content = json.dumps({"message": message})  # escapes what UTF-8 cannot say
    await platform.http.post(f"/workspaces/{member.id}/notify", content=content, headers=member.headers)
    (row,) = await platform.rows(member)
    assert row["summary"] == "Agent message: " + shown
    assert row["summary"].encode()
    if "\ud800" not in message:
        assert row["response_body"]["result"] == message


@pytest.mark.parametrize("gone", ["unknown", "removed"])
async def test_unknown_workspace_gets_404_no_broadcast_no_row(
    platform: Platform, database: Database, gone: str
) -> None:
    """The look-up comes first: nobody hears of a message of a workspace that is not there (contract 4.2)."""
    member = await platform.join()
    target = NOBODY if gone == "unknown" else member.id
    if gone == "removed":
        await platform.http.delete(f"/workspaces/{member.id}")
    with platform.parts.bus.subscribe() as events:
        assert await notify(platform, target, {"message": "x"}) == (404, {"error": "workspace not found"})
        assert await platform.heard(events) == []
    assert database.sql("SELECT count(*) FROM activity_logs") == [(0,)]


async def test_failing_lookup_is_500_no_broadcast_no_row(platform: Platform, database: Database) -> None:
    """A store failure is told apart from not-found (contract 4.2, R3, R22)."""
    member = await platform.join()
    database.sql("ALTER TABLE workspaces RENAME TO hidden")
    with platform.parts.bus.subscribe() as events:
        assert await notify(platform, member.id, {"message": "x"}) == (500, {"error": "internal error"})
        assert await platform.heard(events) == []
    assert database.sql("SELECT count(*) FROM activity_logs") == [(0,)]


async def test_failing_insert_is_logged_and_the_call_succeeds(platform: Platform, database: Database) -> None:
    """The user has seen the message, so the sender must not send it again (contract 4.2)."""
    member = await platform.join()
    database.refuse("INSERT", "activity_logs")
    with platform.parts.bus.subscribe() as events, capture_logs() as logs:
        assert await notify(platform, member.id, {"message": "x"}, headers=member.headers) == (200, {"status": "sent"})
        assert [name for name, _ in await platform.heard(events)] == ["AGENT_MESSAGE"]
    assert [(entry["event"], entry["workspace_id"]) for entry in logs] == [("message.persist_failed", member.id)]
    assert await platform.rows(member) == []


async def test_broadcast_comes_before_the_row(platform: Platform, database: Database) -> None:
    """Whoever hears the message first finds the row later, not the other way round (contract 4.2)."""
    member = await platform.join()
    seen: list[int] = []
    bus = platform.parts.bus
    with bus.subscribe() as events:
        offer = events.offer

        def count_rows_at_delivery(event: Any) -> None:
            seen.extend(count for (count,) in database.sql("SELECT count(*) FROM activity_logs"))
            offer(event)

        events.offer = count_rows_at_delivery  # type: ignore[method-assign]
        await notify(platform, member.id, {"message": "x"}, headers=member.headers)
    assert seen == [0]
    assert database.sql("SELECT count(*) FROM activity_logs") == [(1,)]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, "message is required"),
        ({"message": 7}, "message is required"),
        ({"message": "x", "attachments": {}}, "invalid request body"),
        ({"message": "x", "attachments": ["y"]}, "attachment[0]: uri and name are required"),
        ({"message": "x", "attachments": [{"uri": "u", "name": "n"}, {}]}, "attachment[1]: uri and name are required"),
        ([], "invalid request body"),
    ],
)
async def test_bad_bodies_are_refused(platform: Platform, body: Any, error: str) -> None:
    """400 with the contract's text, before anything is broadcast (contract 4.2)."""
    member = await platform.join()
    with platform.parts.bus.subscribe() as events:
        assert await notify(platform, member.id, body, headers=member.headers) == (400, {"error": error})
        assert await platform.heard(events) == []
