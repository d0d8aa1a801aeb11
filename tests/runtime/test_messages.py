"""Saying something, and answering where a message came from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import respx

from molecule_runtime import messages
from molecule_runtime.attachments import AttachmentPolicy
from molecule_runtime.client import PlatformClient
from molecule_runtime.clock import ManualClock
from molecule_runtime.errors import (
    AttachmentRefused,
    InvalidArgument,
    MessageUnknown,
    NotFound,
    PeerRefused,
    Rejected,
    Unavailable,
)
from molecule_runtime.inbox.classify import Kind
from molecule_runtime.inbox.journal import Counts, Journal
from molecule_runtime.inbox.mailbox import Mailbox
from molecule_runtime.messages import Enclosed, Replied
from molecule_runtime.peers import PeerDirectory
from molecule_runtime.state import WorkspaceState
from tests.reference_platform.support import BASE_URL, Member, Platform

from .support import PEER, WORKSPACE, client_of, exchange, lone_client, message, until

FIRST = message(1).activity_id
NOTIFY = f"{BASE_URL}/workspaces/{WORKSPACE}/notify"
TO_PEER = f"{BASE_URL}/workspaces/{PEER}/a2a"
REPORT = f"{BASE_URL}/workspaces/{WORKSPACE}/activity"


@pytest.fixture
async def mailbox(state: WorkspaceState, clock: ManualClock) -> AsyncIterator[Mailbox]:
    """An inbox of its own; `holding` puts a message into it."""
    journal = Journal.open(state.journal)
    async with lone_client() as client:
        mailbox = Mailbox(
            journal,
            state,
            workspace_id=WORKSPACE,
            clock=clock,
            directory=PeerDirectory(client, clock=clock),
            lease_s=600,
        )
        mailbox.open_session()
        yield mailbox
    journal.close()


def holding(mailbox: Mailbox, **fields: Any) -> Mailbox:
    mailbox._journal.append([message(1, **fields)], cursor="c", last_row_at=1.0, now=1.0)
    return mailbox


async def chat(platform: Platform, member: Member) -> list[tuple[str, str]]:
    answer = await platform.http.get(f"/workspaces/{member.id}/chat-history", headers=member.headers)
    return [(one["role"], one["content"]) for one in answer.json()["messages"]]


async def counts(mailbox: Mailbox) -> Counts:
    await mailbox.recount()
    return mailbox.counts()


async def test_the_user_is_answered_in_the_chat_and_the_message_is_closed(
    platform: Platform, member: Member, mailbox: Mailbox
) -> None:
    """agent-side 5, reply: contract 4.2, live and after a reload."""
    await platform.register(member)
    async with client_of(platform, member) as client:
        assert await messages.reply(client, holding(mailbox), FIRST, "你好 👋") == Replied("user", True)
    assert await chat(platform, member) == [("agent", "你好 👋")]
    assert await counts(mailbox) == Counts()


async def test_a_peer_is_answered_in_its_inbox(platform: Platform, member: Member, mailbox: Mailbox) -> None:
    """Contract 4.1: as this workspace, on the peer's /a2a."""
    await platform.register(member)
    peer = await platform.join("peer")
    holding(mailbox, kind=Kind.PEER_AGENT, peer_id=peer.id)
    async with client_of(platform, member) as client:
        assert await messages.reply(client, mailbox, FIRST, "hi") == Replied("peer", True)
    (row,) = await platform.rows(peer)
    sent = row["request_body"]["params"]["message"]
    assert (row["source_id"], row["method"], sent["role"]) == (member.id, "message/send", "agent")
    assert (sent["parts"], sent["metadata"]) == ([{"kind": "text", "text": "hi"}], {})


async def test_a_delegation_is_answered_with_its_id(platform: Platform, member: Member, mailbox: Mailbox) -> None:
    """Contract 0.8: the id completes the delegation."""
    await platform.register(member)
    peer = await platform.join("peer")
    holding(mailbox, kind=Kind.PEER_AGENT, peer_id=peer.id, delegation_id="d1")
    async with client_of(platform, member) as client:
        assert await messages.reply(client, mailbox, FIRST, "done") == Replied("delegation", True)
    (row,) = await platform.rows(peer)
    assert row["request_body"]["params"]["message"]["metadata"] == {"delegation_id": "d1"}


@pytest.mark.parametrize("kind", [Kind.CANVAS_USER, Kind.PEER_AGENT])
async def test_a_text_that_a_platform_would_cut_is_refused(mailbox: Mailbox, kind: Kind) -> None:
    """Contract 4.1: 1 MiB of a request is read; nothing is sent and the message stays open."""
    holding(mailbox, kind=kind, peer_id=PEER)
    async with lone_client() as client:
        with pytest.raises(InvalidArgument) as refused:
            await messages.reply(client, mailbox, FIRST, "世" * 333_334)
    assert (refused.value.argument, "1,000,002 bytes" in refused.value.reason) == ("message", True)
    assert await counts(mailbox) == Counts(new=1)


async def test_a_delegations_result_takes_no_answer(mailbox: Mailbox) -> None:
    """agent-side 5: it is popped, not answered; nothing is sent."""
    holding(mailbox, kind=Kind.DELEGATION_RESULT)
    async with lone_client() as client:
        with pytest.raises(InvalidArgument) as raised:
            await messages.reply(client, mailbox, FIRST, "thanks")
    assert raised.value.argument == "activity_id"
    assert await counts(mailbox) == Counts(new=1)


async def test_files_go_with_an_answer_to_the_user(
    platform: Platform, member: Member, mailbox: Mailbox, tmp_path: Path
) -> None:
    """agent-side 5, reply: the chat shows them with the answer, and the message is closed."""
    await platform.register(member)
    async with client_of(platform, member) as client:
        replied = await messages.reply(client, holding(mailbox), FIRST, "here", with_file(tmp_path, mailbox))
    assert (replied.to, replied.popped, [file.name for file in replied.attachments]) == ("user", True, ["a.txt"])
    answer = await platform.http.get(f"/workspaces/{member.id}/chat-history", headers=member.headers)
    (bubble,) = answer.json()["messages"]
    assert (bubble["content"], bubble["attachments"]) == ("here", [replied.attachments[0].model_dump()])


@respx.mock
@pytest.mark.parametrize("delegation_id", [None, "d1"])
async def test_files_go_to_the_user_only(mailbox: Mailbox, tmp_path: Path, delegation_id: str | None) -> None:
    """agent-side 5: an answer to a peer or a delegation takes none; nothing is sent, nothing popped."""
    holding(mailbox, kind=Kind.PEER_AGENT, peer_id=PEER, delegation_id=delegation_id)
    async with lone_client() as client:  # respx fails on any request
        with pytest.raises(InvalidArgument) as raised:
            await messages.reply(client, mailbox, FIRST, "here", with_file(tmp_path, mailbox))
    assert raised.value.argument == "attachments"
    assert await counts(mailbox) == Counts(new=1)


@respx.mock
async def test_a_message_stays_open_when_a_file_cannot_be_sent(mailbox: Mailbox, tmp_path: Path) -> None:
    """agent-side 5, reply: nothing is popped if sending failed."""
    holding(mailbox)
    file = with_file(tmp_path, mailbox)
    (tmp_path / "a.txt").unlink()
    async with lone_client() as client:
        with pytest.raises(AttachmentRefused):
            await messages.reply(client, mailbox, FIRST, "here", file)
    assert await counts(mailbox) == Counts(new=1)


def with_file(directory: Path, mailbox: Mailbox) -> Enclosed:
    (directory / "a.txt").write_text("hello")
    return Enclosed([str(directory / "a.txt")], AttachmentPolicy((directory,)), echoes=mailbox)


async def test_an_unknown_or_closed_message_is_not_answered(mailbox: Mailbox) -> None:
    """agent-side 5: nothing was sent."""
    await holding(mailbox).pop(FIRST)
    async with lone_client() as client:
        for activity_id in (FIRST, "unknown"):
            with pytest.raises(MessageUnknown):
                await messages.reply(client, mailbox, activity_id, "hello?")


# Faults that the reference platform cannot produce.


@respx.mock
@pytest.mark.parametrize(
    ("fields", "url", "answer", "kind"),
    [
        pytest.param({}, NOTIFY, httpx.Response(503, json={"error": "later"}), Unavailable, id="user, 503"),
        pytest.param({}, NOTIFY, httpx.Response(404, json={"error": "gone"}), NotFound, id="user, 404"),
        pytest.param({"kind": Kind.PEER_AGENT, "peer_id": PEER}, TO_PEER,
                     httpx.Response(403, json={"error": "access denied: no"}), Rejected, id="peer, 403"),
        pytest.param({"kind": Kind.PEER_AGENT, "peer_id": PEER}, TO_PEER,
                     httpx.Response(200, json=exchange("a2a_answers", "error object")["response"]), PeerRefused,
                     id="peer, error"),
        pytest.param({"kind": Kind.PEER_AGENT, "peer_id": PEER}, TO_PEER,
                     httpx.Response(200, json={"surprise": 1}), PeerRefused, id="peer, unknown shape"),
    ],
)  # fmt: skip
async def test_nothing_is_closed_when_sending_failed(
    mailbox: Mailbox, fields: dict[str, Any], url: str, answer: httpx.Response, kind: type[Exception]
) -> None:
    """agent-side 5: the message stays open, and may be answered again."""
    route = respx.post(url).mock(return_value=answer)
    respx.post(REPORT).respond(200, json={"status": "logged"})
    holding(mailbox, **fields)
    async with lone_client() as client:
        with pytest.raises(kind):
            await messages.reply(client, mailbox, FIRST, "hi")
        assert await counts(mailbox) == Counts(new=1)
        good = {"status": "sent"} if url == NOTIFY else {"status": "queued", "delivery_mode": "poll"}
        route.mock(return_value=httpx.Response(200, json=good))
        assert (await messages.reply(client, mailbox, FIRST, "hi")).popped


@respx.mock
@pytest.mark.parametrize("recorded", ["poll target", "busy push target", "push answer, parts"])
async def test_being_queued_is_a_success_and_so_is_an_answer(recorded: str) -> None:
    """Contract 4.1: a queued envelope read as an error made agents send twice."""
    one = exchange("a2a_answers", recorded)
    respx.post(TO_PEER).respond(one["status"], json=one["response"])
    async with lone_client() as client:
        answer = await messages.send_to_peer(client, PEER, "hi")
    assert bool(answer) is (recorded == "push answer, parts")


@respx.mock
async def test_a_report_that_fails_is_no_failure_of_the_answer(mailbox: Mailbox) -> None:
    """The message is out: told of an error, an agent would send it twice."""
    respx.post(TO_PEER).respond(200, json={"status": "queued", "delivery_mode": "poll"})
    report = respx.post(REPORT).respond(503)
    holding(mailbox, kind=Kind.PEER_AGENT, peer_id=PEER)
    async with lone_client() as client:
        assert await messages.reply(client, mailbox, FIRST, "hi") == Replied("peer", True)
    assert report.call_count == 1


@respx.mock
async def test_of_two_answers_at_once_one_is_sent(mailbox: Mailbox) -> None:
    """design: nothing done twice."""
    sending, go_on = anyio.Event(), anyio.Event()

    async def slow(request: httpx.Request) -> httpx.Response:
        sending.set()
        await go_on.wait()
        return httpx.Response(200, json={"status": "sent"})

    route = respx.post(NOTIFY).mock(side_effect=slow)
    holding(mailbox)
    async with lone_client() as client:
        first = asyncio.create_task(messages.reply(client, mailbox, FIRST, "one"))
        with anyio.fail_after(5):
            await sending.wait()
        with pytest.raises(InvalidArgument):
            await messages.reply(client, mailbox, FIRST, "two")
        go_on.set()
        assert await first == Replied("user", True)
        with pytest.raises(MessageUnknown):
            await messages.reply(client, mailbox, FIRST, "three")
    assert route.call_count == 1


@respx.mock
async def test_a_journal_that_fails_after_the_answer_is_no_failure_of_the_answer(mailbox: Mailbox) -> None:
    """design: nothing done twice; told of an error, the agent would answer again."""
    holding(mailbox)

    def close(request: httpx.Request) -> httpx.Response:
        mailbox._journal.close()
        return httpx.Response(200, json={"status": "sent"})

    respx.post(NOTIFY).mock(side_effect=close)
    async with lone_client() as client:
        assert await messages.reply(client, mailbox, FIRST, "hi") == Replied("user", False)


@respx.mock
async def test_a_message_that_was_popped_meanwhile_is_said_to_be(mailbox: Mailbox) -> None:
    """agent-side 5: popped is true for whoever closed it."""
    sending, go_on = anyio.Event(), anyio.Event()

    async def slow(request: httpx.Request) -> httpx.Response:
        sending.set()
        await go_on.wait()
        return httpx.Response(200, json={"status": "sent"})

    respx.post(NOTIFY).mock(side_effect=slow)
    holding(mailbox)

    async def answer(client: PlatformClient) -> Replied:
        return await messages.reply(client, mailbox, FIRST, "hi")

    async with lone_client() as client:
        answering = asyncio.create_task(answer(client))
        await until(sending.is_set)
        assert await mailbox.pop(FIRST) is True
        go_on.set()
        with anyio.fail_after(5):
            assert await answering == Replied("user", False)
