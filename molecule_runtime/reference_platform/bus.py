"""The event bus: what services announce, and who listens (contract 8.2).

A publisher never waits for a listener. Each listener has a buffer of 256 events; what does not fit is dropped for that
listener, counted, and logged once per listener, because an event is only a doorbell: the data is in the store.

`publish` is the one way in for events of this process; the relay brings those of others in through `deliver`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import anyio
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from molecule_runtime.clock import Clock
from molecule_runtime.wire.events import Event, EventName

SUBSCRIBER_BUFFER = 256
"""Events one listener may lag behind before it loses some (contract 8.2)."""

log = structlog.get_logger(__name__)


class Subscription:
    """One listener: iterate over it for events in the order of their emission. `dropped` counts what did not fit."""

    def __init__(self) -> None:
        streams = anyio.create_memory_object_stream[Event](SUBSCRIBER_BUFFER)
        self._send: MemoryObjectSendStream[Event] = streams[0]
        self._receive: MemoryObjectReceiveStream[Event] = streams[1]
        self.dropped = 0

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        return await self._receive.receive()

    def offer(self, event: Event) -> None:
        """Queue the event, or drop it when the listener is 256 events behind."""
        try:
            self._send.send_nowait(event)
        except anyio.WouldBlock:
            self.dropped += 1
            if self.dropped == 1:
                log.warning("bus.overflowed", workspace_id=event.workspace_id, event_name=event.event)

    def close(self) -> None:
        self._send.close()
        self._receive.close()


class EventBus:
    """Delivers every event to every listener of this process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._subscriptions: set[Subscription] = set()
        self._pass_on: Callable[[Event], None] | None = None

    def pass_on_to(self, relay: Callable[[Event], None]) -> None:
        """Hand every published event to `relay` as well, which must not wait."""
        self._pass_on = relay

    async def emit(self, name: EventName, workspace_id: str, payload: Mapping[str, Any]) -> None:
        """Announce an event of a workspace, stamped with the time of now."""
        await self.publish(
            Event(event=name, workspace_id=workspace_id, timestamp=self._clock.now(), payload=dict(payload))
        )

    async def publish(self, event: Event) -> None:
        """Announce an event to all listeners, here and in other processes."""
        self.deliver(event)
        if self._pass_on is not None:
            self._pass_on(event)

    def deliver(self, event: Event) -> None:
        """Hand an event to the listeners of this process only."""
        for subscription in tuple(self._subscriptions):
            subscription.offer(event)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """Listen while the context lasts; events before it are not seen."""
        subscription = Subscription()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            subscription.close()
