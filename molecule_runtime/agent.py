"""An agent without MCP: a program of yours that is a member of the team (examples/embed_in_your_agent).

    async with Agent(Settings.from_env(os.environ)) as agent:
        async for message in agent.messages():
            await agent.reply(message, await think(message["text"]))

Presence and inbox run on a thread of their own: the agent stays online while your code blocks its event loop. What they
log goes through structlog, which prints everything until it is told otherwise; `logs.configure` is our way to tell it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from molecule_runtime import messages
from molecule_runtime.delegation import Call, Delegator
from molecule_runtime.inbox.delegations import DelegationRecord
from molecule_runtime.memory import Committed
from molecule_runtime.peers import PeerView
from molecule_runtime.runtime import Runtime, RuntimeThread
from molecule_runtime.settings import Settings
from molecule_runtime.state import StateDir
from molecule_runtime.wire.memories import MemoryRow, MemoryScope

TURN_S = 60.0
"""How long `messages` waits at a time; only how often it looks again, no limit."""
STOP_S = 2.0
"""How long leaving waits for the thread: a worker of SQLite may be in the middle of a transaction."""

Message = Mapping[str, Any]
"""A message as `wait_for_message` gives it (agent-side 4): `activity_id`, `kind`, `text`, `peer_id`, ..."""


class Agent:
    """The settings' workspace, or several: online between entering and leaving `async with`. For asyncio programs.

    Where several are served, an answer goes back where its message came from; what is not an answer names its
    `workspace_id`, or goes to where the last message came from (`Runtime.route`).

    A message that was taken and neither answered nor marked done comes back: to this agent after
    MOLECULE_MCP_LEASE_SECS, to another program of the same workspace as soon as this one has left or died.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread: RuntimeThread | None = None

    async def __aenter__(self) -> Self:
        """Start; registering with the platform is not waited for, and is tried until it succeeds.

        Raises:
            StateDirUnwritable: there is no place for the inbox.
        """
        state_dir = StateDir.open(self._settings.configs_dir, home=Path.home())
        self._thread = RuntimeThread(lambda: Runtime(self._settings, state_dir=state_dir))
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop beating and give back what was taken; nothing is said to the platform."""
        await asyncio.to_thread(self._running.stop, STOP_S)

    async def messages(self) -> AsyncIterator[Message]:
        """Take one message after the other, for ever; through every trouble of the platform, which `status` shows.

        Raises:
            LocalStateError: the inbox cannot be opened.
        """
        while True:
            message = await self._take(TURN_S)
            if message is not None:
                yield message

    async def wait(self, timeout_s: float) -> Message | None:
        """Take the next message, waiting up to `timeout_s` for one; None when none came. Cancelling loses nothing.

        Raises:
            LocalStateError: the inbox cannot be opened.
            MoleculeError: none came, and none can: the platform cannot be read.
        """
        message = await self._take(timeout_s)
        if message is None:
            await self._running.call(_raise_if_deaf)
        return message

    async def reply(self, message: Message, text: str, *, attachments: Sequence[str] = ()) -> None:
        """Answer a message where it came from, the user or a peer, and mark it done.

        `attachments` are absolute paths of files, under MOLECULE_ATTACHMENT_ROOTS; only the user can be sent any.

        Raises:
            MessageUnknown: it is done already; nothing was sent.
            AttachmentRefused, InvalidArgument: a file cannot be sent; nothing was.
            PlatformError, PeerRefused: nothing was sent, or it is not known; the message stays open.
        """
        activity_id = str(message["activity_id"])

        async def send(runtime: Runtime) -> None:
            workspace = await runtime.holder(activity_id)
            files = await workspace.enclosed(attachments)
            await messages.reply(workspace.client, await workspace.mailbox(), activity_id, text, files)

        await self._running.call(send, to_the_end=True)

    async def done(self, message: Message) -> None:
        """Mark a message done without answering it."""
        activity_id = str(message["activity_id"])

        async def pop(runtime: Runtime) -> None:
            await (await (await runtime.holder(activity_id)).mailbox()).pop(activity_id)

        await self._running.call(pop, to_the_end=True)

    async def send_to_user(
        self, text: str, *, attachments: Sequence[str] = (), workspace_id: str | None = None
    ) -> None:
        """Show `text` in the user's chat, unasked; `attachments` as in `reply`.

        Raises:
            AttachmentRefused, InvalidArgument: a file cannot be sent; nothing was.
            PlatformError
        """

        async def send(runtime: Runtime) -> None:
            workspace = runtime.route(workspace_id)
            await messages.send_to_user(workspace.client, text, await workspace.enclosed(attachments))

        await self._running.call(send, to_the_end=True)

    async def send_to_peer(self, peer_id: str, text: str, *, workspace_id: str | None = None) -> str | None:
        """Put `text` into a peer's inbox; its answer, if it gives one, is a later message with its `peer_id`.

        Returns the answer of a peer that gave it at once, as one that does not poll may; None otherwise.

        Raises:
            PlatformError, PeerRefused
        """

        async def send(runtime: Runtime) -> str | None:
            client = runtime.route(workspace_id).client
            answer = await messages.send_to_peer(client, peer_id, text)
            await messages.report_sent(client, peer_id, text, answer=answer)
            return answer

        return await self._running.call(send, to_the_end=True)

    async def delegate(
        self, peer: str, task: str, *, timeout_s: float = 45.0, workspace_id: str | None = None
    ) -> DelegationRecord:
        """Hand a job to a peer, named by id or name, and wait up to `timeout_s` for its result.

        A record whose `status` is not final is a handle: the result comes as a message of kind "delegation_result" with
        the same `delegation_id`, also after a restart, and `task` asks for it. The same words once more are a new job.
        When this raises or is cancelled, they are not: the job is not handed out twice.

        Raises:
            InvalidArgument: nobody is meant, or several, or the task is too long; nothing was sent.
            PlatformError: it was not handed out, or it is not known.
            LocalStateError: there is no journal to remember it in.
        """
        call, delegators = Call(), list[Delegator]()

        async def hand_over(runtime: Runtime) -> DelegationRecord:
            *_, record = await runtime.delegate(peer, task, timeout_s, workspace_id, call, delegators.append)
            return record

        async def take_back(_: Runtime) -> None:
            for delegator in delegators:
                await delegator.take_back(call)

        try:
            return await self._running.call(hand_over)
        except asyncio.CancelledError:
            self._running.cast(take_back)
            raise

    async def task(self, task_id: str, *, workspace_id: str | None = None) -> DelegationRecord:
        """A job that was handed out, by its `delegation_id`, as it stands now.

        Raises:
            TaskUnknown: nobody knows of it.
            PlatformError, LocalStateError
        """

        async def look(runtime: Runtime) -> DelegationRecord:
            _, record = await runtime.task(task_id, workspace_id)
            return record

        return await self._running.call(look)

    async def tasks(self, limit: int = 10, *, workspace_id: str | None = None) -> list[DelegationRecord]:
        """The newest jobs that were handed out from here, newest first."""

        async def look(runtime: Runtime) -> list[DelegationRecord]:
            found, _ = await runtime.tasks(limit, workspace_id)
            return [record for _, record in found]

        return await self._running.call(look)

    async def remember(
        self, content: str, scope: MemoryScope = MemoryScope.LOCAL, *, workspace_id: str | None = None
    ) -> Committed:
        """Commit a memory; one whose `is_stored` is False waits here and is stored, once, when the platform is back.

        Raises:
            InvalidArgument: it is blank or too long.
            PlatformError: the platform does not take it.
            LocalStateError: it cannot be kept here, and nothing was sent.
        """

        async def commit(runtime: Runtime) -> Committed:
            return await (await runtime.route(workspace_id).memories()).commit(content, scope)

        return await self._running.call(commit, to_the_end=True)

    async def recall(
        self, query: str = "", scope: MemoryScope | None = None, *, limit: int = 10, workspace_id: str | None = None
    ) -> list[MemoryRow]:
        """Memories of a scope, or all that may be read: best first for a query, else newest first.

        Raises:
            PlatformError
        """

        async def look(runtime: Runtime) -> list[MemoryRow]:
            return await (await runtime.route(workspace_id).memories()).recall(query, scope, limit)

        return await self._running.call(look)

    async def forget(self, memory_id: str, *, workspace_id: str | None = None) -> None:
        """Delete a memory that this agent committed, for good.

        Raises:
            MemoryUnknown: there is none of this id, or it is another's.
            PlatformError, LocalStateError
        """
        await self._running.call(lambda runtime: runtime.forget_memory(memory_id, workspace_id), to_the_end=True)

    async def peers(self, query: str = "", *, workspace_id: str | None = None) -> list[PeerView]:
        """The other members of the team whose name or role holds `query`.

        Raises:
            PlatformError
        """

        async def look(runtime: Runtime) -> list[PeerView]:
            return await runtime.route(workspace_id).directory.list(query)

        return await self._running.call(look)

    async def status(self) -> dict[str, Any]:
        """Presence, inbox counts and problems with their fixes, as the tool `runtime_status` shows them."""
        return await self._running.call(lambda runtime: runtime.snapshot())

    @property
    def _running(self) -> RuntimeThread:
        if self._thread is None:
            raise RuntimeError("use `async with Agent(...)`")
        return self._thread

    async def _take(self, timeout_s: float) -> Message | None:
        key = uuid.uuid4().hex
        try:
            return await self._running.call(lambda runtime: runtime.wait_for_message(None, timeout_s, key=key))
        except asyncio.CancelledError:
            self._running.cast(lambda runtime: runtime.give_back(key))
            raise


async def _raise_if_deaf(runtime: Runtime) -> None:
    """A quiet inbox and one that nothing can reach are two different things."""
    troubles = runtime.feed_troubles(None)
    if len(troubles) == len(runtime.workspaces):
        raise troubles[0][1]
