"""What agents report of themselves."""

from __future__ import annotations

from typing import Any

import pytest

from .support import NOBODY, Database, Member, Platform

LOGGED = (200, {"status": "logged"})
REPORT = {
    "activity_type": "a2a_send",
    "method": "message/send",
    "summary": "asked 世界",
    "status": "error",
    "error_detail": "timed out",
    "duration_ms": 120,
    "request_body": {"q": 1},
    "response_body": {"a": 2},
}


async def report(platform: Platform, member: Member, body: Any) -> tuple[int, Any]:
    reply = await platform.http.post(f"/workspaces/{member.id}/activity", json=body, headers=member.headers)
    return reply.status_code, reply.json()


async def test_a_report_becomes_a_row_and_an_event(platform: Platform) -> None:
    """Every field is stored, the source is the reporter, and the canvas hears it with its bodies (contract 4.4)."""
    ours, peer = await platform.join("ours"), await platform.join("peer")
    with platform.parts.bus.subscribe() as events:
        assert await report(platform, ours, REPORT | {"target_id": peer.id.upper()}) == LOGGED
        heard = await platform.heard(events)
    (row,) = await platform.rows(ours)
    assert row.items() >= (REPORT | {"source_id": ours.id, "target_id": peer.id, "seq": 1}).items()
    expected = REPORT | {"source_id": ours.id, "target_id": peer.id}
    del expected["error_detail"]
    assert heard == [("ACTIVITY_LOGGED", expected)]
    assert await platform.rows(peer) == []


async def test_the_least_report(platform: Platform) -> None:
    """Only the type is required; status is ok, source is self, also for an empty one (contract 4.4)."""
    member = await platform.join()
    for body in ({}, {"source_id": "", "status": "", "target_id": ""}, {"source_id": member.id.upper()}):
        assert await report(platform, member, {"activity_type": "agent_log"} | body) == LOGGED
    rows = await platform.rows(member)
    assert {(row["status"], row["source_id"], row["target_id"]) for row in rows} == {("ok", member.id, None)}
    assert not any("request_body" in row for row in rows)


async def test_metadata_stands_in_for_a_missing_request_body(platform: Platform) -> None:
    """It never replaces one (contract 4.4)."""
    member = await platform.join()
    base = {"activity_type": "task_update", "metadata": {"m": 3}}
    assert await report(platform, member, base) == LOGGED
    assert await report(platform, member, base | {"request_body": {}}) == LOGGED
    assert [row["request_body"] for row in await platform.rows(member)] == [{}, {"m": 3}]


@pytest.mark.parametrize(("field", "cap"), [("summary", 256), ("error_detail", 4096)])
async def test_long_texts_are_cut_by_code_point(platform: Platform, field: str, cap: int) -> None:
    """A summary has at most 256 and an error 4096 code points, whole ones, the mark included (contract 4.4)."""
    member = await platform.join()
    for length in (cap, cap + 1):
        assert await report(platform, member, {"activity_type": "error", field: "🌍" * length}) == LOGGED
    cut, whole = [row[field] for row in await platform.rows(member)]
    assert (cut, whole) == ("🌍" * (cap - 1) + "…", "🌍" * cap)


@pytest.mark.parametrize(
    "fields",
    [
        {"summary": 7},
        {"duration_ms": "1"},
        {"target_id": "nope"},
        {"status": "x" * 33},
        {"activity_type": 7},
    ],
)
async def test_a_field_that_does_not_fit_is_refused(platform: Platform, fields: dict[str, Any]) -> None:
    """Types are not guessed (contract, conventions)."""
    member = await platform.join()
    answer = await report(platform, member, {"activity_type": "agent_log"} | fields)
    assert answer == (400, {"error": "invalid request body"})


async def test_nobody_reports_in_anothers_name(platform: Platform, locked: Platform) -> None:
    """403 and no row, also for an administrator and for a name that is no id (contract 4.4)."""
    for mode in (platform, locked):
        ours, peer = await mode.join("ours"), await mode.join("peer")
        for source in (peer.id, "nope"):
            for headers in (ours.headers, mode.admin):
                body = {"activity_type": "agent_log", "source_id": source}
                reply = await mode.http.post(f"/workspaces/{ours.id}/activity", json=body, headers=headers)
                answer = (reply.status_code, reply.json())
                assert answer == (403, {"error": "source_id must match authenticated workspace"})
        assert await mode.rows(ours) == []


async def test_a_row_that_cannot_be_written_is_still_logged(platform: Platform, database: Database) -> None:
    """200 without row and event; an unknown workspace is 404 all the same (contract 4.4, R22)."""
    member = await platform.join()
    database.refuse("INSERT", "activity_logs")
    with platform.parts.bus.subscribe() as events:
        assert await report(platform, member, REPORT) == LOGGED
        assert await platform.heard(events) == []
    reply = await platform.http.post(f"/workspaces/{NOBODY}/activity", json=REPORT)
    assert (reply.status_code, reply.json()) == (404, {"error": "workspace not found"})
