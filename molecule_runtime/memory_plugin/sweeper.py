"""Deletes what has expired: nobody finds it any more, but its text must not stay for ever."""

from __future__ import annotations

import structlog

from molecule_runtime.clock import Clock
from molecule_runtime.memory_plugin.memories import Memories

PORTIONS_A_ROUND = 20
"""Transactions of one round, of 500 memories each: the rest is there at the next one."""

log = structlog.get_logger(__name__)


class Sweeper:
    """Sweeps at once, then every `interval_s` seconds. A round that fails is logged, and the next one comes."""

    def __init__(self, memories: Memories, clock: Clock, *, interval_s: float) -> None:
        self._memories = memories
        self._clock = clock
        self._interval_s = interval_s

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            try:
                await self.sweep_once()
            except Exception:  # the edge of the loop: one bad round must not end all others
                log.exception("memories.sweep_failed")
            await self._clock.sleep(self._interval_s)

    async def sweep_once(self) -> None:
        """One round.

        Raises:
            StoreError: the database failed; what was deleted until then stays so.
        """
        for _ in range(PORTIONS_A_ROUND):
            if not await self._memories.sweep():
                return
