"""The mailbox: what tools do with messages, alone and beside other processes."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from molecule_runtime.clock import ManualClock
from molecule_runtime.errors import InvalidArgument, MessageUnknown
from molecule_runtime.inbox.classify import FilePart, Kind
from molecule_runtime.inbox.files import FileState
from molecule_runtime.inbox.journal import Counts, Journal
from molecule_runtime.inbox.mailbox import (
    MANY_ATTACHMENTS,
    QUIET_LOOK_EVERY_S,
    RECLAIM_EVERY_S,
    Mailbox,
)
from molecule_runtime.inbox.texts import TEXT_CODE_POINTS
from molecule_runtime.peers import PeerDirectory
from molecule_runtime.state import OwnerLock, WorkspaceState
from molecule_runtime.wire.uploads import pending_uri
from tests.reference_platform.support import Member, Platform

from .support import WORKSPACE, client_of, idle, lone_client, message, pass_time, running, spawn, until

LEASE_S = 600.0
FILE_ID = "44444444-4444-4444-8444-444444444444"


@pytest.fixture
def journal(state: WorkspaceState) -> Iterator[Journal]:
    journal = Journal.open(state.journal)
    yield journal
    journal.close()


@pytest.fixture
async def mailbox(journal: Journal, state: WorkspaceState, clock: ManualClock) -> Mailbox:
    async with lone_client() as client:
        return opened(journal, state, clock, PeerDirectory(client, clock=clock))


def opened(journal: Journal, state: WorkspaceState, clock: ManualClock, directory: PeerDirectory) -> Mailbox:
    mailbox = Mailbox(journal, state, workspace_id=WORKSPACE, clock=clock, directory=directory, lease_s=LEASE_S)
    mailbox.open_session()
    return mailbox


def fill(journal: Journal, *numbers: int, **fields: Any) -> None:
    journal.append([message(number, **fields) for number in numbers], cursor="c", last_row_at=1.0, now=1.0)


def view(number: int = 1, **fields: Any) -> dict[str, Any]:
    """A user's message as an agent sees it."""
    return {
        "activity_id": message(number).activity_id,
        "kind": "canvas_user",
        "workspace_id": WORKSPACE,
        "peer_id": "",
        "peer_name": None,
        "peer_role": None,
        "text": "hello",
        "attachments": [],
        "created_at": "2026-01-01T00:00:00.000000Z",
        "attempt": 1,
        "state": "leased",
        "pushed": False,
        "delegation_id": None,
    } | fields


async def test_a_wait_leases_the_next_message_and_a_second_the_one_after(mailbox: Mailbox, journal: Journal) -> None:
    """agent-side 4: the message an agent sees, whole."""
    fill(journal, 1, 2)
    assert await mailbox.wait(0, key="a") == view(1)
    assert await mailbox.wait(0, key="b") == view(2)
    assert await mailbox.wait(0, key="c") is None
    assert mailbox.counts() == Counts(leased=2)


async def test_a_wait_ends_when_a_message_is_announced(mailbox: Mailbox, journal: Journal, clock: ManualClock) -> None:
    """agent-side 5: wait_for_message."""
    waiting = asyncio.create_task(mailbox.wait(30, key="a"))
    await idle(clock)
    fill(journal, 1)
    mailbox.announce()
    with anyio.fail_after(5):
        assert await waiting == view(1)


async def test_a_wait_notices_what_another_process_wrote(
    mailbox: Mailbox, journal: Journal, clock: ManualClock
) -> None:
    """design: others serve tools from the shared journal."""
    waiting = asyncio.create_task(mailbox.wait(30, key="a"))
    await idle(clock)
    fill(journal, 1)
    clock.advance(0.5)
    with anyio.fail_after(5):
        assert await waiting == view(1)


async def test_a_wait_that_brought_nothing_ends_in_time(mailbox: Mailbox, clock: ManualClock) -> None:
    """agent-side 5: {"timeout":true}."""
    waiting = asyncio.create_task(mailbox.wait(1.2, key="a"))
    for step in (0.5, 0.5, 0.2):
        await idle(clock)
        assert not waiting.done()
        clock.advance(step)
    with anyio.fail_after(5):
        assert await waiting is None


async def test_a_cancelled_wait_gives_the_message_to_the_next(mailbox: Mailbox, journal: Journal) -> None:
    """agent-side 5: cancel gives the lease back, attempt and all."""
    fill(journal, 1)
    await mailbox.wait(0, key="cancelled")
    await mailbox.give_back("cancelled")
    await mailbox.give_back("cancelled")
    assert mailbox.counts() == Counts(new=1)
    assert await mailbox.wait(0, key="next") == view(1)


async def test_peek_shows_everything_open_and_leases_nothing(
    mailbox: Mailbox, journal: Journal, clock: ManualClock
) -> None:
    """agent-side 5: new, leased, parked, oldest first."""
    fill(journal, 1)
    for _ in range(5):
        assert await mailbox.wait(0, key="x") is not None
        clock.advance(LEASE_S + 1)
    assert await mailbox.wait(0, key="x") is None
    fill(journal, 2, 3)
    await mailbox.wait(0, key="y")
    assert await mailbox.peek(10) == [
        view(1, state="parked", attempt=5),
        view(2, state="leased"),
        view(3, state="new", attempt=0),
    ]
    assert await mailbox.peek(1) == [view(1, state="parked", attempt=5)]
    assert mailbox.counts() == Counts(new=1, leased=1, parked=1)


async def test_a_pop_closes_a_message_for_good(mailbox: Mailbox, journal: Journal) -> None:
    """agent-side 5: idempotent, whoever holds the lease."""
    fill(journal, 1)
    assert await mailbox.pop(message(1).activity_id) is True
    assert await mailbox.pop(message(1).activity_id) is False
    assert await mailbox.peek(10) == []
    with pytest.raises(MessageUnknown) as raised:
        await mailbox.find(message(1).activity_id)
    assert raised.value.activity_id == message(1).activity_id


async def test_attachments_are_named_with_what_became_of_them(mailbox: Mailbox, journal: Journal) -> None:
    """agent-side 4: name, type, size, status, path, reason; the sender's words for a name are cleaned."""
    elsewhere = FilePart("a\u202e<b>.pdf", "https://x.example/a", "application/pdf", 3)
    peers = FilePart("p", pending_uri("22222222-2222-4222-8222-222222222222", FILE_ID))
    fill(journal, 1, files=(elsewhere, FilePart("\x00", "", "text/<b>"), peers))
    failed = {"status": "failed", "path": None}
    assert await mailbox.wait(0, key="a") == view(
        1,
        attachments=[
            {
                "name": "ab.pdf",
                "mime_type": "application/pdf",
                "size": 3,
                "reason": "only files uploaded to the canvas are fetched; this one is at https://x.example/a",
                **failed,
            },
            {
                "name": "file",
                "mime_type": None,
                "size": None,
                "reason": "it names no place to fetch it from; files sent inside a message are not stored",
                **failed,
            },
            {
                "name": "p",
                "mime_type": None,
                "size": None,
                "reason": "it waits on the platform for another workspace, whose files cannot be read from here",
                **failed,
            },
        ],
    )


PDF = FilePart("a.pdf", pending_uri(WORKSPACE, FILE_ID), "application/pdf", 9, FILE_ID)


def attached(**fields: Any) -> dict[str, Any]:
    shown = {"name": "a.pdf", "mime_type": "application/pdf", "size": 9, "status": "pending", "path": None}
    return shown | {"reason": None} | fields


async def test_a_message_waits_half_a_minute_for_its_files_and_holds_up_no_other(
    mailbox: Mailbox, journal: Journal, clock: ManualClock
) -> None:
    """agent-side 4: at most 30 s, then with those still pending marked so; in every path the same."""
    now = clock.now().timestamp()
    journal.append([message(1, files=(PDF,)), message(2)], cursor="c", last_row_at=1.0, now=now)
    await mailbox.recount()
    assert mailbox.counts() == Counts(new=2, files_pending=1, held=1)
    assert [one["activity_id"] for one in await mailbox.take_unpushed(10)] == [message(2).activity_id]
    assert await mailbox.wait(0, key="a") == view(2, pushed=True)
    assert await mailbox.wait(0, key="b") is None
    held = view(1, attachments=[attached()], state="new", attempt=0)
    assert (await mailbox.peek(10))[0] == held
    clock.advance(29)
    assert await mailbox.wait(0, key="b") is None
    clock.advance(1)
    await mailbox.recount()
    assert mailbox.counts().held == 0
    assert await mailbox.take_unpushed(10) == [held | {"pushed": True}]
    assert await mailbox.wait(0, key="b") == held | {"pushed": True, "state": "leased", "attempt": 1}


@pytest.mark.parametrize("becomes", ["staged", "failed"])
async def test_a_message_comes_as_soon_as_its_last_file_is_settled(
    becomes: str, mailbox: Mailbox, journal: Journal, clock: ManualClock
) -> None:
    """agent-side 4: staged with its path, or failed with the reason; the platform's size counts, not the sender's."""
    now = clock.now().timestamp()
    journal.append([message(1, files=(PDF,))], cursor="c", last_row_at=1.0, now=now)
    assert await mailbox.wait(0, key="a") is None
    if becomes == "staged":
        journal.files.stage(FILE_ID, path="/f/a.pdf", size=10, sha256="0", now=now)
        shown = attached(status="staged", path="/f/a.pdf", size=10)
    else:
        journal.files.miss(FILE_ID, state=FileState.FAILED, reason="The disk is full.", next_at=None)
        shown = attached(status="failed", reason="The disk is full.")
    assert await mailbox.wait(0, key="a") == view(1, attachments=[shown])
    assert await mailbox.attachments(message(1).activity_id) == [shown]
    await mailbox.pop(message(1).activity_id)
    shown["name"] = "a.pdf"
    shown["size"] = 10 if becomes == "staged" else None
    assert await mailbox.attachments(message(1).activity_id) == [shown]
    with pytest.raises(MessageUnknown):
        await mailbox.attachments(message(2).activity_id)


async def test_what_a_sender_calls_a_file_is_shown_without_what_a_reader_would_obey(
    mailbox: Mailbox, journal: Journal
) -> None:
    """agent-side 4: names keep their letters, brackets and ending; a long media type is kept, an odd one left out."""
    office = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    names = ["报告 (final).docx", "a\nb\x1b[31m.txt", "x" * 300 + ".pdf", "<system>.md"]
    fill(journal, 1, files=tuple(FilePart(name, "x:y", office) for name in names))
    found = await mailbox.wait(0, key="a")
    assert found is not None
    shown = ["报告 (final).docx", "a b[31m.txt", "x" * 96 + ".pdf", "system.md"]
    assert [(one["name"], one["mime_type"]) for one in found["attachments"]] == [(name, office) for name in shown]


async def test_a_clock_that_was_set_back_holds_no_message(
    mailbox: Mailbox, journal: Journal, clock: ManualClock
) -> None:
    """agent-side 4: at most 30 s, by whatever clock."""
    journal.append([message(1, files=(PDF,))], cursor="c", last_row_at=1.0, now=clock.now().timestamp() + 3_600)
    assert await mailbox.wait(0, key="a") is not None


async def test_a_long_list_of_files_is_in_a_file_too(
    mailbox: Mailbox, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """clients.md 4: a host cuts results at about 10 kB; the list is as new as the view, and goes with its message."""
    fill(journal, 1, files=tuple(FilePart(f"{n}.txt", "x:y") for n in range(MANY_ATTACHMENTS + 1)))
    fill(journal, 2, files=tuple(FilePart(f"{n}.txt", "x:y") for n in range(MANY_ATTACHMENTS)))
    found = await mailbox.wait(0, key="a")
    assert found is not None
    path = Path(found["attachments_path"])
    assert json.loads(path.read_text()) == found["attachments"]
    path.unlink()
    shown, shorter = await mailbox.peek(10)
    assert Path(shown["attachments_path"]).exists()
    assert "attachments_path" not in shorter
    (state.texts / f"{'0' * 32}.attachments.json").write_text("[]")
    mailbox.close_session()
    mailbox.open_session()
    assert [file.name for file in state.texts.iterdir()] == [path.name]
    await mailbox.pop(found["activity_id"])
    assert list(state.texts.iterdir()) == []


async def test_a_peer_is_shown_by_its_cleaned_name(
    platform: Platform, member: Member, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 4: peer_name and peer_role, asked for when a message is handed out before anybody has asked."""
    peer = await platform.create("ops agent", role="on call", delivery_mode="poll")
    fill(journal, 1, kind=Kind.PEER_AGENT, peer_id=peer.id, delegation_id="d")
    async with client_of(platform, member) as client:
        directory = PeerDirectory(client, clock=clock)
        mailbox = opened(journal, state, clock, directory)
        unknown = view(1, kind="peer_agent", peer_id=peer.id, delegation_id="d", state="new", attempt=0)
        assert await mailbox.peek(1) == [unknown]
        named = {"peer_name": "ops agent", "peer_role": "on call"}
        assert await mailbox.wait(0, key="a") == unknown | named | {"state": "leased", "attempt": 1}
        assert await mailbox.peek(1) == [unknown | named | {"state": "leased", "attempt": 1}]


@pytest.mark.parametrize("extra", [0, 1])
async def test_a_long_text_is_cut_and_whole_in_a_file(mailbox: Mailbox, journal: Journal, extra: int) -> None:
    """agent-side 4: above 8,000 characters the first 8,000, with text_path."""
    text = "世" * (TEXT_CODE_POINTS + extra)
    fill(journal, 1, text=text)
    shown = await mailbox.wait(0, key="a")
    assert shown is not None
    if not extra:
        assert shown == view(1, text=text)
        return
    path = Path(shown["text_path"])
    assert shown == view(1, text="世" * TEXT_CODE_POINTS, text_truncated=True, text_path=str(path))
    assert path.read_text(encoding="utf-8") == text
    assert oct(path.stat().st_mode & 0o777) == "0o600"


async def test_the_text_of_another_journal_is_never_shown(
    mailbox: Mailbox, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """Ours: after a damaged journal numbers begin again; the file of a text is known by its message."""
    fill(journal, 1, text="a" * 9_000)
    await mailbox.peek(1)
    journal.close()
    state.journal.write_bytes(b"not a database" * 300)
    other = Journal.open(state.journal)
    fill(other, 2, text="b" * 9_000)
    again = opened(other, state, clock, mailbox._directory)
    (shown,) = await again.peek(1)
    assert Path(shown["text_path"]).read_text() == "b" * 9_000
    other.close()


async def test_a_text_that_cannot_be_written_is_shown_as_far_as_it_goes(
    mailbox: Mailbox, journal: Journal, state: WorkspaceState
) -> None:
    """Ours: a full disk does not keep the message back."""
    state.texts.rmdir()
    fill(journal, 1, text="a" * 9_000)
    shown = await mailbox.wait(0, key="a")
    assert shown == view(1, text="a" * 8_000, text_truncated=True, text_path=None)


async def test_two_answers_at_once_are_one_too_many(mailbox: Mailbox) -> None:
    """Ours: nothing done twice."""
    with mailbox.answering("a"):
        with pytest.raises(InvalidArgument), mailbox.answering("a"):
            pass
        with mailbox.answering("b"):
            pass
    with mailbox.answering("a"):
        pass


async def test_counts_that_cannot_be_renewed_fail_nobody(mailbox: Mailbox, journal: Journal) -> None:
    """Ours: what was done before stands."""
    fill(journal, 1)
    await mailbox.recount()
    journal.close()
    await mailbox.recount()
    assert mailbox.counts() == Counts(new=1)
    mailbox.close_session()


async def test_a_session_that_ends_gives_back_what_it_holds(
    mailbox: Mailbox, journal: Journal, state: WorkspaceState
) -> None:
    """agent-side 4: at once when it ends by itself; its lock file goes too."""
    fill(journal, 1)
    await mailbox.wait(0, key="a")
    assert [file.name for file in state.sessions.iterdir()] == [f"{mailbox.session}.lock"]
    mailbox.close_session()
    assert journal.counts() == Counts(new=1)
    assert list(state.sessions.iterdir()) == []


async def test_what_a_killed_process_held_is_offered_again_within_two_seconds(
    mailbox: Mailbox, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 4: when the session is gone its leases are given back; while it lives they are not."""
    fill(journal, 1)
    other = spawn(
        """
import sys
from pathlib import Path
from molecule_runtime.inbox.journal import Journal
from molecule_runtime.state import OwnerLock, WorkspaceState
state = WorkspaceState(Path(sys.argv[1]))
lock = OwnerLock(state.sessions / "other.lock")
assert lock.try_acquire()
Journal.open(state.journal).lease(session="other", key="k", until=9e9, now=1.0)
print("leased", flush=True)
sys.stdin.readline()
""",
        state.path,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "leased\n"
    async with running(mailbox.reclaim_forever):
        waiting = asyncio.create_task(mailbox.wait(30, key="a"))
        await idle(clock, 2)
        for _ in range(4):
            clock.advance(0.5)
            await idle(clock, 2)
        assert not waiting.done()
        other.send_signal(signal.SIGKILL)
        other.communicate(timeout=10)
        for _ in range(4):
            clock.advance(0.5)
            await until(lambda: clock.sleepers >= 2 or waiting.done())
        with anyio.fail_after(5):
            assert await waiting == view(1, attempt=2)
    assert [file.name for file in state.sessions.iterdir()] == [f"{mailbox.session}.lock"]


async def test_a_quiet_session_looks_seldom_until_somebody_waits_or_looks(
    mailbox: Mailbox, journal: Journal, clock: ManualClock
) -> None:
    """Performance, idle; agent-side 4: whoever asks is given a dead session's messages within 2 s all the same."""
    fill(journal, 1, 2)
    async with running(mailbox.reclaim_forever):
        await pass_time(clock, RECLAIM_EVERY_S)  # from here on it is quiet
        journal.lease(session="dead", key="k", until=9e9, now=1.0)
        await pass_time(clock, 2)
        assert journal.counts() == Counts(new=1, leased=1)
        assert [shown["state"] for shown in await mailbox.peek(10)] == ["new", "new"]
        assert mailbox.counts() == Counts(new=2)

        journal.lease(session="dead too", key="k", until=9e9, now=1.0)
        assert await mailbox.wait(0, key="a") == view(1, attempt=3)  # looked for before it was decided what comes next
        assert await mailbox.wait(0, key="b") == view(2)

        journal.handle(message(1).activity_id, now=1.0)
        journal.handle(message(2).activity_id, now=1.0)
        fill(journal, 3)
        journal.lease(session="the last", key="k", until=9e9, now=1.0)
        await pass_time(clock, RECLAIM_EVERY_S)
        await pass_time(clock, QUIET_LOOK_EVERY_S - RECLAIM_EVERY_S)
        assert journal.counts() == Counts(new=1)


async def test_a_new_session_takes_over_at_once_from_the_dead(
    journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 4: an unacknowledged message is offered again after a restart."""
    fill(journal, 1)
    journal.lease(session="dead", key="k", until=9e9, now=1.0)
    async with lone_client() as client:
        mailbox = opened(journal, state, clock, PeerDirectory(client, clock=clock))
    assert mailbox.counts() == Counts(new=1)
    assert await mailbox.wait(0, key="a") == view(1, attempt=2)


async def test_lock_files_of_dead_sessions_are_cleared_away_and_those_of_the_living_stay(
    mailbox: Mailbox, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 2: a host's one-second lives leave nothing behind."""
    for number in range(3):
        (state.sessions / f"{number:032x}.lock").touch()
    async with lone_client() as client:
        second = opened(journal, state, clock, PeerDirectory(client, clock=clock))
    assert {file.stem for file in state.sessions.iterdir()} == {mailbox.session, second.session}


async def test_the_whole_text_goes_with_the_message_it_belongs_to(mailbox: Mailbox, journal: Journal) -> None:
    """Ours: what is handled leaves nothing to be read."""
    fill(journal, 1, text="x" * 9_000)
    shown = await mailbox.wait(0, key="a")
    assert shown is not None
    assert Path(shown["text_path"]).read_text(encoding="utf-8") == "x" * 9_000
    assert await mailbox.pop(shown["activity_id"])
    assert not Path(shown["text_path"]).exists()


async def test_a_text_that_a_kill_left_behind_goes_with_the_next_session(
    journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """Agent-side 2: killed between a pop and its file, or having lost its journal; the texts of open messages stay."""
    fill(journal, 1, 2, text="x" * 9_000)
    async with lone_client() as client:
        first = opened(journal, state, clock, PeerDirectory(client, clock=clock))
        texts = [shown["text_path"] for shown in await first.peek(10)]
        journal.handle(message(1).activity_id, now=1.0)
        assert [Path(text).exists() for text in texts] == [True, True]
        opened(journal, state, clock, PeerDirectory(client, clock=clock))
    assert [Path(text).exists() for text in texts] == [False, True]


async def test_a_session_lock_that_somebody_looks_at_is_given_up_for_another(
    mailbox: Mailbox, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """Agent-side 4: when the guard is held too long (a stopped process), another may be looking at the new file."""
    async with lone_client() as client:
        second = Mailbox(
            journal,
            state,
            workspace_id=WORKSPACE,
            clock=clock,
            directory=PeerDirectory(client, clock=clock),
            lease_s=LEASE_S,
        )
    first_name = second.session
    looking = OwnerLock(state.sessions / f"{first_name}.lock")
    assert looking.try_acquire()
    second.open_session()
    assert second.session != first_name
    looking.release()
    assert mailbox.is_alive(second.session)
