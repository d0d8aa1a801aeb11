"""A delegation's life: made, worked on, answered; what its two ends, a stranger and a canvas see of it."""

from __future__ import annotations

from .delegations import TASK, a_pair, answer, beat, delegate, delegated, inbox, rows_of, state
from .support import Platform

QUEUED = (200, {"status": "queued", "delivery_mode": "poll", "method": "message/send"})


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


async def test_the_workers_heartbeat_moves_it_and_a_strangers_does_not(platform: Platform) -> None:
    """The callee's own token; the first beat says that work has begun, later ones are silent (contract 6.5)."""
    pair = await a_pair(platform)
    delegation_id = await delegated(platform, pair.boss, pair.worker)
    assert await beat(platform, pair.boss, delegation_id) == (404, {"error": "delegation not found"})
    with platform.parts.bus.subscribe() as events:
        assert await beat(platform, pair.worker, delegation_id) == (200, {"status": "ok"})
        assert await beat(platform, pair.worker, delegation_id) == (200, {"status": "ok"})
        heard = await platform.heard(events)
    facts = {"delegation_id": delegation_id, "target_id": pair.worker.id}
    assert heard == [("DELEGATION_STATUS", facts | {"status": "in_progress"})]
    assert await state(platform, pair.boss, delegation_id) == ("in_progress", None, None)
    await answer(platform, pair.worker, pair.boss, delegation_id, "done")
    assert await beat(platform, pair.worker, delegation_id) == (200, {"status": "ok"})
    assert await state(platform, pair.boss, delegation_id) == ("completed", "done", None)


async def test_a_key_makes_one_delegation_and_is_free_again_after_a_failure(platform: Platform) -> None:
    """The same key is the same job, another key or none is another; a failed one is made anew (contract 6.1)."""
    pair = await a_pair(platform)
    first = await delegated(platform, pair.boss, pair.worker, idempotency_key="k")
    hit = {"delegation_id": first, "target_id": pair.worker.id, "idempotent_hit": True}
    assert await delegate(platform, pair.boss, pair.worker.id, idempotency_key="k") == (200, hit | {"status": "queued"})
    assert first != await delegated(platform, pair.boss, pair.worker, idempotency_key="other")
    assert first != await delegated(platform, pair.boss, pair.worker)
    await answer(platform, pair.worker, pair.boss, first, "done")
    assert await delegate(platform, pair.boss, pair.worker.id, idempotency_key="k") == (
        200,
        hit | {"status": "completed"},
    )
