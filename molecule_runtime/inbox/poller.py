"""The platform's feed into the journal: `GET /workspaces/:id/activity`, page by page, cursor by cursor.

With a cursor rows come oldest first. Without one (first start, or a 410 because rows are pruned after 7 days) a window
of time is read, newest first, paged back until it is complete and turned round (contract 4.3). The journal drops what
it knows, so reading twice is harmless and reading too little is the only mistake.

Pace (agent-side 4): 5 s when idle, 1 s for a minute after traffic, 60 s while the doorbell is up, back-off to 30 s
after failures. A ring means now, and once more a second later if nothing came.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import assert_never

import structlog

from molecule_runtime.client import PlatformClient
from molecule_runtime.clock import Clock, wait_for_event
from molecule_runtime.errors import CursorExpired, MoleculeError, Unavailable, Unreachable, WhyUnreachable, advice
from molecule_runtime.inbox.classify import Echo, Kind, Message, UploadNotice, classify
from molecule_runtime.inbox.journal import Journal
from molecule_runtime.retry import POLL
from molecule_runtime.wire.activity import ActivityRow

PAGE_ROWS = 100
WINDOW_PAGE_ROWS = 500
"""The largest page a platform gives (contract 4.3)."""
WINDOW_MIN_S = 600
WINDOW_MAX_S = 7 * 86_400
WINDOW_MARGIN_S = 60
IDLE_S = 5.0
BUSY_S = 1.0
BUSY_FOR_S = 60.0
RUNG_AGAIN_S = 1.0
DOORBELL_IDLE_S = 60.0
OVERLAP_EVERY_S = 60.0
OVERLAP_MARGIN_S = 60
"""On a platform without `seq` two rows of one instant can hide one behind the cursor: once a minute everything since
the last such look is read again, and this much before it."""
TOO_MUCH = frozenset({WhyUnreachable.TIMEOUT, WhyUnreachable.CUT})
"""Failures after which less is asked for; a platform that is down would teach us to read its backlog row by row."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class InboxHealth:
    """Whether the feed is being read. `last_error` is a sentence, None when the last read went well."""

    last_ok_at: datetime | None = None
    consecutive_failures: int = 0
    last_error: MoleculeError | None = None

    @property
    def sentence(self) -> str | None:
        return str(advice(self.last_error)) if self.last_error is not None else None


class Poller:
    """Reads one workspace's feed until cancelled. `on_messages` hears of every page that brought something new.

    `on_files` is told when a page named files, `on_recovery` when a read went well after others had failed.
    """

    def __init__(
        self,
        client: PlatformClient,
        journal: Journal,
        *,
        clock: Clock,
        on_messages: Callable[[list[Message]], Awaitable[None]],
        on_files: Callable[[], None] = lambda: None,
        on_recovery: Callable[[], Awaitable[None]] | None = None,
        doorbell_is_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._client = client
        self._journal = journal
        self._clock = clock
        self._on_messages = on_messages
        self._on_files = on_files
        self._on_recovery = on_recovery
        self._doorbell_is_up = doorbell_is_up
        self._rung = asyncio.Event()
        self._health = InboxHealth()
        self._page_divisor = 1
        self._busy_until = -math.inf
        self._has_seq = True
        self._overlap_read_at = clock.now()

    def health(self) -> InboxHealth:
        return self._health

    def ring(self) -> None:
        """Poll now. Call in the poller's own event loop."""
        self._rung.set()

    async def run(self) -> None:
        """Poll until cancelled; no failure of network, platform or disk ends it."""
        while True:
            was_rung = self._rung.is_set()
            self._rung.clear()
            try:
                found = await self.poll_once()
            except MoleculeError as error:
                await self._back_off(error)
                continue
            except Exception as bug:
                log.exception("poller.iteration_failed", error=type(bug).__name__)
                await self._pause(POLL.cap_s)
                continue
            self._page_divisor = max(1, self._page_divisor // 2)
            had_failed = self._health.consecutive_failures > 0
            self._health = InboxHealth(last_ok_at=self._clock.now())
            if had_failed and self._on_recovery is not None:
                await self._on_recovery()
            await self._pause(RUNG_AGAIN_S if was_rung and not found else self._idle_s())

    async def poll_once(self) -> int:
        """Read everything there is now into the journal; the number of new messages.

        Raises:
            PlatformError, JournalUnusable: nothing of the failed page was kept and the cursor did not move.
        """
        found = 0
        position = await self._journal.off_loop(self._journal.position)
        cursor = position.cursor
        if cursor is None:
            return await self._read_window()
        while True:
            try:
                limit = max(1, PAGE_ROWS // self._page_divisor)
                rows = await self._client.activity(since_id=cursor, limit=limit)
            except CursorExpired:
                log.info("poller.cursor_expired")
                await self._journal.off_loop(self._journal.forget_cursor)
                return found + await self._read_window()
            found += await self._keep(rows)
            if len(rows) < limit or rows[-1].id == cursor:  # a platform that repeats itself would never end
                break
            cursor = rows[-1].id
        return found if self._has_seq else found + await self._read_overlap()

    async def _read_overlap(self) -> int:
        now = self._clock.now()
        since_s = (now - self._overlap_read_at).total_seconds()
        if 0 <= since_s < OVERLAP_EVERY_S:
            return 0
        seconds = min(math.ceil(max(0.0, since_s)) + OVERLAP_MARGIN_S, WINDOW_MAX_S)
        found = await self._keep(await self._window(seconds), moves_cursor=False)
        self._overlap_read_at = now
        return found

    async def _read_window(self) -> int:
        """A read without a cursor: as far back as something may have been missed, oldest first into the journal."""
        position = await self._journal.off_loop(self._journal.position)
        if position.backlog:
            seconds = WINDOW_MAX_S
        else:
            away = self._clock.now().timestamp() - position.last_row_at if position.last_row_at else 0
            if away < 0:
                away = WINDOW_MAX_S  # the clock was set back: nobody knows how long we were away
            seconds = min(max(math.ceil(away) + WINDOW_MARGIN_S, WINDOW_MIN_S), WINDOW_MAX_S)
        began = self._clock.now().timestamp()
        rows = await self._window(seconds)
        if not rows:
            await self._journal.off_loop(self._journal.note_read, began)
        return await self._keep(rows)

    async def _window(self, seconds: int) -> list[ActivityRow]:
        """All rows of the last `seconds`, oldest first, however many pages they take."""
        newest_first: list[ActivityRow] = []
        known: set[str] = set()
        before: datetime | None = None
        while True:
            limit = max(1, WINDOW_PAGE_ROWS // self._page_divisor)
            page = await self._client.activity(since_secs=seconds, before=before, limit=limit)
            fresh = [row for row in page if row.id not in known]
            newest_first += fresh
            known.update(row.id for row in fresh)
            if len(page) < limit:
                return newest_first[::-1]
            # `before_ts` is exclusive: ask for the oldest instant again, in case more rows share it
            before = page[-1].created_at + timedelta(microseconds=1 if fresh else 0)

    async def _keep(self, rows: list[ActivityRow], *, moves_cursor: bool = True) -> int:
        if not rows:
            return 0
        self._has_seq = all(row.seq is not None for row in rows)
        messages, notices = [], []
        for row in rows:
            what = classify(row, own_id=self._client.workspace_id)
            match what:
                case Message():
                    messages.append(what)
                case UploadNotice():
                    notices.append(what)
                case Echo():
                    pass
                case _:
                    assert_never(what)
        now = self._clock.now().timestamp()
        added = await self._journal.off_loop(
            self._journal.append,
            messages,
            notices=notices,
            cursor=rows[-1].id if moves_cursor else None,
            last_row_at=min(rows[-1].created_at.timestamp(), now),  # by our own clock, should the platform's be ahead
            now=now,
        )
        if notices or any(message.files for message in messages):
            self._on_files()
        if messages or notices:
            self._busy_until = self._clock.monotonic() + BUSY_FOR_S
        new = [message for message in messages if message.activity_id in set(added)]
        if new:
            log.info("poller.messages_received", count=len(new))
            await self._on_messages(new)
        return len(new)

    def _idle_s(self) -> float:
        if self._doorbell_is_up():
            return DOORBELL_IDLE_S
        return BUSY_S if self._clock.monotonic() < self._busy_until else IDLE_S

    async def _back_off(self, error: MoleculeError) -> None:
        """Remember and log a failure (once, not each time), and wait.

        A ring cuts the wait short, because the platform is back; but never a wait that the platform asked for.
        """
        failures = self._health.consecutive_failures + 1
        if isinstance(error, Unreachable) and error.why in TOO_MUCH:  # perhaps the page is too large for the line
            self._page_divisor = min(self._page_divisor * 2, WINDOW_PAGE_ROWS)
        if failures == 1 or type(error) is not type(self._health.last_error):
            log.warning("poller.failed", error=type(error).__name__, detail=str(error))
        self._health = replace(self._health, consecutive_failures=failures, last_error=error)
        asked_s = error.retry_after_s if isinstance(error, Unavailable) else None
        wait_s = POLL.delay(failures, retry_after_s=asked_s)
        if asked_s:
            await self._clock.sleep(wait_s)
        else:
            await self._pause(wait_s)

    async def _pause(self, seconds: float) -> None:
        await wait_for_event(self._rung, seconds, self._clock)


def peers_in(messages: list[Message]) -> set[str]:
    """The ids of the peers that speak in these messages."""
    return {message.peer_id for message in messages if message.kind is Kind.PEER_AGENT}
