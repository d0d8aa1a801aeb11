"""The platform's housekeeping: one loop that marks silent workspaces (contract 2.4).

With a period of 15 s and a window of 90 s an agent shows as gone 90-105 s after its last beat. A sweep that fails is
logged and the next one comes: the loop ends only with the platform.
"""

from __future__ import annotations

import structlog

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.services.presence import Presence
from molecule_runtime.reference_platform.services.tokens import Tokens

log = structlog.get_logger(__name__)


class Sweeper:
    """Runs `sweep_once` every `interval_s` seconds."""

    def __init__(self, presence: Presence, tokens: Tokens, clock: Clock, *, interval_s: float) -> None:
        self._presence = presence
        self._tokens = tokens
        self._clock = clock
        self._interval_s = interval_s

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await self._clock.sleep(self._interval_s)
            try:
                await self.sweep_once()
            except Exception:  # the edge of the loop: one bad sweep must not end all others
                log.exception("sweeper.failed")

    async def sweep_once(self) -> list[str]:
        """One sweep: the ids of workspaces that it set to awaiting_agent.

        Raises:
            StoreError: the database failed.
        """
        stale = await self._presence.sweep_stale()
        await self._tokens.flush_last_used()
        return stale
