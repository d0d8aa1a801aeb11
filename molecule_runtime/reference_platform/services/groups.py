"""Many works in one: what arrives while a group is under way makes up the next one.

Alone an entry waits for nobody; under load the cost of a transaction is shared by all that queued up meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

E = TypeVar("E")
R = TypeVar("R")

GROUP = 64
"""Entries in one group at most, so that the first of a long queue does not wait for the last."""


@dataclass
class _Waiting(Generic[E, R]):
    key: Hashable
    entry: E
    future: asyncio.Future[R]


class Groups(Generic[E, R]):
    """Runs `work(entries)` for one group after another; it returns a result, or an exception, for each entry.

    Entries of one key are never in the same group, and keep their order.
    """

    def __init__(self, work: Callable[[Sequence[E]], Awaitable[Sequence[R | Exception]]]) -> None:
        self._work = work
        self._queue: deque[_Waiting[E, R]] = deque()
        self._working: asyncio.Task[None] | None = None

    async def add(self, key: Hashable, entry: E) -> R:
        """The result of this entry; what its work raised is raised here.

        Whoever is cancelled while it waits does not learn whether the work was done.
        """
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(key, entry, future))
        if self._working is None:
            self._working = asyncio.create_task(self._work_off())
        return await future

    async def _work_off(self) -> None:
        try:
            while group := self._next_group():
                try:
                    results = await self._work([each.entry for each in group])
                except Exception as error:  # noqa: BLE001 - each waiter gets it, and the next group may fare better
                    results = [error] * len(group)
                for each, result in zip(group, results, strict=True):
                    _settle(each.future, result)
        finally:
            self._working = None

    def _next_group(self) -> list[_Waiting[E, R]]:
        group: dict[Hashable, _Waiting[E, R]] = {}
        while self._queue and len(group) < GROUP and self._queue[0].key not in group:
            each = self._queue.popleft()
            if not each.future.done():  # nobody waits for what was cancelled, least of all a platform that ends
                group[each.key] = each
        return list(group.values())


def _settle(future: asyncio.Future[R], result: R | Exception) -> None:
    if future.done():  # cancelled meanwhile
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
