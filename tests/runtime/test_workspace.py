"""One workspace wired together: who does what, and what goes on when something is missing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

from molecule_runtime.clock import ManualClock
from molecule_runtime.errors import JournalUnusable, StateDirUnwritable
from molecule_runtime.inbox.journal import Journal
from molecule_runtime.settings import Settings
from molecule_runtime.state import WorkspaceState
from molecule_runtime.workspace import Roles, Workspace
from tests.reference_platform.support import Member, Platform

from .support import Wire, message, running, settings, spawn, state_in, ticking, until

DOORBELL_REFUSED = "http://127.0.0.1:1"
"""The platform in process has no socket; a port where nobody listens makes the doorbell fail at once."""


def workspace_of(
    platform: Platform,
    member: Member,
    state: WorkspaceState | None,
    clock: ManualClock,
    *,
    roles: Roles | None = None,
    problem: StateDirUnwritable | None = None,
    told: Settings | None = None,
) -> Workspace:
    known = told or settings(member.id, member.token, PLATFORM_URL=DOORBELL_REFUSED)
    return Workspace(
        known.workspaces[0],
        known,
        state=state,
        clock=clock,
        roles=roles or Roles(),
        state_problem=problem,
        transport=Wire(platform),
    )


async def owned(workspace: Workspace) -> tuple[bool, bool]:
    owner = (await workspace.snapshot())["owner"]
    return owner["beat"], owner["inbox"]


@pytest.fixture
def at_home(platform: Platform, member: Member, tmp_path: Path) -> WorkspaceState:
    return state_in(tmp_path / "state", member.id)


async def test_a_message_is_delivered_by_the_process_that_owns_the_inbox(
    platform: Platform, member: Member, at_home: WorkspaceState, clock: ManualClock
) -> None:
    """design, a message: from the canvas to the mailbox, presence beside it."""
    workspace = workspace_of(platform, member, at_home, clock)
    async with running(workspace.run), ticking(clock):
        mailbox = await workspace.mailbox()
        await until(lambda: workspace.presence.snapshot().state.value == "online")
        await platform.say(member, "hello")
        with anyio.fail_after(5):
            shown = await mailbox.wait(10_000, key="a")
        assert shown is not None
        assert (shown["text"], shown["state"], shown["workspace_id"]) == ("hello", "leased", member.id)
        status = await workspace.snapshot()
        assert status["inbox"] == {"new": 0, "leased": 1, "parked": 0, "files_pending": 0}
        assert status["owner"] == {"beat": True, "inbox": True, "pid": os.getpid()}
        assert (workspace.problems(), workspace.absent_state(), workspace.waiting()) == ([], None, 0)
    assert (await platform.rows(member))[0]["method"] == "message/send"


async def test_a_second_one_waits_for_both_locks_and_serves_meanwhile(
    platform: Platform, member: Member, at_home: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 4, Owners: one owner for each job; the other serves tools from the shared journal."""
    first = workspace_of(platform, member, at_home, clock)
    second = workspace_of(platform, member, at_home, clock)
    async with ticking(clock), running(first.run):
        await until(lambda: first.presence.snapshot().state.value == "online")
        await first.mailbox()
        async with running(second.run):
            mailbox = await second.mailbox()
            await until(lambda: owned_now(first) == {"beat", "inbox"})
            assert await owned(second) == (False, False)
            await platform.say(member, "hello")
            with anyio.fail_after(5):
                shown = await mailbox.wait(10_000, key="a")
            assert shown is not None
            assert shown["text"] == "hello"
            assert second.absent_state() is None


async def test_the_one_that_waits_goes_on_when_the_owner_ends(
    platform: Platform, member: Member, at_home: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 4: take-over within 10 s."""
    first = workspace_of(platform, member, at_home, clock)
    second = workspace_of(platform, member, at_home, clock)
    async with running(first.run) as owner:
        async with ticking(clock):
            await until(lambda: first.presence.snapshot().state.value == "online")
            await first.mailbox()
        async with running(second.run):
            await second.mailbox()
            owner.cancel()
            await asyncio.wait((owner,))
            async with ticking(clock):
                await until(lambda: owned_now(second) == {"beat", "inbox"})
                await until(lambda: second.presence.snapshot().state.value == "online")


def owned_now(workspace: Workspace) -> set[str]:
    return {job for job, one in (("beat", workspace._beat), ("inbox", workspace._inbox)) if one.held}


async def test_presence_is_told_by_the_stamp_of_the_process_that_beats(
    platform: Platform, member: Member, at_home: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 3: one snapshot, whoever is asked; and when that process is gone, that is what is said."""
    reader = workspace_of(platform, member, at_home, clock, roles=Roles(beats=False))
    async with ticking(clock), running(reader.run):
        await reader.mailbox()
        assert (await reader.snapshot())["presence"]["state"] == "starting"
        beater = workspace_of(platform, member, at_home, clock, roles=Roles(reads_inbox=True))
        async with running(beater.run):
            await beater.mailbox()

            async def shows_online() -> bool:
                shown = await reader.snapshot()
                return (shown["presence"]["state"], shown["owner"]["pid"]) == ("online", os.getpid())

            await until(shows_online)
        gone = await reader.snapshot()
        assert (gone["presence"]["state"], gone["owner"]["pid"]) == ("stopped", None)
        assert gone["presence"]["last_ok_at"] is not None


@pytest.mark.parametrize("how", ["no directory", "no journal", "no locks"])
async def test_without_a_usable_state_directory_presence_goes_on_and_the_inbox_says_why(
    platform: Platform, member: Member, at_home: WorkspaceState, clock: ManualClock, how: str
) -> None:
    """agent-side 8: the canvas must show an agent that is there."""
    state: WorkspaceState | None = at_home
    problem = None
    if how == "no directory":
        state, problem = None, StateDirUnwritable(path="/configs", reason="read-only file system")
    elif how == "no journal":
        at_home.journal.mkdir()
    else:
        for job in ("beat", "inbox"):
            (at_home.path / f"{job}.lock").mkdir()
    workspace = workspace_of(platform, member, state, clock, problem=problem)
    async with running(workspace.run) as task, ticking(clock):
        await until(lambda: workspace.presence.snapshot().state.value == "online")
        if how == "no locks":
            await workspace.mailbox()
            assert owned_now(workspace) == {"beat"}
            await until(lambda: len(workspace.problems()) == 2)
        else:
            with pytest.raises((StateDirUnwritable, JournalUnusable)):
                await workspace.mailbox()
        assert not task.done()
        expected = ["state.beat_lock", "state.inbox_lock"] if how == "no locks" else ["inbox.unusable"]
        assert sorted(one.id for one in workspace.problems()) == expected


async def test_a_journal_that_becomes_usable_is_opened(
    platform: Platform, member: Member, at_home: WorkspaceState, clock: ManualClock
) -> None:
    """Ours: tried again every half minute."""
    at_home.journal.mkdir()
    workspace = workspace_of(platform, member, at_home, clock)
    async with running(workspace.run), ticking(clock):
        with pytest.raises(JournalUnusable):
            await workspace.mailbox()
        at_home.journal.rmdir()
        await until(lambda: workspace.problems() == [])
        mailbox = await workspace.mailbox()
        await platform.say(member, "hello")
        with anyio.fail_after(5):
            assert (await mailbox.wait(10_000, key="a") or {})["text"] == "hello"


async def test_a_damaged_journal_is_a_problem_shown(
    platform: Platform, member: Member, at_home: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 5: problems with a fix."""
    at_home.journal.write_bytes(b"not a database" * 300)
    workspace = workspace_of(platform, member, at_home, clock)
    async with running(workspace.run), ticking(clock):
        await workspace.mailbox()
        assert [one.id for one in workspace.problems()] == ["inbox.damaged"]


async def test_what_another_process_reads_from_the_feed_wakes_a_wait_here(
    platform: Platform, member: Member, at_home: WorkspaceState, clock: ManualClock
) -> None:
    """design: others serve tools from the shared journal."""
    other = spawn(
        """
import sys
from pathlib import Path
from molecule_runtime.inbox.journal import Journal
from molecule_runtime.state import OwnerLock, WorkspaceState
from tests.runtime.rows import message
state = WorkspaceState(Path(sys.argv[1]))
locks = [state.owner_lock(job) for job in ("beat", "inbox")]
assert all(lock.try_acquire() for lock in locks)
journal = Journal.open(state.journal)
print("owner", flush=True)
sys.stdin.readline()
journal.append([message(1)], cursor="c", last_row_at=1.0, now=1.0)
print("written", flush=True)
sys.stdin.readline()
""",
        at_home.path,
    )
    assert other.stdout is not None
    assert other.stdin is not None
    assert other.stdout.readline() == "owner\n"
    workspace = workspace_of(platform, member, at_home, clock)
    async with running(workspace.run), ticking(clock):
        mailbox = await workspace.mailbox()
        waiting = asyncio.create_task(mailbox.wait(10_000, key="a"))
        other.stdin.write("go\n")
        other.stdin.flush()
        with anyio.fail_after(5):
            shown = await waiting
        assert shown is not None
        assert shown["activity_id"] == message(1).activity_id
        assert await owned(workspace) == (False, False)

        other.send_signal(signal.SIGKILL)
        await asyncio.to_thread(other.communicate, timeout=10)
        await until(lambda: owned_now(workspace) == {"beat", "inbox"})
        await until(lambda: workspace.presence.snapshot().state.value == "online")


async def test_the_inbound_secret_is_kept_private(
    platform: Platform, member: Member, at_home: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 3: stored per workspace, 0600; a disk that is gone is no obstacle."""
    workspace = workspace_of(platform, member, at_home, clock)
    async with running(workspace.run), ticking(clock):
        await until(at_home.inbound_secret_file.exists)
        assert oct(at_home.inbound_secret_file.stat().st_mode & 0o777) == "0o600"
        await workspace.mailbox()
        inbox = workspace._journal
        assert inbox is not None
        shutil.rmtree(at_home.path)
        before = workspace.presence.snapshot().last_ok_at
        await until(lambda: workspace.presence.snapshot().last_ok_at != before)
        assert workspace.presence.snapshot().state.value == "online"


async def test_the_inbox_that_is_switched_off_says_so(
    platform: Platform, member: Member, at_home: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 1: MOLECULE_MCP_DISABLE_INBOX."""
    workspace = workspace_of(platform, member, at_home, clock, roles=Roles(reads_inbox=False))
    async with running(workspace.run), ticking(clock):
        with pytest.raises(JournalUnusable):
            await workspace.mailbox()
        await until(lambda: workspace.presence.snapshot().state.value == "online")
        assert await owned(workspace) == (True, False)


async def test_a_feed_that_cannot_be_read_is_told_from_a_quiet_one(
    platform: Platform, member: Member, at_home: WorkspaceState, clock: ManualClock
) -> None:
    """Ours: "no message" must be true when it is said."""
    told = settings(member.id, "a-token-that-opens-nothing", PLATFORM_URL=DOORBELL_REFUSED)
    workspace = workspace_of(platform, member, at_home, clock, told=told)
    assert workspace.feed_error() is None
    async with running(workspace.run), ticking(clock):
        await until(lambda: workspace.feed_error() is not None)
        await until(lambda: workspace.presence.snapshot().state.value == "unauthorized")
        both = ["inbox.feed", "presence.unauthorized"]
        await until(lambda: sorted(one.id for one in workspace.problems()) == both)
        assert workspace.absent_state() == "unauthorized"


async def test_a_token_file_that_vanishes_stops_nothing(
    platform: Platform, member: Member, at_home: WorkspaceState, clock: ManualClock, tmp_path: Path
) -> None:
    """agent-side 1: rotation needs no restart, whatever moment the file is away."""
    file = tmp_path / "token"
    file.write_text(member.token)
    env: dict[str, Any] = {"MOLECULE_WORKSPACE_TOKEN_FILE": str(file), "PLATFORM_URL": DOORBELL_REFUSED}
    workspace = workspace_of(platform, member, at_home, clock, told=settings(member.id, None, **env))
    async with running(workspace.run) as task, ticking(clock):
        await until(lambda: workspace.presence.snapshot().state.value == "online")
        file.write_text("wrong")
        await platform.parts.store.write(revoke_and_forget, member.id, platform.parts.clock.now())
        file.unlink()
        await until(lambda: workspace.presence.snapshot().state.value == "unauthorized")
        await until(lambda: workspace.feed_error() is not None)
        fresh = await platform.parts.store.write(mint, member.id, platform.parts.clock.now())
        file.write_text(fresh)
        await until(lambda: workspace.presence.snapshot().state.value == "online")
        await until(lambda: workspace.feed_error() is None)
        assert not task.done()


def revoke_and_forget(connection: Any, workspace_id: str, now: Any) -> None:
    from molecule_runtime.reference_platform.services import tokens

    tokens.revoke_all(connection, [workspace_id], now)


def mint(connection: Any, workspace_id: str, now: Any) -> str:
    from molecule_runtime.reference_platform.services import tokens

    return tokens.mint(connection, workspace_id, now)


async def test_a_journal_opened_by_hand_is_closed_with_its_workspace(
    platform: Platform, member: Member, at_home: WorkspaceState, clock: ManualClock
) -> None:
    """agent-side 2: nothing is left half-written by an end; the message in hand is offered to the next life."""
    workspace = workspace_of(platform, member, at_home, clock)
    async with running(workspace.run), ticking(clock):
        mailbox = await workspace.mailbox()
        await platform.say(member, "hello")
        with anyio.fail_after(5):
            await mailbox.wait(10_000, key="a")
    with pytest.raises(JournalUnusable):
        await mailbox.peek(1)
    journal = Journal.open(at_home.journal)
    assert [(entry.state.value, entry.attempt) for entry in journal.open_messages(9)] == [("new", 1)]
    journal.close()
    assert list(at_home.sessions.iterdir()) == []
