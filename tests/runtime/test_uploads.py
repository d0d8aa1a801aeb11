"""The user's files on their way to the agent: fetched once, whole or not at all, acked, and what the agent is told."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from molecule_runtime import client as client_module
from molecule_runtime.client import PlatformClient
from molecule_runtime.clock import ManualClock
from molecule_runtime.credentials import Credentials
from molecule_runtime.inbox import uploads as uploads_module
from molecule_runtime.inbox.classify import FilePart, Message, UploadNotice
from molecule_runtime.inbox.files import FileRecord, FileState
from molecule_runtime.inbox.journal import Journal
from molecule_runtime.inbox.uploads import AT_A_TIME, PATIENCE, RETRY_LATER_S, WRITE_BYTES, Uploads
from molecule_runtime.state import WorkspaceState
from molecule_runtime.text import safe_file_name
from molecule_runtime.wire.uploads import pending_uri
from molecule_runtime.workspace import Roles, Workspace
from tests.reference_platform.support import Member, Platform
from tests.support.faulty import Answer, Asked, Fault, FaultyPlatform, said
from tests.support.uploads import form, message_with, sha256

from .support import (
    WORKSPACE,
    idle,
    message,
    pass_time,
    row,
    running,
    settings,
    state_in,
    ticking,
    until,
    workspace_settings,
)
from .test_workspace import workspace_of


@pytest.fixture
def at_home(member: Member, tmp_path: Path) -> WorkspaceState:
    return state_in(tmp_path / "state", member.id)


async def drop(platform: Platform, member: Member, files: Sequence[tuple[str, bytes]], text: str = "look") -> list[Any]:
    """The user drops files into the chat: upload, then the message that names them."""
    reply = await platform.http.post(f"/workspaces/{member.id}/chat/uploads", files=form(files), headers=platform.admin)
    assert reply.status_code == 200, reply.text
    uploaded: list[Any] = reply.json()["files"]
    await platform.http.post(f"/workspaces/{member.id}/a2a", json=message_with(text, uploaded), headers=platform.admin)
    return uploaded


async def test_a_file_of_a_message_lies_on_the_disk_when_the_message_is_handed_out(
    platform: Platform, member: Member, at_home: WorkspaceState, clock: ManualClock
) -> None:
    """R8: fetched, staged, acked, named in the message."""
    workspace = workspace_of(platform, member, at_home, clock)
    content = b"%PDF-1.7 " + bytes(range(256)) * 10
    async with running(workspace.run), ticking(clock, 0.01):  # slowly: the file comes by real threads
        mailbox = await workspace.mailbox()
        await drop(platform, member, [("../a b.pdf", content)])
        with anyio.fail_after(10):
            shown = await mailbox.wait(10_000, key="a")
        assert shown is not None
        (attachment,) = shown["attachments"]
        path = Path(attachment.pop("path"))
        assert attachment == {
            "name": "a_b.pdf",
            "mime_type": "application/octet-stream",
            "size": len(content),
            "status": "staged",
            "reason": None,
        }
        assert path.parent == at_home.files
        assert sha256(path.read_bytes()) == sha256(content)
        assert path.stat().st_mode & 0o777 == 0o600


# faults, on a real socket

FILE_ID = "44444444-4444-4444-8444-444444444444"
CONTENT = b"0123456789" * 50


def file_id(number: int) -> str:
    return f"44444444-4444-4444-8444-{number:012d}"


def notice(number: int = 1, size: int | None = len(CONTENT), name: str = "a.txt") -> UploadNotice:
    part = FilePart(name, pending_uri(WORKSPACE, file_id(number)), "text/plain", size, file_id(number))
    return UploadNotice(f"00000000-0000-4000-9000-{number:012d}", file_id(number), part)


def naming(*numbers: int, activity: int = 1) -> Message:
    return message(activity, files=tuple(notice(number).part for number in numbers))


def keep(journal: Journal, clock: ManualClock, *notices: UploadNotice, messages: Sequence[Message] = ()) -> None:
    journal.append(messages, notices=notices, cursor=None, last_row_at=None, now=clock.now().timestamp())


def records(journal: Journal) -> list[FileRecord]:
    """All files that message 1 names."""
    return journal.files.of_message(message(1).activity_id)


@pytest.fixture
def journal(state: WorkspaceState) -> Iterator[Journal]:
    with closing(Journal.open(state.journal)) as journal:
        yield journal


class There:
    """The faulty platform, and uploads of one workspace that run against it."""

    def __init__(self, platform: FaultyPlatform, client: PlatformClient, uploads: Uploads) -> None:
        self.platform = platform
        self.client = client
        self.uploads = uploads
        self.changes = 0

    def gets(self) -> int:
        return self.platform.count("/content")

    def acks(self) -> int:
        return self.platform.count("/ack")


@pytest.fixture
def faulty() -> Iterator[FaultyPlatform]:
    with FaultyPlatform(row={}) as platform:
        yield platform


@asynccontextmanager
async def uploading(
    faulty: FaultyPlatform, journal: Journal, state: WorkspaceState, clock: ManualClock, quota: int = 10**9
) -> AsyncIterator[There]:
    told = workspace_settings(PLATFORM_URL=faulty.url)
    async with PlatformClient(told.platform_url, WORKSPACE, Credentials(told, None)) as client:

        async def changed() -> None:
            there.changes += 1

        uploads = Uploads(client, journal, state.files, clock=clock, quota_bytes=quota, on_change=changed)
        there = There(faulty, client, uploads)
        async with running(uploads.run):
            yield there


async def meanwhile(clock: ManualClock, condition: Callable[[], bool]) -> None:
    """Let time pass, second by second, until a condition holds."""
    async with ticking(clock, 1.0):
        await until(condition, within_s=10)


def serving(
    content: Answer | Fault | None = None, ack: Answer | None = None
) -> Callable[[Asked], Answer | Fault | None]:
    """A platform that gives this for every content, and takes acks."""

    def play(asked: Asked) -> Answer | Fault | None:
        if asked.path.endswith("/content"):
            return content or Answer(200, CONTENT)
        if asked.path.endswith("/ack"):
            return ack or said(200, {"acked": True})
        return None

    return play


def leftovers(state: WorkspaceState) -> list[str]:
    return [file.name for file in state.files.iterdir() if file.name.startswith(".")]


GONE = said(404, {"error": "pending upload not found, expired, or already acked"})


@dataclass(frozen=True)
class Case:
    """What the platform answers, and the sentence that the agent reads; `tries` before it reads it."""

    answer: Answer | Fault
    reason: str
    is_final: bool
    tries: int = PATIENCE


CASES = {
    "500": Case(said(500, {"error": "storage error"}), "is not available now (HTTP 500)", is_final=False),
    "401": Case(said(401, {"error": "invalid workspace auth token"}), "refuses this workspace's token", is_final=False),
    "an HTML page": Case(Answer(404, b"<html>"), "not as a Molecule platform", is_final=False),
    "gone": Case(GONE, "says: pending upload not found, expired, or already acked.", is_final=True, tries=1),
    "bad request": Case(said(400, {"error": "invalid file_id"}), "refused the call (HTTP 400)", is_final=True, tries=1),
    "longer": Case(Answer(200, CONTENT + b"!"), "larger than the 500 bytes", is_final=True, tries=1),
    "longer, in pieces": Case(
        Answer(200, b"1f5\r\n" + CONTENT + b"!\r\n0\r\n\r\n", (("Transfer-Encoding", "chunked"),), announced=-1),
        "larger than the 500 bytes",
        is_final=True,
        tries=1,
    ),
    "shorter": Case(Answer(200, CONTENT[:-1]), "499 of 500 bytes came", is_final=False),
    "cut short": Case(Answer(200, CONTENT, sent_bytes=10), "did not come whole", is_final=False),
    "hung": Case(Answer(200, CONTENT, sent_bytes=10, hangs=True), "nothing came for 0.3 s", is_final=False),
    "hung before the answer": Case(Fault.HANG, "no answer within 0.3 s", is_final=False),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_a_file_that_does_not_come_has_a_reason_and_comes_when_the_platform_is_well(
    case: Case,
    faulty: FaultyPlatform,
    journal: Journal,
    state: WorkspaceState,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """agent-side 4: staged or failed(reason); retried until gone or refused; asked by hand it is tried again."""
    monkeypatch.setattr(client_module, "STALL_S", 0.3)
    faulty.play(serving(case.answer))
    keep(journal, clock, notice(), messages=[naming(1)])
    async with uploading(faulty, journal, state, clock) as there:
        for number in range(1, case.tries + 1):
            await meanwhile(clock, lambda number=number: there.changes >= number)  # type: ignore[misc]
            (record,) = records(journal)
            assert record.state is (FileState.FAILED if number == case.tries else FileState.PENDING)
            assert case.reason in (record.reason or "")
        assert leftovers(state) == []
        assert (journal.files.next_due_at(0) is None) == case.is_final
        await pass_time(clock, RETRY_LATER_S - 5, sleepers=2)
        assert there.gets() == case.tries
        faulty.play(serving())
        if case.is_final:
            await pass_time(clock, RETRY_LATER_S, sleepers=2)
            assert there.gets() == case.tries
            await there.uploads.fetch_now(records(journal), within_s=5)
        await meanwhile(clock, lambda: records(journal)[0].state is FileState.STAGED)
        await meanwhile(clock, lambda: there.acks() == 1)
    (record,) = records(journal)
    assert (record.sha256, record.size, record.reason) == (sha256(CONTENT), len(CONTENT), None)
    assert Path(record.path or "").read_bytes() == CONTENT
    assert leftovers(state) == []


async def test_three_failures_then_success_is_a_success(
    faulty: FaultyPlatform, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """R8: failures are retried."""
    answers = [said(500, {"error": "storage error"})] * 3
    faulty.play(lambda asked: answers.pop() if answers and asked.path.endswith("/content") else serving()(asked))
    keep(journal, clock, notice(), messages=[naming(1)])
    async with uploading(faulty, journal, state, clock) as there:
        await meanwhile(clock, lambda: there.acks() == 1)
        assert there.gets() == 4
    assert records(journal)[0].sha256 == sha256(CONTENT)


async def test_a_body_that_drips_is_given_up_after_its_time(
    faulty: FaultyPlatform,
    journal: Journal,
    state: WorkspaceState,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """uploads: the whole file has a time limit, not only the pause between two pieces."""
    monkeypatch.setattr(uploads_module, "GRACE_S", 0.2)
    faulty.play(serving(Answer(200, CONTENT, sent_bytes=10, hangs=True)))
    keep(journal, clock, notice(), messages=[naming(1)])
    async with uploading(faulty, journal, state, clock) as there:
        await until(lambda: there.changes == 1)
    assert "it was not complete after 0 s" in (records(journal)[0].reason or "")


async def test_files_that_hang_leave_the_others_their_way(
    faulty: FaultyPlatform, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 8: at most four at a time; three that hang do not stop the fourth way."""
    hanging = {file_id(number) for number in (1, 2, 3)}

    def play(asked: Asked) -> Answer | Fault | None:
        return Fault.HANG if asked.path.split("/")[-2] in hanging else serving()(asked)

    faulty.play(play)
    numbers = range(1, 13)
    keep(journal, clock, *map(notice, numbers), messages=[naming(*numbers)])
    async with uploading(faulty, journal, state, clock) as there:
        await until(lambda: there.acks() == 9)
        assert there.gets() == 12
        assert [record.state for record in records(journal)] == [FileState.PENDING] * 3 + [FileState.STAGED] * 9
        await there.uploads.fetch_now(records(journal)[3:], within_s=1)
        assert there.gets() == 12


async def test_a_file_that_hangs_leaves_the_next_attempts_of_others_their_time(
    faulty: FaultyPlatform, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 8: another file's retry after 1 s, and its ack, come while the first one hangs."""
    refusals = [said(500, {"error": "storage error"})]

    def play(asked: Asked) -> Answer | Fault | None:
        if file_id(1) in asked.path:
            return Fault.HANG
        return refusals.pop() if refusals else serving()(asked)

    faulty.play(play)
    keep(journal, clock, notice(1), notice(2), messages=[naming(1, 2)])
    async with uploading(faulty, journal, state, clock) as there:
        await until(lambda: there.changes == 1)
        await pass_time(clock, 2, sleepers=2)
        await until(lambda: there.acks() == 1, within_s=3)


async def test_a_clock_that_was_set_back_puts_nothing_off(
    faulty: FaultyPlatform, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """Wall time is not to be trusted: an attempt is at most five minutes away."""
    faulty.play(serving())
    keep(journal, clock, notice())
    journal.files.miss(file_id(1), state=FileState.PENDING, reason="r", next_at=clock.now().timestamp() + 86_400)
    async with uploading(faulty, journal, state, clock) as there:
        await until(lambda: there.acks() == 1)


async def test_a_body_without_end_is_not_read_to_its_end(
    faulty: FaultyPlatform, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 8: the cap is enforced while streaming: what is too long is known before the last byte comes."""
    endless = b"%x\r\n" % (4 * WRITE_BYTES) + bytes(4 * WRITE_BYTES)  # and no end of the chunked body after it
    chunked = (("Transfer-Encoding", "chunked"),)
    faulty.play(serving(Answer(200, endless, chunked, announced=-1, hangs=True)))
    keep(journal, clock, notice(), messages=[naming(1)])
    async with uploading(faulty, journal, state, clock) as there:
        await until(lambda: there.changes == 1, within_s=5)  # a stall is known after 10 s
    assert "larger than the 500 bytes" in (records(journal)[0].reason or "")
    assert faulty.asked[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("by_hand", [False, True])
async def test_at_most_four_are_fetched_at_once(
    by_hand: bool, faulty: FaultyPlatform, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 8: 4 at once; asked by hand there are no more."""
    one_more, under_way, most = threading.Condition(), 0, 0

    def play(asked: Asked) -> Answer | Fault | None:
        """Hold each until there are more than four, or for a moment when no fifth comes."""
        nonlocal under_way, most
        if asked.path.endswith("/content"):
            with one_more:
                under_way += 1
                most = max(most, under_way)
                one_more.notify_all()
                one_more.wait_for(lambda: under_way > AT_A_TIME, 0.3)
                under_way -= 1
        return serving()(asked)

    faulty.play(play)
    numbers = range(1, 2 * AT_A_TIME + 1)
    keep(journal, clock, *map(notice, numbers), messages=[naming(*numbers)])
    async with uploading(faulty, journal, state, clock) as there:
        if by_hand:
            await there.uploads.fetch_now(records(journal), within_s=10)
        await until(lambda: there.acks() == len(numbers))
        assert (there.gets(), most) == (len(numbers), AT_A_TIME)


# restarts


async def test_what_a_killed_process_left_is_taken_up(
    faulty: FaultyPlatform, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """uploads: a named file is whole and is not fetched again; a part file goes; a staged file is acked."""
    faulty.play(serving())
    keep(journal, clock, notice(1), notice(2), messages=[naming(1, 2)])
    async with uploading(faulty, journal, state, clock) as there:
        await until(lambda: there.acks() == 2 and journal.files.next_due_at(0) is None)
    one, two = records(journal)
    with closing(sqlite3.connect(state.journal)) as db:  # as if killed before the journal was told
        again = "UPDATE files SET state = 'pending', path = NULL, sha256 = NULL, next_at = 0 WHERE file_id = ?"
        db.execute(again, (one.file_id,))
        db.execute("UPDATE files SET next_at = 0 WHERE file_id = ?", (two.file_id,))  # or before the ack
        db.commit()
    part = state.files / f".{'0' * 32}-1234.part"
    part.write_bytes(b"half")
    async with uploading(faulty, journal, state, clock) as there:
        await until(lambda: there.acks() == 4)
        await idle(clock, sleepers=2)
        assert there.gets() == 2
    assert records(journal) == [one, two]
    assert not part.exists()


@pytest.mark.parametrize(
    ("answer", "acks"), [(said(500, {"error": "storage error"}), 2), (GONE, 1), (said(400, {"error": "no"}), 1)]
)
async def test_an_ack_is_repeated_until_the_platform_has_taken_it(
    answer: Answer, acks: int, faulty: FaultyPlatform, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """contract 5.5: 200 and 404 are both done."""
    faulty.play(lambda asked: serving(ack=answer)(asked) if faulty.count("/ack") < 2 else serving()(asked))
    keep(journal, clock, notice(), messages=[naming(1)])
    async with uploading(faulty, journal, state, clock) as there:
        await until(lambda: there.acks() == 1)
        assert records(journal)[0].state is FileState.STAGED
        await meanwhile(clock, lambda: there.acks() == acks)
        await until(lambda: journal.files.next_due_at(0) is None)
        await pass_time(clock, RETRY_LATER_S, sleepers=2)
        assert (there.acks(), there.gets()) == (acks, 1)


async def test_what_failed_while_the_platform_was_away_is_tried_as_soon_as_it_is_back(
    faulty: FaultyPlatform, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """poller: the first read that goes well again says so."""
    faulty.play(Fault.REFUSE)
    keep(journal, clock, notice(), messages=[naming(1)])
    async with uploading(faulty, journal, state, clock) as there:
        await meanwhile(clock, lambda: there.changes == PATIENCE)
        assert records(journal)[0].state is FileState.FAILED
        faulty.play(serving())
        await there.uploads.hasten()
        await until(lambda: there.acks() == 1)


# bounds


async def test_the_quota_is_kept_and_handled_files_make_room(
    faulty: FaultyPlatform, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 8: the oldest handled first; open ones stay; what finds no place says so and can be tried again."""
    faulty.play(serving())
    for number in (1, 2):
        keep(journal, clock, notice(number), messages=[naming(number, activity=number)])
    async with uploading(faulty, journal, state, clock, quota=1_000) as there:
        await until(lambda: there.acks() == 2)
        keep(journal, clock, notice(3), messages=[naming(3, activity=3)])
        there.uploads.kick()
        await until(lambda: there.changes == 3)
        (third,) = journal.files.of_message(message(3).activity_id)
        assert third.state is FileState.FAILED
        assert "keeps at most 1,000 bytes of files" in (third.reason or "")
        for number in (2, 1):
            clock.advance(1)
            journal.handle(message(number).activity_id, now=clock.now().timestamp())
        await there.uploads.fetch_now([third], within_s=5)
    (first,), (second,), (third,) = (journal.files.of_message(message(number).activity_id) for number in (1, 2, 3))
    assert [one.state for one in (first, second, third)] == [FileState.STAGED, FileState.REMOVED, FileState.STAGED]
    assert sorted(os.fspath(file) for file in state.files.iterdir()) == sorted([first.path or "", third.path or ""])


async def test_a_disk_that_is_nearly_full_is_left_to_the_journal(
    faulty: FaultyPlatform,
    journal: Journal,
    state: WorkspaceState,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """uploads: a file that would fill the disk is not begun, and says so; handled files make room for it."""
    disk = shutil.disk_usage(state.files)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(total=20_000, free=1_000 + free))
    faulty.play(serving())
    free = 500
    keep(journal, clock, notice(1), messages=[naming(1)])
    async with uploading(faulty, journal, state, clock) as there:
        await until(lambda: there.acks() == 1)
        journal.handle(message(1).activity_id, now=clock.now().timestamp())
        free = 499
        monkeypatch.setattr(
            shutil,
            "disk_usage",
            lambda directory: disk._replace(total=20_000, free=1_499 + 500 * (not any(directory.glob("*-a.txt")))),
        )
        keep(journal, clock, notice(2, name="b.txt"), messages=[naming(2, activity=2)])
        there.uploads.kick()
        await until(lambda: there.acks() == 2)
        assert records(journal)[0].state is FileState.REMOVED
        monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(total=20_000, free=1_499))
        keep(journal, clock, notice(3), messages=[naming(3, activity=3)])
        there.uploads.kick()
        await until(lambda: there.changes == 3)
        (third,) = journal.files.of_message(message(3).activity_id)
        assert "the disk is full: 500 bytes are needed, and 499 are left." in (third.reason or "")
        assert there.gets() == 2


async def test_a_file_that_would_never_fit_removes_nothing(
    faulty: FaultyPlatform, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 8: handled files stay their seven days unless they make the room that is needed."""
    faulty.play(serving())
    keep(journal, clock, notice(1), messages=[naming(1)])
    async with uploading(faulty, journal, state, clock, quota=1_000) as there:
        await until(lambda: there.acks() == 1)
        journal.handle(message(1).activity_id, now=clock.now().timestamp())
        keep(journal, clock, notice(2, size=1_001), messages=[naming(2, activity=2)])
        there.uploads.kick()
        await until(lambda: there.changes == 2)
        (second,) = journal.files.of_message(message(2).activity_id)
        assert "this one has 1,001, and 500 are taken" in (second.reason or "")
    assert records(journal)[0].state is FileState.STAGED
    assert there.gets() == 1


async def test_files_that_come_together_keep_the_quota_together(
    faulty: FaultyPlatform, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 8: what is on its way counts."""
    both = threading.Barrier(2)

    def play(asked: Asked) -> Answer | Fault | None:
        if asked.path.endswith("/content"):
            both.wait(5)
        return serving()(asked)

    faulty.play(play)
    numbers = range(1, 5)
    keep(journal, clock, *map(notice, numbers), messages=[naming(*numbers)])
    async with uploading(faulty, journal, state, clock, quota=1_000) as there:
        await until(lambda: there.changes == 4)
    assert sorted(record.state for record in records(journal)) == [FileState.FAILED] * 2 + [FileState.STAGED] * 2


async def test_a_file_that_an_open_message_names_is_not_given_up(journal: Journal, clock: ManualClock) -> None:
    """agent-side 8: those of open messages never; a message may name a file after it was chosen to go."""
    now = clock.now().timestamp()
    keep(journal, clock, notice(1), messages=[naming(1)])
    journal.files.stage(file_id(1), path="/f", size=1, sha256="0", now=now)
    journal.files.acked(file_id(1))
    assert journal.files.give_up(file_id(1), now=now) is False
    journal.handle(message(1).activity_id, now=now)
    assert [one.file_id for one in journal.files.removable(now)] == [file_id(1)]
    keep(journal, clock, messages=[naming(1, activity=2)])
    assert journal.files.give_up(file_id(1), now=now) is False
    journal.handle(message(2).activity_id, now=now)
    assert journal.files.give_up(file_id(1), now=now) is True


async def test_what_became_of_a_file_is_known_as_long_as_its_message_is_open(
    journal: Journal, clock: ManualClock
) -> None:
    """files: the reason stays; a record without a message goes when the feed cannot bring it back."""
    keep(journal, clock, notice(1), notice(2), messages=[naming(1)])
    for number in (1, 2):
        journal.files.miss(file_id(number), state=FileState.FAILED, reason="gone", next_at=None)
    journal.files.forget(clock.now().timestamp() + 9 * 86_400)
    assert [record.reason for record in records(journal)] == ["gone"]
    with closing(sqlite3.connect(journal.path)) as db:
        assert db.execute("SELECT COUNT(*) FROM files").fetchone() == (1,)


async def test_files_go_a_week_after_their_message_was_handled(
    faulty: FaultyPlatform, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 8: 7 days after handled; of an open message never; what nobody knows goes too; nothing comes twice."""
    faulty.play(serving())
    keep(journal, clock, notice(1), messages=[naming(1)])
    keep(journal, clock, notice(2), notice(3), messages=[naming(2, 3, activity=2), naming(3, activity=4)])
    stray = state.files / f"{'0' * 32}-stray.txt"
    mine = state.files / "report.txt"
    for file in (stray, mine):
        file.write_bytes(b"x")
        os.utime(file, (0, 0))
    async with uploading(faulty, journal, state, clock) as there:
        await until(lambda: there.acks() == 3)
        journal.handle(message(2).activity_id, now=clock.now().timestamp())
        await pass_time(clock, 7 * 86_400 - 60, sleepers=2)
        await until(lambda: not stray.exists())
        assert len(list(state.files.iterdir())) == 4
        await pass_time(clock, 3_700, sleepers=2)
        two = journal.files.of_message(message(2).activity_id)
        await until(lambda: len(list(state.files.iterdir())) == 3)
        keep(journal, clock, notice(2))
        there.uploads.kick()
        await idle(clock, sleepers=2)
        assert there.gets() == 3
    two = journal.files.of_message(message(2).activity_id)
    assert [record.state for record in two] == [FileState.REMOVED, FileState.STAGED]
    assert records(journal)[0].state is FileState.STAGED
    assert mine.exists()


async def test_a_directory_that_cannot_be_written_fails_the_file_with_the_reason(
    faulty: FaultyPlatform, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 8: the disk's own words; tried again when there is room."""
    faulty.play(serving())
    keep(journal, clock, notice(), messages=[naming(1)])
    state.files.rmdir()
    state.files.write_bytes(b"in the way")
    async with uploading(faulty, journal, state, clock) as there:
        await until(lambda: there.changes == 1)
        (record,) = records(journal)
        assert record.state is FileState.FAILED
        assert f"cannot be stored in {state.files}: Not a directory." in (record.reason or "")
        state.files.unlink()
        await meanwhile(clock, lambda: there.acks() == 1)
        assert records(journal)[0].state is FileState.STAGED
    assert state.files.stat().st_mode & 0o777 == 0o700


# our own uploads


async def test_an_echo_of_our_own_upload_is_neither_fetched_nor_acked(
    faulty: FaultyPlatform, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """contract 5.7: known by its id, and by name and size while that is not known; others are not held."""
    theirs = {file_id(2): CONTENT, file_id(3): CONTENT[:10]}
    faulty.play(lambda asked: serving(Answer(200, theirs.get(asked.path.split("/")[-2], CONTENT)))(asked))
    now = clock.now().timestamp()
    journal.files.begin_sending("k", [("a.txt", len(CONTENT))], now=now, until=now + 600)
    keep(journal, clock, notice(1), notice(2, name="b.txt"), notice(3, size=10))
    async with uploading(faulty, journal, state, clock) as there:
        await until(lambda: there.acks() == 2)
        await pass_time(clock, 5, sleepers=2)
        assert {asked.path.split("/")[-2] for asked in faulty.asked} == set(theirs)
        journal.files.end_sending("k", [file_id(1)], now=now)
        keep(journal, clock, notice(1), messages=[naming(1)])
        there.uploads.kick()
        await pass_time(clock, 600, sleepers=2)
        assert there.gets() == 2
    assert records(journal)[0].state is FileState.SENT


async def test_a_sending_that_never_ended_holds_nothing_for_ever(
    faulty: FaultyPlatform, journal: Journal, state: WorkspaceState, clock: ManualClock
) -> None:
    """contract 5.7: a sender that was killed; the user's file of the same name and size comes in the end."""
    faulty.play(serving())
    now = clock.now().timestamp()
    journal.files.begin_sending("k", [("a.txt", len(CONTENT))], now=now, until=now + 60)
    keep(journal, clock, notice(1))
    async with uploading(faulty, journal, state, clock) as there:
        await pass_time(clock, 59, sleepers=2)
        assert there.gets() == 0
        await meanwhile(clock, lambda: there.acks() == 1)


async def test_a_defect_fails_one_file_and_stops_nothing(
    faulty: FaultyPlatform,
    journal: Journal,
    state: WorkspaceState,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """uploads: what nobody foresaw is a reason like others, has its traceback in the log, and is tried again."""
    faulty.play(serving())
    bugs = [RuntimeError("a bug")]

    def stumble(name: str) -> str:
        if bugs:
            raise bugs.pop()
        return safe_file_name(name)

    monkeypatch.setattr(uploads_module, "safe_file_name", stumble)
    keep(journal, clock, notice(1), notice(2), messages=[naming(1, 2)])
    async with uploading(faulty, journal, state, clock) as there:
        await until(lambda: there.acks() == 1)
        first, second = sorted(records(journal), key=lambda record: record.state)
        assert (first.state, second.state) == (FileState.FAILED, FileState.STAGED)
        assert "failed inside molecule-mcp (RuntimeError)" in (first.reason or "")
        await meanwhile(clock, lambda: there.acks() == 2)


async def test_a_message_that_waits_for_its_files_does_not_count_as_waiting(
    faulty: FaultyPlatform, tmp_path: Path, clock: ManualClock
) -> None:
    """agent-side 5: `waiting` is what a call of wait_for_message would give."""
    told = settings(WORKSPACE, PLATFORM_URL=faulty.url)
    part = {"kind": "file", "file": {"uri": pending_uri(WORKSPACE, file_id(1)), "name": "a.txt"}}
    faulty.feed.rows = [row(1, request_body={"params": {"message": {"parts": [part]}}})]
    faulty.play(lambda asked: Fault.HANG if asked.path.endswith("/content") else None)
    state = state_in(tmp_path / "state")
    workspace = Workspace(told.workspaces[0], told, state=state, clock=clock, roles=Roles(beats=False))
    async with running(workspace.run):
        mailbox = await workspace.mailbox()
        await until(lambda: mailbox.counts().new == 1)
        assert (workspace.waiting(), mailbox.counts().files_pending) == (0, 1)
        await pass_time(clock, 30, sleepers=3)
        await until(lambda: workspace.waiting() == 1)


async def test_a_workspace_tries_its_files_as_soon_as_its_feed_is_read_again(
    faulty: FaultyPlatform, tmp_path: Path, clock: ManualClock
) -> None:
    """agent-side 4: the first read that goes well after failures hastens what waits; no failure ends the workspace."""
    told = settings(WORKSPACE, PLATFORM_URL=faulty.url)
    faulty.row = {"id": WORKSPACE, "name": "laptop", "status": "online"}
    faulty.feed.rows = [
        row(1, method="chat_upload_receive", request_body={"file_id": file_id(1), "name": "a.txt", "size": 500})
    ]
    storage_error = said(500, {"error": "storage error"})
    faulty.play(lambda asked: storage_error if asked.path.endswith("/content") else None)
    state = state_in(tmp_path / "state")
    workspace = Workspace(told.workspaces[0], told, state=state, clock=clock, roles=Roles(beats=False))
    async with running(workspace.run), ticking(clock, 0.5):
        await workspace.mailbox()
        await until(lambda: faulty.count("/content") >= PATIENCE, within_s=20)
        away_at = clock.monotonic()
        faulty.play(lambda asked: said(503, {"error": "away"}))
        await until(lambda: workspace.feed_error() is not None, within_s=10)
        faulty.play(serving())
        await until(lambda: faulty.count("/ack") == 1, within_s=20)
        assert clock.monotonic() - away_at < RETRY_LATER_S / 2
