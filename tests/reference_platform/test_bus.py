"""The bus: order, buffers, loss."""

from __future__ import annotations

import anyio
from structlog.testing import capture_logs

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.bus import SUBSCRIBER_BUFFER, EventBus
from molecule_runtime.wire.events import Event, EventName

from .support import NOBODY


async def take(events: object, count: int) -> list[int]:
    with anyio.fail_after(5):
        return [(await anext(events)).payload["n"] for _ in range(count)]  # type: ignore[call-overload]


async def test_slow_listener_loses_the_newest_and_nobody_else_does() -> None:
    """256 events wait for each listener; the rest is dropped, counted, and logged once (contract 8.2)."""
    bus = EventBus(ManualClock())
    with bus.subscribe() as slow, bus.subscribe() as quick, capture_logs() as logs:
        for number in range(SUBSCRIBER_BUFFER + 10):
            await bus.emit(EventName.TASK_UPDATED, NOBODY, {"n": number})
            assert await take(quick, 1) == [number]
        assert (slow.dropped, quick.dropped) == (10, 0)
        assert await take(slow, SUBSCRIBER_BUFFER) == list(range(256))
        await bus.emit(EventName.TASK_UPDATED, NOBODY, {"n": -1})
        assert await take(slow, 1) == [-1]
    assert [entry["event"] for entry in logs] == ["bus.overflowed"]


async def test_events_carry_the_clocks_time_and_reach_only_present_listeners() -> None:
    """An event is stamped when it is emitted; earlier and later listeners do not hear it (contract 8.2)."""
    clock = ManualClock()
    bus = EventBus(clock)
    with bus.subscribe() as early:
        pass
    await bus.emit(EventName.TASK_UPDATED, NOBODY, {})
    with bus.subscribe() as present:
        clock.advance(1)
        await bus.emit(EventName.WORKSPACE_HEARTBEAT, NOBODY, {"active_tasks": 1})
        with anyio.fail_after(5):
            event = await anext(present)
    assert event == Event(
        event="WORKSPACE_HEARTBEAT", workspace_id=NOBODY, timestamp=clock.now(), payload={"active_tasks": 1}
    )
    assert early.dropped == 0
