"""What was said before, read back from the reference platform."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx

from molecule_runtime import history, messages
from molecule_runtime.history import Page
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.wire.activity import ActivityReport
from tests.reference_platform.delegations import answer, delegated, update
from tests.reference_platform.support import BASE_URL, Member, Platform
from tests.reference_platform.support import running as running_platform

from .rows import row
from .support import PEER, WORKSPACE, client_of, lone_client

JOB = "55555555-5555-4555-8555-555555555555"


def said(page: Page) -> list[tuple[str, str]]:
    return [(line.speaker.value, line.text) for line in page.lines]


async def test_the_chat_with_the_user_is_paged_from_its_end(platform: Platform, member: Member) -> None:
    """agent-side 5, chat_history: oldest first; contract 4.5."""
    await platform.register(member)
    async with client_of(platform, member) as client:
        for text in ("one", "two", "three"):
            await platform.say(member, text)
            await messages.send_to_user(client, f"{text}? 你好")
        newest = await history.with_user(client, 2)
        assert (said(newest), newest.reached_end) == ([("user", "three"), ("agent", "three? 你好")], False)
        older = await history.with_user(client, 10, datetime.fromisoformat(newest.lines[0].created_at))
    assert said(older) == [("user", "one"), ("agent", "one? 你好"), ("user", "two"), ("agent", "two? 你好")]
    assert older.reached_end


async def test_the_files_of_a_chat_are_named(platform: Platform, member: Member) -> None:
    """agent-side 5: text and attachments, not raw rows."""
    file = {"kind": "file", "file": {"uri": "platform-pending:x/y", "name": "a.pdf", "size": 7}}
    body: dict[str, Any] = {"method": "message/send", "params": {"message": {"role": "user", "parts": [file]}}}
    assert (await platform.http.post(f"/workspaces/{member.id}/a2a", json=body)).status_code == 200
    async with client_of(platform, member) as client:
        (line,) = (await history.with_user(client, 10)).lines
    assert [(part.name, part.size) for part in line.files] == [("a.pdf", 7)]


async def test_a_talk_with_a_peer_has_both_sides_and_nobody_elses(platform: Platform, member: Member) -> None:
    """Contract 4.3: what it said is in our log; what we said is there because we report it (4.4)."""
    await platform.register(member)
    peer, other = await platform.join("peer"), await platform.join("other")
    await platform.say(member, "the user, not a peer")
    async with client_of(platform, member) as ours, client_of(platform, peer) as theirs:
        await messages.send_to_peer(theirs, member.id, "can you?")
        await messages.send_to_peer(ours, peer.id, "I can")
        await messages.report_sent(ours, peer.id, "I can", answer=None)
        await messages.send_to_peer(ours, other.id, "not for the peer")
        await messages.report_sent(ours, other.id, "not for the peer", answer="at once")
        page = await history.with_peer(ours, peer.id, 10)
        assert (said(page), page.reached_end) == ([("peer", "can you?"), ("agent", "I can")], True)
        first = await history.with_peer(ours, peer.id, 1)
        assert (said(first), first.reached_end) == ([("agent", "I can")], False)
        before = datetime.fromisoformat(first.lines[0].created_at)
        assert said(await history.with_peer(ours, peer.id, 1, before)) == [("peer", "can you?")]
        assert said(await history.with_peer(ours, other.id, 10)) == [("agent", "not for the peer"), ("peer", "at once")]


async def test_rows_that_are_no_part_of_a_talk_are_passed_over_page_by_page(platform: Platform, member: Member) -> None:
    """agent-side 5: what is older stays reachable behind a page of other rows."""
    await platform.register(member)
    peer = await platform.join("peer")
    async with client_of(platform, member) as client:
        await messages.report_sent(client, peer.id, "long ago", answer=None)
        for _ in range(3):
            await client.report(ActivityReport(activity_type="agent_log", target_id=peer.id, summary="thinking"))
        page = await history.with_peer(client, peer.id, 2)
        assert (page.lines, page.reached_end) == ((), False)
        assert page.oldest is not None
        older = await history.with_peer(client, peer.id, 2, datetime.fromisoformat(page.oldest))
    assert said(older) == [("agent", "long ago")]


async def test_a_job_and_its_result_are_lines_of_the_talk_once_each(platform: Platform, member: Member) -> None:
    """Contract 6.1: rows of the type delegation; the result's row in the inbox (6.6) names no peer and is not shown."""
    await platform.register(member)
    peer, other = await platform.join("peer"), await platform.join("other")
    async with client_of(platform, member) as ours, client_of(platform, peer) as theirs:
        job = await delegated(platform, member, peer, "Count the stars 🌟")
        await messages.send_to_peer(theirs, member.id, "which sky?")
        await answer(platform, peer, member, job, "9110 世界")
        lost = await delegated(platform, member, peer, "Count the sand")
        await update(platform, member, lost, "failed", error="the tide came")
        open_ = await delegated(platform, member, peer, "Count the waves")
        await delegated(platform, member, other, "not for the peer")
        page = await history.with_peer(ours, peer.id, 20)
        assert said(page) == [
            ("agent", "Count the stars 🌟"),
            ("peer", "9110 世界"),
            ("peer", "which sky?"),
            ("agent", "Count the sand"),
            ("system", "the tide came"),
            ("agent", "Count the waves"),
        ]
        assert [line.delegation_id for line in page.lines] == [job, job, None, lost, None, open_]
        read: list[tuple[str, str]] = []
        last: Page | None = None
        while last is None or not last.reached_end:
            before = datetime.fromisoformat(last.oldest) if last is not None and last.oldest is not None else None
            last = await history.with_peer(ours, peer.id, 1, before)
            read = said(last) + read
        assert read == said(page)


async def test_the_talk_of_a_worker_has_the_job_and_its_answer(platform: Platform, member: Member) -> None:
    """Contract 0.8: the job is the peer's message, the answer what we reported that we said."""
    await platform.register(member)
    boss = await platform.join("boss")
    job = await delegated(platform, boss, member, "Count")
    async with client_of(platform, member) as ours:
        await messages.send_to_peer(ours, boss.id, "three", delegation_id=job)
        await messages.report_sent(ours, boss.id, "three", answer=None)
        page = await history.with_peer(ours, boss.id, 10)
    assert [(line.speaker.value, line.text, line.delegation_id) for line in page.lines] == [
        ("peer", "Count", job),
        ("agent", "three", None),
    ]


async def test_a_result_that_came_as_a_message_is_one_line_and_a_correction_another(tmp_path: Path) -> None:
    """Contract 6.6, push off: the answer is an ordinary row and the result's row has the same words."""
    database = str(tmp_path / "platform.sqlite3")
    config = PlatformConfig(database=database, port=0, delegation_result_inbox_push=False)
    async with running_platform(config) as platform:
        boss, peer = await platform.join("boss"), await platform.join("peer")
        job = await delegated(platform, boss, peer, "Count")
        async with client_of(platform, peer) as theirs:
            await messages.send_to_peer(theirs, boss.id, "one moment")
        await answer(platform, peer, boss, job, "three")
        await answer(platform, peer, boss, job, "no, four")
        async with client_of(platform, boss) as ours:
            page = await history.with_peer(ours, peer.id, 10)
    assert said(page) == [("agent", "Count"), ("peer", "one moment"), ("peer", "three"), ("peer", "no, four")]


@pytest.mark.parametrize("text", ['{"status": "queued", "delivery_mode": "poll"}', '{"queued": true}', None])
async def test_a_note_that_a_peer_will_answer_is_not_its_answer(text: str | None, respx_mock: respx.MockRouter) -> None:
    """Contract 6.1: some platforms close a job with the queued envelope for its text, or say queued."""
    common = {"activity_type": "delegation", "source_id": WORKSPACE, "target_id": PEER}
    status = "queued" if text is None else "completed"
    rows = [
        row(2, method="delegate_result", status=status, response_body={"text": text, "delegation_id": JOB}, **common),
        row(1, method="delegate", status=status, request_body={"task": '{"queued": true}'}, **common),
    ]
    listed = respx_mock.get(f"{BASE_URL}/workspaces/{WORKSPACE}/activity").mock(httpx.Response(200, json=rows))
    async with lone_client() as client:
        page = await history.with_peer(client, PEER, 10)
    assert said(page) == [("agent", '{"queued": true}')]
    assert listed.called
