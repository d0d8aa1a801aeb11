"""Who does a job: one process of a workspace beats, one reads the feed, the others stand by.

Two signs tell that an owner is gone. Its lock is free: the process was killed or ended, and whoever waits notices
within `CHECK_S`. Its stamp in the journal is older than `STALE_S`: the process is stopped or hangs and still holds the
lock; then another acts under a higher epoch, without the lock, and the old one steps down when it wakes and finds that
its epoch has passed. Nobody kills anybody (agent-side 4, Owners).

Bounds: take-over within 10 s of a kill, within 90 s of a stop. Without a journal (it cannot be opened) the lock alone
decides.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import anyio
import structlog

from molecule_runtime.clock import Clock
from molecule_runtime.errors import JournalUnusable, LocalStateError, StateDirUnwritable
from molecule_runtime.inbox.journal import Journal
from molecule_runtime.state import OwnerLock

CHECK_S = 2.0
"""How soon a waiting process looks again."""
STAMP_EVERY_S = 15.0
STALE_S = 60.0
"""Four stamps missed: no healthy process is that late, also on a machine that swaps."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Register:
    """The journal in which owners sign, and the name under which this process does."""

    journal: Journal
    session: str
    pid: int
    is_alive: Callable[[str], bool]
    """Whether another session's process exists (stopped ones do)."""


class Ownership:
    """One job of one workspace, as this process sees it. `held` is true while this process does it."""

    def __init__(
        self,
        job: str,
        lock: OwnerLock | None,
        *,
        clock: Clock,
        register: Callable[[], Register | None],
        needs_lock: bool,
    ) -> None:
        """`lock` None: there is no state directory. `needs_lock`: without a usable lock file the job is not begun."""
        self._job = job
        self._lock = lock
        self._clock = clock
        self._register = register
        self._needs_lock = needs_lock
        self._epoch: int | None = None
        self.held = False
        self.lock_error: LocalStateError | None = None
        self.sign_error: JournalUnusable | None = None
        """Why nobody can sign now, such as a process that was stopped in the middle of a write."""

    async def hold(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do `work` whenever it is this process's turn, until cancelled. `work` is cancelled when its turn is over."""
        try:
            while True:
                while not await self._may_begin():
                    await self._clock.sleep(CHECK_S)
                self.held = True
                log.debug("ownership.begun", job=self._job, epoch=self._epoch)
                try:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(work)
                        await self._until_superseded()
                        tasks.cancel_scope.cancel()
                finally:
                    self.held = False
                self._release()
                log.warning("ownership.stepped_down", job=self._job, epoch=self._epoch)
        finally:
            self._release()  # also when cancelled between the lock and the signature

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    async def _may_begin(self) -> bool:
        has_lock = self._try_lock()
        register = self._register()
        if register is None:
            self._epoch = None
            return has_lock
        try:
            epoch = await register.journal.off_loop(self._sign, register, has_lock)
        except JournalUnusable as error:
            self.sign_error = error
            if has_lock or self._needs_lock:
                return has_lock
            # Two beats harm nobody, none at all shows a working agent as gone.
            return await register.journal.off_loop(self._is_stale, register)
        self.sign_error = None
        if epoch is None:
            if has_lock:
                self._release()  # another acts in the place of one that was stopped
            return False
        self._epoch = epoch
        return True

    def _sign(self, register: Register, has_lock: bool) -> int | None:
        """Begin an epoch if the last owner leaves room for it; None otherwise."""
        now = self._clock.now().timestamp()
        last = register.journal.owner(self._job)
        if last is not None and last.session != register.session:
            is_stale = now - last.stamped_at > STALE_S
            is_gone = has_lock and not register.is_alive(last.session)
            if not (is_stale or is_gone):
                return None
        elif not has_lock:
            return None
        return register.journal.begin_epoch(
            self._job, session=register.session, pid=register.pid, now=now, after=last.epoch if last else 0
        )

    def _is_stale(self, register: Register) -> bool:
        """Whether the last owner has not signed for too long, as far as it can be read."""
        try:
            last = register.journal.owner(self._job)
        except JournalUnusable:
            return False
        return last is not None and self._clock.now().timestamp() - last.stamped_at > STALE_S

    async def _until_superseded(self) -> None:
        """Sign again and again; returns when another has signed meanwhile."""
        while True:
            await self._clock.sleep(STAMP_EVERY_S)
            register = self._register()
            if register is None:
                continue
            try:
                if self._epoch is None:
                    self._epoch = await register.journal.off_loop(self._sign, register, True)
                elif not await register.journal.off_loop(self._renew, register, self._epoch):
                    return
                self.sign_error = None
            except JournalUnusable as error:
                self.sign_error = error
                log.debug("ownership.not_signed", job=self._job, detail=str(error))
            self._try_lock()  # it is free when the stopped process it was taken over from has ended

    def _renew(self, register: Register, epoch: int) -> bool:
        return register.journal.renew(
            self._job, session=register.session, epoch=epoch, now=self._clock.now().timestamp()
        )

    def _try_lock(self) -> bool:
        """Whether the lock is ours, or none is needed."""
        if self._lock is None:
            return True
        try:
            taken = self._lock.try_acquire()
        except StateDirUnwritable as error:
            if self.lock_error is None:
                log.warning("ownership.lock_unusable", job=self._job, detail=str(error))
            self.lock_error = error
            return not self._needs_lock
        self.lock_error = None
        return taken
