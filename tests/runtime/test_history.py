"""What was said before, read back from the reference platform."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from molecule_runtime import history, messages
from molecule_runtime.history import Page
from molecule_runtime.wire.activity import ActivityReport
from tests.reference_platform.support import Member, Platform

from .support import client_of


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
