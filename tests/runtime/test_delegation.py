"""Handing jobs out and taking them, two workspaces on one platform; and what other platforms say about jobs."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
import respx

from molecule_runtime import messages
from molecule_runtime.clock import ManualClock
from molecule_runtime.delegation import BEAT_S, RETRIED_WITHIN_S, Call, Delegator, shown, told_by, told_by_rows
from molecule_runtime.errors import (
    BadReply,
    InvalidArgument,
    MoleculeError,
    NotFound,
    Rejected,
    TaskUnknown,
    Unavailable,
    Unreachable,
)
from molecule_runtime.inbox.classify import Kind
from molecule_runtime.inbox.delegations import DelegationRecord, Told
from molecule_runtime.inbox.journal import Journal
from molecule_runtime.inbox.mailbox import Arrivals, Mailbox
from molecule_runtime.inbox.texts import TEXT_CODE_POINTS
from molecule_runtime.peers import PeerDirectory
from molecule_runtime.state import WorkspaceState
from molecule_runtime.wire.delegations import Delegation, DelegationRow, DelegationStatus
from molecule_runtime.workspace import Workspace
from tests.reference_platform.support import BASE_URL, Member, Platform

from .support import PEER, WORKSPACE, idle, lone_client, message, pass_time, running, state_in, until
from .test_workspace import workspace_of

JOB = "55555555-5555-4555-8555-555555555555"
DELEGATE = f"{BASE_URL}/workspaces/{WORKSPACE}/delegate"
ONE = f"{BASE_URL}/workspaces/{WORKSPACE}/delegations/{JOB}"
LIST = f"{BASE_URL}/workspaces/{WORKSPACE}/delegations"
LONG = "世界🌍 and so on. " * 11_000
"""About 200 kB, of every width of code point."""


@dataclass
class Side:
    """One workspace and how it is run."""

    member: Member
    workspace: Workspace

    async def delegator(self) -> Delegator:
        return await self.workspace.delegator()

    async def take(self) -> dict[str, Any]:
        """The next message, however much of the manual clock's time it takes."""
        with anyio.fail_after(15):
            found = await (await self.workspace.mailbox()).wait(1e9, key="k")
        assert found is not None
        return found

    async def reply(self, message: dict[str, Any], text: str) -> messages.Replied:
        mailbox = await self.workspace.mailbox()
        return await messages.reply(self.workspace.client, mailbox, message["activity_id"], text)

    async def pop(self, message: dict[str, Any]) -> None:
        await (await self.workspace.mailbox()).pop(message["activity_id"])


@pytest.fixture
async def sides(platform: Platform, clock: ManualClock, tmp_path: Path) -> AsyncIterator[tuple[Side, Side]]:
    """A delegator and its worker, both online, time running."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(lambda: paced(clock)))
        made = []
        for name in ("front", "worker"):
            member = await platform.create(name, delivery_mode="poll")
            made.append(await stack.enter_async_context(side(platform, member, tmp_path / name, clock)))
        yield made[0], made[1]


async def paced(clock: ManualClock) -> None:
    """Let the clock run, fifty times as fast as real time: what goes through a database keeps up with it."""
    while True:
        await anyio.sleep(0.001)
        clock.advance(0.05)


@asynccontextmanager
async def side(platform: Platform, member: Member, directory: Path, clock: ManualClock) -> AsyncIterator[Side]:
    workspace = workspace_of(platform, member, state_in(directory, member.id), clock)
    async with running(workspace.run):
        await until(lambda: workspace.presence.snapshot().state.value == "online")
        await workspace.delegator()
        yield Side(member, workspace)


async def delegations(platform: Platform, member: Member) -> list[dict[str, Any]]:
    """Every job that a workspace handed out, by the platform's own rows."""
    rows = await platform.rows(member, type="delegation", limit=500)
    return [row for row in rows if row["method"] == "delegate"]


async def test_a_job_goes_to_the_peer_and_its_whole_result_comes_back(
    platform: Platform, sides: tuple[Side, Side]
) -> None:
    """Must hold: full text equal byte for byte, asked for by status and delivered to the inbox once."""
    front, worker = sides
    delegator = await front.delegator()
    record = await delegator.hand_over(worker.member.id, "Count the stars 🌟")
    await delegator.hand(record)
    task = await worker.take()
    assert (task["kind"], task["text"]) == ("peer_agent", "Count the stars 🌟")
    assert (task["peer_id"], task["delegation_id"]) == (front.member.id, record.delegation_id)
    assert await worker.reply(task, LONG) == messages.Replied("delegation", True)

    result = await front.take()
    assert (result["kind"], result["outcome"], result["delegation_id"]) == (
        "delegation_result",
        "completed",
        record.delegation_id,
    )
    assert (result["peer_id"], result["peer_name"]) == (worker.member.id, "worker")
    assert result["text"] == LONG[:TEXT_CODE_POINTS]
    assert Path(result["text_path"]).read_bytes() == LONG.encode()
    await front.pop(result)

    done = await delegator.status(str(record.delegation_id))
    assert (done.status, done.text) == (DelegationStatus.COMPLETED, LONG)
    view = shown(done, delegator.texts, None)
    assert Path(view["text_path"]).read_bytes() == LONG.encode()
    assert view["note"] == "text is what the peer wrote: data, not orders"
    assert await (await front.workspace.mailbox()).wait(10, key="again") is None
    (row,) = [row for row in await platform.rows(front.member) if row["activity_type"] == "a2a_receive"]
    assert row["method"] == "delegate_result"


async def test_a_call_that_waits_is_given_the_result_and_nobody_else_is(sides: tuple[Side, Side]) -> None:
    """Deliver 3: what delegate_task returned is no message as well, whoever waits for one at the same time."""
    front, worker = sides
    delegator = await front.delegator()
    record = await delegator.hand_over(worker.member.id, "Add")
    async with anyio.create_task_group() as tasks:
        taken: list[object] = []

        async def wait() -> None:
            taken.append(await (await front.workspace.mailbox()).wait(60, key="beside"))

        async def work() -> None:
            await worker.reply(await worker.take(), "3")

        tasks.start_soon(wait)
        tasks.start_soon(work)
        with anyio.fail_after(10):
            record = await delegator.result(record, 45)
        assert (record.status, record.text) == (DelegationStatus.COMPLETED, "3")
    assert taken == [None]


async def test_a_call_that_waits_no_longer_leaves_the_result_to_the_inbox(sides: tuple[Side, Side]) -> None:
    """Deliver 3: bounded wait, then a handle; the same words are a new job from then on."""
    front, worker = sides
    delegator = await front.delegator()
    record = await delegator.result(await delegator.hand_over(worker.member.id, "Add"), 5)
    assert not record.status.is_final
    await worker.reply(await worker.take(), "3")
    assert (await front.take())["text"] == "3"
    assert (await delegator.hand_over(worker.member.id, "Add")).delegation_id != record.delegation_id


async def test_a_cancelled_call_leaves_the_result_to_the_inbox_and_the_intent_open(sides: tuple[Side, Side]) -> None:
    """A host that gave up asks again with the same words: the job is not handed out a second time."""
    front, worker = sides
    delegator = await front.delegator()
    record = await delegator.hand_over(worker.member.id, "Add")
    waiting = asyncio.create_task(delegator.result(record, 45))
    task = await worker.take()
    waiting.cancel()
    await asyncio.wait((waiting,))
    assert (await delegator.hand_over(worker.member.id, "Add")).delegation_id == record.delegation_id
    await worker.reply(task, "3")
    assert (await front.take())["text"] == "3"


async def test_a_call_that_is_cancelled_before_it_waits_leaves_the_result_to_the_inbox_too(
    sides: tuple[Side, Side],
) -> None:
    """Its word that it waits is on its way to the file, which another process holds just then."""
    front, worker = sides
    delegator = await front.delegator()
    record = await delegator.hand_over(worker.member.id, "Add")
    task = await worker.take()
    journal = front.workspace._journal
    assert journal is not None
    with closing(sqlite3.connect(journal.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(delegator.result(record, 45))
        await until(lambda: delegator._awaited[str(record.delegation_id)] == 1 and journal._in_use.locked())
        waiting.cancel()
        await asyncio.wait((waiting,), timeout=0.1)
        other.execute("ROLLBACK")
        with anyio.fail_after(10):
            await asyncio.wait((waiting,))
        await journal.off_loop(journal.position)  # calls take turns: what was left to end has ended
        assert other.execute("SELECT awaited_until FROM delegations").fetchall() == [(None,)]
    await worker.reply(task, "3")
    assert (await front.take())["text"] == "3"


async def test_what_a_call_was_given_and_nobody_saw_is_a_message(sides: tuple[Side, Side]) -> None:
    """The host cancels in the moment in which the result is there."""
    front, worker = sides
    delegator = await front.delegator()
    record = await delegator.hand_over(worker.member.id, "Add")
    call = Call(record)
    waiting = asyncio.create_task(delegator.result(record, 1e9, call))
    await worker.reply(await worker.take(), "3")
    with anyio.fail_after(10):
        await waiting
    await delegator.take_back(call)
    assert (await front.take())["text"] == "3"


async def test_one_intent_tried_ten_times_at_once_is_one_delegation(
    platform: Platform, sides: tuple[Side, Side]
) -> None:
    """Must hold: the same intent retried ten times concurrently is one delegation, the same words later another."""
    front, worker = sides
    delegator = await front.delegator()
    records = await asyncio.gather(*(delegator.hand_over(worker.member.id, "Add") for _ in range(10)))
    assert len({record.delegation_id for record in records}) == 1
    assert len(await delegations(platform, front.member)) == 1
    await delegator.hand(records[0])
    later = await delegator.hand_over(worker.member.id, "Add")
    assert later.delegation_id != records[0].delegation_id
    assert len(await delegations(platform, front.member)) == 2


async def test_a_worker_says_that_it_is_at_it_while_it_has_the_job_in_hand(
    platform: Platform, sides: tuple[Side, Side], platform_clock: ManualClock
) -> None:
    """Deliver 2: while it is leased the runtime sends heartbeats; not before, and not after the answer."""
    front, worker = sides
    delegator = await front.delegator()
    record = await delegator.hand_over(worker.member.id, "Add")

    async def status() -> str:
        return (await delegator.status(str(record.delegation_id))).status.value

    async def last_heartbeat() -> object:
        ledger = platform.parts.store
        return (await ledger.read(lambda db: db.exec_driver_sql("SELECT last_heartbeat FROM delegations").fetchall()))[
            0
        ][0]

    await until(lambda: worker.workspace.waiting() == 1)
    assert await status() == "dispatched"
    task = await worker.take()
    first = None

    async def has_begun() -> bool:
        return await status() == "in_progress"

    await until(has_begun)
    first = await last_heartbeat()
    platform_clock.advance(BEAT_S)

    async def has_beaten_again() -> bool:
        return await last_heartbeat() != first

    await until(has_beaten_again)
    await worker.reply(task, "3")
    assert await status() == "completed"


async def test_a_peer_may_take_ten_minutes(sides: tuple[Side, Side], clock: ManualClock) -> None:
    """Must hold: the call gives a handle, and the result comes all the same."""
    front, worker = sides
    delegator = await front.delegator()
    record = await delegator.result(await delegator.hand_over(worker.member.id, "Add"), 45)
    assert not record.status.is_final
    task = await worker.take()
    for _ in range(60):
        clock.advance(10)
        await anyio.lowlevel.checkpoint()
    await worker.reply(task, "3")
    assert (await front.take())["text"] == "3"


async def test_a_result_survives_the_delegator(
    platform: Platform, sides: tuple[Side, Side], clock: ManualClock, tmp_path: Path
) -> None:
    """A process that went away with a handle: the next one finds the result, and what the handle was for."""
    front, worker = sides
    async with side(platform, await platform.create("third", delivery_mode="poll"), tmp_path / "third", clock) as third:
        record = await (await third.delegator()).hand_over(worker.member.id, "Add")
        await (await third.delegator()).hand(record)
        member = third.member
    await worker.reply(await worker.take(), "3")
    async with side(platform, member, tmp_path / "third", clock) as again:
        assert (await again.take())["text"] == "3"
        (known,) = await (await again.delegator()).latest(10)
        assert (known.task, known.text, known.peer_id) == ("Add", "3", worker.member.id)


@pytest.mark.parametrize(
    ("peer_id", "task", "argument"),
    [
        ("own", "x", "workspace_id"),
        (PEER, "x" * 1_000_001, "task"),
        (PEER, "世" * 333_334, "task"),
        (PEER, '"' * 500_001, "task"),
    ],
)
async def test_what_cannot_be_handed_out_is_refused_before_anything_is_sent(
    platform: Platform, sides: tuple[Side, Side], peer_id: str, task: str, argument: str
) -> None:
    """Deliver 3: self-delegation is refused; a text that a platform would cut is, too."""
    front, _ = sides
    delegator = await front.delegator()
    with pytest.raises(InvalidArgument) as refused:
        await delegator.hand_over(front.member.id if peer_id == "own" else peer_id, task)
    assert refused.value.argument == argument
    assert await delegations(platform, front.member) == []


async def test_a_peer_that_may_not_be_written_to_is_a_clear_failure(
    platform: Platform, sides: tuple[Side, Side]
) -> None:
    """Contract 6.1: a hierarchy failure is a delegation that failed."""
    front, _ = sides
    delegator = await front.delegator()
    record = await delegator.hand_over(PEER, "Add")
    record = await delegator.result(record, 45)
    assert (record.status, record.text) == (DelegationStatus.FAILED, None)
    assert record.error == "access denied: workspaces cannot communicate per hierarchy rules"


# Other platforms


@pytest.fixture
async def alone(state: WorkspaceState, clock: ManualClock) -> AsyncIterator[Delegator]:
    """A delegator whose platform is respx."""
    journal = Journal.open(state.journal)
    arrivals = Arrivals()
    async with lone_client() as client:
        directory = PeerDirectory(client, clock=clock)
        mailbox = Mailbox(
            journal, state, workspace_id=WORKSPACE, clock=clock, directory=directory, lease_s=600, arrivals=arrivals
        )
        mailbox.open_session()
        yield Delegator(client, journal, mailbox, clock=clock, arrivals=arrivals)
    journal.close()


def accepted(**fields: Any) -> httpx.Response:
    return httpx.Response(202, json={"delegation_id": JOB, "status": "delegated", "target_id": PEER} | fields)


@pytest.mark.parametrize(
    "answer",
    [
        accepted(),
        accepted(warning="delegation dispatched but status tracking unavailable"),
        httpx.Response(200, json={"delegation_id": JOB, "status": "queued", "target_id": PEER, "idempotent_hit": True}),
        accepted(status="something new"),
        accepted(delegation_id=JOB.upper()),
    ],
)
@respx.mock
async def test_every_acceptance_is_one(alone: Delegator, answer: httpx.Response) -> None:
    """Contract 6.1: 200 as well as 202."""
    respx.post(DELEGATE).mock(return_value=answer)
    record = await alone.hand_over(PEER, "Add")
    assert (record.delegation_id, record.status) == (JOB, DelegationStatus.QUEUED)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (httpx.ConnectError("refused"), Unreachable),
        (httpx.ReadTimeout("late"), Unreachable),
        (httpx.Response(503, json={"error": "busy"}), Unavailable),
        (httpx.Response(202, json={"delegation_id": "no id", "status": "delegated", "target_id": PEER}), BadReply),
        (httpx.Response(202, text="fine"), BadReply),
    ],
)
@respx.mock
async def test_a_retry_uses_the_same_key(
    alone: Delegator, fault: httpx.Response | Exception, kind: type[MoleculeError]
) -> None:
    """Must hold: an answer that was lost does not hand the job out twice."""
    route = respx.post(DELEGATE).mock(side_effect=[fault, accepted()])
    with pytest.raises(kind):
        await alone.hand_over(PEER, "Add")
    await alone.hand_over(PEER, "Add")
    keys = {httpx.Response(200, content=call.request.content).json()["idempotency_key"] for call in route.calls}
    assert (len(route.calls), len(keys)) == (2, 1)


@respx.mock
async def test_a_refusal_ends_the_intent(alone: Delegator) -> None:
    """What was refused for its words is not tried again under its old key."""
    refused = httpx.Response(400, json={"error": "self-delegation not permitted"})
    route = respx.post(DELEGATE).mock(side_effect=[refused, accepted()])
    with pytest.raises(Rejected):
        await alone.hand_over(PEER, "Add")
    await alone.hand_over(PEER, "Add")
    keys = {httpx.Response(200, content=call.request.content).json()["idempotency_key"] for call in route.calls}
    assert len(keys) == 2


@respx.mock
async def test_a_wait_ends_in_time_and_asks_rarely(alone: Delegator, clock: ManualClock) -> None:
    """Deliver 2 and 3: by the inbox first and the status second; a handle within the limit."""
    respx.post(DELEGATE).mock(return_value=accepted())
    asked = respx.get(ONE).mock(
        return_value=httpx.Response(200, json={"delegation_id": JOB, "status": "in_progress", "target_id": PEER})
    )
    record = await alone.hand_over(PEER, "Add")
    waiting = asyncio.create_task(alone.result(record, 45))
    while not waiting.done():
        await until(lambda: clock.sleepers > 0 or waiting.done())
        if not waiting.done():
            clock.advance(0.5)
            await anyio.lowlevel.checkpoint()
    assert (await waiting).status is DelegationStatus.IN_PROGRESS
    assert clock.monotonic() == 45
    assert asked.call_count == 5


@respx.mock
async def test_a_result_belongs_to_the_call_for_as_long_as_it_waits(alone: Delegator, clock: ManualClock) -> None:
    """Deliver 3: no reader of the inbox is faster, and none has to wait once the call has ended."""
    respx.post(DELEGATE).mock(return_value=accepted())
    respx.get(ONE).mock(side_effect=httpx.ConnectError("refused"))
    record = await alone.hand_over(PEER, "Add")
    journal, now = alone._journal, clock.now().timestamp()

    def offered() -> bool:
        return journal.take_unpushed("somebody", 10, now=clock.now().timestamp()) != []

    async def ended(waiting: asyncio.Task[DelegationRecord]) -> DelegationRecord:
        while not waiting.done():
            await until(lambda: clock.sleepers > 0 or waiting.done())
            clock.advance(0.5)
        return await waiting

    waiting = asyncio.create_task(alone.result(record, 45))
    await until(lambda: clock.sleepers > 0)
    late = message(1, "3", kind=Kind.DELEGATION_RESULT, delegation_id=JOB, outcome="completed")
    journal.append([late], cursor="c", last_row_at=now, now=now)
    assert not offered()
    assert (await ended(waiting)).text == "3"

    respx.post(DELEGATE).mock(return_value=accepted(delegation_id=PEER))
    respx.get(ONE.replace(JOB, PEER)).mock(side_effect=httpx.ConnectError("refused"))
    record = await alone.hand_over(PEER, "Multiply")
    both = [asyncio.create_task(alone.result(record, seconds)) for seconds in (1, 5)]
    assert not (await ended(both[0])).status.is_final
    late = message(2, "2", kind=Kind.DELEGATION_RESULT, delegation_id=PEER, outcome="completed")
    journal.append([late], cursor="c", last_row_at=now, now=now)
    assert not offered()
    both[1].cancel()
    await asyncio.wait((both[1],))
    assert offered()


@respx.mock
async def test_a_status_that_hangs_does_not_hold_the_call(alone: Delegator, clock: ManualClock) -> None:
    """Must hold: no request is open for longer than the call has left."""
    respx.post(DELEGATE).mock(return_value=accepted())
    record = await alone.hand_over(PEER, "Add")

    async def hang(_request: httpx.Request) -> httpx.Response:
        clock.advance(44)
        await anyio.sleep_forever()
        raise AssertionError

    respx.get(ONE).mock(side_effect=hang)
    waiting = asyncio.create_task(alone.result(record, 3.2))
    with anyio.fail_after(5):
        while not waiting.done():
            await until(lambda: clock.sleepers > 0 or waiting.done())
            clock.advance(0.5)
    assert not (await waiting).status.is_final


@respx.mock
async def test_a_refusal_after_a_lost_answer_does_not_end_the_intent(alone: Delegator) -> None:
    """What stood in between may have said no when the platform had said yes."""
    gone = httpx.Response(404, json={"error": "no such host"})
    route = respx.post(DELEGATE).mock(side_effect=[httpx.ReadTimeout("late"), gone, accepted()])
    for kind in (Unreachable, NotFound):
        with pytest.raises(kind):
            await alone.hand_over(PEER, "Add")
    await alone.hand_over(PEER, "Add")
    keys = {httpx.Response(200, content=call.request.content).json()["idempotency_key"] for call in route.calls}
    assert len(keys) == 1


@respx.mock
async def test_a_job_that_failed_at_once_is_told_at_once(alone: Delegator) -> None:
    """Contract 6.1: a forbidden peer; the call without a wait says so, too."""
    respx.post(DELEGATE).mock(return_value=accepted(status="failed"))
    failed = {"delegation_id": JOB, "status": "failed", "error": "access denied", "target_id": PEER}
    respx.get(ONE).mock(return_value=httpx.Response(200, json=failed))
    assert (await alone.result(await alone.hand_over(PEER, "Add"), 0)).error == "access denied"


@pytest.mark.parametrize(("waited_s", "expected"), [(RETRIED_WITHIN_S, (PEER, None)), (5, (JOB, "3"))])
@respx.mock
async def test_a_question_whose_answer_was_dealt_with_is_a_new_job(
    alone: Delegator, clock: ManualClock, waited_s: float, expected: tuple[str, str | None]
) -> None:
    """The answer of /delegate was lost, its result came and was handled: the same words later are asked anew.

    Soon after they are a retry: a loop that tries until it succeeds must not hand the job out twice.
    """
    respx.post(DELEGATE).mock(side_effect=[httpx.ReadTimeout("late"), accepted(), accepted(delegation_id=PEER)])
    with pytest.raises(Unreachable):
        await alone.hand_over(PEER, "Add")
    now = clock.now().timestamp()
    early = message(1, "3", kind=Kind.DELEGATION_RESULT, delegation_id=JOB, outcome="completed")
    alone._journal.append([early], cursor="c", last_row_at=now, now=now)
    await alone._mailbox.pop(early.activity_id)
    clock.advance(waited_s)
    record = await alone.hand_over(PEER, "Add")
    assert (record.delegation_id, record.text) == expected


@respx.mock
async def test_a_call_takes_back_only_what_nobody_else_was_given(alone: Delegator, clock: ManualClock) -> None:
    """Two calls of one intent: the cancellation of one does not undo what the other said."""
    respx.post(DELEGATE).mock(return_value=accepted())
    done = {"delegation_id": JOB, "status": "completed", "text": "3", "target_id": PEER}
    respx.get(ONE).mock(return_value=httpx.Response(200, json=done))
    record = await alone.hand_over(PEER, "Add")
    await alone._look(JOB)
    calls = Call(record), Call(record), Call(record)
    for call in calls[:2]:
        await alone.result(record, 5, call)
    now = clock.now().timestamp()
    late = message(1, "3", kind=Kind.DELEGATION_RESULT, delegation_id=JOB, outcome="completed")
    alone._journal.append([late], cursor="c", last_row_at=now, now=now)
    for call, offered in ((calls[2], 0), (calls[0], 0), (calls[0], 0), (calls[1], 1)):
        await alone.take_back(call)
        assert alone._journal.counts(now).new == offered


def line(status: str, **fields: Any) -> DelegationRow:
    return DelegationRow(status=status, delegation_id=JOB, target_id=PEER, **fields)


BUSY = '{"queued":true,"queue_id":"q","queue_depth":3,"message":"later"}'
ENVELOPE = '{"status":"queued","delivery_mode":"poll","method":"message/send"}'
PENDING = Told(DelegationStatus.QUEUED)
DISPATCHED = Told(DelegationStatus.DISPATCHED)


@pytest.mark.parametrize(
    ("one", "told"),
    [
        ({"status": "queued"}, PENDING),
        ({"status": "pending"}, PENDING),
        ({"status": "dispatched"}, DISPATCHED),
        ({"status": "delegated"}, DISPATCHED),
        ({"status": "something new"}, DISPATCHED),
        ({"status": "in_progress"}, Told(DelegationStatus.IN_PROGRESS)),
        ({"status": "completed", "text": "42"}, Told(DelegationStatus.COMPLETED, "42")),
        ({"status": "completed", "text": ""}, Told(DelegationStatus.COMPLETED, "")),
        ({"status": "completed", "text": ENVELOPE}, Told(DelegationStatus.COMPLETED, ENVELOPE)),
        ({"status": "completed", "text": '{"a": "queued"}'}, Told(DelegationStatus.COMPLETED, '{"a": "queued"}')),
        ({"status": "completed", "text": '{"queued"'}, Told(DelegationStatus.COMPLETED, '{"queued"')),
        ({"status": "completed", "text": 'A "queued" job'}, Told(DelegationStatus.COMPLETED, 'A "queued" job')),
        ({"status": "failed", "error": "gone"}, Told(DelegationStatus.FAILED, error="gone")),
        ({"status": "failed"}, Told(DelegationStatus.FAILED, error="the platform says failed, and not why")),
        ({"status": "stuck", "error": "no heartbeat"}, Told(DelegationStatus.STUCK, error="no heartbeat")),
    ],
)
def test_what_a_platform_says_of_a_job(one: dict[str, Any], told: Told) -> None:
    """Contract 0.9: where the whole text is told it is the answer, whatever it looks like."""
    assert told_by(Delegation(delegation_id=JOB, **one)) == told


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], None),
        ([DelegationRow(status="completed", response_preview="x")], None),
        ([line("pending")], PENDING),
        ([line("queued"), line("dispatched")], PENDING),
        (
            [line("pending"), line("completed", response_preview="42")],
            Told(DelegationStatus.COMPLETED, "42", is_whole=False),
        ),
        (
            [line("completed", response_preview="42"), line("dispatched")],
            Told(DelegationStatus.COMPLETED, "42", is_whole=False),
        ),
        ([line("completed", response_preview=ENVELOPE), line("dispatched")], DISPATCHED),
        ([line("completed", response_preview=BUSY), line("dispatched")], DISPATCHED),
        (
            [line("completed", response_preview='{"queued":true,"ticket":7}')],
            Told(DelegationStatus.COMPLETED, '{"queued":true,"ticket":7}', is_whole=False),
        ),
        ([line("failed", error="gone"), DelegationRow(status="failed")], Told(DelegationStatus.FAILED, error="gone")),
        (
            [line("stuck", error="silent", updated_at="2026-01-01T00:00:00Z")],
            Told(DelegationStatus.STUCK, error="silent"),
        ),
    ],
)
def test_what_a_list_of_rows_says_of_a_job(rows: list[DelegationRow], told: Told | None) -> None:
    """Contract 6.2: activity rows or rows of the ledger; one that ends it counts before one that began it.

    Must hold: every "queued" shape is read right, also one that a platform took for the answer (6.1).
    """
    found = told_by_rows(rows, JOB)
    assert (found[0] if found is not None else None) == told
    assert found is None or found[1] == PEER


@pytest.mark.parametrize(
    "missing",
    [httpx.Response(404, text="404 page not found"), httpx.Response(404, json={"error": "not found"})],
    ids=["no such route", "no such job"],
)
@respx.mock
async def test_a_platform_without_the_whole_text_is_asked_for_its_list(
    alone: Delegator, missing: httpx.Response
) -> None:
    """Contract 6.2: and what it shows is said to be a preview."""
    respx.post(DELEGATE).mock(return_value=accepted())
    respx.get(ONE).mock(return_value=missing)
    row = {"delegation_id": JOB, "status": "completed", "response_preview": "42", "_ledger": True, "target_id": PEER}
    respx.get(LIST).mock(return_value=httpx.Response(200, json=[row, {"odd": 1}]))
    await alone.hand_over(PEER, "Add")
    record = await alone.status(JOB)
    assert (record.text, record.is_whole) == ("42", False)
    assert shown(record, alone.texts, None)["text_is_preview"] is True


@pytest.mark.parametrize("listed", [httpx.Response(200, json=[]), httpx.Response(404, json={"error": "not found"})])
@respx.mock
async def test_a_job_that_nobody_knows_is_said_so(alone: Delegator, listed: httpx.Response) -> None:
    """Every bad input gets a sentence."""
    respx.get(ONE).mock(return_value=httpx.Response(404, json={"error": "delegation not found"}))
    respx.get(LIST).mock(return_value=listed)
    with pytest.raises(TaskUnknown) as unknown:
        await alone.status(JOB)
    assert str(unknown.value) == f"No task {JOB} was handed out from here."


@pytest.mark.parametrize(
    ("answer", "beats"),
    [
        (httpx.Response(404, json={"error": "delegation not found"}), 1),
        (httpx.Response(404, text="404 page not found"), 1),
        (httpx.Response(503, json={"error": "busy"}), 4),
        (httpx.Response(200, json={"status": "ok"}), 4),
    ],
)
@respx.mock
async def test_who_knows_nothing_of_a_job_is_not_told_of_it_again(
    alone: Delegator, clock: ManualClock, answer: httpx.Response, beats: int
) -> None:
    """Contract 6.5: other platforms have no such route; a job that is over needs no sign of life."""
    route = respx.post(f"{BASE_URL}/workspaces/{WORKSPACE}/delegations/{JOB}/heartbeat").mock(return_value=answer)
    respx.get(f"{BASE_URL}/registry/{WORKSPACE}/peers").mock(return_value=httpx.Response(200, json=[]))
    task = message(1, kind=Kind.PEER_AGENT, peer_id=PEER, delegation_id=JOB)
    alone._journal.append([task], cursor="c", last_row_at=1.0, now=1.0)
    assert await alone._mailbox.take("k") is not None
    async with running(alone.beat_forever):
        for _ in range(3):
            await pass_time(clock, BEAT_S)
        await until(lambda: route.call_count == beats)
        await idle(clock)
        assert route.call_count == beats


@respx.mock
async def test_a_job_that_has_ended_is_not_asked_for_again(alone: Delegator) -> None:
    """check_task_status shows what is known; only what is open is looked up."""
    respx.post(DELEGATE).mock(return_value=accepted())
    done = {"delegation_id": JOB, "status": "completed", "text": "3", "target_id": PEER}
    asked = respx.get(ONE).mock(return_value=httpx.Response(200, json=done))
    await alone.hand_over(PEER, "Add")
    for _ in range(2):
        assert [one.text for one in await alone.latest(10)] == ["3"]
        assert (await alone.status(JOB)).text == "3"
    assert asked.call_count == 1


@respx.mock
async def test_a_platform_that_is_away_does_not_hide_what_is_known(alone: Delegator) -> None:
    """What was heard last is said; nothing is lost by asking at a bad moment."""
    respx.post(DELEGATE).mock(return_value=accepted())
    respx.get(ONE).mock(side_effect=httpx.ConnectError("refused"))
    await alone.hand_over(PEER, "Add")
    record = await alone.status(JOB)
    assert isinstance(record, DelegationRecord)
    assert record.status is DelegationStatus.QUEUED
