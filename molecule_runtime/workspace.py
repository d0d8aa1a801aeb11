"""One workspace wired together: client, presence, doorbell, poller, mailbox, and the locks that say who does what.

Presence and inbox are two jobs with a lock each; a process does a job only while it holds that job's lock, and waits
for it otherwise, serving tools from the shared journal meanwhile (agent-side 4, Owners). A state directory that cannot
be used takes the inbox away, never the presence: the canvas must show an agent that is there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import anyio
import httpx
import structlog

from molecule_runtime.attachments import AttachmentPolicy
from molecule_runtime.cards import AgentCard, card_from_settings
from molecule_runtime.client import PlatformClient
from molecule_runtime.clock import Clock, wait_for_event
from molecule_runtime.credentials import Credentials
from molecule_runtime.delegation import Delegator
from molecule_runtime.doorbell import Doorbell
from molecule_runtime.errors import (
    InvalidArgument,
    JournalUnusable,
    LocalStateError,
    MoleculeError,
    Problem,
    advice,
)
from molecule_runtime.inbox.classify import Message
from molecule_runtime.inbox.journal import HELD_FOR_FILES_S, Journal
from molecule_runtime.inbox.mailbox import Arrivals, Mailbox
from molecule_runtime.inbox.poller import Poller, peers_in
from molecule_runtime.inbox.uploads import Uploads
from molecule_runtime.memory import Memories
from molecule_runtime.messages import Enclosed
from molecule_runtime.ownership import STALE_S, Ownership, Register
from molecule_runtime.peers import PeerDirectory
from molecule_runtime.presence import Presence, PresenceSnapshot, PresenceState
from molecule_runtime.settings import Settings, WorkspaceSettings
from molecule_runtime.state import WorkspaceState
from molecule_runtime.text import cut_code_points
from molecule_runtime.upload_body import UploadProgress
from molecule_runtime.wire._base import rfc3339

JOURNAL_WAIT_S = 2.0
"""How long the first beat waits for the journal to be open: the canvas must see the agent within 4 s of its start."""
JOURNAL_RETRY_S = 30.0
NAMES_CODE_POINTS = 500

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Roles:
    """Which jobs this process may do: the bare module reads the inbox and never beats (requirements R1)."""

    beats: bool = True
    reads_inbox: bool = True


class Workspace:
    """Everything this process does for one workspace. Made in the event loop that runs it."""

    def __init__(
        self,
        told: WorkspaceSettings,
        settings: Settings,
        *,
        state: WorkspaceState | None,
        clock: Clock,
        roles: Roles,
        arrivals: Arrivals | None = None,
        memory_changes: Arrivals | None = None,
        state_problem: LocalStateError | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.told = told
        self.settings = settings
        self.id = told.id
        self.name = settings.agent_name or told.default_agent_name
        self._arrivals = arrivals or Arrivals()
        self._memory_changes = memory_changes or Arrivals()
        self._state = state
        self._clock = clock
        self._roles = roles
        self._inbox_error: LocalStateError | None = state_problem if state is None else None
        self._state_fallback = state_problem if state is not None else None
        self._journal: Journal | None = None
        self._mailbox: Mailbox | None = None
        self._poller: Poller | None = None
        self._uploads: Uploads | None = None
        self._delegator: Delegator | None = None
        self._memories: Memories | None = None
        self._inbox_tried = asyncio.Event()
        # Two beats harm nobody, two readers of the feed would: only the inbox insists on its lock file.
        self._beat = self._ownership("beat", needs_lock=False)
        self._inbox = self._ownership("inbox", needs_lock=True)
        credentials = Credentials(told, state)
        self.client = PlatformClient(
            told.platform_url, told.id, credentials, org_id=settings.org_id, transport=transport
        )
        default = card_from_settings(self.name, description=settings.agent_description, skills=settings.agent_skills)
        self.card = AgentCard(default, state)
        self.directory = PeerDirectory(self.client, clock=clock)
        self.presence = Presence(
            self.client,
            clock=clock,
            credentials=credentials,
            agent_card=self.card.current,
            load=self._tasks_in_hand,
            interval_s=settings.heartbeat_secs,
            keep_secret=self._keep_inbound_secret,
            on_snapshot=self._share_presence,
        )
        self._stamps: asyncio.Queue[PresenceSnapshot] = asyncio.Queue(maxsize=1)

    def _ownership(self, job: str, *, needs_lock: bool) -> Ownership:
        lock = self._state.owner_lock(job) if self._state is not None else None
        return Ownership(job, lock, clock=self._clock, register=self._register, needs_lock=needs_lock)

    async def run(self) -> None:
        """Do this process's jobs until cancelled."""
        with structlog.contextvars.bound_contextvars(workspace_id=self.id):
            async with self.client, anyio.create_task_group() as tasks:
                if self._roles.beats:
                    tasks.start_soon(self._own, self._beat, self.presence.run)
                    tasks.start_soon(self._stamp_presence)
                tasks.start_soon(self._keep_inbox)

    async def mailbox(self) -> Mailbox:
        """The inbox, once it is open.

        Raises:
            LocalStateError: it cannot be opened; presence goes on without it.
        """
        if not self._roles.reads_inbox:
            raise JournalUnusable(path="inbox", reason="it is switched off by the settings")
        await self._inbox_tried.wait()
        if self._mailbox is None:
            raise self._inbox_error or JournalUnusable(path="inbox", reason="it is not open yet")
        return self._mailbox

    async def delegator(self) -> Delegator:
        """What hands out jobs, once the journal that remembers them is open.

        Raises:
            LocalStateError: it cannot be opened; a job could be handed out twice without it.
        """
        await self._inbox_tried.wait()
        if self._delegator is None:
            raise self._inbox_error or JournalUnusable(path="inbox", reason="it is not open yet")
        return self._delegator

    async def memories(self) -> Memories:
        """What keeps memories, once the journal is open in which they wait for the platform.

        Raises:
            LocalStateError: it cannot be opened.
        """
        await self._inbox_tried.wait()
        if self._memories is None:
            raise self._inbox_error or JournalUnusable(path="inbox", reason="it is not open yet")
        return self._memories

    @property
    def reads_inbox(self) -> bool:
        """Whether messages come here at all."""
        return self._roles.reads_inbox

    def feed_error(self) -> MoleculeError | None:
        """Why no new message can come in now; None while the feed is read (by this process or another)."""
        if self._inbox.held and self._poller is not None and self._poller.health().last_error is not None:
            return self._poller.health().last_error
        return self._inbox.lock_error or (self.presence.failure() if self._beat.held else None)

    def waiting(self) -> int:
        """Messages that nobody has been handed yet."""
        if self._mailbox is None:
            return 0
        counts = self._mailbox.counts()
        return counts.new - counts.held

    async def take_unpushed(self, limit: int) -> list[dict[str, Any]]:
        """New messages to push; none unless this process reads the feed (agent-side 4: only the inbox owner pushes)."""
        if not self._inbox.held or self._mailbox is None:
            return []
        return await self._mailbox.take_unpushed(limit)

    async def enclosed(self, paths: Sequence[str], progress: UploadProgress | None = None) -> Enclosed | None:
        """Files that go with a message of this workspace, by the rules for what an agent may send; None for none."""
        if not paths:
            return None
        try:
            echoes = await self.mailbox()
        except LocalStateError:  # without an inbox nothing comes back into it
            echoes = None
        policy = AttachmentPolicy.for_agent(self.settings, self._state)
        return Enclosed(paths, policy, progress or UploadProgress(), echoes)

    async def fetch_attachments(self, activity_id: str, name: str, *, within_s: float) -> list[dict[str, Any]]:
        """Try those of a message's files that are not here, or the one of this name, at once; all of them as they are
        then.

        Raises:
            LocalStateError: the inbox cannot be opened or written.
            MessageUnknown: nothing is known of such a message.
            InvalidArgument: it has no file of this name.
        """
        mailbox = await self.mailbox()
        shown = await mailbox.attachments(activity_id)
        if self._uploads is None:
            raise JournalUnusable(path="inbox", reason="it is not open yet")
        chosen = await mailbox.files_named(activity_id, name)
        if name and not chosen:
            names = cut_code_points(", ".join(str(one["name"]) for one in shown), NAMES_CODE_POINTS)
            raise InvalidArgument(argument="name", reason=f"no uploaded file of it has this name; it has: {names}")
        await self._uploads.fetch_now(chosen, within_s=within_s)
        return await mailbox.attachments(activity_id)

    def absent_state(self) -> str | None:
        """The presence state while this process beats and the platform does not hear it; None when all is well."""
        snapshot = self.presence.snapshot()
        if not self._roles.beats or not self._beat.held or snapshot.state is PresenceState.ONLINE:
            return None
        return snapshot.state.value

    async def snapshot(self) -> dict[str, Any]:
        """The facts of `runtime_status` for this workspace (agent-side 5)."""
        presence, beat_pid = await self._presence_facts()
        counts = self._mailbox.counts() if self._mailbox is not None else None
        return {
            "id": self.id,
            "name": self.name,
            "platform_url": self.told.platform_url,
            "presence": presence,
            "inbox": {
                "new": counts.new if counts else 0,
                "leased": counts.leased if counts else 0,
                "parked": counts.parked if counts else 0,
                "files_pending": counts.files_pending if counts else 0,
            },
            "owner": {"beat": self._beat.held, "inbox": self._inbox.held, "pid": beat_pid},
        }

    def problems(self) -> list[Problem]:
        """What is wrong now, each with its fix."""
        found = []
        if self._state_fallback is not None:
            said = advice(self._state_fallback)
            used = self._state.path.parent if self._state is not None else "none"
            found.append(Problem("state.fallback", f"{said.what} {used} is used instead.", said.next))
        for job, ownership in (("beat", self._beat), ("inbox", self._inbox)):
            if ownership.lock_error is not None:
                found.append(_problem(f"state.{job}_lock", ownership.lock_error))
            if ownership.sign_error is not None:
                found.append(
                    Problem(
                        f"state.{job}_unsigned",
                        f"Which process does the {job} cannot be written down: {ownership.sign_error.reason}.",
                        "If a process of this workspace is stopped (Ctrl-Z, a debugger), let it go on or end it.",
                    )
                )
        if self._inbox_error is not None:
            found.append(_problem("inbox.unusable", self._inbox_error))
        if self._journal is not None and self._journal.moved_aside is not None:
            found.append(
                Problem(
                    "inbox.damaged",
                    f"The inbox file was damaged; it was moved to {self._journal.moved_aside}"
                    " and the backlog was fetched again.",
                    "Check the disk. Some messages may be offered a second time.",
                )
            )
        if self._memories is not None and self._memories.waiting:
            found.append(
                Problem(
                    "memory.waiting",
                    f"Not stored on the platform yet, and kept here until then: {len(self._memories.waiting)} of the"
                    " memories committed here.",
                    "Nothing is lost: they are stored, once, when the platform takes them.",
                )
            )
        for memory in self._memories.refused if self._memories is not None else ():
            found.append(
                Problem(
                    "memory.refused",
                    f"The memory {memory.memory_id}, kept while the platform was away, is not taken: {memory.refused}",
                    "Call forget_memory with this id, and commit it again in another form if it is still wanted.",
                )
            )
        unheard = self.presence.failure() if self._beat.held else None
        if unheard is not None:
            found.append(_problem(f"presence.{self.presence.snapshot().state.value}", unheard))
        feed = self._poller.health().last_error if self._poller is not None and self._inbox.held else None
        if feed is not None:
            found.append(_problem("inbox.feed", feed))
        return found

    # jobs

    async def _own(self, job: Ownership, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        await wait_for_event(self._inbox_tried, JOURNAL_WAIT_S, self._clock)
        await job.hold(work)

    def _register(self) -> Register | None:
        """Where owners sign, once the journal is open."""
        if self._journal is None or self._mailbox is None:
            return None
        return Register(self._journal, self._mailbox.session, os.getpid(), self._mailbox.is_alive)

    async def _keep_inbox(self) -> None:
        """Open the journal, now or as soon as it can be opened, and run the inbox on it."""
        while True:
            journal = await self._open_journal()
            if journal is not None:
                break
            await self._clock.sleep(JOURNAL_RETRY_S)
        try:
            await self._run_inbox(journal)
        finally:
            journal.close()

    async def _open_journal(self) -> Journal | None:
        try:
            if self._state is None:
                return None
            journal, mailbox = await anyio.to_thread.run_sync(self._open_mailbox, self._state)
        except LocalStateError as error:
            if self._inbox_error is None:
                log.warning("workspace.inbox_unusable", error=type(error).__name__, detail=str(error))
            self._inbox_error = error
            return None
        else:
            self._journal, self._mailbox, self._inbox_error = journal, mailbox, None
            self._delegator = Delegator(self.client, journal, mailbox, clock=self._clock, arrivals=self._arrivals)
            self._memories = Memories(self.client, journal, clock=self._clock, on_change=self._memory_changes.announce)
            return journal
        finally:
            self._inbox_tried.set()

    def _open_mailbox(self, state: WorkspaceState) -> tuple[Journal, Mailbox]:
        journal = Journal.open(state.journal)
        try:
            mailbox = Mailbox(
                journal,
                state,
                workspace_id=self.id,
                clock=self._clock,
                directory=self.directory,
                lease_s=self.settings.lease_secs,
                arrivals=self._arrivals,
            )
            mailbox.open_session()
        except BaseException:
            journal.close()
            raise
        return journal, mailbox

    async def _run_inbox(self, journal: Journal) -> None:
        mailbox, delegator, memories = self._mailbox, self._delegator, self._memories
        assert mailbox is not None
        assert delegator is not None
        assert memories is not None
        assert self._state is not None
        self._uploads = Uploads(
            self.client,
            journal,
            self._state.files,
            clock=self._clock,
            quota_bytes=int(self.settings.files_quota_mb * 1_000_000),
            on_change=lambda: self._file_changed(mailbox),
        )
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(mailbox.reclaim_forever)
                tasks.start_soon(delegator.beat_forever)
                tasks.start_soon(memories.send_forever)
                if self._roles.reads_inbox:
                    tasks.start_soon(self._own, self._inbox, lambda: self._poll(journal, mailbox))
        finally:
            mailbox.close_session()

    async def _poll(self, journal: Journal, mailbox: Mailbox) -> None:
        uploads, delegator = self._uploads, self._delegator
        assert uploads is not None
        assert delegator is not None

        async def recovered() -> None:
            await uploads.hasten()
            await delegator.report_merged()
            if self._memories is not None:
                self._memories.kick()

        async def arrived(messages: list[Message]) -> None:
            peers = peers_in(messages)
            if peers:
                await self.directory.learn(peers)
            await mailbox.recount()
            mailbox.announce()
            if any(message.files for message in messages):
                tasks.start_soon(held_no_longer)
            if any(message.delegation_id is not None for message in messages):
                tasks.start_soon(delegator.report_merged)

        async def held_no_longer() -> None:
            await self._clock.sleep(HELD_FOR_FILES_S)
            await self._file_changed(mailbox)

        poller = Poller(
            self.client,
            journal,
            clock=self._clock,
            on_messages=arrived,
            on_files=uploads.kick,
            on_recovery=recovered,
            doorbell_is_up=lambda: doorbell.is_up,
        )
        doorbell = Doorbell(self.client, poller.ring, clock=self._clock)
        self._poller = poller
        mailbox.announce()  # what the process before this one left is ours to push now
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(doorbell.run)
            tasks.start_soon(poller.run)
            tasks.start_soon(uploads.run)
            tasks.start_soon(delegator.report_merged)  # what the process before this one did not
            tasks.start_soon(held_no_longer)  # for what the process before this one held

    async def _file_changed(self, mailbox: Mailbox) -> None:
        await mailbox.recount()
        mailbox.announce()

    # facts

    def _tasks_in_hand(self) -> int:
        return self._mailbox.counts().leased if self._mailbox is not None else 0

    def _keep_inbound_secret(self, secret: str) -> None:
        """Stored because a later push mode needs it; a poll agent never sends it (contract 1.2)."""
        if self._state is None:
            return
        file = self._state.inbound_secret_file
        try:
            if not file.exists() or file.read_text(encoding="utf-8").strip() != secret:
                self._state.write_private(file, secret + "\n")
        except (LocalStateError, OSError) as error:
            log.debug("workspace.secret_not_saved", error=type(error).__name__)

    def _share_presence(self, snapshot: PresenceSnapshot) -> None:
        """Leave the newest snapshot for the stamping task; presence itself never waits for a disk."""
        if self._stamps.full():
            self._stamps.get_nowait()
        self._stamps.put_nowait(snapshot)

    async def _stamp_presence(self) -> None:
        """Write each snapshot into the journal, where the other processes of this workspace read it."""
        while True:
            snapshot = await self._stamps.get()
            if self._journal is None or self._mailbox is None:
                continue
            try:
                await self._journal.off_loop(
                    self._journal.describe, "beat", session=self._mailbox.session, detail=_presence_json(snapshot)
                )
            except JournalUnusable as error:
                log.debug("workspace.stamp_failed", detail=str(error))

    async def _presence_facts(self) -> tuple[dict[str, Any], int | None]:
        """Presence as the process that beats knows it, and that process's id."""
        if self._beat.held or self._journal is None:
            return _presence_json(self.presence.snapshot()), os.getpid() if self._beat.held else None
        try:
            owner = await self._journal.off_loop(self._journal.owner, "beat")
        except JournalUnusable:
            owner = None
        own = _presence_json(self.presence.snapshot())
        if owner is None or self._mailbox is None:
            return own, None
        told = own | owner.detail
        is_fresh = self._clock.now().timestamp() - owner.stamped_at <= STALE_S
        if is_fresh and await self._journal.off_loop(self._mailbox.is_alive, owner.session):
            return told, owner.pid
        since = rfc3339(datetime.fromtimestamp(owner.stamped_at, UTC))
        return told | {"state": PresenceState.STOPPED.value, "since": since}, None


def _presence_json(snapshot: PresenceSnapshot) -> dict[str, Any]:
    return {
        "state": snapshot.state.value,
        "since": rfc3339(snapshot.since),
        "last_ok_at": rfc3339(snapshot.last_ok_at) if snapshot.last_ok_at else None,
        "last_error": snapshot.last_error,
    }


def _problem(id: str, error: MoleculeError) -> Problem:
    said = advice(error)
    return Problem(id, said.what, said.next)
