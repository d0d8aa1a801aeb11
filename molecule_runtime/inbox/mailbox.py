"""The journal's messages to whoever waits: leases, hand-outs, pops, and the view of a message that an agent sees.

Any process of a workspace may serve from the shared journal; only its inbox owner polls. A session is a process: it
holds a lock file for its whole life, and when that lock is free its leases are offered to the others.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import structlog

from molecule_runtime.clock import Clock, wait_for_event
from molecule_runtime.errors import InvalidArgument, JournalUnusable, LocalStateError, MessageUnknown
from molecule_runtime.inbox.attachments import named, shown_attachments, shown_records
from molecule_runtime.inbox.classify import Kind
from molecule_runtime.inbox.files import FileRecord
from molecule_runtime.inbox.journal import Counts, Entry, Journal
from molecule_runtime.inbox.texts import Texts
from molecule_runtime.peers import PeerDirectory
from molecule_runtime.state import OwnerLock, WorkspaceState

OTHER_PROCESS_CHECK_S = 0.5
"""How soon a wait notices what another process wrote or gave back."""
NAME_WAIT_S = 2.0
"""A message without its sender's name is worth more than one that comes later."""
RECLAIM_EVERY_S = 1.5
"""agent-side 4: a dead session's leases are back within 2 s."""
QUIET_LOOK_EVERY_S = 10.0
"""How often it is looked while nobody waits here and nobody else has a message in hand: an idle hour must cost little,
and nobody could tell the difference."""
MANY_ATTACHMENTS = 20
"""A longer list goes to a file, too: in a host that cuts results only its ends would be seen."""
SENDING_LASTS_S = 7_200.0
"""Longer than any upload of ours: after that a kill has ended it, and what it left is nobody's."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Arrivals:
    """Wakes everyone who waits for a message; the mailboxes of one process share it. For one event loop."""

    def __init__(self) -> None:
        self._next = asyncio.Event()
        self._count = 0

    async def after(self, count: int | None) -> int:
        """How many there have been, as soon as it is not `count` any more; at once for None."""
        while count == self._count:
            await self._next.wait()
        return self._count

    @property
    def next(self) -> asyncio.Event:
        """Set when something arrives from now on. Take it before looking, or an arrival in between is missed."""
        return self._next

    def announce(self) -> None:
        self._count += 1
        self._next.set()
        self._next = asyncio.Event()


class Mailbox:
    """What tools do with messages. `session` names this process in the journal."""

    def __init__(
        self,
        journal: Journal,
        state: WorkspaceState,
        *,
        workspace_id: str,
        clock: Clock,
        directory: PeerDirectory,
        lease_s: float,
        arrivals: Arrivals | None = None,
    ) -> None:
        self._journal = journal
        self._state = state
        self._workspace_id = workspace_id
        self._clock = clock
        self._directory = directory
        self._lease_s = lease_s
        self.texts = Texts(state)
        self._arrivals = arrivals or Arrivals()
        self._waiting = 0
        self._is_waited_for = asyncio.Event()
        self._others_hold = False
        self._answering: set[str] = set()
        self.tasks_taken = asyncio.Event()
        """Set when a delegated job was taken; whoever says that it is worked on clears it."""
        self.session = uuid.uuid4().hex
        self._session_lock = OwnerLock(self._lock_file(self.session))
        self._counts = Counts()

    def open_session(self) -> None:
        """Take this session's lock, offer again what dead sessions had in hand, and clear away what kills left.

        Raises:
            StateDirUnwritable, JournalUnusable
        """
        # A lock file is made before it is locked: the guard keeps others from taking that moment for a death.
        with self._state.guard("sessions") as is_guarded:
            while not self._session_lock.try_acquire():  # without the guard another may be looking at it right now
                self.session = uuid.uuid4().hex
                self._session_lock = OwnerLock(self._lock_file(self.session))
            files = {file.stem for file in self._state.sessions.glob("*.lock")} if is_guarded else set()
            self._release_dead(files | self._journal.lease_holders())
        self._clear_texts()
        self._counts = self._journal.counts(self._now())

    def close_session(self) -> None:
        """Give back what is still in hand and let go of the lock; a kill does the same, only later."""
        try:
            self._journal.release_session(self.session)
        except JournalUnusable as error:
            log.warning("mailbox.release_failed", detail=str(error))
        self._session_lock.release()
        self._discard_lock_file(self.session)

    async def reclaim_forever(self) -> None:
        """Watch for sessions that died with messages in hand, until cancelled."""
        while True:
            await self._clock.sleep(RECLAIM_EVERY_S)
            if not (self._waiting or self._others_hold):
                await wait_for_event(self._is_waited_for, QUIET_LOOK_EVERY_S - RECLAIM_EVERY_S, self._clock)
            await self._look_for_the_dead()

    async def _look_for_the_dead(self) -> None:
        try:
            if await self._journal.off_loop(self._reclaim):
                self.announce()
        except LocalStateError as error:
            log.warning("mailbox.reclaim_failed", detail=str(error))

    def announce(self) -> None:
        """Wake everyone who waits: something was written. Call in the runtime's event loop."""
        self._arrivals.announce()

    def counts(self) -> Counts:
        """How many messages are new, leased, parked; at most seconds old."""
        return self._counts

    async def wait(self, timeout_s: float, *, key: str) -> dict[str, Any] | None:
        """Lease the next message, waiting up to `timeout_s` for one; None when none came.

        `key` names this call for `give_back`, should the caller be gone when the message comes.
        """
        return await wait_for_any([self], timeout_s, key=key, arrivals=self._arrivals, clock=self._clock)

    async def take(self, key: str) -> dict[str, Any] | None:
        """Lease the next message if there is one, without waiting."""
        entry = await self._lease(key)
        if entry is None:
            return None
        await self._know(entry.message.peer_id)
        return self._view(entry)

    async def _know(self, peer_id: str) -> None:
        """Have the name of a peer: whoever read the feed may be another process, or not be through with asking."""
        if peer_id and self._directory.known(peer_id) is None:
            with anyio.move_on_after(NAME_WAIT_S):
                await self._directory.learn({peer_id})

    @asynccontextmanager
    async def attended(self) -> AsyncIterator[None]:
        """Held while somebody waits here: looks for sessions that died, now and often."""
        self._waiting += 1
        self._is_waited_for.set()
        try:
            if self._waiting == 1:
                await self._look_for_the_dead()
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._is_waited_for.clear()

    async def give_back(self, key: str) -> None:
        """A call that was cancelled returns what it leased; nobody saw it, so the attempt does not count."""
        if await self._journal.off_loop(self._journal.give_back, session=self.session, key=key):
            self.announce()
            await self.recount()

    async def peek(self, limit: int) -> list[dict[str, Any]]:
        """What is not handled, oldest first; leases nothing."""
        entries = await self._journal.off_loop(self._look, limit)
        return [self._view(entry) for entry in entries]

    async def take_unpushed(self, limit: int) -> list[dict[str, Any]]:
        """New messages that this process has not pushed to its host yet; they stay open for whoever takes them."""
        entries = await self._journal.off_loop(self._journal.take_unpushed, self.session, limit, now=self._now())
        return [self._view(entry) for entry in entries]

    async def pop(self, activity_id: str) -> bool:
        """Mark a message as handled, whoever holds it; False when it was already, or never was."""
        done = await self._journal.off_loop(self._journal.handle, activity_id, now=self._now())
        self.texts.discard(activity_id)
        await self.recount()
        if done:
            self.announce()
        return done

    async def find(self, activity_id: str) -> Entry:
        """An open message by its id.

        Raises:
            MessageUnknown
        """
        entry = await self._journal.off_loop(self._journal.find, activity_id)
        if entry is None:
            raise MessageUnknown(activity_id=activity_id)
        return entry

    async def brings_a_job(self, activity_id: str) -> bool:
        """Whether an open message is a job that a peer handed out, and waits for the answer of."""
        entry = await self._journal.off_loop(self._journal.find, activity_id)
        return entry is not None and entry.message.kind is Kind.PEER_AGENT and entry.message.delegation_id is not None

    async def attachments(self, activity_id: str) -> list[dict[str, Any]]:
        """A message's files as its view shows them; of a handled message only those that were uploaded for it.

        Raises:
            MessageUnknown: there is no such message, or nothing is known of it any more.
        """
        entry = await self._journal.off_loop(self._journal.find, activity_id)
        if entry is not None:
            return shown_attachments(entry.message.files, entry.files)
        records = await self._journal.off_loop(self._journal.files.of_message, activity_id)
        if not records:
            raise MessageUnknown(activity_id=activity_id)
        return shown_records(records)

    async def files_named(self, activity_id: str, name: str) -> list[FileRecord]:
        """Those of a message's files that were uploaded, or only the ones of this name."""
        entry = await self._journal.off_loop(self._journal.find, activity_id)
        records = await self._journal.off_loop(self._journal.files.of_message, activity_id)
        return named(name, entry.message.files if entry is not None else (), records) if name else records

    @asynccontextmanager
    async def sending(self, files: Sequence[tuple[str, int]]) -> AsyncIterator[list[str]]:
        """Held while files (cleaned name, size in bytes) are uploaded; the caller adds the ids that they are given.

        Some platforms show an upload to its sender as if the user had sent it: such an echo is not fetched, not acked
        and not shown. A journal that fails is no failure of the upload.
        """
        key, now = uuid.uuid4().hex, self._now()
        records = self._journal.files
        try:
            await self._journal.off_loop(records.begin_sending, key, files, now=now, until=now + SENDING_LASTS_S)
        except JournalUnusable as error:
            log.warning("mailbox.sending_not_noted", detail=str(error))
        file_ids: list[str] = []
        try:
            yield file_ids
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    await self._journal.off_loop(records.end_sending, key, file_ids, now=now)
                except JournalUnusable as error:
                    log.warning("mailbox.sending_not_noted", detail=str(error))

    @contextmanager
    def answering(self, activity_id: str) -> Iterator[None]:
        """Held while an answer is sent, so that two calls at once cannot both send one.

        Raises:
            InvalidArgument: an answer to this message is on its way.
        """
        if activity_id in self._answering:
            raise InvalidArgument(argument="activity_id", reason="an answer to this message is being sent already")
        self._answering.add(activity_id)
        try:
            yield
        finally:
            self._answering.discard(activity_id)

    async def _lease(self, key: str) -> Entry | None:
        now = self._now()
        entry = await self._journal.off_loop(
            self._journal.lease, session=self.session, key=key, until=now + self._lease_s, now=now
        )
        if entry is not None:
            if entry.message.kind is Kind.PEER_AGENT and entry.message.delegation_id is not None:
                self.tasks_taken.set()
            await self.recount()
        return entry

    def _now(self) -> float:
        return self._clock.now().timestamp()

    async def recount(self) -> None:
        """Renew the counts. What was done before stands, so a failure here is not the caller's."""
        try:
            self._counts = await self._journal.off_loop(self._journal.counts, self._now())
        except JournalUnusable as error:
            log.debug("mailbox.recount_failed", detail=str(error))

    def is_alive(self, session: str) -> bool:
        """Whether the process of a session exists; one that is stopped does."""
        if session == self.session:
            return True
        file = self._lock_file(session)
        if not file.exists():
            return False
        lock = OwnerLock(file)
        if not lock.try_acquire():
            return True
        lock.release()
        return False

    def _look(self, limit: int) -> list[Entry]:
        try:
            self._reclaim()  # what a dead session had in hand is shown as new, however long ago the last look was
        except LocalStateError as error:
            log.debug("mailbox.reclaim_failed", detail=str(error))
        return self._journal.open_messages(limit)

    def _reclaim(self) -> int:
        """Release the leases of sessions whose lock is free, and count; the number of messages that came back."""
        others = self._journal.lease_holders() - {self.session}
        released = self._release_dead(others)
        self._others_hold = bool(others)
        self._counts = self._journal.counts(self._now())
        return released

    def _release_dead(self, sessions: Iterable[str]) -> int:
        released = 0
        for session in set(sessions) - {self.session}:
            lock = OwnerLock(self._lock_file(session))
            if lock.try_acquire():
                count = self._journal.release_session(session)
                if count:
                    log.info("mailbox.session_gone", count=count)
                released += count
                lock.release()
                self._discard_lock_file(session)
        return released

    def _clear_texts(self) -> None:
        """Remove the texts of messages that were handled: a kill between a pop and its text leaves one behind."""
        files = self.texts.here()  # before the ids: what is written from now on stays
        if files:
            self.texts.discard_all_but(files, self._journal.open_ids() | self._journal.delegations.ids())

    def _discard_lock_file(self, session: str) -> None:
        with suppress(OSError):  # an empty file that stays behind harms nobody
            self._lock_file(session).unlink(missing_ok=True)

    def _lock_file(self, session: str) -> Path:
        return self._state.sessions / f"{session}.lock"

    def _view(self, entry: Entry) -> dict[str, Any]:
        """The message as an agent sees it, the same in every path (agent-side 4)."""
        message = entry.message
        peer = self._directory.known(message.peer_id) if message.peer_id else None
        view: dict[str, Any] = {
            "activity_id": message.activity_id,
            "kind": message.kind.value,
            "workspace_id": self._workspace_id,
            "peer_id": message.peer_id,
            "peer_name": peer.name if peer else None,
            "peer_role": peer.role if peer else None,
            "text": "",
            "attachments": shown_attachments(message.files, entry.files),
            "created_at": message.created_at,
            "attempt": entry.attempt,
            "state": entry.state.value,
            "pushed": entry.pushed_to == self.session,
            "delegation_id": message.delegation_id,
        }
        if message.files_left_out:
            view["attachments_left_out"] = message.files_left_out
        if message.outcome is not None:
            view["outcome"] = message.outcome
        if len(view["attachments"]) > MANY_ATTACHMENTS:  # as they are now, for hosts that cut long results
            listed = json.dumps(view["attachments"], ensure_ascii=False, indent=1) + "\n"
            view["attachments_path"] = self.texts.write(self.texts.list_of(message.activity_id), listed)
        return view | self.texts.shown(message.activity_id, message.text)


async def wait_for_any(
    mailboxes: Sequence[Mailbox], timeout_s: float, *, key: str, arrivals: Arrivals, clock: Clock
) -> dict[str, Any] | None:
    """Lease the next message of the first mailbox that has one, waiting up to `timeout_s`; None when none came.

    `key` names this call for `give_back`, as in `Mailbox.wait`.
    """
    deadline = clock.monotonic() + timeout_s
    async with AsyncExitStack() as attended:
        for mailbox in mailboxes:
            await attended.enter_async_context(mailbox.attended())
        while True:
            arrival = arrivals.next
            for mailbox in mailboxes:
                found = await mailbox.take(key)
                if found is not None:
                    return found
            remaining = deadline - clock.monotonic()
            if remaining <= 0:
                return None
            await wait_for_event(arrival, min(remaining, OTHER_PROCESS_CHECK_S), clock)
