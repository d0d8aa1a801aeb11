"""How activity rows become the bubbles of a chat."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from molecule_runtime.reference_platform.services.chat_history import bubbles
from molecule_runtime.wire.activity import ActivityRow

from .support import NOBODY, Database, Member, Platform, fill

FILE = {"uri": "platform-pending:w/f", "name": "a.pdf", "mimeType": "application/pdf", "size": 3}
NOON = datetime(2026, 5, 5, 12, tzinfo=UTC)
Half = tuple[str, str, list[dict[str, Any]] | None]


def asked(*parts: Any) -> dict[str, Any]:
    return {"params": {"message": {"parts": list(parts)}}}


def text(words: str, key: str = "kind") -> dict[str, str]:
    return {key: "text", "text": words}


def file(key: str = "kind", **fields: Any) -> dict[str, Any]:
    return {key: "file", "file": FILE | fields}


FILE_OUT = [FILE]
BARE = {"uri": "https://x/y/z.txt"}

TABLE: list[tuple[str, Any, Any, list[Half]]] = [
    ("first text part", asked(text("one"), text("two")), None, [("user", "one", None)]),
    ("empty text is passed over", asked(text(""), text("two")), None, [("user", "two", None)]),
    ("v0 text part", asked(text("one", "type")), None, [("user", "one", None)]),
    ("user file", asked(file()), None, [("user", "", FILE_OUT)]),
    ("v0 file", asked(text("see"), file("type")), None, [("user", "see", FILE_OUT)]),
    ("file without uri", asked({"kind": "file", "file": {"name": "x"}}), None, []),
    ("name falls back to the base name", asked({"kind": "file", "file": BARE}), None,
     [("user", "", [BARE | {"name": "z.txt"}])]),
    ("flat file", asked({"url": "https://x/a.png", "filename": "b.png", "mediaType": "image/png"}), None,
     [("user", "", [{"uri": "https://x/a.png", "name": "b.png", "mimeType": "image/png"}])]),
    ("prompt of the runtime is hidden", asked(text("Delegation results are ready: 2")), None, []),
    ("hidden text keeps its files", asked(text("Delegation results are ready"), file()), None,
     [("user", "", FILE_OUT)]),
    ("history is not the message", {"params": {"metadata": {"history": [asked(text("old"))]}}}, None, []),
    ("string result", None, {"result": "got it"}, [("agent", "got it", None)]),
    ("result parts by line", None, {"result": {"parts": [text("a"), text("b", "type")]}}, [("agent", "a\nb", None)]),
    ("parts under root", None, {"result": {"parts": [{"root": {"text": "a"}}]}}, [("agent", "a", None)]),
    ("artifacts", None, {"result": {"artifacts": [{"parts": [text("a")]}, {"parts": [text("b")]}]}},
     [("agent", "a\nb", None)]),
    ("task", None, {"task": "done"}, [("agent", "done", None)]),
    ("agent file", None, {"result": "see", "parts": [file()]}, [("agent", "see", FILE_OUT)]),
    ("agent error", None, {"result": "AGENT Error: no"}, [("system", "AGENT Error: no", None)]),
    ("both halves, user first", asked(text("q")), {"result": "a"}, [("user", "q", None), ("agent", "a", None)]),
    ("upload row", {"file_id": NOBODY, "name": "a.pdf", "uri": "platform-pending:w/f"}, None, []),
    ("nothing readable", [1], "text", []),
    ("wrong types throughout", asked(7, None, {"kind": "text", "text": 7}, {"kind": "file", "file": []}),
     {"result": {"parts": "x", "artifacts": [{}]}, "parts": {}}, []),
]  # fmt: skip


def row(request: Any, response: Any, status: str = "ok") -> ActivityRow:
    return ActivityRow(
        id=NOBODY,
        workspace_id=NOBODY,
        activity_type="a2a_receive",
        request_body=request,
        response_body=response,
        status=status,
        created_at=NOON,
    )


@pytest.mark.parametrize(("case", "request_body", "response_body", "expected"), TABLE, ids=[case[0] for case in TABLE])
def test_row_becomes_bubbles(case: str, request_body: Any, response_body: Any, expected: list[Half]) -> None:
    """Each rule of the table: whose text, which files, or no bubble at all (contract 4.5)."""
    found = [
        message.model_dump(mode="json", exclude_none=True) for message in bubbles(row(request_body, response_body))
    ]
    halves = [(message["role"], message["content"], message.get("attachments")) for message in found]
    assert halves == expected
    assert {message["timestamp"] for message in found} <= {"2026-05-05T12:00:00.000000Z"}


def test_agent_half_of_a_failed_row_is_the_systems() -> None:
    """A row with status error speaks with the system's voice (contract 4.5)."""
    (message,) = bubbles(row(None, {"result": "no"}, status="error"))
    assert message.role == "system"


async def page(platform: Platform, member: Member, **params: Any) -> Any:
    reply = await platform.http.get(f"/workspaces/{member.id}/chat-history", params=params, headers=member.headers)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def test_pages_run_backwards_and_read_forwards(platform: Platform) -> None:
    """The newest rows, oldest first; the oldest held timestamp asks for the page before (contract 4.5)."""
    member, peer = await platform.join(), await platform.join("peer")
    for number in range(3):
        await platform.say(member, f"q{number}")
        await platform.http.post(
            f"/workspaces/{member.id}/notify", json={"message": f"a{number}"}, headers=member.headers
        )
    body = {"method": "message/send", "params": {"message": {"parts": [text("from a peer")]}}}
    await platform.http.post(f"/workspaces/{member.id}/a2a", json=body, headers=peer.headers)
    newest = await page(platform, member, limit=4)
    assert [message["content"] for message in newest["messages"]] == ["q1", "a1", "q2", "a2"]
    assert newest["reached_end"] is False
    older = await page(platform, member, limit=4, before_ts=newest["messages"][0]["timestamp"])
    assert [message["content"] for message in older["messages"]] == ["q0", "a0"]
    assert older["reached_end"] is True
    whole = await page(platform, member, limit="nonsense")
    assert len(whole["messages"]) == 6
    again = await page(platform, member)
    assert {message["id"] for message in whole["messages"]}.isdisjoint(message["id"] for message in again["messages"])


async def test_rows_without_bubble_count_towards_the_limit(platform: Platform) -> None:
    """reached_end speaks of rows, not of bubbles (contract 4.5)."""
    member = await platform.join()
    await platform.say(member, "Delegation results are ready")
    answer = await page(platform, member, limit=1)
    assert answer == {"messages": [], "reached_end": False}


async def test_limit_is_capped_at_1000(platform: Platform, database: Database) -> None:
    """More than 1000 rows are never read at once (contract 4.5)."""
    member = await platform.join()
    fill(database, member, 1100)
    assert len((await page(platform, member, limit=5000))["messages"]) == 1000
    assert len((await page(platform, member))["messages"]) == 100


async def test_bad_requests_and_a_failing_store(platform: Platform, database: Database) -> None:
    """The route's own texts (contract 4.5, R22)."""
    member = await platform.join()
    bad_id = await platform.http.get("/workspaces/nope/chat-history")
    assert (bad_id.status_code, bad_id.json()) == (400, {"error": "workspace id must be a UUID"})
    database.sql("DROP TABLE activity_logs")
    failed = await platform.http.get(f"/workspaces/{member.id}/chat-history")
    assert (failed.status_code, failed.json()) == (502, {"error": "chat history unavailable"})
