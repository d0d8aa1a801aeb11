"""Several workspaces in one process: which of them a call acts for, and that none suffers from another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from molecule_runtime.clock import ManualClock
from molecule_runtime.errors import InvalidArgument, StateDirUnwritable
from molecule_runtime.inbox.classify import Kind
from molecule_runtime.runtime import REVIVE_AFTER_S, Runtime
from molecule_runtime.settings import Settings
from molecule_runtime.state import StateDir
from tests.reference_platform.support import BASE_URL

from .support import PEER, WORKSPACE, message, pass_time, running, ticking, until

OTHER = "33333333-3333-4333-8333-333333333333"
NOBODY = "99999999-9999-4999-8999-999999999999"


class Broken(ManualClock):
    """A clock on which the first sleep of one length fails, as a defect in a loop would."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._fails_at = seconds
        self.has_failed = False

    async def sleep(self, seconds: float) -> None:
        if seconds == self._fails_at and not self.has_failed:
            self.has_failed = True
            raise ZeroDivisionError
        await super().sleep(seconds)


def runtime_of(directory: Path, clock: ManualClock | None = None, **env: str) -> Runtime:
    """Two workspaces whose platform is busy for ever."""
    told = Settings.from_env(
        {"PLATFORM_URL": BASE_URL, "MOLECULE_WORKSPACES": json.dumps([{"id": WORKSPACE}, {"id": OTHER}]), **env}
    )
    return Runtime(
        told,
        state_dir=StateDir.open(directory, home=directory),
        clock=clock or ManualClock(),
        transport=httpx.MockTransport(lambda request: httpx.Response(503, json={"error": "later"})),
    )


async def deliver(runtime: Runtime, workspace_id: str, *numbers: int) -> None:
    """Let messages be in a workspace's inbox."""
    workspace = runtime.route(workspace_id)
    mailbox = await workspace.mailbox()
    assert workspace._journal is not None
    workspace._journal.append([message(n) for n in numbers], cursor=None, last_row_at=None, now=1.0)
    await mailbox.recount()
    mailbox.announce()


async def taken(runtime: Runtime, workspace_id: str | None = None) -> tuple[str, str] | None:
    found = await runtime.wait_for_message(workspace_id, 0, key="call")
    return (found["workspace_id"], found["text"]) if found else None


def texts(*numbers: int) -> list[str]:
    return [message(n).text for n in numbers]


async def test_a_call_acts_for_the_named_workspace_or_where_the_last_message_came_from(tmp_path: Path) -> None:
    """agent-side 5: default the only one, or where the last message came from, else an error that lists them."""
    runtime = runtime_of(tmp_path)
    async with running(runtime.run):
        with pytest.raises(InvalidArgument) as unsaid:
            runtime.route()
        assert WORKSPACE in unsaid.value.reason
        assert OTHER in unsaid.value.reason
        with pytest.raises(InvalidArgument) as unknown:
            runtime.route(NOBODY, argument="source_workspace_id")
        assert unknown.value.argument == "source_workspace_id"
        assert OTHER in unknown.value.reason
        assert runtime.route(OTHER.upper()).id == OTHER
        await deliver(runtime, OTHER, 1)
        assert await taken(runtime) == (OTHER, *texts(1))
        assert runtime.route().id == OTHER


async def test_one_call_waits_for_all_and_a_busy_workspace_does_not_keep_the_other_waiting(tmp_path: Path) -> None:
    """agent-side 5: a message from any workspace ends the wait; the one served last comes last."""
    runtime = runtime_of(tmp_path)
    async with running(runtime.run):
        await deliver(runtime, WORKSPACE, 1, 2)
        await deliver(runtime, OTHER, 3)
        assert await taken(runtime, OTHER) == (OTHER, *texts(3))
        assert await taken(runtime, OTHER) is None
        await deliver(runtime, OTHER, 4)
        assert [await taken(runtime) for _ in range(4)] == [
            (WORKSPACE, *texts(1)),
            (OTHER, *texts(4)),
            (WORKSPACE, *texts(2)),
            None,
        ]
        assert runtime.waiting() == 0


async def test_a_message_is_found_in_whatever_inbox_it_lies(tmp_path: Path) -> None:
    """agent-side 5: reply and inbox_pop need no workspace_id, because an activity_id says it."""
    runtime = runtime_of(tmp_path)
    async with running(runtime.run):
        await deliver(runtime, OTHER, 1)
        there = message(1).activity_id
        assert (await runtime.holder(there)).id == OTHER
        assert (await runtime.holder(there, WORKSPACE)).id == WORKSPACE
        assert (await runtime.holder(message(2).activity_id)).id == WORKSPACE


async def test_a_cancelled_wait_gives_back_in_the_right_inbox(tmp_path: Path) -> None:
    """agent-side 5: cancel gives the lease back."""
    runtime = runtime_of(tmp_path)
    async with running(runtime.run):
        await deliver(runtime, OTHER, 1)
        assert await taken(runtime) is not None
        await runtime.give_back("call")
        found = await runtime.wait_for_message(None, 0, key="again")
        assert found is not None
        assert found["attempt"] == 1


async def test_a_defect_that_ends_one_workspace_leaves_the_other_alone_and_is_got_over(tmp_path: Path) -> None:
    """One bad entry does not stop the others; presence never ends for good."""
    clock = Broken(1.5)  # the pace at which a mailbox looks for dead sessions
    runtime = runtime_of(tmp_path, clock)
    before = runtime.workspaces
    async with running(runtime.run):
        await until(lambda: clock.has_failed)
        await pass_time(clock, REVIVE_AFTER_S)
        await until(lambda: runtime.workspaces != before)
        assert len(set(before) & set(runtime.workspaces)) == 1
        for workspace in runtime.workspaces:
            await workspace.mailbox()
        both = (
            f"Presence of molecule-mcp-11111111 ({WORKSPACE}): unreachable. "
            f"Presence of molecule-mcp-33333333 ({OTHER}): unreachable."
        )
        async with ticking(clock):
            await until(lambda: runtime.presence_sentence() == both)
        assert runtime.presence_sentence(OTHER) == f"Presence of molecule-mcp-33333333 ({OTHER}): unreachable."


async def test_an_inbox_that_cannot_be_opened_does_not_close_the_others(tmp_path: Path) -> None:
    """One bad entry does not stop the others."""
    (tmp_path / OTHER).write_text("in the way")
    runtime = runtime_of(tmp_path)
    async with running(runtime.run):
        await deliver(runtime, WORKSPACE, 1)
        assert await taken(runtime) == (WORKSPACE, *texts(1))
        with pytest.raises(StateDirUnwritable):
            await taken(runtime, OTHER)


async def test_a_journal_that_cannot_be_opened_does_not_hide_the_jobs_of_the_others(tmp_path: Path) -> None:
    """agent-side 5, check_task_status: what is known is told, and whose is not."""
    (tmp_path / OTHER).write_text("in the way")
    job, result = "55555555-5555-4555-8555-555555555555", Kind.DELEGATION_RESULT
    runtime = runtime_of(tmp_path)
    async with running(runtime.run):
        workspace = runtime.route(WORKSPACE)
        await workspace.mailbox()
        assert workspace._journal is not None
        records = workspace._journal.delegations
        intent = records.intend(key="k", peer_id=OTHER, digest="d", task="Add", now=1.0)
        records.accepted(intent, job, now=1.0)
        done = message(1, "3", kind=result, delegation_id=job, outcome="completed")
        workspace._journal.append([done], cursor=None, last_row_at=None, now=1.0)
        found, troubles = await runtime.tasks(10)
        assert [(at.id, record.text) for at, record in found] == [(WORKSPACE, "3")]
        assert [at.id for at, _ in troubles] == [OTHER]
        assert (await runtime.task(job))[1].text == "3"
        with pytest.raises(StateDirUnwritable):
            await runtime.tasks(10, OTHER)


async def test_the_status_shows_all_and_says_whose_a_problem_is(tmp_path: Path) -> None:
    """agent-side 5, runtime_status; the entries that were left out are among the problems."""
    (tmp_path / OTHER).write_text("in the way")
    listed = json.dumps([{"id": WORKSPACE}, {"id": OTHER}, {"id": "bad"}])
    runtime = runtime_of(tmp_path, MOLECULE_WORKSPACES=listed)
    shown: dict[str, Any] = await runtime.snapshot()
    assert [workspace["id"] for workspace in shown["workspaces"]] == [WORKSPACE, OTHER]
    assert [(one["id"], one.get("workspace_id")) for one in shown["problems"]] == [
        ("settings.MOLECULE_WORKSPACES", None),
        ("inbox.unusable", OTHER),
    ]


def test_peers_are_not_workspaces_of_ours(tmp_path: Path) -> None:
    """An id that is somebody else's is refused and nothing is done in its name."""
    with pytest.raises(InvalidArgument):
        runtime_of(tmp_path).route(PEER)
