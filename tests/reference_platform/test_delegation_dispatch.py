"""Delegations to agents that are called: what each answer makes of them, one retry, and one call whoever starts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.services.delegation_records import DelegationRecords, Ending
from molecule_runtime.wire.delegations import DelegateRequest, DelegationStatus

from .delegations import QUEUED, TASK, answer, delegated, inbox, rows_of, state, update
from .push_agents import PushAgent, closed_port, push_agent, reply_with, socket_that_says
from .support import Database, Member, Platform, only, running, until

IDLE = 3
"""Sleepers of a platform that does nothing: its sweepers."""


@pytest.fixture
async def agent() -> AsyncIterator[PushAgent]:
    async with push_agent() as agent:
        yield agent


async def pushed(platform: Platform, url: str, name: str = "pushed") -> Member:
    """A workspace whose agent registered to be called at `url`."""
    member = await platform.create(name)
    await platform.register(member, delivery_mode="push", url=url)
    return member


async def ended(platform: Platform, boss: Member, delegation_id: str) -> tuple[str, str | None, str | None]:
    """Its state, once it has one that is final."""
    found: tuple[str, str | None, str | None] = ("", None, None)

    async def final() -> bool:
        nonlocal found
        found = await state(platform, boss, delegation_id)
        return found[0] in ("completed", "failed", "stuck")

    await until(final)
    return found


async def pausing(clock: ManualClock) -> None:
    """Wait until something beside the sweepers waits for time to pass."""

    async def another() -> bool:
        return clock.sleepers > IDLE

    await until(another)


async def left_uncalled(platform: Platform, boss: Member, worker: Member) -> str:
    """A delegation of a process that died between the commit and the call; its id."""
    request = DelegateRequest(target_id=worker.id, task=TASK)
    opened = await platform.parts.store.write(DelegationRecords().open, boss.id, request, platform.parts.clock.now())
    return opened.delegation_id


async def test_an_agent_is_called_with_the_task_and_its_answer_is_the_result(
    platform: Platform, agent: PushAgent
) -> None:
    """Caller, message id and metadata of the contract; the answer goes to the delegator's inbox (contract 6.1, 6.6)."""
    boss, worker = await platform.join("boss"), await pushed(platform, agent.url())
    agent.answer = lambda body: reply_with(body, "完成")
    with platform.parts.bus.subscribe() as events:
        delegation_id = await delegated(platform, boss, worker)
        assert await ended(platform, boss, delegation_id) == ("completed", "完成", None)
        heard = await platform.heard(events)
    ((_, _, body),) = agent.called
    assert body["params"]["message"] == {
        "role": "user",
        "messageId": delegation_id,
        "parts": [{"type": "text", "text": TASK}],
        "metadata": {"delegation_id": delegation_id},
    }
    facts = {"delegation_id": delegation_id, "target_id": worker.id}
    assert [event for event in heard if event[0] != "ACTIVITY_LOGGED"] == [
        ("DELEGATION_SENT", facts | {"task_preview": TASK}),
        ("DELEGATION_STATUS", facts | {"status": "dispatched"}),
        ("DELEGATION_COMPLETE", facts | {"response_preview": "完成"}),
    ]
    assert await rows_of(platform, boss) == [("delegate", "completed"), ("delegate_result", "completed")]
    (result,) = await inbox(platform, boss)
    assert (result["method"], result["response_body"]["text"]) == ("delegate_result", "完成")
    (taken,) = await inbox(platform, worker)
    assert (taken["source_id"], taken["summary"], taken["status"]) == (boss.id, "message/send → pushed", "ok")


def task_of(state: str, text: bytes) -> bytes:
    """An A2A task with its state and what its agent says of it."""
    parts = b'"message": {"parts": [{"kind": "text", "text": "' + text + b'"}]}'
    return b'{"result": {"kind": "task", "id": "t", "status": {"state": "' + state.encode() + b'", ' + parts + b"}}}"


CANCELED = "the task ended as canceled"
NO_FORM = "the agent's answer has no known form: {'hello': 1}"
ANSWERS: list[tuple[int, bytes, tuple[str, str | None, str | None]]] = [
    (200, b'{"result": {"message": {"parts": [{"kind": "text", "text": "a"}]}}}', ("completed", "a", None)),
    (200, b'{"result": {"artifacts": [{"parts": [{"kind": "text", "text": "b"}]}]}}', ("completed", "b", None)),
    (200, b'{"result": "c"}', ("completed", "c", None)),
    (200, b'{"result": {"parts": []}}', ("completed", "", None)),
    (200, b'{"result": {"kind": "task", "id": 7}}', ("completed", '{"kind": "task", "id": 7}', None)),
    (200, b'{"error": "no luck"}', ("failed", None, "no luck")),
    (200, b'{"error": {"code": -32000, "message": "too vague"}}', ("failed", None, "too vague")),
    (200, b'{"error": {"code": 1}}', ("failed", None, "an error without a message (code 1)")),
    (200, b'{"error": {"code": 1, "message": null}}', ("failed", None, "an error without a message (code 1)")),
    (200, b'{"error": ""}', ("failed", None, "the agent answered with an error and no message")),
    (200, b'{"error": null, "result": {"parts": [{"kind": "text", "text": "d"}]}}', ("completed", "d", None)),
    (200, task_of("completed", b"e"), ("completed", "e", None)),
    (200, task_of("input-required", b"which?"), ("completed", "which?", None)),
    (200, task_of("failed", b"no tide today"), ("failed", None, "no tide today")),
    (200, b'{"result": {"kind": "task", "status": {"state": "canceled"}}}', ("failed", None, CANCELED)),
    (200, b'{"hello": 1}', ("failed", None, NO_FORM)),
    (200, b"", ("failed", None, "agent returned empty response body")),
    (422, b'{"error": "too vague"}', ("failed", None, "too vague")),
    (409, b'{"error": {"code": 1, "message": "no"}}', ("failed", None, "Conflict")),
    (503, b'{"error": "overloaded"}', ("failed", None, "overloaded")),
]


@only("sqlite")
async def test_every_shape_of_answer_is_a_clear_result(platform: Platform, agent: PushAgent) -> None:
    """Texts, errors as string and object, nothing, and what nobody knows; each called once (invariant)."""
    boss, worker = await platform.join("boss"), await pushed(platform, agent.url())
    for number, (status, content, expected) in enumerate(ANSWERS, 1):
        agent.answer = partial(said, content, status)
        assert await ended(platform, boss, await delegated(platform, boss, worker)) == expected
        assert len(agent.called) == number
    texts = [expected[1] if expected[0] == "completed" else expected[2] for _, _, expected in ANSWERS]
    told = [row["error_detail"] or row["response_body"]["text"] for row in await inbox(platform, boss)]
    assert told == texts


def said(content: bytes, status: int, _body: Any) -> Response:
    return Response(content, status_code=status, media_type="application/json")


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (202, b'{"queued": true, "queue_id": "q"}'),
        (200, b'{"status": "queued", "delivery_mode": "poll"}'),
        (200, b'{"result": {"kind": "task", "id": "t", "status": {"state": "working"}}}'),
    ],
)
@only("sqlite")
async def test_an_agent_that_queues_the_task_answers_later(
    platform: Platform, agent: PushAgent, status: int, content: bytes
) -> None:
    """Both "queued" envelopes leave it open, and the same row turns into the result (contract 6.1, 0.8)."""
    boss, worker = await platform.join("boss"), await pushed(platform, agent.url())
    agent.answer = partial(said, content, status)
    with platform.parts.bus.subscribe() as events:
        delegation_id = await delegated(platform, boss, worker)

        async def queued() -> bool:
            return await rows_of(platform, boss) == [("delegate", "queued"), ("delegate_result", "queued")]

        await until(queued)
        statuses = [payload.get("status") for name, payload in await platform.heard(events) if "STATUS" in name]
    assert statuses == ["dispatched", "queued"]
    assert await state(platform, boss, delegation_id) == ("dispatched", None, None)
    assert await answer(platform, worker, boss, delegation_id, "done") == QUEUED
    assert await state(platform, boss, delegation_id) == ("completed", "done", None)
    assert await rows_of(platform, boss) == [("delegate", "completed"), ("delegate_result", "completed")]


@only("sqlite")
async def test_a_restarting_agent_is_called_once_more_after_eight_seconds(
    platform: Platform, agent: PushAgent, clock: ManualClock
) -> None:
    """It took nothing the first time; a second refusal is the end (contract 6.1)."""
    boss, worker = await platform.join("boss"), await pushed(platform, agent.url())
    restarting = JSONResponse({"error": "starting", "restarting": True}, status_code=503)
    for answers, expected in (
        ([restarting, None], ("completed", "done", None)),
        ([restarting, restarting], ("failed", None, "starting")),
    ):
        left = iter(answers)
        agent.called.clear()
        agent.answer = lambda body, left=left: next(left) or reply_with(body, "done")
        delegation_id = await delegated(platform, boss, worker)
        await pausing(clock)
        clock.advance(7.9)
        assert (await state(platform, boss, delegation_id))[0] == "dispatched"
        assert len(agent.called) == 1
        clock.advance(0.1)
        assert await ended(platform, boss, delegation_id) == expected
        assert len(agent.called) == 2


@only("sqlite")
async def test_an_agent_that_cannot_be_reached_fails_it_after_one_retry(platform: Platform, clock: ManualClock) -> None:
    """Nothing was delivered, so trying again is safe (contract 6.1)."""
    boss, worker = await platform.join("boss"), await pushed(platform, f"http://localhost:{closed_port()}/a2a")
    delegation_id = await delegated(platform, boss, worker)
    await pausing(clock)
    clock.advance(8)
    assert await ended(platform, boss, delegation_id) == ("failed", None, "failed to reach workspace agent")
    assert [row["status"] for row in await inbox(platform, worker)] == ["error", "error"]


@only("sqlite")
async def test_what_was_delivered_is_not_delivered_again(platform: Platform) -> None:
    """An answer that is lost on its way, and none at all: the agent may have done the work (contract 4.1)."""
    boss = await platform.join("boss")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    async with socket_that_says(head, b"{") as torn, socket_that_says() as mute:
        for served, error in (
            (torn, "workspace agent answered, but its answer could not be read"),
            (mute, "workspace agent did not answer"),
        ):
            delegation_id = await delegated(platform, boss, await pushed(platform, served.url()))
            assert await ended(platform, boss, delegation_id) == ("failed", None, error)
            assert len(served.heard) == 1


async def test_what_a_process_left_uncalled_is_called_once_by_the_next_ones(
    config: PlatformConfig, clock: ManualClock, agent: PushAgent
) -> None:
    """Died before the claim: two that start at once pick it up, and one of them calls (invariant)."""
    async with running(config, clock) as platform:
        boss, worker = await platform.join("boss"), await pushed(platform, agent.url())
        left = [await left_uncalled(platform, boss, worker) for _ in range(5)]
        assert {await state(platform, boss, one) for one in left} == {("queued", None, None)}
    async with running(config, clock) as one, running(config, clock) as two:
        for delegation_id in left:
            assert await ended(one, boss, delegation_id) == ("completed", "done", None)
        # One more, which no start will find: the round of a living process does.
        late = await left_uncalled(one, boss, worker)
        assert await two.parts.dispatcher.pick_up() == 1
        assert await ended(one, boss, late) == ("completed", "done", None)
    ids = [body["params"]["message"]["messageId"] for _, _, body in agent.called]
    assert sorted(ids) == sorted([*left, late])


@only("sqlite")
async def test_both_ends_are_looked_at_once_more_before_the_call(
    platform: Platform, agent: PushAgent, database: Database
) -> None:
    """What waited for its call finds a target that polls by now, or is gone, or nobody to tell (ours)."""
    boss, worker = await platform.join("boss"), await pushed(platform, agent.url())
    gone = await pushed(platform, agent.url(), "gone")
    polled, lost = await left_uncalled(platform, boss, worker), await left_uncalled(platform, boss, gone)
    former = await platform.join("former")
    await left_uncalled(platform, former, worker)
    await platform.http.delete(f"/workspaces/{former.id}")
    await platform.register(worker, delivery_mode="poll")
    await platform.http.delete(f"/workspaces/{gone.id}")
    await platform.parts.dispatcher.pick_up()
    assert await ended(platform, boss, lost) == ("failed", None, "workspace not found")

    async def queued() -> bool:
        return (await state(platform, boss, polled))[0] == "dispatched"

    await until(queued)
    (task,) = await inbox(platform, worker)
    assert task["request_body"]["params"]["message"]["messageId"] == polled
    assert agent.called == []
    former_rows = f"SELECT status FROM activity_logs WHERE workspace_id = '{former.id}'"
    assert database.sql(former_rows) == [("failed",)]


@only("sqlite")
async def test_an_answer_that_cannot_be_written_is_kept_until_it_can(
    platform: Platform, agent: PushAgent, database: Database, clock: ManualClock
) -> None:
    """The agent will not do the work again, so the platform tries to write again (ours)."""
    boss, worker = await platform.join("boss"), await pushed(platform, agent.url())

    def break_down(body: Any) -> Response:
        database.refuse("UPDATE", "activity_logs")
        return reply_with(body, "done")

    agent.answer = break_down
    delegation_id = await delegated(platform, boss, worker)
    await pausing(clock)
    database.heal("UPDATE", "activity_logs")
    assert (await state(platform, boss, delegation_id))[0] == "dispatched"
    clock.advance(1)
    assert await ended(platform, boss, delegation_id) == ("completed", "done", None)
    assert len(agent.called) == 1


@only("sqlite")
async def test_an_end_during_the_call_stands(platform: Platform, agent: PushAgent) -> None:
    """The delegator gave up while the agent was at it: neither its text nor its "queued" changes that (ours)."""
    boss, worker = await platform.join("boss"), await pushed(platform, agent.url())
    delegation_id = await left_uncalled(platform, boss, worker)
    records, store, now = DelegationRecords(), platform.parts.store, platform.parts.clock.now()
    begun = await store.write(records.claim, boss.id, delegation_id, now)
    assert begun.target is not None
    assert (await store.write(records.claim, boss.id, delegation_id, now)).target is None
    await update(platform, boss, delegation_id, "failed", error="gave up")
    late = Ending(DelegationStatus.COMPLETED, "late")
    assert await store.write(records.close, boss.id, delegation_id, late, now) is None
    assert await store.write(records.queue, boss.id, worker.id, delegation_id, now) == ()
    assert await state(platform, boss, delegation_id) == ("failed", None, "gave up")
    assert await rows_of(platform, boss) == [("delegate", "failed"), ("delegate_result", "failed")]
    assert [row["error_detail"] for row in await inbox(platform, boss)] == ["gave up"]
