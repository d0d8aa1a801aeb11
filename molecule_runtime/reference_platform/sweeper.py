"""The platform's housekeeping: a loop that marks silent workspaces (contract 2.4) and deletes old rows (4.3), one that
deletes files of the chat (5.6), and one that ends delegations which nobody works on any more (6.7).

With a period of 15 s and a window of 90 s an agent shows as gone 90-105 s after its last beat. A chore that fails is
logged, the others are done and the next round comes: the loops end only with the platform.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

import anyio
import structlog

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.metrics import Metrics, SweepOutcome
from molecule_runtime.reference_platform.relay import Relay
from molecule_runtime.reference_platform.services.activity import ActivityLog
from molecule_runtime.reference_platform.services.delegation_dispatch import DelegationDispatcher
from molecule_runtime.reference_platform.services.delegations import Delegations, SweptDelegations
from molecule_runtime.reference_platform.services.pending_uploads import PendingUploads, Swept
from molecule_runtime.reference_platform.services.presence import Presence
from molecule_runtime.reference_platform.services.tokens import Tokens

PRUNED_A_ROUND = 10_000
"""Rows of activity deleted between two sweeps: about a second's work."""
UPLOAD_SWEEP_DEADLINE_S = 30.0
"""Seconds that one sweep of files may take (contract 5.6)."""
DELEGATION_SWEEP_DEADLINE_S = 30.0
"""Seconds that one sweep of delegations may take; what it did not come to is there at the next."""

log = structlog.get_logger(__name__)


class Sweeper:
    """Runs its chores every `interval_s` seconds, and the deletion of old activity every `retention_interval_s`."""

    def __init__(
        self,
        presence: Presence,
        tokens: Tokens,
        relay: Relay,
        activity: ActivityLog,
        delegations: Delegations,
        clock: Clock,
        *,
        interval_s: float,
        retention: timedelta,
        retention_interval_s: float,
    ) -> None:
        self._presence = presence
        self._tokens = tokens
        self._relay = relay
        self._activity = activity
        self._delegations = delegations
        self._clock = clock
        self._interval_s = interval_s
        self._retention = retention
        self._retention_interval_s = retention_interval_s
        self._retention_due = clock.monotonic() + retention_interval_s

    async def run(self) -> None:
        """Sweep until cancelled."""
        self._retention_due = self._clock.monotonic() + self._retention_interval_s
        while True:
            await self._clock.sleep(self._interval_s)
            for chore in (self.sweep_once, self._relay.renew, self.retain_if_due):
                await _attempt(chore)

    async def sweep_once(self) -> list[str]:
        """One sweep: the ids of workspaces that it set to awaiting_agent.

        Raises:
            StoreError: the database failed.
        """
        stale = await self._presence.sweep_stale()
        await self._tokens.flush_last_used()
        return stale

    async def retain_if_due(self) -> int:
        """Delete activity that is too old, and what the ledger has from then, when an interval has passed.

        A round deletes a part of very many rows, so that the next sweep is in time, and stays due. The number of rows
        of activity.

        Raises:
            StoreError: the database failed.
        """
        if self._clock.monotonic() < self._retention_due:
            return 0
        older_than = self._clock.now() - self._retention
        deleted = await self._activity.prune(older_than, at_most=PRUNED_A_ROUND)
        if deleted < PRUNED_A_ROUND:
            await self._delegations.prune(older_than)
            self._retention_due = self._clock.monotonic() + self._retention_interval_s
        log.info("activity.pruned", count=deleted)
        return deleted


async def _attempt(chore: Callable[[], Awaitable[object]]) -> None:
    try:
        await chore()
    except Exception:  # the edge of the loop: one bad chore must not end all others
        log.exception("sweeper.failed")


class UploadSweeper:
    """Deletes files that have arrived or expired: at once, then every `interval_s` seconds."""

    def __init__(
        self,
        pending: PendingUploads,
        metrics: Metrics,
        clock: Clock,
        *,
        interval_s: float,
        acked_for: timedelta,
        deadline_s: float = UPLOAD_SWEEP_DEADLINE_S,
    ) -> None:
        self._pending = pending
        self._metrics = metrics
        self._clock = clock
        self._interval_s = interval_s
        self._acked_for = acked_for
        self._deadline_s = deadline_s

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await self._cycle()
            await self._clock.sleep(self._interval_s)

    async def sweep_once(self) -> Swept:
        """Delete all that is due, in portions, each of which is counted when it is done.

        Raises:
            StoreError: the store failed; what was deleted until then stays so.
        """
        done = Swept()
        try:
            while (portion := await self._pending.sweep(self._acked_for)).total:
                self._metrics.uploads_swept(SweepOutcome.ACKED, portion.acked)
                self._metrics.uploads_swept(SweepOutcome.EXPIRED, portion.expired)
                done += portion
        finally:
            if done.total:
                # The words are the contract's (5.6): operators search for them.
                line = f"pendinguploads sweeper: deleted acked={done.acked} expired={done.expired} total={done.total}"
                log.info(line)
        return done

    async def _cycle(self) -> None:
        try:
            # Real time, not the platform's clock: it bounds a database, and no test waits for it to pass.
            with anyio.fail_after(self._deadline_s):
                await self.sweep_once()
        except Exception:  # the edge of the loop: one bad sweep must not end all others
            self._metrics.uploads_swept(SweepOutcome.ERROR)
            log.exception("pendinguploads.sweep_failed")


class DelegationSweeper:
    """Ends delegations that are past their deadline or whose worker fell silent: at once, then every `interval_s`."""

    def __init__(
        self,
        delegations: Delegations,
        dispatcher: DelegationDispatcher,
        clock: Clock,
        *,
        interval_s: float,
        stuck_after: timedelta,
        deadline_s: float = DELEGATION_SWEEP_DEADLINE_S,
    ) -> None:
        self._delegations = delegations
        self._dispatcher = dispatcher
        self._clock = clock
        self._interval_s = interval_s
        self._stuck_after = stuck_after
        self._deadline_s = deadline_s

    async def run(self) -> None:
        """Sweep until cancelled; from the second time on, also begin what a process left uncalled when it died."""
        while True:
            await _attempt(self._in_time)
            await self._clock.sleep(self._interval_s)
            await _attempt(self._dispatcher.pick_up)

    async def sweep_once(self) -> SweptDelegations:
        """One sweep: what it did, by the reason.

        Raises:
            StoreError: the database cannot tell what is due.
        """
        swept = await self._delegations.sweep(self._stuck_after)
        if swept != SweptDelegations():
            log.info(
                "delegations.swept",
                deadline_failures=swept.deadline_failures,
                stuck=swept.stuck,
                errors=swept.errors,
            )
        return swept

    async def _in_time(self) -> None:
        # Real time, not the platform's clock: it bounds a database, and no test waits for it to pass.
        with anyio.fail_after(self._deadline_s):
            await self.sweep_once()
