"""A delegation's life: made, worked on, answered; what its two ends, a stranger and a canvas see of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.config import PlatformConfig

from .delegations import (
    QUEUED,
    TASK,
    a_pair,
    answer,
    beat,
    delegate,
    delegated,
    inbox,
    ledger_of,
    record,
    rows_of,
    show,
    state,
    update,
)
from .push_agents import push_agent
from .support import NOBODY, Database, Platform, bearer, canvas_message, only, running

DONE = ("completed", "done", None)


async def test_a_task_stands_in_the_workers_inbox_and_its_answer_in_the_delegators(platform: Platform) -> None:
    """One message there, one result here, with the whole text; events in their order (contract 6.1, 6.6, 0.8, 0.9)."""
    pair = await a_pair(platform)
    with platform.parts.bus.subscribe() as events:
        delegation_id = await delegated(platform, pair.boss, pair.worker)
        begun = await platform.heard(events)
        (task,) = await inbox(platform, pair.worker)
        assert (task["source_id"], task["method"], task["status"]) == (pair.boss.id, "message/send", "ok")
        assert task["summary"] == "message/send → worker (queued for poll)"
        assert task["request_body"]["params"]["message"] == {
            "role": "user",
            "messageId": delegation_id,
            "parts": [{"type": "text", "text": TASK}],
            "metadata": {"delegation_id": delegation_id},
        }
        assert await state(platform, pair.boss, delegation_id) == ("dispatched", None, None)
        assert await rows_of(platform, pair.boss) == [("delegate", "queued"), ("delegate_result", "queued")]

        assert await answer(platform, pair.worker, pair.boss, delegation_id, "完成 ✅") == QUEUED
        ended = await platform.heard(events)
    assert await state(platform, pair.boss, delegation_id) == ("completed", "完成 ✅", None)
    assert await rows_of(platform, pair.boss) == [("delegate", "completed"), ("delegate_result", "completed")]
    (result,) = await inbox(platform, pair.boss)
    assert {key: result[key] for key in result.keys() - {"id", "seq", "created_at"}} == {
        "workspace_id": pair.boss.id,
        "activity_type": "a2a_receive",
        "method": "delegate_result",
        "source_id": pair.boss.id,
        "target_id": None,
        "summary": "Delegation result delivered",
        "request_body": {"delegation_id": delegation_id},
        "response_body": {"text": "完成 ✅", "delegation_id": delegation_id},
        "duration_ms": None,
        "status": "ok",
        "error_detail": None,
    }
    facts = {"delegation_id": delegation_id, "target_id": pair.worker.id}
    assert [name for name, _ in begun] == ["ACTIVITY_LOGGED", "DELEGATION_SENT", "DELEGATION_STATUS"]
    assert begun[1:] == [
        ("DELEGATION_SENT", facts | {"task_preview": TASK}),
        ("DELEGATION_STATUS", facts | {"status": "queued"}),
    ]
    assert [name for name, _ in ended] == ["ACTIVITY_LOGGED", "DELEGATION_COMPLETE"]
    assert ended[0][1]["response_body"] == result["response_body"]
    assert ended[1][1] == facts | {"response_preview": "完成 ✅"}


def prefix(text: str, limit: int) -> str:
    return text.encode()[:limit].decode(errors="ignore")


async def test_a_long_answer_comes_back_byte_for_byte(platform: Platform, database: Database) -> None:
    """Whole in status and inbox; previews end on a code point, in bytes, "…" inside (contract 0.9, 6.1, 6.2, 6.5)."""
    pair = await a_pair(platform)
    task = "t" * 4095 + "世"  # the code point lies across the limit
    delegation_id = await delegated(platform, pair.boss, pair.worker, task)
    text = "完成🎉\n" * 20_000
    assert len(text.encode()) > 200_000
    with platform.parts.bus.subscribe() as events:
        assert await answer(platform, pair.worker, pair.boss, delegation_id, text) == QUEUED
        heard = dict(await platform.heard(events))
    assert (await state(platform, pair.boss, delegation_id))[1] == text
    (result,) = await inbox(platform, pair.boss)
    assert result["response_body"]["text"] == text
    ((task_preview, preview),) = database.sql("SELECT task_preview, result_preview FROM delegations")
    assert task_preview == "t" * 4095
    assert preview == prefix(text, 4096)
    assert heard["DELEGATION_COMPLETE"]["response_preview"] == prefix(text, 197) + "…"
    summary = f"Delegation completed ({prefix(text, 77)}…)"
    assert (await platform.rows(pair.boss, type="delegation"))[0]["summary"] == summary


async def test_the_workers_heartbeat_moves_it_and_a_strangers_does_not(platform: Platform, database: Database) -> None:
    """The callee's own token; the first beat says that work has begun, later ones are silent (contract 6.5)."""
    pair = await a_pair(platform)
    delegation_id = await delegated(platform, pair.boss, pair.worker)
    assert await beat(platform, pair.boss, delegation_id) == (404, {"error": "delegation not found"})
    with platform.parts.bus.subscribe() as events:
        assert await beat(platform, pair.worker, delegation_id) == (200, {"status": "ok"})
        first = ledger_of(database, delegation_id)["last_heartbeat"]
        platform.parts.clock.advance(5)  # type: ignore[attr-defined]
        assert await beat(platform, pair.worker, delegation_id) == (200, {"status": "ok"})
        heard = await platform.heard(events)
    second = ledger_of(database, delegation_id)["last_heartbeat"]
    assert first is not None
    assert str(second) > str(first)
    facts = {"delegation_id": delegation_id, "target_id": pair.worker.id}
    assert heard == [("DELEGATION_STATUS", facts | {"status": "in_progress"})]
    assert await state(platform, pair.boss, delegation_id) == ("in_progress", None, None)
    await answer(platform, pair.worker, pair.boss, delegation_id, "done")
    platform.parts.clock.advance(5)  # type: ignore[attr-defined]
    assert await beat(platform, pair.worker, delegation_id) == (200, {"status": "ok"})
    assert await state(platform, pair.boss, delegation_id) == DONE
    assert ledger_of(database, delegation_id)["last_heartbeat"] == second


async def test_a_key_makes_one_delegation_and_is_free_again_after_a_failure(platform: Platform) -> None:
    """The same key is the same job, another key or none is another; a failed one is made anew (contract 6.1)."""
    pair = await a_pair(platform)
    first = await delegated(platform, pair.boss, pair.worker, idempotency_key="k")
    hit = {"delegation_id": first, "target_id": pair.worker.id, "idempotent_hit": True}
    assert await delegate(platform, pair.boss, pair.worker.id, idempotency_key="k") == (200, hit | {"status": "queued"})
    others = [await delegated(platform, pair.boss, pair.worker, **key) for key in ({"idempotency_key": "l"}, {}, {})]
    others.append(await delegated(platform, pair.worker, pair.boss, idempotency_key="k"))
    assert len({first, *others}) == 5
    await update(platform, pair.boss, first, "failed", error="no luck")
    second = await delegated(platform, pair.boss, pair.worker, idempotency_key="k")
    assert second != first
    await answer(platform, pair.worker, pair.boss, second, "done")
    assert await delegate(platform, pair.boss, pair.worker.id, idempotency_key="k") == (
        200,
        hit | {"delegation_id": second, "status": "completed"},
    )
    assert await state(platform, pair.boss, first) == ("failed", None, "no luck")


async def test_ten_posts_of_one_key_at_once_make_one_delegation(config: PlatformConfig, clock: ManualClock) -> None:
    """At two platform processes on one database; nobody gets an error (invariant: one intent, one job)."""
    async with running(config, clock) as one, running(config, clock) as two:
        pair = await a_pair(one)
        for key in ("a", "b", "c"):
            posts = (
                delegate((one, two)[index % 2], pair.boss, pair.worker.id, idempotency_key=key) for index in range(10)
            )
            answers = await asyncio.gather(*posts)
            assert Counter(status for status, _ in answers) == {202: 1, 200: 9}
            assert len({body["delegation_id"] for _, body in answers}) == 1
        assert len(await inbox(one, pair.worker)) == 3


async def test_two_who_delegate_to_each_other_do_not_lock_each_other_out(
    config: PlatformConfig, clock: ManualClock
) -> None:
    """Lines of workspaces are taken in one order, whoever delegates, answers or writes (ours)."""
    async with running(config, clock) as one, running(config, clock) as two:
        pair = await a_pair(one)
        there = [delegate(one, pair.boss, pair.worker.id) for _ in range(12)]
        back = [delegate(two, pair.worker, pair.boss.id) for _ in range(12)]
        answers = await asyncio.gather(*(post for both in zip(there, back, strict=True) for post in both))
        assert [status for status, _ in answers] == [202] * 24
        assert (len(await inbox(one, pair.worker)), len(await inbox(one, pair.boss))) == (12, 12)


@only("sqlite")
async def test_only_the_targets_own_message_to_the_delegator_is_an_answer(platform: Platform) -> None:
    """The right id from anybody else, to anybody else, or an unknown id, is an ordinary message (contract 0.8)."""
    pair = await a_pair(platform)
    stranger = await platform.join("stranger")
    delegation_id = await delegated(platform, pair.boss, pair.worker)
    assert await answer(platform, stranger, pair.boss, delegation_id, "forged") == QUEUED
    assert await answer(platform, pair.worker, stranger, delegation_id, "astray") == QUEUED
    assert await answer(platform, pair.boss, pair.boss, delegation_id, "own") == QUEUED
    assert await answer(platform, pair.worker, pair.boss, NOBODY, "unknown") == QUEUED
    assert await answer(platform, pair.worker, pair.boss, "not a uuid", "nonsense") == QUEUED
    user = canvas_message("the user")
    user["params"]["message"]["metadata"] = {"delegation_id": delegation_id}
    await platform.http.post(f"/workspaces/{pair.boss.id}/a2a", json=user)
    forged = bearer("wrong", **{"X-Workspace-ID": pair.worker.id})
    refused = await platform.http.post(f"/workspaces/{pair.boss.id}/a2a", json=user, headers=forged)
    assert refused.status_code == 401
    assert await state(platform, pair.boss, delegation_id) == ("dispatched", None, None)
    assert [row["method"] for row in await inbox(platform, pair.boss)] == ["message/send"] * 5
    assert [row["method"] for row in await inbox(platform, stranger)] == ["message/send"]
    assert await answer(platform, pair.worker, pair.boss, delegation_id, "done") == QUEUED
    assert await state(platform, pair.boss, delegation_id) == DONE


async def test_an_answer_that_comes_again_is_not_delivered_again_and_a_correction_is(platform: Platform) -> None:
    """The same text is a replay: 200, no row, no event. Another text is a message like any other (contract 0.8)."""
    pair = await a_pair(platform)
    delegation_id = await delegated(platform, pair.boss, pair.worker)
    both = (answer(platform, pair.worker, pair.boss, delegation_id, "done") for _ in range(2))
    assert await asyncio.gather(*both) == [QUEUED, QUEUED]
    with platform.parts.bus.subscribe() as events:
        assert await answer(platform, pair.worker, pair.boss, delegation_id, "done") == QUEUED
        assert await platform.heard(events) == []
        assert await answer(platform, pair.worker, pair.boss, delegation_id, "done, but better") == QUEUED
        assert [name for name, _ in await platform.heard(events)] == ["ACTIVITY_LOGGED"]
    assert [row["method"] for row in await inbox(platform, pair.boss)] == ["delegate_result", "message/send"]
    assert await state(platform, pair.boss, delegation_id) == DONE


@only("sqlite")
async def test_an_answer_to_a_failed_delegation_is_an_ordinary_message(platform: Platform) -> None:
    """Late, but not lost; the failure stands (contract 0.8)."""
    pair = await a_pair(platform)
    delegation_id = await delegated(platform, pair.boss, pair.worker)
    await update(platform, pair.boss, delegation_id, "failed", error="gave up")
    assert await answer(platform, pair.worker, pair.boss, delegation_id, "gave up") == QUEUED
    failed, late = await inbox(platform, pair.boss)
    assert (failed["method"], failed["status"], failed["error_detail"]) == ("delegate_result", "error", "gave up")
    assert failed["response_body"] == {"text": "", "delegation_id": delegation_id}
    assert (late["method"], late["source_id"]) == ("message/send", pair.worker.id)
    assert await state(platform, pair.boss, delegation_id) == ("failed", None, "gave up")


@only("sqlite")
async def test_the_delegator_ends_a_delegation_itself(platform: Platform, database: Database) -> None:
    """Once: rows, ledger and inbox in one step, both events with the target (contract 6.4 PROPOSED, 6.5)."""
    pair = await a_pair(platform)
    completed, failed = [await delegated(platform, pair.boss, pair.worker) for _ in range(2)]
    with platform.parts.bus.subscribe() as events:
        assert await update(platform, pair.boss, completed, "completed", response_preview="done") == (
            200,
            {"status": "completed", "delegation_id": completed},
        )
        assert (await update(platform, pair.boss, failed, "failed"))[0] == 200
        heard = await platform.heard(events)
        for delegation_id in (completed, failed, NOBODY):
            for status in ("completed", "failed"):
                assert (await update(platform, pair.boss, delegation_id, status, error="x"))[0] == 200
        assert (await update(platform, pair.worker, completed, "failed", error="not its own"))[0] == 200
        assert await platform.heard(events) == []
    target = {"target_id": pair.worker.id}
    assert heard == [
        ("DELEGATION_COMPLETE", {"delegation_id": completed, "response_preview": "done"} | target),
        ("DELEGATION_FAILED", {"delegation_id": failed, "error": "delegation failed"} | target),
    ]
    assert await state(platform, pair.boss, completed) == DONE
    assert await state(platform, pair.boss, failed) == ("failed", None, "delegation failed")
    assert ledger_of(database, completed)["result_preview"] == "done"
    assert ledger_of(database, failed)["error_detail"] == "delegation failed"
    assert [row["status"] for row in await inbox(platform, pair.boss)] == ["ok", "error"]
    results = [row for row in await platform.rows(pair.boss, type="delegation") if row["method"] == "delegate_result"]
    assert [(row["status"], row["target_id"], row["summary"]) for row in reversed(results)] == [
        ("completed", pair.worker.id, "Delegation completed (done)"),
        ("failed", pair.worker.id, "Delegation failed"),
    ]


@only("sqlite")
async def test_a_text_that_comes_after_the_status_is_not_lost(platform: Platform, database: Database) -> None:
    """A repeat fills what was empty and overwrites nothing, in row and ledger alike (contract 6.5 LATER)."""
    pair = await a_pair(platform)
    delegation_id = await delegated(platform, pair.boss, pair.worker)
    await update(platform, pair.boss, delegation_id, "completed")
    await update(platform, pair.boss, delegation_id, "failed", error="x", response_preview="wrong")
    for text in ("done", "something else"):
        await update(platform, pair.boss, delegation_id, "completed", response_preview=text)
    assert await state(platform, pair.boss, delegation_id) == DONE
    line = ledger_of(database, delegation_id)
    assert (line["status"], line["result_preview"], line["error_detail"]) == ("completed", "done", None)
    assert await answer(platform, pair.worker, pair.boss, delegation_id, "the worker's own") == QUEUED
    assert [row["method"] for row in await inbox(platform, pair.boss)] == ["delegate_result", "message/send"]


@only("sqlite")
async def test_an_answer_after_a_silent_completion_reaches_the_inbox(platform: Platform) -> None:
    """A delegator that closed without a text still gets the worker's (contract 0.8)."""
    pair = await a_pair(platform)
    delegation_id = await delegated(platform, pair.boss, pair.worker)
    await update(platform, pair.boss, delegation_id, "completed")
    assert await answer(platform, pair.worker, pair.boss, delegation_id, "done") == QUEUED
    assert [row["method"] for row in await inbox(platform, pair.boss)] == ["delegate_result", "message/send"]


@only("sqlite")
async def test_a_recorded_delegation_is_completed_like_any_other(platform: Platform, database: Database) -> None:
    """The delegator sends the task itself; the id is its own, and noting it twice changes nothing (contract 6.3)."""
    pair = await a_pair(platform)
    noted = {"target_id": pair.worker.id, "task": TASK, "delegation_id": NOBODY.upper()}
    with platform.parts.bus.subscribe() as events:
        for _ in range(2):
            reply = await record(platform, pair.boss, noted)
            assert reply == (202, {"delegation_id": NOBODY, "status": "recorded"})
        facts = {"delegation_id": NOBODY, "target_id": pair.worker.id}
        assert await platform.heard(events) == [("DELEGATION_SENT", facts | {"task_preview": TASK})]
    assert await rows_of(platform, pair.boss) == [("delegate", "dispatched")]
    assert await inbox(platform, pair.worker) == []
    assert await state(platform, pair.boss, NOBODY) == ("dispatched", None, None)
    assert await beat(platform, pair.worker, NOBODY) == (200, {"status": "ok"})
    await answer(platform, pair.worker, pair.boss, NOBODY, "done")
    assert await state(platform, pair.boss, NOBODY) == DONE
    assert await rows_of(platform, pair.boss) == [("delegate", "completed"), ("delegate_result", "completed")]
    assert ledger_of(database, NOBODY)["status"] == "completed"


@only("sqlite")
async def test_a_foreign_id_is_never_touched(platform: Platform, database: Database) -> None:
    """Somebody who knows an id can record, end and read only what is its own under it (ours)."""
    pair = await a_pair(platform)
    thief = await platform.join("thief")
    delegation_id = await delegated(platform, pair.boss, pair.worker)
    url = f"/workspaces/{thief.id}/delegations/{delegation_id}"
    reply = await platform.http.get(url, headers=thief.headers)
    assert (reply.status_code, reply.json()) == (404, {"error": "delegation not found"})
    await record(platform, thief, {"target_id": pair.worker.id, "task": "x", "delegation_id": delegation_id})
    await update(platform, thief, delegation_id, "failed", error="stolen")
    assert ledger_of(database, delegation_id)["status"] == "dispatched"
    assert await state(platform, pair.boss, delegation_id) == ("dispatched", None, None)
    assert await state(platform, thief, delegation_id) == ("failed", None, "stolen")
    await answer(platform, pair.worker, pair.boss, delegation_id, "done")
    assert await state(platform, pair.boss, delegation_id) == DONE


@only("sqlite")
async def test_a_target_that_may_not_be_written_to_fails_the_delegation_at_once(
    platform: Platform, database: Database
) -> None:
    """Taken with 202, and failed with the words of /a2a: rows, ledger, inbox, event (contract 6.1, 4.1)."""
    pair = await a_pair(platform)
    child = await platform.join("child", parent_id=pair.worker.id)
    gone = await platform.join("gone")
    await platform.http.delete(f"/workspaces/{gone.id}")
    poor = await platform.join("poor")
    database.sql(f"UPDATE workspaces SET budget_limit = 5, monthly_spend = 5 WHERE id = '{poor.id}'")
    nowhere = await platform.create("nowhere", delivery_mode="push")
    denied = "access denied: workspaces cannot communicate per hierarchy rules"
    for target_id, error in (
        (NOBODY, denied),
        (child.id, denied),
        (gone.id, "workspace not found"),
        (poor.id, "workspace budget limit exceeded"),
        (nowhere.id, "workspace has no URL"),
    ):
        with platform.parts.bus.subscribe() as events:
            status, body = await delegate(platform, pair.boss, target_id)
            heard = await platform.heard(events)
        delegation_id = body["delegation_id"]
        facts = {"delegation_id": delegation_id, "target_id": target_id}
        assert (status, body) == (202, facts | {"status": "failed"})
        assert heard == [
            ("DELEGATION_SENT", facts | {"task_preview": TASK}),
            ("DELEGATION_FAILED", facts | {"error": error}),
        ]
        assert await state(platform, pair.boss, delegation_id) == ("failed", None, error)
        assert ledger_of(database, delegation_id)["error_detail"] == error
        (told,) = (await inbox(platform, pair.boss))[-1:]
        assert (told["request_body"], told["error_detail"]) == ({"delegation_id": delegation_id}, error)
    assert await rows_of(platform, pair.boss) == [("delegate", "failed"), ("delegate_result", "failed")] * 5
    assert database.sql(f"SELECT count(*) FROM activity_logs WHERE workspace_id <> '{pair.boss.id}'") == [(0,)]


@only("sqlite")
async def test_without_ledger_and_without_inbox_the_rest_works(
    config: PlatformConfig, database: Database, clock: ManualClock
) -> None:
    """States come from the rows, answers are ordinary messages and close it all the same (contract 6.5, 6.6)."""
    plain = replace(config, delegation_ledger_write=False, delegation_result_inbox_push=False)
    async with running(plain, clock) as platform:
        pair = await a_pair(platform)
        delegation_id = await delegated(platform, pair.boss, pair.worker, idempotency_key="k")
        assert await state(platform, pair.boss, delegation_id) == ("dispatched", None, None)
        assert await beat(platform, pair.worker, delegation_id) == (200, {"status": "ok"})
        assert await beat(platform, pair.boss, delegation_id) == (404, {"error": "delegation not found"})
        with platform.parts.bus.subscribe() as events:
            for _ in range(2):
                assert await answer(platform, pair.worker, pair.boss, delegation_id, "done") == QUEUED
            names = [name for name, _ in await platform.heard(events)]
        assert names == ["ACTIVITY_LOGGED", "DELEGATION_COMPLETE"]
        assert await state(platform, pair.boss, delegation_id) == DONE
        (message,) = await inbox(platform, pair.boss)
        assert (message["method"], message["source_id"]) == ("message/send", pair.worker.id)
        failed = await delegated(platform, pair.boss, pair.worker, idempotency_key="l")
        await update(platform, pair.boss, failed, "failed", error="no luck")
        assert await state(platform, pair.boss, failed) == ("failed", None, "no luck")
        assert await delegated(platform, pair.boss, pair.worker, idempotency_key="l") != failed
        assert len(await inbox(platform, pair.boss)) == 1
        assert database.sql("SELECT * FROM delegations") == []
        shown = await show(platform, pair.boss, delegation_id)
        assert shown["created_at"] <= shown["updated_at"]


@only("sqlite")
async def test_a_ledger_that_was_off_for_a_while_does_not_contradict_the_rows(
    config: PlatformConfig, database: Database, clock: ManualClock
) -> None:
    """Ended while none was kept: its state is that of its rows, and its key is free, whatever the line says (ours)."""
    async with running(config, clock) as platform:
        pair = await a_pair(platform)
        delegation_id = await delegated(platform, pair.boss, pair.worker)
        keyed = await delegated(platform, pair.boss, pair.worker, idempotency_key="l")
    async with running(replace(config, delegation_ledger_write=False), clock) as platform:
        await answer(platform, pair.worker, pair.boss, delegation_id, "done")
        assert await state(platform, pair.boss, delegation_id) == DONE
        await update(platform, pair.boss, keyed, "failed")
        other = await delegated(platform, pair.boss, pair.worker, idempotency_key="l")
        await update(platform, pair.boss, other, "failed")
    async with running(config, clock) as platform:
        assert await state(platform, pair.boss, delegation_id) == DONE
        again = await delegated(platform, pair.boss, pair.worker, idempotency_key="l")
        assert again != keyed
        assert ledger_of(database, again)["status"] == "dispatched"


async def test_a_restart_in_the_middle_changes_nothing(config: PlatformConfig, clock: ManualClock) -> None:
    """Key, state and answer are of the database, not of the process (invariant)."""
    async with running(config, clock) as platform:
        pair = await a_pair(platform)
        delegation_id = await delegated(platform, pair.boss, pair.worker, idempotency_key="k")
        await beat(platform, pair.worker, delegation_id)
    async with running(config, clock) as platform:
        assert (await delegate(platform, pair.boss, pair.worker.id, idempotency_key="k"))[1]["idempotent_hit"]
        assert await state(platform, pair.boss, delegation_id) == ("in_progress", None, None)
        await answer(platform, pair.worker, pair.boss, delegation_id, "done")
    async with running(config, clock) as platform:
        await answer(platform, pair.worker, pair.boss, delegation_id, "done")
        assert await state(platform, pair.boss, delegation_id) == DONE
        assert [row["method"] for row in await inbox(platform, pair.boss)] == ["delegate_result"]
        assert len(await inbox(platform, pair.worker)) == 1


@only("sqlite")
async def test_a_delegator_that_is_called_gets_the_message_and_no_inbox_row(platform: Platform) -> None:
    """Closed, and forwarded as usual, a repeat too: the first may not have arrived (contract 0.8)."""
    pair = await a_pair(platform)
    async with push_agent() as agent:
        await platform.register(pair.boss, delivery_mode="push", url=agent.url())
        delegation_id = await delegated(platform, pair.boss, pair.worker)
        for _ in range(2):
            assert (await answer(platform, pair.worker, pair.boss, delegation_id, "done"))[0] == 200
    assert [body["params"]["message"]["metadata"] for _, _, body in agent.called] == [
        {"delegation_id": delegation_id}
    ] * 2
    assert await state(platform, pair.boss, delegation_id) == DONE
    assert [row["method"] for row in await inbox(platform, pair.boss)] == ["message/send"] * 2


@only("sqlite")
async def test_the_list_shows_the_newest_rows(platform: Platform) -> None:
    """Newest first, 50 at most, the id on every row, previews of 300 bytes (contract 6.2)."""
    pair = await a_pair(platform)
    first = await delegated(platform, pair.boss, pair.worker)
    await answer(platform, pair.worker, pair.boss, first, "完" * 200)
    second = (await delegate(platform, pair.boss, NOBODY))[1]["delegation_id"]
    url = f"/workspaces/{pair.boss.id}/delegations"
    listed = (await platform.http.get(url, headers=pair.boss.headers)).json()
    common = {"type": "delegation", "source_id": pair.boss.id}
    assert [row | {"id": "", "created_at": ""} for row in listed] == [
        common
        | {"id": "", "created_at": "", "delegation_id": delegation_id, "target_id": target_id, "status": status}
        | more
        for delegation_id, target_id, status, more in (
            (second, NOBODY, "failed", {"summary": "Delegation failed", "error": listed[0]["error"]}),
            (second, NOBODY, "failed", {"summary": f"Delegating to {NOBODY}", "error": listed[0]["error"]}),
            (
                first,
                pair.worker.id,
                "completed",
                {"summary": "Delegation completed (" + "完" * 25 + "…)", "response_preview": "完" * 99 + "…"},
            ),
            (first, pair.worker.id, "completed", {"summary": f"Delegating to {pair.worker.id}"}),
        )
    ]
    for _ in range(25):
        await delegated(platform, pair.boss, pair.worker)
    listed = (await platform.http.get(url, headers=pair.boss.headers)).json()
    assert [row["status"] for row in listed] == ["queued"] * 50


REFUSED: list[tuple[str, str, Any, int, str]] = [
    ("POST", "delegate", "[]", 400, "invalid delegation request"),
    ("POST", "delegate", {"target_id": NOBODY}, 400, "invalid delegation request"),
    ("POST", "delegate", {"target_id": NOBODY, "task": ""}, 400, "invalid delegation request"),
    ("POST", "delegate", {"target_id": NOBODY, "task": " \n "}, 400, "invalid delegation request"),
    ("POST", "delegate", {"target_id": NOBODY, "task": 7}, 400, "invalid delegation request"),
    (
        "POST",
        "delegate",
        {"target_id": NOBODY, "task": "x", "idempotency_key": "k" * 513},
        400,
        "invalid delegation request",
    ),
    ("POST", "delegate", {"target_id": "peer", "task": "x"}, 400, "target_id must be a valid UUID"),
    ("POST", "delegate", {"target_id": "SELF", "task": "x"}, 400, "self-delegation not permitted"),
    ("POST", "delegations/record", {"target_id": NOBODY, "task": "x"}, 400, "invalid delegation request"),
    (
        "POST",
        "delegations/record",
        {"target_id": NOBODY, "task": "x", "delegation_id": "1"},
        400,
        "delegation_id must be a valid UUID",
    ),
    (
        "POST",
        "delegations/record",
        {"target_id": "1", "task": "x", "delegation_id": NOBODY},
        400,
        "target_id must be a valid UUID",
    ),
    (
        "POST",
        "delegations/record",
        {"target_id": "SELF", "task": "x", "delegation_id": NOBODY},
        400,
        "self-delegation not permitted",
    ),
    ("POST", f"delegations/{NOBODY}/update", {}, 400, "invalid request body"),
    ("POST", f"delegations/{NOBODY}/update", {"status": "stuck"}, 400, "status must be 'completed' or 'failed'"),
    ("POST", "delegations/1/update", {"status": "failed"}, 400, "delegation_id must be a valid UUID"),
    ("POST", "delegations/1/heartbeat", {}, 400, "delegation_id must be a valid UUID"),
    ("POST", f"delegations/{NOBODY}/heartbeat", {}, 404, "delegation not found"),
    ("GET", "delegations/1", None, 400, "delegation_id must be a valid UUID"),
    ("GET", f"delegations/{NOBODY}", None, 404, "delegation not found"),
]
ROUTES = sorted({(method, path) for method, path, *_ in REFUSED} | {("GET", "delegations")})


@only("sqlite")
async def test_what_is_refused_is_told_in_the_contracts_words(platform: Platform) -> None:
    """Bad bodies and ids 400, unknown delegations 404, no token 401, no UUID 400 on every route (contract 6)."""
    member = await platform.join()
    for method, path, posted, status, error in REFUSED:
        body = (
            {name: member.id if value == "SELF" else value for name, value in (posted or {}).items()}
            if isinstance(posted, dict)
            else posted
        )
        reply = await platform.http.request(
            method, f"/workspaces/{member.id}/{path}", json=body, headers=member.headers
        )
        assert (path, reply.status_code, reply.json()) == (path, status, {"error": error})
    for method, path in ROUTES:
        reply = await platform.http.request(method, f"/workspaces/{member.id}/{path}", headers=bearer("wrong"))
        assert (path, reply.status_code) == (path, 401)
        reply = await platform.http.request(method, f"/workspaces/nope/{path}", headers=member.headers)
        assert (path, reply.status_code, reply.json()) == (path, 400, {"error": "invalid workspace ID"})
    unknown = await platform.http.post(f"/workspaces/{NOBODY}/delegate", json={"target_id": member.id, "task": "x"})
    assert (unknown.status_code, unknown.json()) == (404, {"error": "workspace not found"})
    assert await inbox(platform, member) == []


async def test_a_failing_store_leaves_nothing_behind_and_is_never_404(platform: Platform, database: Database) -> None:
    """A line of the ledger that cannot be written takes the rows and the message with it (R22, ours)."""
    pair = await a_pair(platform)
    other = await delegated(platform, pair.boss, pair.worker)
    database.refuse("INSERT", "delegations")
    with platform.parts.bus.subscribe() as events:
        assert await delegate(platform, pair.boss, pair.worker.id) == (500, {"error": "failed to create delegation"})
        noted = {"target_id": pair.worker.id, "task": "x", "delegation_id": NOBODY}
        assert await record(platform, pair.boss, noted) == (500, {"error": "failed to record delegation"})
        database.heal("INSERT", "delegations")
        database.refuse("UPDATE", "delegations")
        assert (await answer(platform, pair.worker, pair.boss, other, "done"))[0] == 500
        assert (await update(platform, pair.boss, other, "failed"))[0] == 500
        assert (await beat(platform, pair.worker, other))[0] == 500
        assert await platform.heard(events) == []
    database.heal("UPDATE", "delegations")
    assert (len(await inbox(platform, pair.worker)), await inbox(platform, pair.boss)) == (1, [])
    assert await rows_of(platform, pair.boss) == [("delegate", "queued"), ("delegate_result", "queued")]
    assert await answer(platform, pair.worker, pair.boss, other, "done") == QUEUED
    assert await state(platform, pair.boss, other) == DONE
    database.sql("ALTER TABLE delegations RENAME TO hidden")
    url = f"/workspaces/{pair.boss.id}/delegations/{other}"
    reply = await platform.http.get(url, headers=pair.boss.headers)
    assert (reply.status_code, reply.json()) == (500, {"error": "query failed"})
    database.sql("ALTER TABLE hidden RENAME TO delegations")


@only("sqlite")
async def test_a_delegator_that_is_gone_disturbs_nobody(platform: Platform, database: Database) -> None:
    """The worker's answer is told that nobody is there; a purge takes the ledger's lines as well (ours)."""
    pair = await a_pair(platform)
    delegation_id = await delegated(platform, pair.boss, pair.worker)
    await platform.http.delete(f"/workspaces/{pair.boss.id}")
    assert (await answer(platform, pair.worker, pair.boss, delegation_id, "done"))[0] == 404
    assert await beat(platform, pair.worker, delegation_id) == (200, {"status": "ok"})
    await platform.http.delete(f"/workspaces/{pair.boss.id}?purge=true")
    assert (await answer(platform, pair.worker, pair.boss, delegation_id, "done"))[0] == 403
    assert await beat(platform, pair.worker, delegation_id) == (404, {"error": "delegation not found"})
    assert database.sql("SELECT * FROM delegations") == []
